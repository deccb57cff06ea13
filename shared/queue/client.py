"""The API node's and the janitor's side of the queue: enqueue, cancel, fence, and how much waits."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, Literal, cast

import msgspec

from shared import ids, keys, log, tracing
from shared.batcher import Batcher
from shared.clock import Clock, SystemClock
from shared.connections import Redis, redis_errors
from shared.errors import DependencyUnavailable
from shared.queue.job_format import JobFormat
from shared.queue.line import Line
from shared.queue.scripts import REDIS_FAILED, Argument, Script, fair_keys, milliseconds, script_keys
from shared.settings import QueueSettings
from shared.wire import VERSION, Chunk, End, Finish, Job, Lane, Seal, Status, TokenHold, Usage, encode

EnqueueVerdict = Literal["queued", "already", "tombstoned", "queue_full"]
CancelVerdict = Literal["dequeued", "flagged", "ended", "tombstoned", "not_reader"]

RETRY_SECONDS: Final = 0.05
QUEUE_FULL_SECONDS: Final = 5
QUEUE_FULL_SECONDS_MOST: Final = 120  # the SDKs wait no longer

_ENQUEUE: Final = Script("enqueue")
_CANCEL: Final = Script("cancel")
_FENCE: Final = Script("fence")

_VERDICTS: Final[dict[bytes, EnqueueVerdict]] = {
    b"queued": "queued",
    b"already": "already",
    b"tombstoned": "tombstoned",
    b"queue_full": "queue_full",
}
# How a request ends that never ran; DESIGN section 5.
_ENDINGS: Final[dict[str, tuple[Status, str]]] = {
    "request_cancelled": ("cancelled", "The request was cancelled."),
    "no_reader": ("cancelled", "The request was cancelled: nobody was reading its answer."),
    "key_revoked": ("failed", "The API key of this request was revoked."),
}
_UNAVAILABLE: Final = "The queue is unavailable: retry shortly."
_OTHER_ENDING: Final[tuple[Status, str]] = ("failed", "The request could not be run. You were not charged.")

logger = log.get_logger("queue")


class CancelTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The request to cancel: all that its settlement record needs, should it still be queued."""

    request_id: str
    account_id: str
    key_id: str
    model: str
    reserved_ms: int
    token_hold: TokenHold | None = None


class FenceResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `fence` found. With `attempt` and `owner` the caller may finish the request through a LogWriter."""

    existed: bool
    status: str  # before the fence: queued, claimed, ended, or empty
    seq: int
    attempt: int
    owner: str


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests of a model wait and run; suspects count as interactive."""

    interactive: int
    batch: int
    running: int


class _Waiting:
    """One job on its way into the queue. Not a Struct: one is made per request."""

    __slots__ = ("arguments", "give_up_at", "model")

    def __init__(self, model: str, arguments: tuple[Argument, ...], give_up_at: float) -> None:
        self.model = model
        self.arguments = arguments
        self.give_up_at = give_up_at


