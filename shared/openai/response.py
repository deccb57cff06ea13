"""The public shapes of an answer that is not streamed, and of its usage. Source: CreateChatCompletionResponse."""

from typing import Literal

import msgspec

from shared.wire import FinishReason, Usage


class PromptDetails(msgspec.Struct, frozen=True):
    """What the prompt's tokens were."""

    cached_tokens: int


class PublicUsage(msgspec.Struct, frozen=True):
    """Token counts as a client sees them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The whole text of one choice."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of an answer."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True):
    """One answer. `created` is Unix seconds."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: PublicUsage


def public_usage(usage: Usage) -> PublicUsage:
    """Return the counts of an answer in their public shape."""
    return PublicUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(usage.cached_tokens),
    )
