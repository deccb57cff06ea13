"""A job as it lies in Redis: arq's own format, written by msgpack instead of pickle, with our seal behind it."""

import time
from typing import Any, Final, cast

import msgspec
from arq.jobs import DeserializationError, deserialize_job_raw, serialize_job

from shared.errors import SealInvalid
from shared.wire import VERSION, Job, Seal, decode_any, decode_job, encode

FUNCTION: Final = "complete"  # the one function that our workers run


class JobFormat:
    """Writes and reads sealed jobs."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def write(self, job: Job) -> bytes:
        """Return the sealed bytes of a job."""
        enqueue_ms = time.time_ns() // 1_000_000
        return serialize_job(FUNCTION, (encode(job),), {}, None, enqueue_ms, serializer=self.serialize)

    def read(self, sealed: bytes, *, model: str, request_id: str) -> Job:
        """Return the job of `sealed`; SealInvalid where it is not ours, not readable, or another request's."""
        try:
            function, arguments, _, _, _ = deserialize_job_raw(sealed, deserializer=self.deserialize)
            job = decode_job(arguments[0])
        except (DeserializationError, msgspec.MsgspecError, IndexError, TypeError) as error:
            raise SealInvalid("the job carries no valid seal or cannot be read") from error
        if function != FUNCTION or job.version != VERSION:
            raise SealInvalid("the job is of another version")
        if job.model != model or job.request_id != request_id:
            raise SealInvalid("the job belongs to another request")
        return job

    def serialize(self, data: dict[str, Any]) -> bytes:
        """Return arq's job data as sealed msgpack."""
        return self._seal.close(encode(data))

    def deserialize(self, sealed: bytes) -> dict[str, Any]:
        """Return arq's job data, or raise SealInvalid."""
        return cast("dict[str, Any]", decode_any(self._seal.open(sealed)))
