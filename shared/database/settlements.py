"""Settlement: a reservation becomes a charge, once. Called by the settlement worker and the janitor.

One statement for many requests (migration 0003): usage rows, charges, holds given back, requests closed.
"""

from collections.abc import Sequence
from typing import Literal

from shared.connections import Connection
from shared.database.repeats import part_at_repeats
from shared.wire import Finish

Settled = Literal["settled", "already", "unknown", "mismatch", "too_costly"]


async def settle_many(connection: Connection, rows: Sequence[Finish]) -> list[Settled]:
    """Close the requests of `rows` and return a verdict for each; the first row of a request wins.

    already: closed before. unknown: no such request. mismatch: of another account or model. too_costly: the cost would
    exceed the hold. Only `settled` changes anything.
    """
    verdicts: list[Settled] = []
    for part in part_at_repeats(rows, lambda row: (row.request_id,)):
        verdicts += await _settle_distinct(connection, part)
    return verdicts


async def _settle_distinct(connection: Connection, rows: Sequence[Finish]) -> list[Settled]:
    verdicts = await connection.fetchval(
        "SELECT settle_many($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        [row.request_id for row in rows],
        [row.account_id for row in rows],
        [row.model for row in rows],
        [row.status for row in rows],
        [row.code for row in rows],
        [row.finish_reason for row in rows],
        [row.usage.prompt_tokens for row in rows],
        [row.usage.cached_tokens for row in rows],
        [row.usage.completion_tokens for row in rows],
        [row.prefill_began for row in rows],
        [row.attempts for row in rows],
        [row.queue_ms for row in rows],
        [row.ttft_ms for row in rows],
        [row.latency_ms for row in rows],
    )
    return ["settled"] * len(rows) if verdicts is None else list(verdicts)
