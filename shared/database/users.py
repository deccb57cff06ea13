"""Users: people with an e-mail address and a password, each on one account. Addresses are normalised."""

from datetime import datetime

import asyncpg
import msgspec

from shared import ids
from shared.connections import Connection
from shared.database.accounts import create_account
from shared.errors import Conflict


class User(msgspec.Struct, frozen=True, kw_only=True):
    """One person. `active` is the account's; `admin` opens the routes of operators."""

    id: str
    account_id: str
    email: str
    password_hash: str
    admin: bool
    active: bool
    created_at: datetime


async def register(
    connection: Connection, *, email: str, password_hash: str, admin: bool = False, **limits: int
) -> User:
    """Add a user with an account of their own, without credits; `limits` are those of `create_account`.

    Raises Conflict (`account_exists`) where the address has a user or an account: nobody takes over either.
    """
    async with connection.transaction():
        account = await create_account(connection, email=email, **limits)
        try:
            row = await connection.fetchrow(
                """
                INSERT INTO users (id, account_id, email, password_hash, admin) VALUES ($1, $2, $3, $4, $5)
                RETURNING id, account_id, email, password_hash, admin, TRUE AS active, created_at
                """,
                ids.new_id("user_"),
                account.id,
                email,
                password_hash,
                admin,
            )
        except asyncpg.UniqueViolationError:
            raise Conflict(f"There is a user with the e-mail address {email} already.", code="account_exists") from None
    assert row is not None
    return User(**row)


async def find_user(connection: Connection, email: str) -> User | None:
    """Return the user with this address, or None."""
    row = await connection.fetchrow(
        """
        SELECT u.id, u.account_id, u.email, u.password_hash, u.admin, a.active, u.created_at
          FROM users u JOIN accounts a ON a.id = u.account_id WHERE u.email = $1
        """,
        email,
    )
    return None if row is None else User(**row)


async def get_user(connection: Connection, user_id: str) -> User | None:
    """Return one user, or None."""
    row = await connection.fetchrow(
        """
        SELECT u.id, u.account_id, u.email, u.password_hash, u.admin, a.active, u.created_at
          FROM users u JOIN accounts a ON a.id = u.account_id WHERE u.id = $1
        """,
        user_id,
    )
    return None if row is None else User(**row)


async def set_admin(connection: Connection, email: str, *, admin: bool) -> bool:
    """Make a user an operator or not; False where there is no such user."""
    status = await connection.execute("UPDATE users SET admin = $2 WHERE email = $1", email, admin)
    return bool(status == "UPDATE 1")
