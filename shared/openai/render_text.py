"""Chunks of one legacy completion as server-sent events. Source: CreateCompletionResponse; the rules are chat's."""

from collections.abc import Sequence

from msgspec import UNSET

from shared.errors import BackendFailed
from shared.openai.render import DONE, line_json
from shared.openai.response import TextChoice, TextCompletion, public_usage, text_logprobs
from shared.wire import Chunk, Usage


class TextRenderer:
    """Renders the chunks of one legacy completion in order; one per stream."""

    # Invariant: `_offsets` has the choices that have begun, and the characters of each so far.

    def __init__(self, request_id: str, created: int, model: str, *, include_usage: bool, choices: int | None) -> None:
        self._id = request_id
        self._created = created
        self._model = model
        self._include_usage = include_usage
        self._choices = choices
        self._finished = 0
        self._offsets: dict[int, int] = {}

    def render(self, chunks: Sequence[Chunk]) -> bytes:
        """Return the events of `chunks`, maybe none; BackendFailed where the answer ends without a finish reason."""
        parts: list[bytes] = []
        for chunk in chunks:
            if chunk.text or chunk.extra is not None or chunk.finish_reason is not None:
                parts.append(self._event([self._choice(chunk)], None))
            if chunk.end is not None:
                assert chunk.end.status == "completed"
                parts.append(self.end(chunk.end.usage))
        return b"".join(parts)

    def begin(self, chunk: Chunk) -> bytes:
        """Return nothing: legacy events name no role."""
        return b""

    def end(self, usage: Usage) -> bytes:
        """Return the last events; BackendFailed where a choice has not finished."""
        if self._finished != (len(self._offsets) if self._choices is None else self._choices):
            raise BackendFailed("The answer ended without a finish reason.")
        return (self._event([], usage) if self._include_usage else b"") + DONE

    def _choice(self, chunk: Chunk) -> TextChoice:
        logprobs = None
        offset = self._offsets.get(chunk.choice, 0)
        if chunk.extra is not None and chunk.extra.logprobs:
            logprobs = text_logprobs(chunk.extra.logprobs, offset=offset)
        self._offsets[chunk.choice] = offset + len(chunk.text)
        self._finished += chunk.finish_reason is not None
        return TextChoice(text=chunk.text, index=chunk.choice, logprobs=logprobs, finish_reason=chunk.finish_reason)

    def _event(self, choices: list[TextChoice], usage: Usage | None) -> bytes:
        told = (None if usage is None else public_usage(usage)) if self._include_usage else UNSET
        body = TextCompletion(self._id, "text_completion", self._created, self._model, choices, told)
        return b"data: " + line_json(body) + b"\n\n"
