"""Usage: one row per closed request, its receipt."""

from datetime import datetime

import msgspec

from shared.connections import Connection
from shared.errors import NotFound
from shared.wire import Status


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used and cost (nanocredits). Durations are milliseconds from the reservation."""

    id: str
    request_id: str
    created_at: datetime
    account_id: str
    key_id: str
    model: str
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


async def list_usage(
    connection: Connection, account_id: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[UsageRow], bool]:
    """Return up to `limit` rows, the newest request first, older than the row with id `after`; and whether more follow.

    Raises NotFound if `after` is no usage row of this account.
    """
    if after is not None and not await _is_usage_of(connection, account_id, after):
        raise NotFound(f"There is no usage row {after}.")
    rows = await connection.fetch(
        """
        SELECT id, request_id, created_at, account_id, key_id, model, status, code, finish_reason, stream,
               prompt_tokens, cached_tokens, completion_tokens, cost, queue_ms, ttft_ms, latency_ms, attempts
          FROM usage WHERE account_id = $1 AND ($2::TEXT IS NULL OR id < $2) ORDER BY id DESC LIMIT $3
        """,
        account_id,
        after,
        limit + 1,
    )
    return [UsageRow(**row) for row in rows[:limit]], len(rows) > limit


async def get_usage(connection: Connection, account_id: str, request_id: str) -> UsageRow | None:
    """Return the receipt of one request of this account, or None."""
    row = await connection.fetchrow(
        """
        SELECT id, request_id, created_at, account_id, key_id, model, status, code, finish_reason, stream,
               prompt_tokens, cached_tokens, completion_tokens, cost, queue_ms, ttft_ms, latency_ms, attempts
          FROM usage WHERE request_id = $2 AND account_id = $1
        """,
        account_id,
        request_id,
    )
    return None if row is None else UsageRow(**row)


async def find_usage(connection: Connection, request_id: str) -> UsageRow | None:
    """Return the receipt of a request, whosever it is, or None: for operators and tests."""
    row = await connection.fetchrow(
        """
        SELECT id, request_id, created_at, account_id, key_id, model, status, code, finish_reason, stream,
               prompt_tokens, cached_tokens, completion_tokens, cost, queue_ms, ttft_ms, latency_ms, attempts
          FROM usage WHERE request_id = $1
        """,
        request_id,
    )
    return None if row is None else UsageRow(**row)


async def _is_usage_of(connection: Connection, account_id: str, usage_id: str) -> bool:
    found = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM usage WHERE account_id = $1 AND id = $2)", account_id, usage_id
    )
    return bool(found)
