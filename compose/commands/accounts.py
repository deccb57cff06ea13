"""`inferbase account …`"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.commands.nouns import noun
from compose.commands.output import AsJson, print_list, print_one, unix_seconds
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.errors import CommandFailed
from shared.pricing import format_credits

if TYPE_CHECKING:
    from shared.database.accounts import Account

EMAIL_CHARACTERS_MOST = 254  # RFC 5321, section 4.5.3.1.3, less the angle brackets

app = noun("account", "Accounts: who holds credits and owns keys.")


@app.command()
def create(
    *,
    email: Annotated[str, typer.Option(help="E-mail address of the owner; one account each.", show_default=False)],
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests that may run at once over all its keys; 0: no limit. "
            "Default: INFERBASE_ACCOUNT_CONCURRENCY, else 32.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Open an account without credits and print its id."""
    from shared.database.accounts import create_account

    if "@" not in email.strip("@") or not email.isprintable() or len(email) > EMAIL_CHARACTERS_MOST:
        raise CommandFailed(f"{email!r} is not an e-mail address")

    async def work(target: Target) -> dict[str, Any]:
        most = target.settings.api.account_concurrency if concurrency is None else concurrency
        return _shown(await create_account(target.connection, email=email, concurrency=most))

    print_one(with_target(data_dir, work), as_json)


@app.command(name="list")
def list_all(as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """List all accounts, oldest first."""
    from shared.database.accounts import list_accounts

    async def work(target: Target) -> list[dict[str, Any]]:
        return [_shown(account) for account in await list_accounts(target.connection)]

    print_list(with_target(data_dir, work), as_json)


def _shown(account: "Account") -> dict[str, Any]:
    return {
        "id": account.id,
        "email": account.email,
        "concurrency": account.concurrency,
        "active": account.active,
        "balance": format_credits(account.balance),
        "held": format_credits(account.held),
        "created_at": unix_seconds(account.created_at),
    }
