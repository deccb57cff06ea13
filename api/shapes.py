"""Rows of the ledger in their public shapes."""

from datetime import datetime
from typing import Any, Protocol, TypeVar

from litestar import Request

from api.parameters import PAGE_PARAMETERS, Page, Parameters
from shared.catalogue import Model
from shared.database.accounts import CreditBalance
from shared.database.api_keys import ApiKey
from shared.database.sessions import is_session
from shared.database.transfers import Transaction
from shared.database.usage import Receipt, UsageRow
from shared.database.usage_summary import SummaryRow
from shared.openai.resources import (
    CreditBalanceBody,
    KeyBody,
    KeyLimitsBody,
    LifetimeBody,
    ListBody,
    ModelBody,
    NanocreditPricesBody,
    ReceiptBody,
    ReceiptPricesBody,
    TransactionBody,
    UsageBody,
    UsageResultBody,
)
from shared.pricing import format_credits, format_price


class _Body(Protocol):
    @property
    def id(self) -> str: ...


BodyT = TypeVar("BodyT", bound=_Body)


def page_of(request: Request[Any, Any, Any]) -> Page:
    """Return the page a request asks for; InvalidRequest for anything but `after` and `limit` 1 to 100."""
    return Parameters(request, PAGE_PARAMETERS).page()


def list_body(data: list[BodyT], has_more: bool) -> ListBody[BodyT]:
    """Return the body of a page: rows and whether more follow."""
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ListBody(data=data, first_id=first, last_id=last, has_more=has_more)


def model_body(model: Model) -> ModelBody:
    """Return a model as clients see it."""
    return ModelBody(id=model.id, created=model.created_at)


def key_body(key: ApiKey, now: datetime) -> KeyBody:
    """Return a key as its owner sees it."""
    expired = key.expires_at is not None and key.expires_at <= now
    return KeyBody(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        created_at=_seconds(key.created_at),
        expires_at=None if key.expires_at is None else _seconds(key.expires_at),
        last_used_at=None if key.last_used_at is None else _seconds(key.last_used_at),
        status="revoked" if key.revoked_at is not None else "expired" if expired else "active",
        scopes=list(key.scopes),
        allowed_models=list(key.allowed_models),
        limits=KeyLimitsBody(requests_per_minute=key.rpm, tokens_per_minute=key.tpm, concurrency=key.concurrency),
        budget=_amount(key.budget),
        spent=_amount(key.spent),
        remaining=_amount(key.remaining),
    )


def credits_body(credits: CreditBalance) -> CreditBalanceBody:
    """Return the body of GET /credits."""
    return CreditBalanceBody(
        balance=format_credits(credits.balance),
        held=format_credits(credits.held),
        available=format_credits(credits.available),
        lifetime=LifetimeBody(
            deposited=format_credits(credits.deposited),
            charged=format_credits(credits.charged),
        ),
    )


def transaction_body(row: Transaction) -> TransactionBody:
    """Return a transfer as its customer sees it."""
    return TransactionBody(
        id=row.id,
        created_at=_seconds(row.created_at),
        type=row.type,
        amount=format_credits(row.amount),
        balance_after=format_credits(row.balance_after),
        request_id=row.request_id,
        description=row.description,
    )


def usage_body(row: UsageRow) -> UsageBody:
    """Return a usage row as its customer sees it."""
    return UsageBody(
        id=row.id,
        request_id=row.request_id,
        created_at=_seconds(row.created_at),
        model=row.model,
        api_key_id=None if is_session(row.key_id) else row.key_id,
        status=row.status,
        finish_reason=row.finish_reason,
        stream=row.stream,
        lane=row.lane,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        total_tokens=row.prompt_tokens + row.completion_tokens,
        cost=format_credits(row.cost),
        queue_ms=row.queue_ms,
        ttft_ms=row.ttft_ms,
        latency_ms=row.latency_ms,
        attempts=row.attempts,
    )


def receipt_body(row: Receipt) -> ReceiptBody:
    """Return the receipt of a request as its customer sees it."""
    return ReceiptBody(
        id=row.id,
        request_id=row.request_id,
        created_at=_seconds(row.created_at),
        reserved_at=row.reserved_ms // 1000,
        model=row.model,
        api_key_id=None if is_session(row.key_id) else row.key_id,
        status=row.status,
        code=row.code,
        finish_reason=row.finish_reason,
        stream=row.stream,
        lane=row.lane,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        total_tokens=row.prompt_tokens + row.completion_tokens,
        prices_per_million_tokens=ReceiptPricesBody(
            prompt=format_price(row.prompt_price),
            cached=format_price(row.cached_price),
            completion=format_price(row.completion_price),
        ),
        nanocredits_per_token=NanocreditPricesBody(
            prompt=row.prompt_price, cached=row.cached_price, completion=row.completion_price
        ),
        charged=row.status == "completed" or (row.status == "cancelled" and row.prefill_began),
        cost=format_credits(row.cost),
        hold=format_credits(row.hold),
        transaction_id=row.transaction_id,
        balance_after=_amount(row.balance_after),
        queue_ms=row.queue_ms,
        ttft_ms=row.ttft_ms,
        latency_ms=row.latency_ms,
        attempts=row.attempts,
    )


def result_body(row: SummaryRow) -> UsageResultBody:
    """Return the sums of one group of a bucket."""
    return UsageResultBody(
        model=row.model,
        api_key_id=None if is_session(row.key_id) else row.key_id,
        requests=row.requests,
        completed_requests=row.completed,
        cancelled_requests=row.cancelled,
        failed_requests=row.failed,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        total_tokens=row.prompt_tokens + row.completion_tokens,
        cost=format_credits(row.cost),
    )


def _amount(nanocredits: int | None) -> str | None:
    return None if nanocredits is None else format_credits(nanocredits)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
