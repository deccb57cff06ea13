"""The answer of one choice out of its token ids: text, reasoning and tool calls, ready to be logged.

    ids -> TextStream (UTF-8, stop strings) -> ReasoningStream -> ToolCallStream

Called by the generation of one choice. What has been said after n ids depends on these ids alone, not on how they were
cut into deltas: so a worker that takes over replays the logged ids and stands where the other one stood.
"""

from collections.abc import Sequence

from shared.wire import ToolCallDelta
from workers.inference.reasoning import ReasoningStream
from workers.inference.stops import TextStream
from workers.inference.tool_calls import ToolCallStream


class AnswerStream:
    """What one choice says; for plain chats `TextStream` alone is enough."""

    def __init__(self, text: TextStream, *, reasoning: ReasoningStream | None, tools: ToolCallStream | None) -> None:
        self.reasoning_tokens = 0
        self._text = text
        self._reasoning = reasoning
        self._tools = tools

    @property
    def stopped(self) -> bool:
        """Whether the answer is over before the model ends it: a stop string, or the one call that was allowed."""
        return self._text.stopped or (self._tools is not None and self._tools.complete)

    @property
    def called(self) -> bool:
        """Whether the model called a tool."""
        return self._tools is not None and self._tools.calls > 0

    def push(self, token_ids: Sequence[int], text: bytes | None = None) -> tuple[str, str, list[ToolCallDelta]]:
        """Return the new text, reasoning and parts of calls; `text` as in TextStream."""
        if self._reasoning is None:
            return self._split("", self._text.push(token_ids, text))
        said, thought = [], []
        for token_id in token_ids:  # one by one: each belongs to the reasoning or not
            self.reasoning_tokens += self._reasoning.inside
            reasoning, answer = self._reasoning.push(self._text.push([token_id]))
            thought.append(reasoning)
            said.append(answer)
        return self._split("".join(thought), "".join(said))

    def finish(self) -> tuple[str, str, list[ToolCallDelta]]:
        """Return what was held back."""
        reasoning, said = "", self._text.finish()
        if self._reasoning is not None:
            reasoning, said = self._reasoning.push(said)
            last_reasoning, last = self._reasoning.finish()
            reasoning, said = reasoning + last_reasoning, said + last
        said, reasoning, calls = self._split(reasoning, said)
        return said + (self._tools.finish() if self._tools is not None else ""), reasoning, calls

    def _split(self, reasoning: str, said: str) -> tuple[str, str, list[ToolCallDelta]]:
        if self._tools is None:
            return said, reasoning, []
        said, calls = self._tools.push(said)
        return said, reasoning, calls
