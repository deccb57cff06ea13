"""The public shapes of everything but completions: models, keys, credits, transactions, usage and lists of them.

Money is a decimal string of credits, times are Unix seconds. Source: the API reference, DESIGN section 10.
"""

from typing import Generic, Literal, TypeVar

import msgspec

ItemT = TypeVar("ItemT")


class ListBody(msgspec.Struct, Generic[ItemT], frozen=True, kw_only=True):
    """One page, the newest first; ask for `after=last_id` while `has_more`."""

    object: Literal["list"] = "list"
    data: list[ItemT]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalogue."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["inferbase"] = "inferbase"


class HealthBody(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model is warm. `eta_seconds` until it is, where that is known."""

    model: str
    status: Literal["ready", "loading", "unavailable"]
    eta_seconds: int | None
    queue_depth: int
    workers: int


class KeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, without its secret."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    status: Literal["active", "revoked", "expired"]


class NewKeyBody(KeyBody, frozen=True, kw_only=True):
    """An API key with its secret: only ever sent once, when it is made."""

    key: str


class DeletedKeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """What DELETE answers."""

    id: str
    object: Literal["api_key.deleted"] = "api_key.deleted"
    deleted: Literal[True] = True


class LifetimeBody(msgspec.Struct, frozen=True, kw_only=True):
    """All that ever came in and all that was charged."""

    deposited: str
    charged: str


class CreditBalanceBody(msgspec.Struct, frozen=True, kw_only=True):
    """What an account has; `available` is `balance` less what running requests hold."""

    object: Literal["credit_balance"] = "credit_balance"
    currency: Literal["USD"] = "USD"
    balance: str
    held: str
    available: str
    lifetime: LifetimeBody


class TransactionBody(msgspec.Struct, frozen=True, kw_only=True):
    """One movement of credits; `amount` is signed."""

    id: str
    object: Literal["credit_transaction"] = "credit_transaction"
    created_at: int
    type: Literal["deposit", "deduction", "refund", "adjustment"]
    amount: str
    balance_after: str
    request_id: str | None
    description: str


class UsageBody(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used, cost and took (milliseconds from its reservation)."""

    id: str
    object: Literal["usage"] = "usage"
    request_id: str
    created_at: int
    model: str
    api_key_id: str
    status: Literal["completed", "cancelled", "failed"]
    finish_reason: str | None
    stream: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: str
    queue_ms: int
    ttft_ms: int | None
    latency_ms: int
    attempts: int
