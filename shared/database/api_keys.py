"""API keys: only their digests are stored. Revoked rows stay, so that a revoked key is told from an unknown one."""

from collections.abc import Collection
from datetime import datetime

import msgspec

from shared import ids
from shared.connections import Connection
from shared.errors import NotFound


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key as its owner sees it. Limits: 0 = none."""

    id: str
    account_id: str
    name: str
    prefix: str
    rpm: int
    tpm: int
    concurrency: int
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a key speaks for. `active` is the account's; an expired key counts as revoked."""

    account_id: str
    key_id: str
    active: bool
    revoked: bool
    expires_at: datetime | None
    rpm: int
    tpm: int
    key_concurrency: int
    account_concurrency: int


async def create_key(
    connection: Connection,
    *,
    account_id: str,
    name: str,
    digest: bytes,
    prefix: str,
    rpm: int = 0,
    tpm: int = 0,
    concurrency: int = 0,
    expires_at: datetime | None = None,
) -> ApiKey:
    """Add a key; NotFound where the account does not exist."""
    row = await connection.fetchrow(
        """
        INSERT INTO api_keys (id, account_id, name, digest, prefix, rpm, tpm, concurrency, expires_at)
        SELECT $1, accounts.id, $3, $4, $5, $6, $7, $8, $9 FROM accounts WHERE accounts.id = $2
        RETURNING id, account_id, name, prefix, rpm, tpm, concurrency, created_at, expires_at, last_used_at, revoked_at
        """,
        ids.new_key_id(),
        account_id,
        name,
        digest,
        prefix,
        rpm,
        tpm,
        concurrency,
        expires_at,
    )
    if row is None:
        raise NotFound(f"There is no account {account_id}.")
    return ApiKey(**row)


async def list_keys(
    connection: Connection, account_id: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[ApiKey], bool]:
    """Return up to `limit` keys, newest first, older than the one with id `after`; and whether more follow.

    Raises NotFound if `after` is no key of this account.
    """
    if after is not None and await get_key(connection, account_id, after) is None:
        raise NotFound(f"There is no API key {after}.")
    rows = await connection.fetch(
        """
        SELECT id, account_id, name, prefix, rpm, tpm, concurrency, created_at, expires_at, last_used_at, revoked_at
          FROM api_keys WHERE account_id = $1 AND ($2::TEXT IS NULL OR id < $2) ORDER BY id DESC LIMIT $3
        """,
        account_id,
        after,
        limit + 1,
    )
    return [ApiKey(**row) for row in rows[:limit]], len(rows) > limit


async def get_key(connection: Connection, account_id: str, key_id: str) -> ApiKey | None:
    """Return one key of this account, or None."""
    row = await connection.fetchrow(
        """
        SELECT id, account_id, name, prefix, rpm, tpm, concurrency, created_at, expires_at, last_used_at, revoked_at
          FROM api_keys WHERE account_id = $1 AND id = $2
        """,
        account_id,
        key_id,
    )
    return None if row is None else ApiKey(**row)


async def revoke_key(connection: Connection, account_id: str, key_id: str) -> bool:
    """Revoke a key for good; False if this account has no such key. Revoking twice keeps the first moment."""
    status = await connection.execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE account_id = $1 AND id = $2",
        account_id,
        key_id,
    )
    return bool(status == "UPDATE 1")


async def find_key(connection: Connection, digest: bytes) -> Principal | None:
    """Return whom the key with this digest speaks for, or None where nobody has it."""
    row = await connection.fetchrow(
        """
        SELECT k.account_id, k.id AS key_id, a.active,
               k.revoked_at IS NOT NULL OR coalesce(k.expires_at <= now(), FALSE) AS revoked, k.expires_at, k.rpm,
               k.tpm, k.concurrency AS key_concurrency, a.concurrency AS account_concurrency
          FROM api_keys k JOIN accounts a ON a.id = k.account_id WHERE k.digest = $1
        """,
        digest,
    )
    return None if row is None else Principal(**row)


async def find_dead(connection: Connection, key_ids: Collection[str]) -> set[str]:
    """Return those of `key_ids` that open nothing any more: revoked, expired, unknown, or of a dead account."""
    rows = await connection.fetch(
        """
        SELECT u.id FROM unnest($1::TEXT[]) AS u (id)
         WHERE NOT EXISTS (SELECT FROM api_keys k JOIN accounts a ON a.id = k.account_id
                            WHERE k.id = u.id AND a.active AND k.revoked_at IS NULL
                              AND (k.expires_at IS NULL OR k.expires_at > now()))
        """,
        list(key_ids),
    )
    return {row["id"] for row in rows}


async def touch_keys(connection: Connection, key_ids: Collection[str]) -> None:
    """Note that these keys were used; at most once a minute for each."""
    await connection.execute(
        """
        UPDATE api_keys SET last_used_at = now()
         WHERE id = ANY ($1::TEXT[]) AND (last_used_at IS NULL OR last_used_at < now() - INTERVAL '1 minute')
        """,
        list(key_ids),
    )
