"""What crosses Redis between our processes: one struct per arrow, msgpack as arrays, sealed where it could cost money.

    Job     API node  -> worker      in arq's job format, sealed
    Chunk   worker    -> API node    in the request's log and on its channel
    Finish  worker    -> settlement  in the model's settlement queue, sealed

Every struct starts with the version of the inner wire. A seal is a 16-byte keyed BLAKE2b (RFC 7693) behind the payload;
bytes without a valid seal raise SealInvalid and are never decoded.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from shared.errors import SealInvalid
from shared.pricing import Prices

VERSION: Final = 1
SEAL_BYTES: Final = 16

Lane = Literal["interactive", "batch"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Status = Literal["completed", "cancelled", "failed"]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One turn of a conversation, its content already joined to plain text."""

    role: str
    content: str
    name: str | None = None


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How to choose tokens. `max_tokens` None: as many as context, model default and hold allow."""

    temperature: float = 1.0  # [0, 2]
    top_p: float = 1.0  # (0, 1]
    seed: int | None = None
    stop: tuple[str, ...] = ()  # at most 4 strings of 1 to 64 characters
    max_tokens: int | None = None  # >= 1
    choices: int = 1


class Job(msgspec.Struct, frozen=True, array_like=True):
    """One request on its way to a worker. Times are Unix milliseconds, money nanocredits."""

    version: int
    request_id: str
    account_id: str
    key_id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    prices: Prices  # in force at admission
    hold: int  # the answer may never cost more
    default_max_tokens: int
    reader: str  # node id of the API node that relays the answer
    resumable: bool
    lane: Lane
    weight: int  # of the account in fair queueing, >= 1
    cost_tokens: int  # prompt bound + max_tokens: the fair-queueing cost
    reserved_ms: int
    queue_deadline_ms: int
    deadline_ms: int


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one answer: cached <= prompt; completion = ids in the log."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class End(msgspec.Struct, frozen=True, array_like=True):
    """How a request ended; `code` and `message` (for a person) only where it did not complete."""

    status: Status
    usage: Usage
    code: str | None = None
    message: str | None = None
    retry_after_seconds: int | None = None


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One position of a request's log. The last one carries `end`, possibly with the last token in it.

    `token_ids` are logged in the step that makes them, with empty text while text is held back.
    """

    version: int
    request_id: str
    attempt: int
    seq: int  # from 1, over all choices
    choice: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None  # on the first chunk of an attempt
    cached_tokens: int | None = None
    end: End | None = None


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """The settlement record: all that is needed to charge one request, whatever else is lost.

    Durations are milliseconds: in the queue, to the first token and to the end, each from the reservation.
    """

    version: int
    request_id: str
    account_id: str
    key_id: str
    model: str
    status: Status
    code: str | None  # why it did not complete
    finish_reason: FinishReason | None
    usage: Usage
    prefill_began: bool
    attempts: int
    queue_ms: int
    ttft_ms: int | None
    latency_ms: int
    finished_ms: int  # Unix milliseconds


class Seal:
    """Signs and checks bytes with the wire key; the previous key is still accepted, so that keys can be rotated."""

    def __init__(self, key: bytes, previous: bytes | None = None) -> None:
        self._key = key
        self._keys: Sequence[bytes] = (key,) if previous is None else (key, previous)

    def close(self, payload: bytes) -> bytes:
        """Return `payload` with its seal behind it."""
        return payload + hashlib.blake2b(payload, digest_size=SEAL_BYTES, key=self._key).digest()

    def open(self, sealed: bytes) -> bytes:
        """Return the payload of `sealed`, or raise SealInvalid."""
        payload, seal = sealed[:-SEAL_BYTES], sealed[-SEAL_BYTES:]
        for key in self._keys:
            expected = hashlib.blake2b(payload, digest_size=SEAL_BYTES, key=key).digest()
            if hmac.compare_digest(seal, expected):
                return payload
        raise SealInvalid


encode: Final = msgspec.msgpack.Encoder().encode
decode_job: Final = msgspec.msgpack.Decoder(Job).decode
decode_chunk: Final = msgspec.msgpack.Decoder(Chunk).decode
decode_finish: Final = msgspec.msgpack.Decoder(Finish).decode
decode_any: Final = msgspec.msgpack.Decoder(Any).decode
