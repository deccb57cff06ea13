"""A claim: one job in the hands of one owner, until it is finished, released or lost.

Rows of claim.lua and reap.lua become claims here. A job that does not carry our seal is discarded and never run.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from shared import keys, log
from shared.connections import Redis
from shared.errors import SealInvalid
from shared.queue.job_format import JobFormat
from shared.queue.scripts import Script, milliseconds, script_keys
from shared.settings import QueueSettings
from shared.wire import VERSION, Chunk, End, Job, Seal, Usage, encode

FENCE_LOST: Final = "fence_lost"  # another owner holds the request, or Redis is out of reach: write nothing more
HANDED_OVER: Final = "handed_over"  # the worker drains: stop, the next owner continues

_DISCARD: Final = Script("discard")

logger = log.get_logger("queue")


class CancelToken:
    """Why a running claim should stop; None while it should not. Testing `code` costs an attribute."""

    __slots__ = ("_callbacks", "code")

    def __init__(self) -> None:
        self.code: str | None = None
        self._callbacks: list[Callable[[str], object]] = []

    def set(self, code: str) -> None:
        """Ask for the stop; the first code wins."""
        if self.code is not None:
            return
        self.code = code
        for callback in self._callbacks:
            callback(code)

    def on_cancel(self, callback: Callable[[str], object]) -> None:
        """Call `callback(code)` once, at once where the stop was already asked for."""
        if self.code is not None:
            callback(self.code)
        else:
            self._callbacks.append(callback)

    def forget(self) -> None:
        """Call nobody any more: the run has ended, and its callbacks would hold it in a cycle of references."""
        self._callbacks.clear()


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What `run` gets. Where `close` is set the request must be ended by that code and never run."""

    job: Job
    owner: str
    attempt: int  # with `owner` the fence; from 1
    seq: int  # last position in the log
    deaths: int  # of workers that held it
    first_claim_ms: int
    run_deadline_ms: int
    close: str | None
    first_token_ms: int | None  # when an earlier attempt logged the first token
    cancel: CancelToken


class ClaimReader:
    """Opens the rows of the scripts; one per owner."""

    def __init__(self, redis: Redis, seal: Seal, settings: QueueSettings, owner: str) -> None:
        self._redis = redis
        self._format = JobFormat(seal)
        self._settings = settings
        self._owner = owner
        self.forged = 0  # jobs that were discarded

    async def read(self, model: str, rows: Sequence[Sequence[Any]]) -> list[Claim]:
        """Return the claims of `rows`, without those that are forged."""
        claims = []
        for row in rows:
            try:
                job = self._format.read(row[1], model=model, request_id=row[0].decode())
            except SealInvalid as error:
                await self._discard(model, row, error.message)
                continue
            claims.append(
                Claim(
                    job=job,
                    owner=self._owner,
                    attempt=row[2],
                    seq=row[3],
                    deaths=row[4],
                    first_claim_ms=row[5],
                    run_deadline_ms=row[6],
                    close=row[7].decode() or None,
                    first_token_ms=row[8] or None,
                    cancel=CancelToken(),
                )
            )
        return claims

    async def _discard(self, model: str, row: Sequence[Any], reason: str) -> None:
        request_id, sealed, attempt, seq = row[0].decode(), row[1], row[2], row[3] + 1
        self.forged += 1
        logger.error("job_forged", model=model, request_id=request_id, reason=reason)
        end = End("failed", Usage(), "engine_error", "The request could not be read by a worker.")
        chunk = encode(Chunk(VERSION, request_id, attempt, seq, 0, "", (), end=end))
        await _DISCARD.run(
            self._redis,
            (*script_keys(model), keys.dead_letters(model)),
            (
                keys.job_id(model, ""),
                self._owner,
                request_id,
                attempt,
                reason,
                sealed,
                chunk,
                seq,
                milliseconds(self._settings.finished_keep_seconds),
                self._settings.dead_letters_most,
            ),
        )
