"""THE job: one claimed request from its messages to its end marker, whatever happens on the way.

    messages -> prompt ids -> engine -> text -> chunk -> log        every exit is a FINISH under the claim's own fence

Called by LeasedWorker for each claim. A claim that must be closed, a cancel, a refused prompt, an engine error and a
good answer all end in `_Run._finish`, which writes the end marker and the settlement record in one script. Only a lost
fence and a hand-over end without one: then the next owner finishes.
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from shared import log, pricing
from shared.channel import AppendVerdict, Fence, LogWriter, read_log
from shared.clock import Clock
from shared.connections import Redis
from shared.errors import DependencyUnavailable, EngineDead, EngineFailed, FenceLost, InvalidRequest, Refusal
from shared.queue.worker import Claim
from shared.settings import QueueSettings
from shared.wire import VERSION, Chunk, End, Finish, FinishReason, Status, Usage
from workers.engines.base import Delta, EngineSampling
from workers.inference import endings
from workers.inference.models import LoadedModel
from workers.inference.stops import TextStream

LOOP_CHARACTERS_MOST: Final = 16_384  # longer prompts are tokenised in a thread
LOG_RETRY_SECONDS: Final = 0.1

logger = log.get_logger("complete")


class Completer:
    """Runs claims; one per worker process."""

    def __init__(
        self,
        models: Callable[[str], LoadedModel | None],
        *,
        writer: LogWriter,
        redis: Redis,
        clock: Clock,
        settings: QueueSettings,
        on_dead: Callable[[str], None],
    ) -> None:
        """`on_dead` ends the process: an engine that died serves nobody, and the leases run out by themselves."""
        self.models: Final = models
        self.writer: Final = writer
        self.redis: Final = redis
        self.clock: Final = clock
        self.settings: Final = settings
        self.on_dead: Final = on_dead
        self._running: set[_Run] = set()  # two of one request where an attempt that lost its fence still ends

    @property
    def running(self) -> int:
        """How many claims are running."""
        return len(self._running)

    async def __call__(self, claim: Claim) -> None:
        """Run `claim` to its end; returns without one only where the fence was lost or the claim is handed over."""
        run = _Run(self, claim)
        loaded = self.models(claim.job.model)
        self._running.add(run)
        if loaded is not None:
            loaded.running += 1
        try:
            await run.run(loaded)
        finally:
            self._running.discard(run)
            if loaded is not None:
                loaded.running -= 1
            if not run.finished:  # nothing more is written under this fence
                self.writer.forget(run.fence)

    def expire(self) -> None:
        """End every run that is past one of its deadlines; called each second."""
        now_ms, now = self.clock.unix_ms(), self.clock.monotonic()
        for run in list(self._running):
            run.expire(now_ms, now)


class _Run:
    """One attempt at one request."""

    # Invariants: `_seq` is the last position submitted to the log, `_completion_tokens` the ids in the log up to there,
    # once `_counted`; a claim that must be closed is ended by its own code and by no other.

    def __init__(self, owner: Completer, claim: Claim) -> None:
        self.fence: Final = Fence(claim.job.model, claim.job.request_id, claim.attempt, claim.owner)
        self.finished = False
        self._owner = owner
        self._claim = claim
        self._job = claim.job
        self._seq = claim.seq
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._counted = claim.seq == 0
        self._prefill_began = claim.seq > 0
        self._first_token_ms: int | None = None
        self._last_token_at = owner.clock.monotonic()
        self._announced = False  # prompt_tokens are on the first chunk of an attempt
        self._appended: asyncio.Future[AppendVerdict] | None = None
        self._stream: TextStream | None = None
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
        settings = self._owner.settings
        silent_seconds = now - self._last_token_at
        if now_ms > self._claim.run_deadline_ms:
            self._interrupt("run_deadline")
        elif self._announced and silent_seconds > settings.next_token_seconds:
            self._interrupt("stream_timeout")
        elif not self._announced and silent_seconds > settings.first_token_seconds:
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
        logger.info("fence_lost", request_id=self._job.request_id, attempt=self._claim.attempt)

    async def _guarded(self, loaded: LoadedModel | None) -> None:
        try:
            if self._claim.close is not None:
                await self._close_unrun(self._claim.close)
            elif loaded is None:
                await self._close("model_unavailable")
            else:
                await self._answer(loaded)
        except Refusal as refusal:
            await self._finish("failed", code=refusal.code, message=refusal.message)
        except FenceLost:
            raise
        except EngineDead as error:
            self._owner.on_dead(error.message)
            raise
        except EngineFailed as error:
            logger.warning("engine_failed", request_id=self._job.request_id, error=error.message)
            await self._finish("failed", code="engine_error", message=error.message)
        except Exception:  # the worker loop: one bad request must not end the others
            logger.exception("run_failed", request_id=self._job.request_id)
            await self._finish("failed", code="engine_error", message=endings.message("engine_error"))

    async def _answer(self, loaded: LoadedModel) -> None:
        job, engine = self._job, loaded.engine
        prompt_ids = await self._build_prompt(loaded)
        self._prompt_tokens = len(prompt_ids)
        max_tokens = self._max_tokens(engine.context)
        stream = self._stream = TextStream(engine.tokenizer, job.sampling.stop)
        emitted = await self._replay(stream)
        stopped = stream.stopped or bool(emitted and emitted[-1] in engine.end_token_ids)
        if stopped or (emitted and len(emitted) >= max_tokens):
            reason: FinishReason = "stop" if stopped else "length"
            await self._finish("completed", reason=reason, text=stream.finish())
            return
        sampling = EngineSampling(
            max_tokens=max_tokens - len(emitted),
            temperature=job.sampling.temperature,
            top_p=job.sampling.top_p,
            seed=_seed_after(job.sampling.seed, len(emitted)),
        )
        self._prefill_began = True
        self._last_token_at = self._owner.clock.monotonic()
        ids = [*prompt_ids, *emitted]
        async with aclosing(engine.generate(job.request_id, ids, sampling, emitted=len(emitted))) as deltas:
            if not job.sampling.stop:  # a stop string may end the answer at any token, which takes the task
                deltas.push_to(functools.partial(self._take_soon, stream))
            async for delta in deltas:
                if await self._take(delta, stream):
                    return
        raise EngineFailed("The engine ended the answer without a reason.")

    async def _take(self, delta: Delta, stream: TextStream) -> bool:
        """Log one delta; True once the request is finished."""
        # One append in flight: an engine faster than Redis gives larger deltas instead. Waited for before anything is
        # taken, so that a cut here leaves no position, token or text behind that never reached the log.
        if delta.finish_reason is None and self._appended is not None and await self._appended not in endings.APPENDED:
            raise FenceLost
        text = self._text_of(delta, stream)
        if stream.stopped or delta.finish_reason is not None:
            if not stream.stopped:
                text += stream.finish()
            reason: FinishReason = "stop" if stream.stopped else delta.finish_reason or "stop"
            await self._finish("completed", reason=reason, text=text, token_ids=delta.token_ids)
            return True
        self._log(delta, text)
        return False

    def _take_soon(self, stream: TextStream, delta: Delta) -> bool:
        """Log one delta while the task sleeps; False where the task must see to the append before it."""
        appended = self._appended
        if appended is not None and not (appended.done() and appended.result() in endings.APPENDED):
            return False
        self._log(delta, self._text_of(delta, stream))
        return True

    def _text_of(self, delta: Delta, stream: TextStream) -> str:
        self._last_token_at = self._owner.clock.monotonic()
        if self._first_token_ms is None and self._claim.seq == 0:
            self._first_token_ms = self._owner.clock.unix_ms()
            self._cached_tokens = min(delta.cached_tokens or 0, self._prompt_tokens)
        return stream.push(delta.token_ids, delta.text)

    def _log(self, delta: Delta, text: str) -> None:
        chunk = self._next_chunk(text, delta.token_ids)
        self._completion_tokens += len(delta.token_ids)
        self._appended = self._owner.writer.append(self.fence, chunk)

    def _next_chunk(
        self,
        text: str,
        token_ids: tuple[int, ...],
        reason: FinishReason | None = None,
        end: End | None = None,
    ) -> Chunk:
        first = not self._announced
        self._announced = True
        self._seq += 1
        return Chunk(
            VERSION,
            self._job.request_id,
            self._claim.attempt,
            self._seq,
            0,
            text,
            token_ids,
            reason,
            self._prompt_tokens if first else None,
            self._cached_tokens if first else None,
            end,
        )

    async def _build_prompt(self, loaded: LoadedModel) -> list[int]:
        messages = self._job.messages
        if sum(len(message.content) for message in messages) > LOOP_CHARACTERS_MOST:
            return await asyncio.to_thread(loaded.prompt.build, messages)
        return loaded.prompt.build(messages)

    def _max_tokens(self, context: int) -> int:
        """Return how many tokens the answer may have; InvalidRequest where the context does not allow it."""
        job, prompt = self._job, self._prompt_tokens
        wanted = job.sampling.max_tokens
        if prompt + (wanted or 1) > context:
            asked = f"{prompt} in the messages, {wanted} in the completion" if wanted else f"{prompt} in the messages"
            raise InvalidRequest(
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{prompt + (wanted or 1)} tokens ({asked}). Please reduce the length of the messages or completion.",
                code="context_length_exceeded",
                param="messages",
            )
        affordable = pricing.affordable_completion_tokens(job.prices, hold=job.hold, prompt_tokens=prompt)
        if affordable < 1:
            raise InvalidRequest("The prompt is longer than its reservation pays for.", code="insufficient_credits")
        return min(wanted or job.default_max_tokens, context - prompt, affordable)

    async def _replay(self, stream: TextStream) -> tuple[int, ...]:
        """Take over what earlier attempts logged: () for the first one."""
        if self._claim.seq == 0:
            return ()
        chunks = await self._read_log()
        emitted = tuple(token_id for chunk in chunks for token_id in chunk.token_ids)
        stream.replay(emitted, "".join(chunk.text for chunk in chunks))
        self._completion_tokens = len(emitted)
        self._counted = True
        self._cached_tokens = next((chunk.cached_tokens for chunk in chunks if chunk.cached_tokens), 0)
        return emitted

    async def _read_log(self) -> list[Chunk]:
        """Return what is logged; a Redis that stays away ends this as a cut-off, by whoever holds the lease."""
        while True:
            try:
                return await read_log(self._owner.redis, self._job.model, self._job.request_id)
            except DependencyUnavailable:
                await asyncio.sleep(LOG_RETRY_SECONDS)

    async def _close_unrun(self, code: str) -> None:
        """End a claim that must not run, with what earlier attempts logged."""
        if self._claim.seq > 0:
            chunks = await self._read_log()
            self._completion_tokens = sum(len(chunk.token_ids) for chunk in chunks)
            self._prompt_tokens = next((chunk.prompt_tokens for chunk in chunks if chunk.prompt_tokens), 0)
            self._cached_tokens = next((chunk.cached_tokens for chunk in chunks if chunk.cached_tokens), 0)
        await self._close(code)

    async def _close(self, code: str) -> None:
        """End by a code instead of by the model."""
        status = endings.status(code, ran=self._prefill_began)
        if status == "completed":
            text = self._stream.finish() if self._stream is not None else ""
            await self._finish("completed", reason="length", text=text)
        else:
            await self._finish(status, code=code, message=endings.message(code))

    async def _finish(
        self,
        status: Status,
        *,
        code: str | None = None,
        message: str | None = None,
        reason: FinishReason | None = None,
        text: str = "",
        token_ids: tuple[int, ...] = (),
    ) -> None:
        self._finishing = True
        self._completion_tokens += len(token_ids)
        usage = Usage(self._prompt_tokens, self._cached_tokens, self._completion_tokens)
        retry_after = endings.RETRY_AFTER_SECONDS.get(code or "")
        chunk = self._next_chunk(text, token_ids, reason, End(status, usage, code, message, retry_after))
        now = self._owner.clock.unix_ms()
        job = self._job
        finish = Finish(
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
        )
        written = self._owner.writer.finish(self.fence, chunk, finish)
        self.finished = True
        if await written not in endings.APPENDED:
            raise FenceLost


def _seed_after(seed: int | None, position: int) -> int | None:
    """Return the seed of an attempt that continues at `position`: the same request must not repeat its draws."""
    if seed is None or position == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:0:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
