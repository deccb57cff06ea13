"""Rows of the ledger in their public shapes, and the parameters of a page."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

import msgspec
from litestar import Request

from shared.catalogue import Model
from shared.database.accounts import CreditBalance
from shared.database.api_keys import ApiKey
from shared.database.transfers import Transaction
from shared.database.usage import UsageRow
from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.resources import (
    CreditBalanceBody,
    KeyBody,
    LifetimeBody,
    ListBody,
    ModelBody,
    TransactionBody,
    UsageBody,
)
from shared.pricing import format_credits

PAGE_MOST: Final = 100
PAGE_DEFAULT: Final = 20
ID_CHARACTERS_MOST: Final = 64


class _Body(Protocol):
    @property
    def id(self) -> str: ...


RowT = TypeVar("RowT")
BodyT = TypeVar("BodyT", bound=_Body)


class Page(msgspec.Struct, frozen=True):
    """Which part of a list is asked for."""

    after: str | None
    limit: int


def page_of(request: Request[Any, Any, Any]) -> Page:
    """Return the page a request asks for; InvalidRequest for anything but `after` and `limit` 1 to 100."""
    after, limit = None, PAGE_DEFAULT
    for name, value in request.query_params.multi_items():
        if name == "limit":
            digits = value if value.isascii() and value.isdigit() and len(value) <= len(str(PAGE_MOST)) else "0"
            limit = fields.integer(1, PAGE_MOST)("limit", int(digits))
        elif name == "after":
            if not (0 < len(value) <= ID_CHARACTERS_MOST and value.isascii() and value.isprintable()):
                raise fields.invalid("after", "the `last_id` of a page")
            after = value
        else:
            shown = ascii(name[:ID_CHARACTERS_MOST])[1:-1]
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unsupported_parameter", param=shown)
    return Page(after, limit)


def list_body(found: tuple[Sequence[RowT], bool], shape: Callable[[RowT], BodyT]) -> ListBody[BodyT]:
    """Return the body of a page: rows and whether more follow."""
    rows, has_more = found
    data = [shape(row) for row in rows]
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
        api_key_id=row.key_id,
        status=row.status,
        finish_reason=row.finish_reason,
        stream=row.stream,
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


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
