"""API keys: only their digests are stored. Revoked rows stay, so that a revoked key is told from an unknown one.

What a key may do (scopes, models, limits, expiry, budget) is fixed when it is made. A budget is what the key and all
keys that it makes may spend together: a key's budget is taken out of that of the key which made it (migration 0007).
"""

from collections.abc import Collection
from datetime import datetime
from typing import Final, Literal

import asyncpg
import msgspec

from shared import ids
from shared.connections import Connection
from shared.errors import InvalidRequest, NotFound, Refusal
from shared.pricing import format_credits

Scope = Literal["completions", "keys", "credits"]
SCOPES: Final[tuple[Scope, ...]] = ("completions", "keys", "credits")
ALLOWED_MODELS_MOST: Final = 100


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key as its owner sees it. Limits: 0 = none. Amounts are nanocredits; without a budget all three are None.

    remaining: what of the budget is neither spent, nor held by running requests, nor given to keys that this one made.
    """

    id: str
    account_id: str
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    allowed_models: tuple[str, ...]
    rpm: int
    tpm: int
    concurrency: int
    budget: int | None
    spent: int | None
    remaining: int | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a key speaks for. `active` is the account's; an expired key counts as revoked. Limits: 0 = none.

    allowed_models: none = all. budget: nanocredits for the whole life of the key, None = as much as the account has.
    """

    account_id: str
    key_id: str
    active: bool
    revoked: bool
    expires_at: datetime | None
    rpm: int
    tpm: int
    key_concurrency: int
    account_concurrency: int
    account_rpm: int = 0
    account_tpm: int = 0
    weight: int = 1  # of the account in fair queueing
    scopes: frozenset[str] = frozenset(SCOPES)
    allowed_models: tuple[str, ...] = ()
    budget: int | None = None
    session: bool = False  # a person who logged in: no key, and so none of a key's bounds
    user_id: str = ""  # of that person
    admin: bool = False  # an operator


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
    scopes: Collection[str] = SCOPES,
    allowed_models: Collection[str] = (),
    budget: int | None = None,
    parent_id: str | None = None,
) -> ApiKey:
    """Add a key; its budget is taken out of that of the key `parent_id`, where that one has a budget.

    Raises NotFound where the account does not exist, InvalidRequest where the parent has not so much left to give.
    """
    row = await connection.fetchrow(
        """
        WITH owner AS (  -- locked first, as by everybody who changes a budget
            UPDATE accounts SET has_budgets = TRUE WHERE id = $2 AND $12::BIGINT IS NOT NULL RETURNING id
        ), parent AS (
            UPDATE key_budgets SET allotted = allotted + $12
             WHERE key_id = $13 AND budget - held - spent - allotted >= $12 AND EXISTS (SELECT FROM owner)
            RETURNING key_id
        ), made AS (
            INSERT INTO api_keys (id, account_id, name, digest, prefix, rpm, tpm, concurrency, expires_at, scopes,
                                  allowed_models)
            SELECT $1, accounts.id, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM accounts
             WHERE accounts.id = $2
               AND (EXISTS (SELECT FROM parent) OR NOT EXISTS (SELECT FROM key_budgets WHERE key_id = $13))
            RETURNING *
        ), budgeted AS (
            INSERT INTO key_budgets (key_id, budget, parent_id)
            SELECT made.id, $12, (SELECT key_id FROM parent) FROM made WHERE $12 IS NOT NULL
        )
        SELECT id, account_id, name, prefix, scopes, allowed_models, rpm, tpm, concurrency, $12 AS budget,
               CASE WHEN $12 IS NOT NULL THEN 0 END AS spent, $12 AS remaining, created_at, expires_at, last_used_at,
               revoked_at
          FROM made
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
        [scope for scope in SCOPES if scope in scopes],
        list(allowed_models),
        budget,
        parent_id,
    )
    if row is None:
        raise await _not_made(connection, account_id, parent_id)
    return _key(row)


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
        SELECT k.id, k.account_id, k.name, k.prefix, k.scopes, k.allowed_models, k.rpm, k.tpm, k.concurrency, b.budget,
               b.spent, b.budget - b.spent - b.held - b.allotted AS remaining, k.created_at, k.expires_at,
               k.last_used_at, k.revoked_at
          FROM api_keys k LEFT JOIN key_budgets b ON b.key_id = k.id
         WHERE k.account_id = $1 AND ($2::TEXT IS NULL OR k.id < $2) ORDER BY k.id DESC LIMIT $3
        """,
        account_id,
        after,
        limit + 1,
    )
    return [_key(row) for row in rows[:limit]], len(rows) > limit


async def get_key(connection: Connection, account_id: str, key_id: str) -> ApiKey | None:
    """Return one key of this account, or None."""
    row = await connection.fetchrow(
        """
        SELECT k.id, k.account_id, k.name, k.prefix, k.scopes, k.allowed_models, k.rpm, k.tpm, k.concurrency, b.budget,
               b.spent, b.budget - b.spent - b.held - b.allotted AS remaining, k.created_at, k.expires_at,
               k.last_used_at, k.revoked_at
          FROM api_keys k LEFT JOIN key_budgets b ON b.key_id = k.id
         WHERE k.account_id = $1 AND k.id = $2
        """,
        account_id,
        key_id,
    )
    return None if row is None else _key(row)


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
               k.tpm, k.concurrency AS key_concurrency, a.concurrency AS account_concurrency, a.rpm AS account_rpm,
               a.tpm AS account_tpm, a.weight, k.scopes, k.allowed_models, b.budget, k.admin
          FROM api_keys k JOIN accounts a ON a.id = k.account_id LEFT JOIN key_budgets b ON b.key_id = k.id
         WHERE k.digest = $1
        """,
        digest,
    )
    if row is None:
        return None
    lists = {"scopes": frozenset(row["scopes"]), "allowed_models": tuple(row["allowed_models"])}
    return Principal(**(dict(row) | lists))


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


async def make_admin(connection: Connection, key_id: str) -> bool:
    """Make a key an operator's; False where there is none. The command line alone does so."""
    status = await connection.execute("UPDATE api_keys SET admin = TRUE WHERE id = $1", key_id)
    return bool(status == "UPDATE 1")


async def touch_keys(connection: Connection, key_ids: Collection[str]) -> None:
    """Note that these keys were used; at most once a minute for each."""
    await connection.execute(
        """
        UPDATE api_keys SET last_used_at = now()
         WHERE id = ANY ($1::TEXT[]) AND (last_used_at IS NULL OR last_used_at < now() - INTERVAL '1 minute')
        """,
        list(key_ids),
    )


async def _not_made(connection: Connection, account_id: str, parent_id: str | None) -> Refusal:
    left = await connection.fetchval(
        "SELECT budget - held - spent - allotted FROM key_budgets WHERE key_id = $1", parent_id
    )
    if left is None:
        return NotFound(f"There is no account {account_id}.")
    most = f"at most {format_credits(left)}, which is what the budget of the key that asks has left"
    return InvalidRequest(f"Invalid value for 'budget': expected {most}.", param="budget")


def _key(row: asyncpg.Record) -> ApiKey:
    lists = {"scopes": tuple(row["scopes"]), "allowed_models": tuple(row["allowed_models"])}
    return ApiKey(**(dict(row) | lists))
