"""Customers' accounts and their balances. Amounts are nanocredits."""

from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from shared import ids
from shared.connections import Connection
from shared.errors import Conflict, NotFound

WEIGHT_MOST: Final = 1000  # the same in migration 0016


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One customer; 0 <= held <= balance. Limits over all its keys, 0 = none: rpm and tpm a minute, concurrency.

    `weight`: its share of a busy queue, against the weights of the other accounts that wait.
    """

    id: str
    email: str
    balance: int
    held: int
    rpm: int
    tpm: int
    concurrency: int
    weight: int
    active: bool
    created_at: datetime


class CreditBalance(msgspec.Struct, frozen=True, kw_only=True):
    """What an account may spend (`available`), and all that ever came in and was charged."""

    balance: int
    held: int
    available: int
    deposited: int
    charged: int


async def create_account(
    connection: Connection, *, email: str, rpm: int = 0, tpm: int = 0, concurrency: int = 0, weight: int = 1
) -> Account:
    """Add an account without credits; Conflict where the e-mail address has one."""
    try:
        row = await connection.fetchrow(
            """
            INSERT INTO accounts (id, email, rpm, tpm, concurrency, weight) VALUES ($1, $2, $3, $4, $5, $6)
            RETURNING id, email, balance, held, rpm, tpm, concurrency, weight, active, created_at
            """,
            ids.new_account_id(),
            email,
            rpm,
            tpm,
            concurrency,
            weight,
        )
    except asyncpg.UniqueViolationError:
        raise Conflict(f"There is an account with the e-mail address {email} already.", code="account_exists") from None
    assert row is not None
    return Account(**row)


async def list_accounts(connection: Connection) -> list[Account]:
    """Return every account, oldest first."""
    rows = await connection.fetch(
        "SELECT id, email, balance, held, rpm, tpm, concurrency, weight, active, created_at FROM accounts ORDER BY id"
    )
    return [Account(**row) for row in rows]


async def get_account(connection: Connection, account_id: str) -> Account | None:
    """Return one account, or None."""
    row = await connection.fetchrow(
        """
        SELECT id, email, balance, held, rpm, tpm, concurrency, weight, active, created_at FROM accounts WHERE id = $1
        """,
        account_id,
    )
    return None if row is None else Account(**row)


async def page_accounts(
    connection: Connection, *, email: str | None = None, after: str | None = None, limit: int = 20
) -> tuple[list[Account], bool]:
    """Return up to `limit` accounts, newest first, older than the one with id `after`; and whether more follow.

    `email`: only the account of this address. Raises NotFound if `after` is no account.
    """
    if after is not None and await get_account(connection, after) is None:
        raise NotFound(f"There is no account {after}.")
    rows = await connection.fetch(
        """
        SELECT id, email, balance, held, rpm, tpm, concurrency, weight, active, created_at FROM accounts
         WHERE ($1::TEXT IS NULL OR email = $1) AND ($2::TEXT IS NULL OR id < $2) ORDER BY id DESC LIMIT $3
        """,
        email,
        after,
        limit + 1,
    )
    return [Account(**row) for row in rows[:limit]], len(rows) > limit


async def set_active(connection: Connection, account_id: str, *, active: bool) -> bool:
    """Activate or deactivate an account; False if it does not exist."""
    status = await connection.execute("UPDATE accounts SET active = $2 WHERE id = $1", account_id, active)
    return bool(status == "UPDATE 1")


async def set_weight(connection: Connection, account_id: str, weight: int) -> bool:
    """Change an account's share of a busy queue; False if it does not exist."""
    status = await connection.execute("UPDATE accounts SET weight = $2 WHERE id = $1", account_id, weight)
    return bool(status == "UPDATE 1")


async def credit_balance(connection: Connection, account_id: str) -> CreditBalance | None:
    """Return what an account has, or None if it does not exist; without reading its charges, which may be millions."""
    row = await connection.fetchrow(
        """
        SELECT a.balance, a.held, a.balance - a.held AS available,
               coalesce(sum(t.amount) FILTER (WHERE t.type = 'deposit'), 0)::BIGINT AS deposited,
               (coalesce(sum(CASE WHEN t.to_account = a.id THEN t.amount ELSE -t.amount END), 0) - a.balance)::BIGINT
                   AS charged
          FROM accounts a LEFT JOIN transfers t ON t.account_id = a.id AND t.type <> 'deduction'
         WHERE a.id = $1 GROUP BY a.id
        """,
        account_id,
    )
    return None if row is None else CreditBalance(**row)
