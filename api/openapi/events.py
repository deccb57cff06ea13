"""The events of a streamed chat as structs, for the document and for the test that holds our renderer to them.

`shared/openai/render.py` writes these bytes by hand. Source: CreateChatCompletionStreamResponse, DESIGN section 7.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from shared.openai.response import Logprobs, PublicUsage
from shared.wire import FinishReason


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The name of a called function, in its first event; then more of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDeltaBody(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a call; `id` and `type` are in its first event only."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What this event adds to the message; in a choice's first event its role, in its last one nothing."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDeltaBody] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice in an event; `finish_reason` in its last one."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """The data of one event of a streamed chat. `usage`: with `include_usage`, null until the last event."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: PublicUsage | UnsetType | None = UNSET


class CancellationBody(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a request was cancelled; false where it had ended."""

    id: str
    object: Literal["completion.cancellation"]
    cancelled: bool
