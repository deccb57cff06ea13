"""`inferbase key …`"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.commands.key_options import (
    Budget,
    Concurrency,
    ExpiresAt,
    ExpiresIn,
    Models,
    Rpm,
    Scopes,
    Tpm,
    check_scopes,
    moment_of,
    nanocredits_of,
)
from compose.commands.nouns import noun
from compose.commands.output import AsJson, print_list, print_one, unix_seconds
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.errors import CommandFailed
from shared.pricing import format_credits

if TYPE_CHECKING:
    from shared.connections import Connection
    from shared.database.api_keys import ApiKey

PAGE_ROWS = 100
NAME_CHARACTERS_MOST = 100

app = noun("key", "API keys: what a client sends as its bearer token.")


@app.command()
def create(
    account: Annotated[
        str, typer.Argument(metavar="ACCOUNT", help="Id of the account that pays (acct_…).", show_default=False)
    ],
    *,
    name: Annotated[str, typer.Option(help="What the key is for, to tell keys apart.")] = "",
    scope: Scopes = None,
    model: Models = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    budget: Budget = None,
    rpm: Rpm = None,
    tpm: Tpm = 0,
    concurrency: Concurrency = None,
    admin: Annotated[bool, typer.Option("--admin", help="It opens the operators' routes, /api/v1/admin.")] = False,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Make an API key and print it, this once.

    What is kept of it is a digest: nobody can read it again.
    """
    from compose.commands.known_account import require_account
    from shared import secrets
    from shared.database.api_keys import create_key, make_admin
    from shared.settings import require_secrets

    if len(name) > NAME_CHARACTERS_MOST or not name.isprintable():
        raise CommandFailed(f"a key's name has at most {NAME_CHARACTERS_MOST} printable characters")
    room: dict[str, Any] = {
        "tpm": tpm,
        "scopes": check_scopes(scope),
        "allowed_models": tuple(model or ()),
        "expires_at": moment_of(expires_in, expires_at, now=datetime.now(UTC)),
        "budget": nanocredits_of(budget),
    }

    async def work(target: Target) -> dict[str, Any]:
        await require_account(target.connection, account)
        await _require_models(target.connection, model or [])
        key = secrets.make_key()
        row = await create_key(
            target.connection,
            account_id=account,
            name=name,
            digest=secrets.digest(key, require_secrets(target.settings, "key_pepper").key_pepper),
            prefix=secrets.prefix(key),
            rpm=target.settings.api.key_rpm if rpm is None else rpm,
            concurrency=target.settings.api.key_concurrency if concurrency is None else concurrency,
            **room,
        )
        if admin:
            await make_admin(target.connection, row.id)
        return {"id": row.id, "key": key} | _shown(row)

    print_one(with_target(data_dir, work), as_json)


@app.command(name="list")
def list_all(
    account: Annotated[
        str | None, typer.Argument(metavar="ACCOUNT", help="Only the keys of this account.", show_default=False)
    ] = None,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """List keys, newest first; revoked ones stay in the list."""
    from compose.commands.known_account import require_account
    from shared.database.accounts import list_accounts

    async def work(target: Target) -> list[dict[str, Any]]:
        if account:
            await require_account(target.connection, account)
        accounts = [account] if account else [row.id for row in await list_accounts(target.connection)]
        return [_shown(row) for owner in accounts for row in await _all_keys(target.connection, owner)]

    print_list(with_target(data_dir, work), as_json)


@app.command()
def revoke(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY", help="Id of the key (key_…), as `inferbase key list` shows it.", show_default=False
        ),
    ],
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Revoke a key for good.

    Within five seconds it is refused everywhere and the requests that it runs are stopped.
    """
    from shared.database.accounts import list_accounts
    from shared.database.api_keys import revoke_key
    from shared.database.models import list_models
    from shared.revocation import mark_revoked

    async def work(target: Target) -> dict[str, Any]:
        for owner in await list_accounts(target.connection):
            if await revoke_key(target.connection, owner.id, key):
                models = [model.id for model in await list_models(target.connection)]
                await mark_revoked(target.redis, models, key)
                return {"id": key, "object": "api_key", "status": "revoked"}
        raise CommandFailed(f"there is no key {key}: `inferbase key list` shows the ids")

    print_one(with_target(data_dir, work), as_json)


async def _require_models(connection: "Connection", names: list[str]) -> None:
    from shared.database.models import list_model_ids

    known = await list_model_ids(connection)
    for name in names:
        if name not in known:
            raise CommandFailed(f"there is no model {name}: `inferbase model list` shows the ids")


async def _all_keys(connection: "Connection", account_id: str) -> "list[ApiKey]":
    from shared.database.api_keys import list_keys

    rows, more = await list_keys(connection, account_id, limit=PAGE_ROWS)
    while more:
        page, more = await list_keys(connection, account_id, after=rows[-1].id, limit=PAGE_ROWS)
        rows += page
    return rows


def _shown(row: "ApiKey") -> dict[str, Any]:
    expired = row.expires_at is not None and row.expires_at <= datetime.now(UTC)
    return {
        "id": row.id,
        "object": "api_key",
        "account_id": row.account_id,
        "name": row.name,
        "prefix": row.prefix,
        "status": "revoked" if row.revoked_at else "expired" if expired else "active",
        "scopes": row.scopes,
        "allowed_models": row.allowed_models,
        "rpm": row.rpm,
        "tpm": row.tpm,
        "concurrency": row.concurrency,
        "budget": None if row.budget is None else format_credits(row.budget),
        "spent": None if row.spent is None else format_credits(row.spent),
        "remaining": None if row.remaining is None else format_credits(row.remaining),
        "created_at": unix_seconds(row.created_at),
        "expires_at": unix_seconds(row.expires_at),
        "last_used_at": unix_seconds(row.last_used_at),
    }
