"""A whole answer out of its chunks: what `stream: false` sends, and what a client adds up from a stream."""

from collections.abc import Iterable

from shared.errors import BackendFailed
from shared.openai.response import AssistantMessage, ChatCompletion, Choice, public_usage
from shared.wire import Chunk, FinishReason, Usage


class Fold:
    """Adds up the chunks of one answer."""

    def __init__(self, choices: int = 1) -> None:
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._reasons: list[FinishReason | None] = [None] * choices

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks, in order."""
        for chunk in chunks:
            if chunk.text:
                self._texts[chunk.choice].append(chunk.text)
            if chunk.finish_reason is not None:
                self._reasons[chunk.choice] = chunk.finish_reason

    def completion(self, request_id: str, created: int, model: str, usage: Usage) -> ChatCompletion:
        """Return the answer; BackendFailed where a choice never finished."""
        choices = []
        for index, (texts, reason) in enumerate(zip(self._texts, self._reasons, strict=True)):
            if reason is None:
                raise BackendFailed("The answer ended without a finish reason.")
            message = AssistantMessage(content="".join(texts))
            choices.append(Choice(index=index, message=message, finish_reason=reason))
        return ChatCompletion(request_id, "chat.completion", created, model, choices, public_usage(usage))
