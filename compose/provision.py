"""What a fresh `up` needs in the database: the schema, one account with plenty of credit, one key, one model.

Everything is looked up before it is made, so that a second run finds what the first one made.
"""

from typing import Final

import msgspec

from compose.catalogue_mirror import mirror_catalogue
from compose.data_folder import Credentials, DataFolder
from compose.errors import StartFailed
from shared import ids, secrets
from shared.catalogue import Model
from shared.connections import Connection, open_database, open_redis, postgres_errors, redis_errors
from shared.database.accounts import create_account, credit_balance, list_accounts
from shared.database.api_keys import create_key, find_key
from shared.database.migrate import migrate
from shared.database.models import add_model, list_models
from shared.database.transfers import deposit
from shared.pricing import parse_credits
from shared.settings import Settings

EMAIL: Final = "operator@inferbase.local"
CREDIT_NANOCREDITS: Final = parse_credits("1000000")
CREDIT_NANOCREDITS_LEAST: Final = parse_credits("1000")  # below this a start tops the account up


class Provisioned(msgspec.Struct, frozen=True, kw_only=True):
    """What is there now."""

    credentials: Credentials
    model: str


async def provision(settings: Settings, folder: DataFolder, model: Model | None, *, wanted: str | None) -> Provisioned:
    """Bring both stores to the state that the processes expect.

    `model` None: `wanted` must be in the catalogue already. Raises StartFailed, DependencyUnavailable.
    """
    await migrate(settings.stores.database_url)
    with redis_errors(), postgres_errors():
        return await _provision(settings, folder, model, wanted=wanted)


async def _provision(settings: Settings, folder: DataFolder, model: Model | None, *, wanted: str | None) -> Provisioned:
    async with (
        open_database(settings.stores, role="up") as database,
        open_redis(settings.stores, role="up") as redis,
        database.acquire() as connection,
    ):
        credentials = await _credentials(connection, folder, settings.secrets.key_pepper)
        await _top_up(connection, credentials.account_id)
        if model is not None:
            await add_model(connection, model)
        known = {row.id for row in await list_models(connection)}
        model_id = model.id if model is not None else wanted
        if model_id is None or model_id not in known:
            raise StartFailed(f"--model {wanted}: no such file, and no model of that id (see `inferbase model list`)")
        await mirror_catalogue(connection, redis)
    return Provisioned(credentials=credentials, model=model_id)


async def _credentials(connection: Connection, folder: DataFolder, pepper: str) -> Credentials:
    kept = folder.credentials()
    if kept is not None:
        principal = await find_key(connection, secrets.digest(kept.api_key, pepper))
        if principal is not None and principal.active and not principal.revoked:
            return kept
    accounts = [account for account in await list_accounts(connection) if account.email == EMAIL and account.active]
    account = accounts[0] if accounts else await create_account(connection, email=EMAIL, concurrency=0)
    api_key = secrets.make_key()
    row = await create_key(
        connection,
        account_id=account.id,
        name="made by inferbase up",
        digest=secrets.digest(api_key, pepper),
        prefix=secrets.prefix(api_key),
        rpm=0,
        tpm=0,
        concurrency=0,
    )
    made = Credentials(account_id=account.id, key_id=row.id, api_key=api_key)
    folder.keep_credentials(made)
    return made


async def _top_up(connection: Connection, account_id: str) -> None:
    balance = await credit_balance(connection, account_id)
    assert balance is not None, "the account was found a moment ago"
    if balance.available < CREDIT_NANOCREDITS_LEAST:
        await deposit(
            connection,
            transfer_id=ids.new_transfer_id(),
            account_id=account_id,
            amount=CREDIT_NANOCREDITS,
            description="granted by inferbase up",
        )