class QueueClient:
    """One per process. Jobs that arrive while a call is in flight go out together in the next one."""

    def __init__(self, redis: Redis, seal: Seal, settings: QueueSettings, clock: Clock | None = None) -> None:
        self._redis = redis
        self._line = Line(redis)
        self._seal = seal
        self._settings = settings
        self._clock = clock or SystemClock()
        self._format = JobFormat(seal)
        self._batcher: Batcher[_Waiting, EnqueueVerdict | None] = Batcher(self._send, most=settings.enqueue_most)

    async def enqueue(self, job: Job) -> EnqueueVerdict:
        """Put `job` into its model's queue, once however often it is called.

        Raises DependencyUnavailable where Redis did not take it in time; it may be in the queue nevertheless.
        """
        give_up_at = asyncio.get_running_loop().time() + self._settings.enqueue_retry_seconds
        if trace := tracing.current():
            job = msgspec.structs.replace(job, trace=trace)
        arguments = (
            job.request_id,
            self._format.write(job),
            job.lane,
            job.account_id,
            job.key_id,
            job.reader,
            int(job.resumable),
            max(1, job.cost_tokens // max(1, job.weight)),
            job.reserved_ms,
            job.queue_deadline_ms,
            job.deadline_ms,
        )
        verdict = await self._batcher.submit(_Waiting(job.model, arguments, give_up_at))
        if verdict is None:
            raise DependencyUnavailable(_UNAVAILABLE, retry_after_seconds=2)
        return verdict

    async def cancel(self, target: CancelTarget, *, code: str, reader: str | None) -> CancelVerdict:
        """Stop a request by `code`; with `reader` only if that node is its current reader.

        Raises DependencyUnavailable.
        """
        arguments = (
            keys.job_id(target.model, ""),
            target.request_id,
            code,
            reader or "",
            milliseconds(self._settings.tombstone_seconds),
            milliseconds(self._settings.finished_keep_seconds),
            *self._ending(target, code),
        )
        names = (*script_keys(target.model), keys.settlement(target.model), keys.commands(""))
        return cast(CancelVerdict, (await self._run(_CANCEL, names, arguments)).decode())

    async def fence(self, model: str, request_id: str) -> FenceResult:
        """Take a request away from its owner and its queue for good. Raises DependencyUnavailable."""
        owner = ids.new_owner_id()
        tombstone_ms = milliseconds(self._settings.tombstone_seconds)
        arguments = (keys.job_id(model, ""), request_id, owner, tombstone_ms)
        existed, status, seq, attempt = await self._run(_FENCE, script_keys(model), arguments)
        return FenceResult(existed=bool(existed), status=status.decode(), seq=seq, attempt=attempt, owner=owner)

    async def depth(self, model: str) -> Depth:
        """Return how much waits and runs. Raises DependencyUnavailable."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name in (*_queues(model), keys.leases(model)):
                    pipeline.zcard(name)
                suspects, interactive, batch, running = await pipeline.execute()
        return Depth(interactive=suspects + interactive, batch=batch, running=running)

    async def seconds_until_room(self, model: str, lane: Lane) -> int:
        """Return when to come again to a full queue: once it has moved by a tenth, as fast as its first job came here.

        QUEUE_FULL_SECONDS where that is not known.
        """
        try:
            async with asyncio.timeout(self._settings.enqueue_retry_seconds):
                first = await self._redis.zrange(keys.queue(model, lane), 0, 0)
                request_id = first[0].decode()[len(keys.job_id(model, "")) :] if first else ""
                async with self._redis.pipeline(transaction=False) as pipeline:
                    pipeline.hget(keys.state(model, request_id), "queued_ms")
                    (found,) = await pipeline.execute()
        except REDIS_FAILED:
            return QUEUE_FULL_SECONDS
        if not found:
            return QUEUE_FULL_SECONDS
        waited_seconds = (self._clock.unix_ms() - int(found)) / 1000
        return max(1, min(QUEUE_FULL_SECONDS_MOST, round(waited_seconds / 10)))

    async def position(self, model: str, request_id: str) -> int | None:
        """Return the place in the queue, 1 being next; None if it does not wait. Raises DependencyUnavailable."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name in _queues(model):
                    pipeline.zrank(name, keys.job_id(model, request_id))
                    pipeline.zcard(name)
                found = await pipeline.execute()
        before = 0
        for rank, depth in zip(found[::2], found[1::2], strict=True):
            if rank is not None:
                return int(before + rank + 1)
            before += depth
        return None

    async def flush(self) -> None:
        """Return once everything enqueued so far is answered."""
        await self._batcher.flush()

    async def close(self) -> None:
        """Flush and disconnect; the Redis client belongs to its opener."""
        await self.flush()
        await self._line.close()

    async def _run(self, script: Script, names: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run an idempotent script, again while Redis is away for a moment."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._settings.enqueue_retry_seconds
        while True:
            try:
                async with asyncio.timeout_at(give_up_at):
                    return await script.run(self._redis, names, arguments)
            except REDIS_FAILED as error:
                if loop.time() + RETRY_SECONDS >= give_up_at:
                    raise DependencyUnavailable(_UNAVAILABLE, retry_after_seconds=2) from error
            await asyncio.sleep(RETRY_SECONDS)

    async def _send(self, batch: Sequence[_Waiting]) -> list[EnqueueVerdict | None]:
        """Enqueue a batch, again and again until its last job gives up; None for what Redis did not take."""
        loop, failures = asyncio.get_running_loop(), 0
        give_up_at = max(waiting.give_up_at for waiting in batch)
        verdicts: list[EnqueueVerdict | None] = [None] * len(batch)
        while (now := loop.time()) < give_up_at:
            pending = [index for index, waiting in enumerate(batch) if waiting.give_up_at > now]
            try:
                async with asyncio.timeout_at(give_up_at):
                    await self._write(batch, pending, verdicts)
                return verdicts
            except REDIS_FAILED as error:
                failures += 1
                if failures == 1:
                    logger.warning("enqueue_retried", jobs=len(pending), error=repr(error))
                await asyncio.sleep(RETRY_SECONDS)
        return verdicts

    async def _write(
        self, batch: Sequence[_Waiting], pending: Sequence[int], verdicts: list[EnqueueVerdict | None]
    ) -> None:
        by_model: defaultdict[str, list[int]] = defaultdict(list)
        for index in pending:
            by_model[batch[index].model].append(index)
        for model, indexes in by_model.items():
            arguments: list[Argument] = [
                keys.job_id(model, ""),
                self._settings.queue_most,
                milliseconds(self._settings.state_keep_seconds),
                milliseconds(self._settings.state_keep_seconds),
            ]
            for index in indexes:
                arguments += batch[index].arguments
            answers = await self._line.run(_ENQUEUE, _ENQUEUE.command(fair_keys(model), arguments))
            for index, answer in zip(indexes, answers, strict=True):
                verdicts[index] = _VERDICTS[answer]

    def _ending(self, target: CancelTarget, code: str) -> tuple[bytes, bytes]:
        """Return the end chunk and the sealed record of a request that never ran."""
        status, message = _ENDINGS.get(code, _OTHER_ENDING)
        now = self._clock.unix_ms()
        waited_ms = max(0, now - target.reserved_ms)
        end = End(status, Usage(), code, message)
        finish = Finish(
            version=VERSION,
            request_id=target.request_id,
            account_id=target.account_id,
            key_id=target.key_id,
            model=target.model,
            status=status,
            code=code,
            finish_reason=None,
            usage=Usage(),
            prefill_began=False,
            attempts=0,
            queue_ms=waited_ms,
            ttft_ms=None,
            latency_ms=waited_ms,
            finished_ms=now,
            token_hold=target.token_hold,
        )
        chunk = Chunk(VERSION, target.request_id, 0, 1, 0, "", (), end=end)
        return encode(chunk), self._seal.close(encode(finish))


def _queues(model: str) -> tuple[str, ...]:
    return tuple(keys.queue(model, name) for name in (keys.SUSPECTS, *keys.LANES))
