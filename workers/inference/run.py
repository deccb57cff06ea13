"""One attempt at one request: its fence, its log and its one end, whatever happens on the way.

A claim that must be closed, a cancel, a refused prompt, an engine error and a good answer all end in `Run._finish`,
which writes the end marker and the settlement record in one script. Only a lost fence and a hand-over end without one:
then the next owner finishes. What the model says is the business of `generation.py`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shared import log
from shared.channel import AppendVerdict, Fence, LogWriter, read_log
from shared.clock import Clock
from shared.connections import Redis
from shared.errors import AnswerLost, DependencyUnavailable, EngineDead, EngineFailed, FenceLost, Refusal
from shared.queue.worker import Claim
from shared.settings import QueueSettings
from shared.tracing import Tracer
from shared.wire import VERSION, Chunk, End, Finish, FinishReason, Job, Status, Usage
from workers.inference import endings
from workers.inference.choice import NOTHING, Choice, Said, choices_of
from workers.inference.generation import Generation
from workers.inference.measures import RunMeasures
from workers.inference.models import LoadedModel

LOG_RETRY_SECONDS: Final = 0.1

logger = log.get_logger("complete")


@dataclass(frozen=True, kw_only=True)
class Backing:
    """What all runs of a worker share. `on_dead` ends the process: an engine that died serves nobody."""

    writer: LogWriter
    redis: Redis
    clock: Clock
    settings: QueueSettings
    on_dead: Callable[[str], None]
    tracer: Tracer


class Run:
    """One attempt at one request."""

    # Invariants: `_seq` is the last position submitted to the log, `_completion_tokens` the ids in the log up to there,
    # once `_counted`; a claim that must be closed is ended by its own code and by no other.

    def __init__(self, backing: Backing, claim: Claim) -> None:
        self.fence: Final = Fence(claim.job.model, claim.job.request_id, claim.attempt, claim.owner)
        self.job: Final[Job] = claim.job
        self.first: Final = claim.seq == 0  # nothing was logged before this attempt
        self.finished = False
        self.measures: Final = RunMeasures(claim, backing.tracer)
        self._claim = claim
        self._backing = backing
        self._seq = claim.seq
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._counted = claim.seq == 0
        self._prefill_began = claim.seq > 0
        self._first_token_ms: int | None = claim.first_token_ms
        self._last_token_at = backing.clock.monotonic()
        self._announced = False  # prompt_tokens are on the first chunk of an attempt
        self._ticked = False  # the engine gave tokens in this attempt; an echo stands in the log before that
        self._choices: list[Choice] = []
        self._ended: set[int] = set()  # choices that earlier attempts finished
        self._task: asyncio.Task[None] | None = None
        self._interrupted_by: str | None = None
        self._finishing = False

    async def run(self, loaded: LoadedModel | None) -> None:
        self._task = asyncio.current_task()
        self._claim.cancel.on_cancel(self._interrupt)
        try:
            await self._guarded(loaded)
        except asyncio.CancelledError:
            code = self._interrupted_by
            if code is None or code in endings.HANDED_ON or self._task is None:
                raise
            self._task.uncancel()
            await self._end_cut(code)
        except FenceLost:
            self._tell_fence_lost()

    def expire(self, now_ms: int, now: float) -> None:
        settings = self._backing.settings
        silent_seconds = now - self._last_token_at
        if now_ms > self._claim.run_deadline_ms:
            self._interrupt("run_deadline")
        elif self._ticked and silent_seconds > settings.next_token_seconds:
            self._interrupt("stream_timeout")
        elif not self._ticked and silent_seconds > settings.first_token_seconds:
            self._interrupt("first_token_timeout")

    def _interrupt(self, code: str) -> None:
        if self._finishing or self._interrupted_by is not None or self._task is None:
            return
        if self._claim.close is not None and code not in endings.HANDED_ON:
            return
        self._interrupted_by = code
        self._task.cancel()

    async def _end_cut(self, code: str) -> None:
        """End what was cut in the middle by `code`."""
        try:
            await (self._close(code) if self._counted else self._close_unrun(code))
        except FenceLost:
            self._tell_fence_lost()

    def _tell_fence_lost(self) -> None:
        logger.info("fence_lost", request_id=self.job.request_id, attempt=self._claim.attempt)

    async def _guarded(self, loaded: LoadedModel | None) -> None:
        try:
            if self._claim.close is not None:
                await self._close_unrun(self._claim.close)
            elif loaded is None:
                await self._close("model_unavailable")
            else:
                generation = Generation(self, loaded)
                self._choices = generation.choices
                await generation.run()
        except Refusal as refusal:
            await self._finish("failed", code=refusal.code, message=refusal.message)
        except FenceLost:
            raise
        except EngineDead as error:
            self._backing.on_dead(error.message)
            raise
        except AnswerLost as error:
            logger.warning("answer_lost", request_id=self.job.request_id, error=error.message)
            await self._finish("failed", code="worker_lost", message=endings.message("worker_lost"))
        except EngineFailed as error:
            logger.warning("engine_failed", request_id=self.job.request_id, error=error.message)
            await self._finish("failed", code="engine_error", message=error.message)
        except Exception:  # the worker loop: one bad request must not end the others
            logger.exception("run_failed", request_id=self.job.request_id)
            await self._finish("failed", code="engine_error", message=endings.message("engine_error"))

    def planned(self, prompt_tokens: int) -> None:
        """Note the size of the prompts."""
        self._prompt_tokens = prompt_tokens

    def prefilling(self) -> None:
        """Note that the engine works from now on."""
        self._prefill_began = True
        self._last_token_at = self._backing.clock.monotonic()

    def ticked(self, cached_tokens: int | None) -> None:
        """Note that the engine gave tokens; `cached_tokens` of a prompt, with the first of a choice."""
        now = self._backing.clock.monotonic()
        if self._ticked:
            self.measures.step(now - self._last_token_at)
        self._last_token_at = now
        if self.first:
            if self._first_token_ms is None:
                self._first_token_ms = self._backing.clock.unix_ms()
            if cached_tokens and not self._ticked:
                self._cached_tokens = min(self._cached_tokens + cached_tokens, self._prompt_tokens)
        self._ticked = True

    def log(
        self,
        choice: int,
        said: Said,
        token_ids: tuple[int, ...] = (),
        reason: FinishReason | None = None,
    ) -> "asyncio.Future[AppendVerdict]":
        """Append what a choice says to the log; the future tells whether it got there."""
        chunk = self._next_chunk(choice, said, token_ids, reason)
        self._completion_tokens += len(token_ids)
        return self._backing.writer.append(self.fence, chunk)

    async def read_log(self) -> list[Chunk]:
        """Return what is logged; a Redis that stays away ends this as a cut-off, by whoever holds the lease."""
        while True:
            try:
                return await read_log(self._backing.redis, self.job.model, self.job.request_id)
            except DependencyUnavailable:
                await asyncio.sleep(LOG_RETRY_SECONDS)

    def counted(self, chunks: Sequence[Chunk]) -> None:
        """Take over the figures of what earlier attempts logged."""
        self._completion_tokens = sum(len(chunk.token_ids) for chunk in chunks)
        self._cached_tokens = next((chunk.cached_tokens for chunk in chunks if chunk.cached_tokens), 0)
        self._counted = True
        self._ended = {chunk.choice for chunk in chunks if chunk.finish_reason is not None}

    async def complete(
        self,
        choice: int,
        said: Said,
        token_ids: tuple[int, ...] = (),
        reason: FinishReason | None = None,
    ) -> None:
        """End the request well, with the last words of `choice`."""
        await self._finish("completed", choice=choice, said=said, token_ids=token_ids, reason=reason)

    async def _close_unrun(self, code: str) -> None:
        """End a claim that must not run, with what earlier attempts logged."""
        if self._claim.seq > 0:
            chunks = await self.read_log()
            self.counted(chunks)
            self._prompt_tokens = next((chunk.prompt_tokens for chunk in chunks if chunk.prompt_tokens), 0)
        await self._close(code)

    async def _close(self, code: str) -> None:
        """End by a code instead of by the model."""
        status = endings.status(code, ran=self._prefill_began)
        if status != "completed":
            await self._finish(status, code=code, message=endings.message(code))
            return
        if self.job.task.kind == "embedding":  # without its vectors it is worth nothing
            await self._finish("failed", code="engine_error", message=endings.message("engine_error"))
            return
        if self._choices:
            rest = [(choice.index, choice.finish()) for choice in self._choices if choice.reason is None]
        else:  # its time was over before it could go on
            rest = [(index, NOTHING) for index in range(choices_of(self.job)) if index not in self._ended]
        *others, (last, said) = rest or [(0, NOTHING)]
        for index, part in others:
            self.log(index, part, reason="length")
        await self.complete(last, said, reason="length" if rest else None)

    def _next_chunk(
        self,
        choice: int,
        said: Said,
        token_ids: tuple[int, ...],
        reason: FinishReason | None,
        end: End | None = None,
    ) -> Chunk:
        first = not self._announced
        self._announced = True
        self._seq += 1
        return Chunk(
            VERSION,
            self.job.request_id,
            self._claim.attempt,
            self._seq,
            choice,
            said[0],
            token_ids,
            reason,
            self._prompt_tokens if first else None,
            self._cached_tokens if first else None,
            end,
            said[1],
        )

    async def _finish(
        self,
        status: Status,
        *,
        choice: int = 0,
        said: Said = NOTHING,
        token_ids: tuple[int, ...] = (),
        reason: FinishReason | None = None,
        code: str | None = None,
        message: str | None = None,
    ) -> None:
        self._finishing = True
        self._completion_tokens += len(token_ids)
        reasoning_tokens = sum(one.reasoning_tokens for one in self._choices)
        usage = Usage(self._prompt_tokens, self._cached_tokens, self._completion_tokens, reasoning_tokens)
        retry_after = endings.RETRY_AFTER_SECONDS.get(code or "")
        end = End(status, usage, code, message, retry_after)
        chunk = self._next_chunk(choice, said, token_ids, reason, end)
        record = self._record(status, code, reason, usage)
        written = self._backing.writer.finish(self.fence, chunk, record)
        self.finished = True
        if await written not in endings.APPENDED:
            raise FenceLost
        self.measures.ended(record)

    def _record(self, status: Status, code: str | None, reason: FinishReason | None, usage: Usage) -> Finish:
        job, now = self.job, self._backing.clock.unix_ms()
        return Finish(
            version=VERSION,
            request_id=job.request_id,
            account_id=job.account_id,
            key_id=job.key_id,
            model=job.model,
            status=status,
            code=code,
            finish_reason=reason,
            usage=usage,
            prefill_began=self._prefill_began,
            attempts=self._claim.attempt,
            queue_ms=max(0, self._claim.first_claim_ms - job.reserved_ms),
            ttft_ms=None if self._first_token_ms is None else max(0, self._first_token_ms - job.reserved_ms),
            latency_ms=max(0, now - job.reserved_ms),
            finished_ms=now,
            token_hold=job.token_hold,
            trace=self.measures.trace,
        )
