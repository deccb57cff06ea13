"""Transfers: every movement of credits, written once and never changed. Amounts are nanocredits."""

from datetime import datetime
from typing import Literal

import msgspec

from shared.connections import Connection
from shared.errors import Conflict, NotFound

TransferType = Literal["deposit", "deduction", "refund", "adjustment"]


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


async def list_transactions(
    connection: Connection, account_id: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[Transaction], bool]:
    """Return up to `limit` transactions, newest first, older than the one with id `after`; and whether more follow.

    Raises NotFound if `after` is no transaction of this account.
    """
    before = 2**62
    if after is not None:
        found = await connection.fetchval(
            "SELECT position FROM transfers WHERE id = $1 AND account_id = $2", after, account_id
        )
        if found is None:
            raise NotFound(f"There is no transaction {after}.")
        before = found
    rows = await connection.fetch(
        """
        SELECT id, created_at, type, CASE WHEN to_account = account_id THEN amount ELSE -amount END AS amount,
               balance_after, request_id, description
          FROM transfers WHERE account_id = $1 AND position < $2 ORDER BY position DESC LIMIT $3
        """,
        account_id,
        before,
        limit + 1,
    )
    return [Transaction(**row) for row in rows[:limit]], len(rows) > limit
