"""One choice of an answer: its prompt, what it may still say, and how its tokens become text, reasoning and calls."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

from shared.channel import AppendVerdict
from shared.wire import Chunk, Extra, FinishReason, Job, Sampling, ToolCallDelta
from workers.engines.base import Delta, EngineGuide, EngineSampling, Tokenizer
from workers.inference.answer import AnswerStream
from workers.inference.reasoning import ReasoningStream
from workers.inference.stops import TextStream
from workers.inference.tool_calls import ToolCallStream

Said = tuple[str, Extra | None]  # text, and what else

NOTHING: Final[Said] = ("", None)


class Choice:
    """The state of one choice in this attempt."""

    # Invariants: what was pushed is in the log, or on its way there; `reason` is set once the last of it is.

    def __init__(
        self,
        index: int,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        reasoning: ReasoningStream | None = None,
        tools: ToolCallStream | None = None,
        echo: str = "",
    ) -> None:
        self.index: Final = index
        self.prompt_ids: Final = prompt_ids
        self.max_tokens: Final = max_tokens
        self.echo: Final = echo
        self.emitted: list[int] = []  # by earlier attempts
        self.begun = False  # something of it is in the log
        self.reason: FinishReason | None = None
        self.appended: asyncio.Future[AppendVerdict] | None = None  # its last append
        self._text = TextStream(tokenizer, stops)
        self._rich = reasoning is not None or tools is not None
        self._answer = AnswerStream(self._text, reasoning=reasoning, tools=tools)
        # whether any token may end it, which takes a task to see to
        self.may_stop: Final = bool(stops) or (tools is not None and tools.single)

    @property
    def stopped(self) -> bool:
        """Whether it is over before the model ends it."""
        return self._answer.stopped

    @property
    def reasoning_tokens(self) -> int:
        """How many of its tokens were reasoning."""
        return self._answer.reasoning_tokens

    def replay(self, chunks: Sequence[Chunk]) -> None:
        """Take over what earlier attempts logged of this choice."""
        self.begun = bool(chunks)
        self.emitted = [token_id for chunk in chunks for token_id in chunk.token_ids]
        self.reason = next((chunk.finish_reason for chunk in chunks if chunk.finish_reason), None)
        if self._rich:
            self._answer.push(self.emitted)
        else:
            self._text.replay(self.emitted, "".join(chunk.text for chunk in chunks).removeprefix(self.echo))

    def at_end(self, end_token_ids: frozenset[int]) -> FinishReason | None:
        """Return why nothing can follow what was replayed; None where something can."""
        if self.stopped or (self.emitted and self.emitted[-1] in end_token_ids):
            return self.ending("stop")
        if self.emitted and len(self.emitted) >= self.max_tokens:
            return "length"
        return None

    def ending(self, reason: FinishReason) -> FinishReason:
        """Return the finish reason of a choice that ended well: a call makes it `tool_calls`."""
        return "tool_calls" if reason == "stop" and self._answer.called else reason

    def push(self, delta: Delta) -> Said:
        """Return what the tokens of `delta` say."""
        if not self._rich:
            extra = Extra(logprobs=delta.logprobs) if delta.logprobs else None
            return self._text.push(delta.token_ids, delta.text), extra
        text, reasoning, calls = self._answer.push(delta.token_ids, delta.text)
        return text, _extra(reasoning, calls, delta)

    def finish(self) -> Said:
        """Return what was held back."""
        if not self._rich:
            return self._text.finish(), None
        text, reasoning, calls = self._answer.finish()
        return text, _extra(reasoning, calls, None)

    def sampling(self, asked: Sampling, guide: EngineGuide | None, *, account_id: str = "") -> EngineSampling:
        """Return how the engine is to go on behind what was emitted; an account's prompts are kept for itself alone."""
        behind = len(self.emitted) if guide is None else 0  # a guided answer may be made again: see EngineSampling
        return EngineSampling(
            max_tokens=self.max_tokens - len(self.emitted),
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=seed_at(asked.seed, self.index, behind),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            repetition_penalty=asked.repetition_penalty,
            top_k=asked.top_k,
            min_p=asked.min_p,
            logit_bias=asked.logit_bias,
            top_logprobs=asked.top_logprobs,
            guide=guide,
            cache_salt=account_id,
        )


def joined(first: Said, second: Said) -> Said:
    """Return what two parts say together."""
    one, other = first[1], second[1]
    text = first[0] + second[0]
    if one is None or other is None:
        return text, one or other
    return text, Extra(
        one.reasoning + other.reasoning, one.tool_calls + other.tool_calls, one.logprobs + other.logprobs
    )


def seed_at(seed: int | None, choice: int, position: int) -> int | None:
    """Return the seed of a choice that begins or goes on at `position`: the same draws must not be made twice."""
    if seed is None or (choice == 0 and position == 0):
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def choices_of(job: Job) -> int:
    """Return how many choices a job has: so many of an engine's slots it takes."""
    return 1 if job.task.kind == "embedding" else job.sampling.choices * max(1, len(job.task.prompts))


def _extra(reasoning: str, calls: Sequence[ToolCallDelta], delta: Delta | None) -> Extra | None:
    logprobs = delta.logprobs if delta is not None else ()
    if not reasoning and not calls and not logprobs:
        return None
    return Extra(reasoning, tuple(calls), logprobs)
