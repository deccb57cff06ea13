"""Usage summed up in buckets of time, of one account; the work is bounded by the range that the caller allows.

Called by GET /usage/summary. A bucket is a whole minute, hour or day of UTC; only those in which something was closed
have rows.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from shared.connections import Connection
from shared.database.sessions import SESSION_PREFIX
from shared.errors import InvalidRequest

GROUPS_MOST: Final = 10_000  # rows of one answer
SECONDS_MOST: Final = 5.0  # some two million requests


class SummaryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to sum up: requests closed from `start` on and before `end`. models, key_ids: None = all of them."""

    start: datetime
    end: datetime
    width_seconds: int
    by_model: bool = False
    by_key: bool = False
    models: Sequence[str] | None = None
    key_ids: Sequence[str] | None = None


class SummaryRow(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of one bucket and group. bucket: Unix seconds at its begin; cost: nanocredits.

    key_id: None where keys are not told apart, and for all sessions together.
    """

    bucket: int
    model: str | None
    key_id: str | None
    requests: int
    completed: int
    cancelled: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int


async def summarize_usage(connection: Connection, account_id: str, query: SummaryQuery) -> list[SummaryRow]:
    """Return the sums in order of buckets, models and keys; never more than GROUPS_MOST + 1 rows.

    Raises InvalidRequest where Postgres reads for longer than SECONDS_MOST: retrying would only do the work again.
    """
    try:
        async with connection.transaction(readonly=True):
            await connection.execute("SELECT set_config('statement_timeout', $1, TRUE)", f"{SECONDS_MOST * 1000:.0f}")
            rows = await _sum_up(connection, account_id, query)
    except asyncpg.QueryCanceledError:
        message = f"This took longer than {SECONDS_MOST:g} seconds to sum up: ask for fewer buckets."
        raise InvalidRequest(message, param="limit") from None
    return [SummaryRow(**row) for row in rows]


async def _sum_up(connection: Connection, account_id: str, query: SummaryQuery) -> list[asyncpg.Record]:
    return await connection.fetch(
        """
        SELECT floor(extract(epoch FROM created_at) / $4::BIGINT)::BIGINT * $4::BIGINT AS bucket,
               CASE WHEN $5::BOOLEAN THEN model END AS model,
               CASE WHEN $6::BOOLEAN AND NOT starts_with(key_id, $10) THEN key_id END AS key_id,
               count(*) AS requests, count(*) FILTER (WHERE status = 'completed') AS completed,
               count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE status = 'failed') AS failed,
               sum(prompt_tokens)::BIGINT AS prompt_tokens, sum(cached_tokens)::BIGINT AS cached_tokens,
               sum(completion_tokens)::BIGINT AS completion_tokens, sum(cost)::BIGINT AS cost
          FROM usage
         WHERE account_id = $1 AND created_at >= $2 AND created_at < $3
           AND ($7::TEXT[] IS NULL OR model = ANY ($7)) AND ($8::TEXT[] IS NULL OR key_id = ANY ($8))
         GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT $9
        """,
        account_id,
        query.start,
        query.end,
        query.width_seconds,
        query.by_model,
        query.by_key,
        None if query.models is None else list(query.models),
        None if query.key_ids is None else list(query.key_ids),
        GROUPS_MOST + 1,
        SESSION_PREFIX,
    )
