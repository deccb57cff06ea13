"""`inferbase credits …`"""

from typing import Annotated, Any

import typer

from compose.commands.nouns import noun
from compose.commands.output import AsJson, print_one, unix_seconds
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.errors import CommandFailed
from shared.pricing import format_credits, parse_credits

AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Id of the account (acct_…).", show_default=False)]

DESCRIPTION_CHARACTERS_MOST = 200

app = noun("credits", "Credits: prepaid money; 1 credit = 1 USD.")


@app.command(context_settings={"ignore_unknown_options": True})  # else -5 would be an unknown option
def grant(
    account: AccountId,
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT", help="Credits to add: positive, such as 25 or 0.5.", show_default=False)
    ],
    *,
    description: Annotated[str, typer.Option(help="What stands beside it in the account's transactions.")] = "granted",
    transfer_id: Annotated[
        str | None,
        typer.Option(
            "--transfer-id",
            help="An id of your own, to repeat a grant safely: the same id never grants twice.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Give credits to an account."""
    from compose.commands.known_account import require_account
    from shared import ids
    from shared.database.transfers import deposit

    nanocredits = _nanocredits(amount)
    if not description.isprintable() or len(description) > DESCRIPTION_CHARACTERS_MOST:
        raise CommandFailed(f"a description has at most {DESCRIPTION_CHARACTERS_MOST} printable characters")

    async def work(target: Target) -> dict[str, Any]:
        await require_account(target.connection, account)
        row = await deposit(
            target.connection,
            transfer_id=transfer_id or ids.new_transfer_id(),
            account_id=account,
            amount=nanocredits,
            description=description,
        )
        return {
            "id": row.id,
            "object": "credit_transaction",
            "created_at": unix_seconds(row.created_at),
            "type": row.type,
            "amount": format_credits(row.amount),
            "balance_after": format_credits(row.balance_after),
            "request_id": row.request_id,
            "description": row.description,
        }

    print_one(with_target(data_dir, work), as_json)


@app.command()
def show(account: AccountId, as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """Show what an account has and can still spend.

    balance: what it has; held: set aside for running requests; available: the rest; lifetime: all that ever came in and
    was charged.
    """
    from compose.commands.known_account import require_account
    from shared.database.accounts import credit_balance

    async def work(target: Target) -> dict[str, Any]:
        await require_account(target.connection, account)
        found = await credit_balance(target.connection, account)
        assert found is not None, "accounts are never removed"
        return {
            "object": "credit_balance",
            "currency": "USD",
            "balance": format_credits(found.balance),
            "held": format_credits(found.held),
            "available": format_credits(found.available),
            "lifetime": {
                "deposited": format_credits(found.deposited),
                "charged": format_credits(found.charged),
            },
        }

    print_one(with_target(data_dir, work), as_json)


def _nanocredits(amount: str) -> int:
    negative = amount.strip().startswith("-")
    try:
        nanocredits = parse_credits(amount.strip().removeprefix("-"))
    except ValueError as error:
        raise CommandFailed(f"{amount!r} cannot be granted: {error}") from None
    if negative or nanocredits == 0:
        raise CommandFailed(f"the amount must be positive, such as 25 or 0.5, and not {amount}")
    return nanocredits
