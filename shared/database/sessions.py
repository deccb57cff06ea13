"""Sessions: what a cookie names. An ended one stays, like a revoked key."""

from collections.abc import Collection
from datetime import datetime
from typing import Final

import msgspec

from shared import ids
from shared.connections import Connection
from shared.database.api_keys import Principal
from shared.errors import NotFound

SESSION_PREFIX: Final = "sess_"


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A session that was just begun; it ends at `expires_at` however often it is refreshed."""

    id: str
    user_id: str
    expires_at: datetime


def is_session(key_id: str | None) -> bool:
    """Tell whether what a request names as its key is a session."""
    return key_id is not None and key_id.startswith(SESSION_PREFIX)


async def begin_session(connection: Connection, *, user_id: str, seconds_most: float) -> LoggedIn:
    """Add a session of a user; NotFound where there is none."""
    row = await connection.fetchrow(
        """
        INSERT INTO sessions (id, user_id, account_id, expires_at)
        SELECT $1, users.id, users.account_id, now() + make_interval(secs => $3) FROM users WHERE users.id = $2
        RETURNING id, user_id, expires_at
        """,
        ids.new_id(SESSION_PREFIX),
        user_id,
        seconds_most,
    )
    if row is None:
        raise NotFound("There is no such user.")
    return LoggedIn(**row)


async def find_session(connection: Connection, session_id: str, *, concurrency: int) -> Principal | None:
    """Return whom a session speaks for, in any state, or None; it has room for `concurrency` requests at once."""
    row = await connection.fetchrow(
        """
        SELECT s.account_id, s.id AS key_id, s.user_id, u.admin, a.active, s.revoked_at IS NOT NULL AS revoked,
               s.expires_at, a.concurrency AS account_concurrency, a.rpm AS account_rpm, a.tpm AS account_tpm,
               a.weight
          FROM sessions s JOIN users u ON u.id = s.user_id JOIN accounts a ON a.id = s.account_id
         WHERE s.id = $1
        """,
        session_id,
    )
    return None if row is None else Principal(**row, session=True, rpm=0, tpm=0, key_concurrency=concurrency)


async def end_session(connection: Connection, session_id: str) -> None:
    """End a session for good; ending it twice keeps the first moment."""
    await connection.execute("UPDATE sessions SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1", session_id)


async def find_ended(connection: Connection, session_ids: Collection[str]) -> set[str]:
    """Return those of `session_ids` that open nothing any more: ended, expired, unknown, or of a dead account."""
    rows = await connection.fetch(
        """
        SELECT u.id FROM unnest($1::TEXT[]) AS u (id)
         WHERE NOT EXISTS (SELECT FROM sessions s JOIN accounts a ON a.id = s.account_id
                            WHERE s.id = u.id AND a.active AND s.revoked_at IS NULL AND s.expires_at > now())
        """,
        list(session_ids),
    )
    return {row["id"] for row in rows}
