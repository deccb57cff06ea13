"""`inferbase account …`"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.commands.nouns import noun
from compose.commands.output import AsJson, print_list, print_one, unix_seconds
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.errors import CommandFailed
from shared import emails
from shared.pricing import format_credits

if TYPE_CHECKING:
    from shared.database.accounts import Account

EmailArgument = Annotated[str, typer.Argument(metavar="EMAIL", help="Their e-mail address.", show_default=False)]
AccountArgument = Annotated[
    str, typer.Argument(metavar="ACCOUNT", help="Id of the account (acct_…).", show_default=False)
]

app = noun("account", "Accounts: who holds credits and owns keys.")


@app.command()
def create(
    *,
    email: Annotated[str, typer.Option(help="E-mail address of the owner; one account each.", show_default=False)],
    password_file: Annotated[
        Path | None,
        typer.Option(
            help="File with a password: the owner can log in with the address and its first line.", show_default=False
        ),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="The owner is an operator; needs --password-file.")] = False,
    rpm: Annotated[int, typer.Option(min=0, help="Requests per minute over all its keys; 0: no limit.")] = 0,
    tpm: Annotated[int, typer.Option(min=0, help="Tokens per minute over all its keys; 0: no limit.")] = 0,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests that may run at once over all its keys; 0: no limit. "
            "Default: INFERBASE_ACCOUNT_CONCURRENCY, else 32.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        int, typer.Option(min=1, max=1000, help="Its share of a busy queue, against other accounts' weights.")
    ] = 1,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Open an account without credits and print its id."""
    from shared.database.accounts import create_account, get_account
    from shared.database.users import register

    address = _address(email)
    if admin and password_file is None:
        raise CommandFailed("an operator logs in: --admin needs --password-file")
    password_hash = None if password_file is None else _password_hash(password_file)

    async def work(target: Target) -> dict[str, Any]:
        most = target.settings.api.account_concurrency if concurrency is None else concurrency
        limits = {"rpm": rpm, "tpm": tpm, "concurrency": most, "weight": weight}
        if password_hash is None:
            return _shown(await create_account(target.connection, email=address, **limits))
        user = await register(target.connection, email=address, password_hash=password_hash, admin=admin, **limits)
        made = await get_account(target.connection, user.account_id)
        assert made is not None, "accounts are never removed"
        return _shown(made) | {"user_id": user.id, "admin": user.admin}

    print_one(with_target(data_dir, work), as_json)


@app.command()
def promote(email: EmailArgument, as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """Make a user an operator.

    Within five seconds their sessions open the routes under /api/v1/admin.
    """
    _set_admin(email, as_json, data_dir, admin=True)


@app.command()
def demote(email: EmailArgument, as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """Make an operator a user like any other."""
    _set_admin(email, as_json, data_dir, admin=False)


@app.command()
def deactivate(account: AccountArgument, as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """Stop an account.

    Within five seconds its keys and sessions are refused everywhere and the requests that they run are stopped.
    """
    _set_active(account, as_json, data_dir, active=False)


@app.command()
def activate(account: AccountArgument, as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """Let an account go on that was stopped."""
    _set_active(account, as_json, data_dir, active=True)


@app.command(name="list")
def list_all(as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """List all accounts, oldest first."""
    from shared.database.accounts import list_accounts

    async def work(target: Target) -> list[dict[str, Any]]:
        return [_shown(account) for account in await list_accounts(target.connection)]

    print_list(with_target(data_dir, work), as_json)


def _set_active(account: str, as_json: bool | None, data_dir: Path, *, active: bool) -> None:
    from compose.commands.known_account import require_account
    from shared.database.accounts import get_account, set_active

    async def work(target: Target) -> dict[str, Any]:
        await require_account(target.connection, account)
        await set_active(target.connection, account, active=active)
        found = await get_account(target.connection, account)
        assert found is not None, "accounts are never removed"
        return _shown(found)

    print_one(with_target(data_dir, work), as_json)


def _set_admin(email: str, as_json: bool | None, data_dir: Path, *, admin: bool) -> None:
    from shared.database.users import set_admin

    address = _address(email)

    async def work(target: Target) -> dict[str, Any]:
        if not await set_admin(target.connection, address, admin=admin):
            raise CommandFailed(f"there is no user {address}: users register, or have a password from account create")
        return {"email": address, "admin": admin}

    print_one(with_target(data_dir, work), as_json)


def _address(email: str) -> str:
    try:
        return emails.normalised(email)
    except ValueError as error:
        raise CommandFailed(f"{email!r}: {error}") from None


def _password_hash(file: Path) -> str:
    from api.passwords import PASSWORD_CHARACTERS_LEAST, PASSWORD_CHARACTERS_MOST, hash_password

    try:
        password = file.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"the password file {file} cannot be read: {error}") from None
    if not PASSWORD_CHARACTERS_LEAST <= len(password) <= PASSWORD_CHARACTERS_MOST:
        raise CommandFailed(f"a password has {PASSWORD_CHARACTERS_LEAST} to {PASSWORD_CHARACTERS_MOST} characters")
    return hash_password(password)


def _shown(account: "Account") -> dict[str, Any]:
    return {
        "id": account.id,
        "email": account.email,
        "rpm": account.rpm,
        "tpm": account.tpm,
        "concurrency": account.concurrency,
        "weight": account.weight,
        "active": account.active,
        "balance": format_credits(account.balance),
        "held": format_credits(account.held),
        "created_at": unix_seconds(account.created_at),
    }
