"""The one answer of every command to the id of an account that does not exist."""

from compose.errors import CommandFailed
from shared.connections import Connection
from shared.database.accounts import get_account


async def require_account(connection: Connection, account_id: str) -> None:
    """Raise CommandFailed where there is no account of that id."""
    if await get_account(connection, account_id) is None:
        raise CommandFailed(f"there is no account {account_id}: `inferbase account list` shows the ids")
