"""Usage: one row per closed request, and its receipt. Amounts are nanocredits."""

from datetime import datetime
from typing import Final, get_args

import msgspec

from shared import ids
from shared.connections import Connection
from shared.errors import NotFound
from shared.wire import Lane, Status


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used and cost (nanocredits). Durations are milliseconds from the reservation."""

    id: str
    request_id: str
    created_at: datetime
    account_id: str
    key_id: str
    model: str
    lane: Lane
    status: Status
    code: str | None
    finish_reason: str | None
    stream: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int
    queue_ms: int
    ttft_ms: int | None
    latency_ms: int
    attempts: int


class UsageFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows are asked for; None: any. Closed from `created_after` on and before `created_before`."""

    model: str | None = None
    key_id: str | None = None
    status: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class Receipt(UsageRow, frozen=True, kw_only=True):
    """A usage row with all that its charge was computed from, and where it stands in the account's book.

    Prices are nanocredits per token, as in force when the request was admitted. Without a charge there is no transfer.
    """

    prefill_began: bool
    prompt_price: int
    cached_price: int
    completion_price: int
    hold: int
    reserved_ms: int  # Unix milliseconds
    transaction_id: str | None
    balance_after: int | None


USAGE_STATUSES: Final[tuple[Status, ...]] = get_args(Status)
ANY_USAGE: Final = UsageFilter()


async def list_usage(
    connection: Connection,
    account_id: str,
    *,
    after: str | None = None,
    limit: int = 20,
    where: UsageFilter = ANY_USAGE,
) -> tuple[list[UsageRow], bool]:
    """Return up to `limit` rows, the last closed first, behind the row with id `after`; and whether more follow.

    Raises NotFound if `after` is no usage row of this account.
    """
    # One upper bound: of two, Postgres would begin to read at the cursor's and throw away all that is younger.
    before, before_id = where.created_before, ""
    if after is not None:
        closed_at = await _closed_at(connection, account_id, after)
        if before is None or closed_at < before:
            before, before_id = closed_at, after
    rows = await connection.fetch(
        """
        SELECT id, request_id, created_at, account_id, key_id, model, status, code, finish_reason, stream,
               prompt_tokens, cached_tokens, completion_tokens, cost, queue_ms, ttft_ms, latency_ms, attempts,
               (SELECT lane FROM requests r WHERE r.request_id = usage.request_id) AS lane
          FROM usage
         WHERE account_id = $1
           AND (created_at, id) < (coalesce($2, 'infinity'::TIMESTAMPTZ), $3)
           AND created_at >= coalesce($5, '-infinity'::TIMESTAMPTZ)
           AND ($6::TEXT IS NULL OR model = $6) AND ($7::TEXT IS NULL OR key_id = $7)
           AND ($8::TEXT IS NULL OR status = $8)
         ORDER BY created_at DESC, id DESC LIMIT $4
        """,
        account_id,
        before,
        before_id,
        limit + 1,
        where.created_after,
        where.model,
        where.key_id,
        where.status,
    )
    return [UsageRow(**row) for row in rows[:limit]], len(rows) > limit


async def get_receipt(connection: Connection, account_id: str, request_id: str) -> Receipt | None:
    """Return the receipt of one closed request of this account, or None."""
    row = await connection.fetchrow(
        """
        SELECT u.id, u.request_id, u.created_at, u.account_id, u.key_id, u.model, u.status, u.code, u.finish_reason,
               u.stream, u.prompt_tokens, u.cached_tokens, u.completion_tokens, u.cost, u.queue_ms, u.ttft_ms,
               u.latency_ms, u.attempts, u.prefill_began, r.lane, r.prompt_price, r.cached_price, r.completion_price,
               r.hold, r.reserved_ms, t.id AS transaction_id, t.balance_after
          FROM usage u
          JOIN requests r ON r.request_id = u.request_id
          LEFT JOIN transfers t ON t.id = 'txn_' || id_suffix(u.request_id) AND t.account_id = u.account_id
         WHERE u.request_id = $2 AND u.account_id = $1
        """,
        account_id,
        request_id,
    )
    return None if row is None else Receipt(**row)


async def find_usage(connection: Connection, request_id: str) -> UsageRow | None:
    """Return the receipt of a request, whosever it is, or None: for operators and tests."""
    row = await connection.fetchrow(
        """
        SELECT id, request_id, created_at, account_id, key_id, model, status, code, finish_reason, stream,
               prompt_tokens, cached_tokens, completion_tokens, cost, queue_ms, ttft_ms, latency_ms, attempts,
               (SELECT lane FROM requests r WHERE r.request_id = usage.request_id) AS lane
          FROM usage WHERE request_id = $1
        """,
        request_id,
    )
    return None if row is None else UsageRow(**row)


async def _closed_at(connection: Connection, account_id: str, usage_id: str) -> datetime:
    found: datetime | None = await connection.fetchval(
        "SELECT created_at FROM usage WHERE request_id = ANY ($2::TEXT[]) AND account_id = $1 AND id = $3",
        account_id,
        ids.requests_of(usage_id),
        usage_id,
    )
    if found is None:
        raise NotFound(f"There is no usage row {usage_id}.")
    return found
