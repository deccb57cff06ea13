"""Reservations: the promise of credits to one request, and what its reader witnessed. Called by `shared/admission.py`.

Every verb takes many rows and is one statement (migrations 0002 and 0004). The caller owns connection and transaction.
"""

from collections.abc import Hashable, Sequence
from typing import ClassVar, Final, Literal

import msgspec

from shared.connections import Connection
from shared.database.repeats import part_at_repeats
from shared.pricing import Prices

DAY_MS: Final = 86_400_000  # how long an idempotency key is kept; the same in migration 0011

Verdict = Literal[
    "reserved", "insufficient", "account_inactive", "key_revoked", "budget_exceeded", "duplicate", "invalid"
]
Released = Literal["released", "already", "unknown"]
Ended = Literal["finished", "client_left", "failed", "lost"]


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Ask to hold credits for one request. Times are Unix milliseconds, money nanocredits.

    The hold is `hold_full`, or what is available if that is less but at least `hold_least`.
    """

    request_id: str
    account_id: str
    key_id: str
    model: str
    stream: bool
    lane: str
    resumable: bool
    prices: Prices
    prompt_bound: int  # tokens
    max_tokens: int | None
    hold_full: int
    hold_least: int
    reserved_ms: int
    queue_deadline_ms: int
    deadline_ms: int
    idempotency_key: str | None = None
    body_hash: bytes | None = None


class ReserveVerdict(msgspec.Struct, frozen=True):
    """What became of one reservation. `available`: what the account had left, told with `insufficient` only."""

    verdict: Verdict
    hold: int = 0
    available: int = 0


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """What an API node relayed of one request: totals, and how it saw the answer end."""

    request_id: str
    delivered_tokens: int
    delivered_seq: int
    prompt_tokens: int | None
    ended: Ended


async def reserve_many(connection: Connection, rows: Sequence[Reserve]) -> list[ReserveVerdict]:
    """Decide `rows` in order, each as if it came alone, and return a verdict for each.

    A request id that is reserved already, by the same account and still open, reads back its own row: `reserved` with
    the hold it has. Where a request id or an idempotency key comes twice, the rows are cut between them.
    """
    verdicts: list[ReserveVerdict] = []
    for part in part_at_repeats(rows, _names):
        verdicts += await _reserve_distinct(connection, part)
    return verdicts


async def release_many(connection: Connection, rows: Sequence[tuple[str, str]], *, now_ms: int) -> list[Released]:
    """Close the open ones of `rows` (request id, code) free of charge, see migration 0006; ids must be distinct."""
    if not rows:
        return []
    found = await connection.fetchval(
        "SELECT release_many($1, $2, $3)", [request_id for request_id, _ in rows], [code for _, code in rows], now_ms
    )
    return list(found)


async def witness_many(connection: Connection, rows: Sequence[Witness]) -> None:
    """Note what was relayed; unknown requests are passed over. Ids must be distinct."""
    await connection.execute(
        "SELECT witness_many($1, $2, $3, $4, $5)",
        [row.request_id for row in rows],
        [row.delivered_tokens for row in rows],
        [row.delivered_seq for row in rows],
        [row.prompt_tokens for row in rows],
        [row.ended for row in rows],
    )


class OpenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An open request as the janitor needs it; `delivered_tokens`, `prompt_tokens` and `ended` as witnessed."""

    request_id: str
    account_id: str
    key_id: str
    model: str
    reserved_ms: int
    deadline_ms: int
    delivered_tokens: int
    prompt_tokens: int | None
    ended: Ended | None


async def list_open(
    connection: Connection, *, before_ms: int, after: tuple[int, str] = (0, ""), limit: int
) -> list[OpenRequest]:
    """Return open requests reserved before `before_ms`, oldest first, behind (reserved_ms, request id) `after`."""
    rows = await connection.fetch(
        """
        SELECT r.request_id, r.account_id, r.key_id, r.model, r.reserved_ms, r.deadline_ms, r.delivered_tokens,
               r.prompt_tokens, r.ended
          FROM open_requests o JOIN requests r ON r.request_id = o.request_id
         WHERE o.reserved_ms < $1 AND (o.reserved_ms, o.request_id) > ($2, $3)
         ORDER BY o.reserved_ms, o.request_id LIMIT $4
        """,
        before_ms,
        *after,
        limit,
    )
    return [OpenRequest(**row) for row in rows]


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was made, as whoever reads its answer again needs it. It runs on without this reader.

    `body_hash` is empty where it was made without an idempotency key.
    """

    request_id: str
    account_id: str
    key_id: str
    model: str
    reserved_ms: int
    deadline_ms: int
    body_hash: bytes
    closed: bool

    resumable: ClassVar[bool] = True


async def get_run(connection: Connection, account_id: str, request_id: str) -> PastRun | None:
    """Return one request of this account, or None."""
    row = await connection.fetchrow(
        """
        SELECT r.request_id, r.account_id, r.key_id, r.model, r.reserved_ms, r.deadline_ms,
               coalesce(r.body_hash, '') AS body_hash, u.request_id IS NOT NULL AS closed
          FROM requests r LEFT JOIN usage u ON u.request_id = r.request_id
         WHERE r.account_id = $1 AND r.request_id = $2
        """,
        account_id,
        request_id,
    )
    return None if row is None else PastRun(**row)


async def find_run(connection: Connection, account_id: str, idempotency_key: str, *, now_ms: int) -> PastRun | None:
    """Return the request that this key stands for; None where it is free, as `reserve_many` would find."""
    row = await connection.fetchrow(
        """
        SELECT r.request_id, r.account_id, r.key_id, r.model, r.reserved_ms, r.deadline_ms, r.body_hash,
               u.request_id IS NOT NULL AS closed
          FROM requests r LEFT JOIN usage u ON u.request_id = r.request_id
         WHERE r.account_id = $1 AND r.idempotency_key = $2
           AND (u.request_id IS NULL
                OR (r.reserved_ms >= $3 AND (u.status = 'completed' OR u.cost > 0)))
        """,
        account_id,
        idempotency_key,
        now_ms - DAY_MS,
    )
    return None if row is None else PastRun(**row)


async def _reserve_distinct(connection: Connection, rows: Sequence[Reserve]) -> list[ReserveVerdict]:
    answer = await connection.fetchrow(
        """
        SELECT verdicts, holds, available
          FROM reserve_many($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
        """,
        [row.request_id for row in rows],
        [row.account_id for row in rows],
        [row.key_id for row in rows],
        [row.model for row in rows],
        [row.stream for row in rows],
        [row.lane for row in rows],
        [row.resumable for row in rows],
        [row.prices.prompt for row in rows],
        [row.prices.cached for row in rows],
        [row.prices.completion for row in rows],
        [row.prompt_bound for row in rows],
        [row.max_tokens for row in rows],
        [row.hold_full for row in rows],
        [row.hold_least for row in rows],
        [row.reserved_ms for row in rows],
        [row.queue_deadline_ms for row in rows],
        [row.deadline_ms for row in rows],
        [row.idempotency_key for row in rows],
        [row.body_hash for row in rows],
    )
    assert answer is not None
    verdicts, holds, available = answer
    if verdicts is None:
        return [ReserveVerdict("reserved", row.hold_full) for row in rows]
    return [ReserveVerdict(*verdict) for verdict in zip(verdicts, holds, available, strict=True)]


def _names(row: Reserve) -> tuple[Hashable, ...]:
    if row.idempotency_key is None:
        return (row.request_id,)
    return (row.request_id, (row.account_id, row.idempotency_key))
