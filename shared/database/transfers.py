"""Transfers: every movement of credits, written once and never changed. Amounts are nanocredits."""

from datetime import datetime
from typing import Final, Literal, get_args

import asyncpg
import msgspec

from shared.connections import Connection
from shared.errors import Conflict, NotFound

FIRST_POSITION_NEVER: Final = 2**62

TransferType = Literal["deposit", "deduction", "refund", "adjustment"]
TRANSFER_TYPES: Final[tuple[TransferType, ...]] = get_args(TransferType)


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer as its customer sees it: `amount` is signed, `balance_after` theirs."""

    id: str
    created_at: datetime
    type: TransferType
    amount: int
    balance_after: int
    request_id: str | None
    description: str


async def deposit(
    connection: Connection, *, transfer_id: str, account_id: str, amount: int, description: str
) -> Transaction:
    """Give credits to an account, once per `transfer_id` however often it is called.

    Raises NotFound if the account does not exist, Conflict if the id was used for another account or amount.
    """
    assert amount > 0
    row = await connection.fetchrow(
        """
        SELECT id, created_at, type, amount, balance_after, request_id, description, account_id
          FROM deposit($1, $2, $3, $4)
        """,
        transfer_id,
        account_id,
        amount,
        description,
    )
    if row is None:
        raise NotFound(f"There is no account {account_id}.")
    transaction = msgspec.convert(dict(row), Transaction)
    if row["account_id"] != account_id or transaction.amount != amount or transaction.type != "deposit":
        raise Conflict(f"The transfer {transfer_id} exists and says something else.", code="transfer_exists")
    return transaction


class TransferFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which transfers are asked for; None: any. Times: from `created_after` on, before `created_before`."""

    type: TransferType | None = None
    request_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


ANY_TRANSFER: Final = TransferFilter()


async def list_transactions(
    connection: Connection,
    account_id: str,
    *,
    after: str | None = None,
    limit: int = 20,
    where: TransferFilter = ANY_TRANSFER,
) -> tuple[list[Transaction], bool]:
    """Return up to `limit` transactions, newest first, older than the one with id `after`; and whether more follow.

    Raises NotFound if `after` is no transaction of this account.
    """
    before = FIRST_POSITION_NEVER
    if after is not None:
        found = await connection.fetchval(
            "SELECT position FROM transfers WHERE id = $1 AND account_id = $2", after, account_id
        )
        if found is None:
            raise NotFound(f"There is no transaction {after}.")
        before = found
    # What is no charge is little, with an index of its own (migration 0009).
    few = where.request_id is not None or where.type not in (None, "deduction")
    find = _find_few if few else _find_many
    rows = await find(connection, account_id, before, limit, where)
    return [Transaction(**row) for row in rows[:limit]], len(rows) > limit


async def _find_many(
    connection: Connection, account_id: str, before: int, limit: int, where: TransferFilter
) -> list[asyncpg.Record]:
    return await connection.fetch(
        """
        SELECT id, created_at, type, CASE WHEN to_account = account_id THEN amount ELSE -amount END AS amount,
               balance_after, request_id, description
          FROM transfers
         WHERE account_id = $1 AND position < $2
           AND position >= CASE WHEN $4::TIMESTAMPTZ IS NULL THEN 0 ELSE position_before($1, $4) END
           AND position < CASE WHEN $5::TIMESTAMPTZ IS NULL THEN $2
                ELSE position_before($1, $5 + INTERVAL '20 minutes') END
           AND created_at >= coalesce($4, '-infinity'::TIMESTAMPTZ)
           AND created_at < coalesce($5, 'infinity'::TIMESTAMPTZ)
           AND ($6::TEXT IS NULL OR type = $6)
         ORDER BY position DESC LIMIT $3
        """,
        account_id,
        before,
        limit + 1,
        where.created_after,
        where.created_before,
        where.type,
    )


async def _find_few(
    connection: Connection, account_id: str, before: int, limit: int, where: TransferFilter
) -> list[asyncpg.Record]:
    """Find what is no charge, and the charge of one request by its id, which is the request's."""
    return await connection.fetch(
        """
        SELECT id, created_at, type, CASE WHEN to_account = account_id THEN amount ELSE -amount END AS amount,
               balance_after, request_id, description
          FROM (SELECT * FROM transfers WHERE account_id = $1 AND type <> 'deduction'
                UNION ALL
                SELECT * FROM transfers WHERE id = 'txn_' || id_suffix($7) AND account_id = $1 AND type = 'deduction') t
         WHERE position < $2
           AND created_at >= coalesce($4, '-infinity'::TIMESTAMPTZ)
           AND created_at < coalesce($5, 'infinity'::TIMESTAMPTZ)
           AND ($6::TEXT IS NULL OR type = $6) AND ($7 IS NULL OR request_id = $7)
         ORDER BY position DESC LIMIT $3
        """,
        account_id,
        before,
        limit + 1,
        where.created_after,
        where.created_before,
        where.type,
        where.request_id,
    )
