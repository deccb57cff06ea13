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


class KeyLimitsBody(msgspec.Struct, frozen=True, kw_only=True):
    """How much a key may do at a time; 0 = no limit of its own."""

    requests_per_minute: int
    tokens_per_minute: int
    concurrency: int


class KeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, without its secret. `allowed_models`: none = all.

    `budget` is what the key may spend in its life, null = as much as the account; `remaining` is what of it is neither
    spent, nor held by running requests, nor given to keys that this one made.
    """

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    status: Literal["active", "revoked", "expired"]
    scopes: list[Literal["completions", "keys", "credits"]]
    allowed_models: list[str]
    limits: KeyLimitsBody
    budget: str | None
    spent: str | None
    remaining: str | None


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
    api_key_id: str | None  # null: asked by a session
    status: Literal["completed", "cancelled", "failed"]
    finish_reason: str | None
    stream: bool
    lane: Literal["interactive", "batch"]  # batch: `service_tier: "flex"`
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: str
    queue_ms: int
    ttft_ms: int | None
    latency_ms: int
    attempts: int


class ReceiptPricesBody(msgspec.Struct, frozen=True, kw_only=True):
    """One price list, of prompt tokens, of those among them that were cached, and of completion tokens."""

    prompt: str
    cached: str
    completion: str


class NanocreditPricesBody(msgspec.Struct, frozen=True, kw_only=True):
    """The same list in whole nanocredits per token: 10^9 nanocredits are a credit."""

    prompt: int
    cached: int
    completion: int


class ReceiptBody(msgspec.Struct, frozen=True, kw_only=True):
    """A usage row with all that its charge was computed from.

    If `charged`, cost = (prompt_tokens - cached_tokens) x prompt + cached_tokens x cached + completion_tokens x
    completion, at the prices in force when the request was admitted; else it is 0. `hold` was set aside meanwhile.
    """

    id: str
    object: Literal["usage.receipt"] = "usage.receipt"
    request_id: str
    created_at: int
    reserved_at: int
    model: str
    api_key_id: str | None  # null: asked by a session
    status: Literal["completed", "cancelled", "failed"]
    code: str | None
    finish_reason: str | None
    stream: bool
    lane: Literal["interactive", "batch"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    prices_per_million_tokens: ReceiptPricesBody
    nanocredits_per_token: NanocreditPricesBody
    charged: bool
    cost: str
    hold: str
    transaction_id: str | None
    balance_after: str | None
    queue_ms: int
    ttft_ms: int | None
    latency_ms: int
    attempts: int


class UsageResultBody(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of a bucket, or of one group of it; `model` and `api_key_id` are null where they are not grouped by.

    Grouped by keys, what sessions asked for is the group without one.
    """

    object: Literal["usage.result"] = "usage.result"
    model: str | None
    api_key_id: str | None
    requests: int
    completed_requests: int
    cancelled_requests: int
    failed_requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: str


class UsageBucketBody(msgspec.Struct, frozen=True, kw_only=True):
    """What was closed from `start_time` on and before `end_time`; no results: nothing."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[UsageResultBody]


class UsageSummaryBody(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets, the oldest first; ask for `page=next_page` while `has_more`. Source: OpenAI, organization usage."""

    object: Literal["page"] = "page"
    data: list[UsageBucketBody]
    has_more: bool
    next_page: str | None
