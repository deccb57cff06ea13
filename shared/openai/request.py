"""A decoded completions request: what the rest of the product sees of a client's body."""

from typing import Literal

import msgspec

from shared.wire import PLAIN_CHAT, Message, Sampling, Task


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One strictly decoded chat completion, legacy completion or embedding; `task.kind` tells which."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    task: Task = PLAIN_CHAT
    stream: bool = False
    include_usage: bool = False
    base64: bool = False  # of an embedding: vectors as base64 instead of numbers
    user: str | None = None
    service_tier: Literal["default", "flex"] | None = None  # None: the client named none, and is told none
    ignored: tuple[str, ...] = ()  # fields we do not know, told in the header `x-inferbase-ignored`
