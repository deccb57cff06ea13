"""A whole answer out of its chunks: what `stream: false` sends, and what a client adds up from a stream."""

import base64
import struct
from collections.abc import Iterable
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from shared.errors import BackendFailed
from shared.openai.request import CompletionRequest
from shared.openai.response import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    EmbeddingBody,
    EmbeddingList,
    EmbeddingUsage,
    FunctionCall,
    Logprobs,
    TextChoice,
    TextCompletion,
    ToolCallBody,
    logprobs_body,
    public_usage,
    text_logprobs,
)
from shared.wire import Chunk, Extra, FinishReason, TokenLogprob, Usage


class Fold(Protocol):
    """Adds up the chunks of one answer."""

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks, in order."""

    def body(self, request_id: str, created: int, model: str, usage: Usage) -> msgspec.Struct:
        """Return the whole answer; BackendFailed where it is not whole."""


def fold_for(request: CompletionRequest) -> Fold:
    """Return the fold of a request's answer."""
    if request.task.kind == "embedding":
        return EmbeddingFold(len(request.task.prompts), as_base64=request.base64)
    if request.task.kind == "completion":
        return TextFold(request.sampling.choices * len(request.task.prompts))
    return ChatFold(request.sampling.choices, request.service_tier)


class _Gathered:
    """What one choice has said so far."""

    __slots__ = ("calls", "logprobs", "reason", "reasoning", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reason: FinishReason | None = None
        self.reasoning: list[str] = []
        self.calls: list[tuple[str, str, list[str]]] = []  # id, name, parts of the arguments
        self.logprobs: list[TokenLogprob] | None = None

    def add(self, extra: Extra) -> None:
        if extra.reasoning:
            self.reasoning.append(extra.reasoning)
        for delta in extra.tool_calls:
            if delta.index == len(self.calls):
                self.calls.append((delta.id or "", delta.name or "", []))
            self.calls[delta.index][2].append(delta.arguments)
        if extra.logprobs:
            self.logprobs = [*(self.logprobs or ()), *extra.logprobs]

    def finished(self) -> FinishReason:
        if self.reason is None:
            raise BackendFailed("The answer ended without a finish reason.")
        return self.reason


class _ChoicesFold:
    def __init__(self, choices: int = 1) -> None:
        self._choices = [_Gathered() for _ in range(choices)]

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks, in order."""
        for chunk in chunks:
            choice = self._choices[chunk.choice]
            if chunk.text:
                choice.texts.append(chunk.text)
            if chunk.extra is not None:
                choice.add(chunk.extra)
            if chunk.finish_reason is not None:
                choice.reason = chunk.finish_reason


class ChatFold(_ChoicesFold):
    """Of a chat completion."""

    def __init__(self, choices: int = 1, service_tier: str | None = None) -> None:
        super().__init__(choices)
        self._service_tier: str | UnsetType = UNSET if service_tier is None else service_tier

    def body(self, request_id: str, created: int, model: str, usage: Usage) -> ChatCompletion:
        """Return the answer; BackendFailed where a choice never finished."""
        choices = [
            Choice(
                index=index,
                message=_message(choice),
                logprobs=None if choice.logprobs is None else Logprobs(content=logprobs_body(choice.logprobs)),
                finish_reason=choice.finished(),
            )
            for index, choice in enumerate(self._choices)
        ]
        return ChatCompletion(
            request_id, "chat.completion", created, model, choices, public_usage(usage), self._service_tier
        )


class TextFold(_ChoicesFold):
    """Of a legacy completion."""

    def body(self, request_id: str, created: int, model: str, usage: Usage) -> TextCompletion:
        """Return the answer; BackendFailed where a choice never finished."""
        choices = [
            TextChoice(
                text="".join(choice.texts),
                index=index,
                logprobs=None if choice.logprobs is None else text_logprobs(choice.logprobs),
                finish_reason=choice.finished(),
            )
            for index, choice in enumerate(self._choices)
        ]
        return TextCompletion(request_id, "text_completion", created, model, choices, public_usage(usage))


class EmbeddingFold:
    """Of embeddings: `Chunk.choice` numbers the inputs."""

    def __init__(self, inputs: int, *, as_base64: bool) -> None:
        self._vectors: list[bytes | None] = [None] * inputs
        self._as_base64 = as_base64

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks, in any order."""
        for chunk in chunks:
            if chunk.extra is not None and chunk.extra.embedding is not None:
                self._vectors[chunk.choice] = chunk.extra.embedding

    def body(self, request_id: str, created: int, model: str, usage: Usage) -> EmbeddingList:
        """Return the vectors; BackendFailed where one is missing."""
        data = [EmbeddingBody(index=index, embedding=self._shown(data)) for index, data in enumerate(self._vectors)]
        return EmbeddingList(data=data, model=model, usage=EmbeddingUsage(usage.prompt_tokens, usage.prompt_tokens))

    def _shown(self, vector: bytes | None) -> list[float] | str:
        if vector is None:
            raise BackendFailed("The answer ended without all its vectors.")
        if self._as_base64:
            return base64.b64encode(vector).decode()
        return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def _message(choice: _Gathered) -> AssistantMessage:
    text = "".join(choice.texts)
    calls = [
        ToolCallBody(id=call_id, function=FunctionCall(name, "".join(parts))) for call_id, name, parts in choice.calls
    ]
    return AssistantMessage(
        content=None if calls and not text else text,
        reasoning_content="".join(choice.reasoning) if choice.reasoning else UNSET,
        tool_calls=calls or UNSET,
    )
