"""The public shapes of an answer that is not streamed, and of its usage.

Source: CreateChatCompletionResponse, CreateCompletionResponse, CreateEmbeddingResponse. `reasoning_content` is the
field's usual extension; it and `tool_calls` are only there where they say something.
"""

import codecs
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from shared.wire import FinishReason, TokenLogprob, Usage

LOGPROB_LEAST: Final = -9999.0  # OpenAI's for "very unlikely": JSON has no minus infinity


class PromptDetails(msgspec.Struct, frozen=True):
    """What the prompt's tokens were."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """What the answer's tokens were."""

    reasoning_tokens: int


class PublicUsage(msgspec.Struct, frozen=True):
    """Token counts as a client sees them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


class FunctionCall(msgspec.Struct, frozen=True):
    """The function that a call names, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallBody(msgspec.Struct, frozen=True, kw_only=True):
    """One call of an answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AlternativeBody(msgspec.Struct, frozen=True):
    """One token and how likely it was; `bytes` are its own, where `token` may hold replacement characters."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobBody(AlternativeBody, frozen=True):
    """One token of the answer, with the likeliest ones at its place."""

    top_logprobs: list[AlternativeBody]


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of the tokens of a choice, or of one event."""

    content: list[LogprobBody]
    refusal: None = None


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of one choice."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallBody] | UnsetType = UNSET


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True):
    """One answer. `created` is Unix seconds."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: PublicUsage
    service_tier: str | UnsetType = UNSET


class TextLogprobs(msgspec.Struct, frozen=True):
    """Of a legacy completion: an entry per token in each list; `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a legacy completion."""

    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletion(msgspec.Struct, frozen=True):
    """One answer of the legacy endpoint, whole or one event of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: PublicUsage | UnsetType | None = UNSET


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    """The vector of one input: numbers, or their float32 bytes in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts of embeddings."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors of all inputs, in their order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsage


def public_usage(usage: Usage) -> PublicUsage:
    """Return the counts of an answer in their public shape."""
    return PublicUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(usage.cached_tokens),
        completion_tokens_details=CompletionDetails(usage.reasoning_tokens) if usage.reasoning_tokens else UNSET,
    )


def logprobs_body(logprobs: Sequence[TokenLogprob]) -> list[LogprobBody]:
    """Return the log probabilities of tokens in a chat completion's shape."""
    return [
        LogprobBody(
            _token(one.text),
            max(one.logprob, LOGPROB_LEAST),
            list(one.text),
            [AlternativeBody(_token(text), max(logprob, LOGPROB_LEAST), list(text)) for text, logprob in one.top],
        )
        for one in logprobs
    ]


def text_logprobs(logprobs: Sequence[TokenLogprob], *, offset: int = 0) -> TextLogprobs:
    """Return the log probabilities of tokens in a legacy completion's shape; `offset` is where they begin."""
    tokens = [_token(one.text) for one in logprobs]
    offsets: list[int] = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for one in logprobs:
        offsets.append(offset)
        offset += len(decoder.decode(one.text))
    tops: list[dict[str, float]] = [_by_token(one.top) for one in logprobs]
    return TextLogprobs(
        tokens, [max(one.logprob, LOGPROB_LEAST) for one in logprobs], tops if any(tops) else None, offsets
    )


def _by_token(top: Sequence[tuple[bytes, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text, logprob in top:
        found.setdefault(_token(text), max(logprob, LOGPROB_LEAST))  # of two that look the same the likelier one
    return found


def _token(text: bytes) -> str:
    return text.decode("utf-8", "replace")
