"""The worker's end: appends chunks to logs and finishes requests, all of one event-loop turn in one write.

Called by the job of each claim (`workers/inference/complete.py`). Promises: chunks of a request reach its log in the
order in which they were given, each once, also across a retry; a finish never overtakes them; where Redis lost what it
had acknowledged, the log is filled again from memory. While Redis is away everything waits, WAITING_MOST entries at
most.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

import msgspec

from shared import keys, metrics
from shared.batcher import Batcher
from shared.channel.memory import WriterMemory
from shared.channel.scripts import Call, ScriptPipeline
from shared.connections import Redis
from shared.crash_points import CrashPoints
from shared.errors import DependencyUnavailable
from shared.log import get_logger
from shared.settings import QueueSettings
from shared.wire import Chunk, Finish, Seal, encode

if TYPE_CHECKING:
    import asyncio

AppendVerdict = Literal["appended", "already", "fenced", "gap", "gone"]
FinishVerdict = Literal["finished", "already", "fenced", "gap", "gone"]

WRITE_MOST: Final = 256  # entries in one write: Redis serves nobody else meanwhile
WAITING_MOST: Final = 20_000  # entries while Redis is away
REFILLS_MOST: Final = 3  # times that one write is repeated after a gap

_VERDICTS: Final = {1: "already", 2: "fenced", 3: "gap", 4: "gone"}


class Fence(msgspec.Struct, frozen=True):
    """The right to write one request: void once another attempt or owner holds it."""

    model: str
    request_id: str
    attempt: int
    owner: str


class _Entry:
    """One chunk on its way; `record` (sealed) makes it a finish. Not a Struct: one is made per token."""

    __slots__ = ("chunk", "fence", "record", "seq")

    def __init__(self, fence: Fence, seq: int, chunk: bytes, record: bytes | None) -> None:
        self.fence = fence
        self.seq = seq
        self.chunk = chunk
        self.record = record


class _Outcome:
    """A verdict and, where it is not a success, the last seq that Redis has."""

    __slots__ = ("tip", "verdict")

    def __init__(self, verdict: str, tip: int = 0) -> None:
        self.verdict = verdict
        self.tip = tip


_APPENDED: Final = _Outcome("appended")
_FINISHED: Final = _Outcome("finished")
_FENCED: Final = _Outcome("fenced")  # Redis was away for longer than a lease

logger = get_logger("log_writer")


class LogWriter:
    """The writer of one worker process, for all its requests."""

    # Invariant: one write at a time (the Batcher's), so what was submitted later reaches Redis later.

    def __init__(self, redis: Redis, seal: Seal, settings: QueueSettings, crash: CrashPoints | None = None) -> None:
        self._seal = seal
        self._settings = settings
        self._crash = crash or CrashPoints()
        self._memory = WriterMemory(settings.writer_bytes_most)
        self._pipeline = ScriptPipeline(
            redis, ("append", "finish"), folder=Path(__file__).parent, retry_seconds=settings.write_retry_seconds
        )
        self._batcher: Batcher[_Entry, str] = Batcher(self._send, most=WRITE_MOST, waiting_most=WAITING_MOST)
        self.refills = 0  # gaps that were filled from memory

    def append(self, fence: Fence, chunk: Chunk) -> "asyncio.Future[AppendVerdict]":
        """Append `chunk`; the future tells whether it is in the log.

        Where Redis stays away for longer than any lease, the verdict is `fenced`. Raises DependencyUnavailable where
        too much waits already.
        """
        encoded = encode(chunk)
        future = self._batcher.submit(_Entry(fence, chunk.seq, encoded, None))
        self._memory.add(fence.request_id, fence.attempt, chunk.seq, encoded)
        return cast("asyncio.Future[AppendVerdict]", future)

    def finish(self, fence: Fence, chunk: Chunk, finish: Finish) -> "asyncio.Future[FinishVerdict]":
        """End the request: `chunk` carries the end, `finish` goes to the settlement queue with it.

        Raises as `append`.
        """
        assert chunk.end is not None, "the last chunk carries the end"
        record = self._seal.close(encode(finish))
        future = self._batcher.submit(_Entry(fence, chunk.seq, encode(chunk), record))
        return cast("asyncio.Future[FinishVerdict]", future)

    def forget(self, fence: Fence) -> None:
        """Drop what is remembered of a request that this worker handed over, or lost."""
        self._memory.forget(fence.request_id, fence.attempt)

    async def flush(self) -> None:
        """Return once everything submitted so far is answered."""
        await self._batcher.flush()

    async def close(self) -> None:
        """Flush, then close the connection."""
        await self.flush()
        await self._pipeline.close()

    async def _send(self, entries: Sequence[_Entry]) -> list[str]:
        """Write entries, fill gaps, and return the verdicts."""
        try:
            outcomes = await self._write_filling(entries)
        except DependencyUnavailable as error:
            logger.warning("writes_given_up", entries=len(entries), error=error.message)
            outcomes = [_FENCED] * len(entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.record is not None or outcome.verdict in ("fenced", "gone"):
                self._memory.forget(entry.fence.request_id, entry.fence.attempt)
            if outcome is not _APPENDED and outcome is not _FINISHED:
                metrics.APPENDS_REFUSED.labels(outcome.verdict).inc()
        return [outcome.verdict for outcome in outcomes]

    async def _write_filling(self, entries: Sequence[_Entry]) -> list[_Outcome]:
        outcomes = await self._write(entries)
        for _ in range(REFILLS_MOST):
            gapped = [index for index, outcome in enumerate(outcomes) if outcome.verdict == "gap"]
            if not gapped or not await self._refill([(entries[index], outcomes[index].tip) for index in gapped]):
                break
            again = await self._write([entries[index] for index in gapped])
            for index, outcome in zip(gapped, again, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def _refill(self, gapped: Sequence[tuple[_Entry, int]]) -> bool:
        """Append again what Redis lost, from memory. Tells whether there was anything."""
        requests = {entry.fence: tip for entry, tip in gapped}
        lost = [
            _Entry(fence, seq, chunk, None)
            for fence, tip in requests.items()
            for seq, chunk in self._memory.behind(fence.request_id, fence.attempt, tip)
        ]
        if lost:
            self.refills += len(requests)
            metrics.LOG_REFILLS.inc(len(requests))
        for start in range(0, len(lost), WRITE_MOST):
            await self._write(lost[start : start + WRITE_MOST])
        return bool(lost)

    async def _write(self, entries: Sequence[_Entry]) -> list[_Outcome]:
        """One pipeline: per model and owner one APPEND, then one FINISH."""
        outcomes: list[_Outcome] = [_APPENDED if entry.record is None else _FINISHED for entry in entries]
        appends: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        finishes: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for index, entry in enumerate(entries):
            fence = entry.fence
            (appends if entry.record is None else finishes)[fence.model, fence.owner].append(index)
        calls = [self._append_call(model, owner, entries, chosen) for (model, owner), chosen in appends.items()]
        calls += [self._finish_call(model, owner, entries, chosen) for (model, owner), chosen in finishes.items()]
        if appends:
            self._crash.reach("before_append")
        if finishes:
            self._crash.reach("before_finish")
        answers = await self._pipeline.run(calls)
        if appends:
            self._crash.reach("after_append")
        if finishes:
            self._crash.reach("after_finish")
        for chosen, refused in zip([*appends.values(), *finishes.values()], answers, strict=True):
            for at in range(0, len(refused), 3):
                outcomes[chosen[refused[at]]] = _Outcome(_VERDICTS[refused[at + 1]], refused[at + 2])
        return outcomes

    def _append_call(self, model: str, owner: str, entries: Sequence[_Entry], chosen: list[int]) -> Call:
        heads: list[str | int] = []
        chunks: list[bytes] = []
        for index in chosen:
            entry = entries[index]
            heads += (entry.fence.request_id, entry.fence.attempt, entry.seq, len(entry.chunk))
            chunks.append(entry.chunk)
        return Call(
            script="append",
            keys=(keys.state(model, ""), keys.log(model, ""), keys.channel(model, "")),
            arguments=(
                owner,
                str(int(self._settings.state_keep_seconds * 1000)),
                encode(heads),
                b"".join(chunks),
            ),
        )

    def _finish_call(self, model: str, owner: str, entries: Sequence[_Entry], chosen: list[int]) -> Call:
        heads: list[str | int] = []
        parts: list[bytes] = []
        for index in chosen:
            entry = entries[index]
            assert entry.record is not None
            heads += (entry.fence.request_id, entry.fence.attempt, entry.seq, len(entry.chunk), len(entry.record))
            parts += (entry.chunk, entry.record)
        return Call(
            script="finish",
            keys=(
                keys.state(model, ""),
                keys.log(model, ""),
                keys.channel(model, ""),
                keys.job(model, ""),
                keys.settlement(model),
                keys.leases(model),
            ),
            arguments=(
                owner,
                str(int(self._settings.finished_keep_seconds * 1000)),
                keys.job_id(model, ""),
                encode(heads),
                b"".join(parts),
            ),
        )
