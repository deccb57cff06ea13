"""What the model says to one request: plan, replay, and every choice from the engine into the log.

    messages -> prompt ids -> engine -> text, reasoning, calls -> chunk -> log

Called by `run.py`, which owns fence, log and end. All choices run at once; the request ends with the last of them.
"""

import asyncio
import functools
import struct
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final, Protocol

from shared.channel import AppendVerdict
from shared.errors import EngineDead, EngineFailed, FenceLost
from shared.wire import Chunk, Extra, FinishReason, Job
from workers.engines.base import Delta, EngineGuide
from workers.inference import endings
from workers.inference.choice import NOTHING, Choice, Said, joined
from workers.inference.models import LoadedModel
from workers.inference.plan import Plan, plan_of

LOOP_CHARACTERS_MOST: Final = 16_384  # longer prompts are tokenised in a thread
TEXT_CHARACTERS: Final = 512  # each text costs its tokenizer about as much as so many characters


class Attempt(Protocol):
    """What a generation needs of its run."""

    @property
    def job(self) -> Job: ...
    @property
    def first(self) -> bool: ...
    def planned(self, prompt_tokens: int) -> None: ...
    def prefilling(self) -> None: ...
    def ticked(self, cached_tokens: int | None) -> None: ...
    def log(
        self, choice: int, said: Said, token_ids: tuple[int, ...] = (), reason: FinishReason | None = None
    ) -> "asyncio.Future[AppendVerdict]": ...
    async def read_log(self) -> list[Chunk]: ...
    def counted(self, chunks: Sequence[Chunk]) -> None: ...
    async def complete(
        self, choice: int, said: Said, token_ids: tuple[int, ...] = (), reason: FinishReason | None = None
    ) -> None: ...


class Generation:
    """The choices of one attempt."""

    # Invariant: `choices` is empty until they are planned and replayed; then what they hold back is theirs to give.

    def __init__(self, run: Attempt, loaded: LoadedModel) -> None:
        self.choices: Final[list[Choice]] = []
        self._run = run
        self._loaded = loaded
        self._engine = loaded.engine

    async def run(self) -> None:
        """Make the whole answer; what it raises (Refusal, EngineFailed, EngineDead, FenceLost) its caller ends."""
        plan = await self._plan()
        self._run.planned(plan.prompt_tokens)
        chunks = [] if self._run.first else await self._run.read_log()
        if chunks:
            self._run.counted(chunks)
            for choice in plan.choices:
                choice.replay([chunk for chunk in chunks if chunk.choice == choice.index])
        self.choices.extend(plan.choices)
        if self._run.job.task.kind == "embedding":
            await self._embed()
            return
        running = [choice for choice in self.choices if choice.reason is None]
        if not running:  # the one before us ended between the last words and the end marker
            await self._run.complete(self.choices[-1].index, NOTHING)
        elif len(running) == 1:
            await self._say(running[0], plan.guide)
        else:
            await self._say_all(running, plan.guide)

    async def _plan(self) -> Plan:
        job = self._run.job
        if job.task.tool_use is not None or _characters(job) > LOOP_CHARACTERS_MOST:
            return await asyncio.to_thread(plan_of, job, self._loaded)
        return plan_of(job, self._loaded)

    async def _say_all(self, choices: Sequence[Choice], guide: EngineGuide | None) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for choice in choices:
                    group.create_task(self._say(choice, guide))
        except BaseExceptionGroup as errors:
            dead, _ = errors.split(EngineDead)
            raise (dead or errors).exceptions[0] from None

    async def _say(self, choice: Choice, guide: EngineGuide | None) -> None:
        """Make one choice to its end."""
        reason = choice.at_end(self._engine.end_token_ids)
        if reason is not None:
            await self._end(choice, choice.finish(), (), reason)
            return
        if choice.echo and not choice.begun:
            choice.appended = self._run.log(choice.index, (choice.echo, None))
        job, emitted = self._run.job, choice.emitted
        request_id = job.request_id if choice.index == 0 else f"{job.request_id}#{choice.index}"
        self._run.prefilling()
        sampling = choice.sampling(job.sampling, guide, account_id=job.account_id)
        ids = [*choice.prompt_ids, *emitted]
        async with aclosing(self._engine.generate(request_id, ids, sampling, emitted=len(emitted))) as deltas:
            if not choice.may_stop:
                deltas.push_to(functools.partial(self._take_soon, choice))
            async for delta in deltas:
                if await self._take(choice, delta):
                    return
        raise EngineFailed("The engine ended the answer without a reason.")

    async def _take(self, choice: Choice, delta: Delta) -> bool:
        """Log one delta; True once the choice is finished."""
        # One append in flight: an engine faster than Redis gives larger deltas instead. Waited for before anything is
        # taken, so that a cut here leaves no position, token or text behind that never reached the log.
        appended = choice.appended
        if delta.finish_reason is None and appended is not None and await appended not in endings.APPENDED:
            raise FenceLost
        self._run.ticked(delta.cached_tokens)
        said = choice.push(delta)
        if not choice.stopped and delta.finish_reason is None:
            choice.appended = self._run.log(choice.index, said, delta.token_ids)
            return False
        reason: FinishReason = "stop"
        if not choice.stopped:
            reason = delta.finish_reason or "stop"
        said = joined(said, choice.finish())  # behind a stop string nothing comes, but before it much may be held back
        await self._end(choice, said, delta.token_ids, choice.ending(reason))
        return True

    def _take_soon(self, choice: Choice, delta: Delta) -> bool:
        """Log one delta while the task sleeps; False where the task must see to the append before it."""
        appended = choice.appended
        if appended is not None and not (appended.done() and appended.result() in endings.APPENDED):
            return False
        self._run.ticked(delta.cached_tokens)
        choice.appended = self._run.log(choice.index, choice.push(delta), delta.token_ids)
        return True

    async def _end(self, choice: Choice, said: Said, token_ids: tuple[int, ...], reason: FinishReason) -> None:
        """Log the last words of a choice; of the last one, end the request with them."""
        choice.reason = reason
        if all(one.reason is not None for one in self.choices):
            await self._run.complete(choice.index, said, token_ids, reason)
        else:
            choice.appended = self._run.log(choice.index, said, token_ids, reason)

    async def _embed(self) -> None:
        """Log the vector of each prompt; what an earlier attempt logged is there already."""
        missing = [choice for choice in self.choices if not choice.begun]
        self._run.prefilling()
        prompts = [choice.prompt_ids for choice in missing]
        request_id = self._run.job.request_id
        try:
            embeddings = await self._engine.embed(request_id, prompts) if missing else []
        except asyncio.CancelledError:
            await self._engine.abort(request_id)
            raise
        self._run.ticked(None)
        for choice, embedding in zip(missing, embeddings, strict=True):
            vector = struct.pack(f"<{len(embedding.vector)}f", *embedding.vector)
            choice.appended = self._run.log(choice.index, ("", Extra(embedding=vector)))
        await self._run.complete(0, NOTHING)


def _characters(job: Job) -> int:
    """Return how much there is to tokenise: 1,024 empty messages, or the arguments of one call, can be the most."""
    total = sum(TEXT_CHARACTERS + len(prompt) for prompt in job.task.prompts)
    for message in job.messages:
        total += TEXT_CHARACTERS + len(message.content) + len(message.reasoning or "")
        total += sum(TEXT_CHARACTERS + len(call.arguments) for call in message.tool_calls)
    return total
