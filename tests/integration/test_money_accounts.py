"""Accounts, deposits, keys, catalogue and migrations on a real Postgres."""

import asyncio
import os
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from shared import ids
from shared.catalogue import Model
from shared.connections import Database
from shared.database import accounts, api_keys, models, transfers
from shared.database.migrate import migrate, read_migrations
from shared.errors import Conflict, NotFound, SettingsInvalid
from shared.pricing import Prices
from tests.integration.ledger_factories import assert_clean, balance_of, make_customer

MODEL = Model(id="org/m", engine="simulator", context=10, prices=Prices(1, 1, 2), options={"step_ms": "3"})


async def test_an_email_address_has_one_account(database: Database) -> None:
    account = await accounts.create_account(database, email="a@example.com", concurrency=3)

    with pytest.raises(Conflict):
        await accounts.create_account(database, email="a@example.com")

    assert await accounts.list_accounts(database) == [account]
    assert await accounts.get_account(database, account.id) == account
    assert (account.balance, account.held, account.concurrency, account.active) == (0, 0, 3, True)


async def test_nobody_has_no_balance(database: Database) -> None:
    assert await accounts.get_account(database, "acct_nobody") is None
    assert await accounts.credit_balance(database, "acct_nobody") is None
    assert not await accounts.set_active(database, "acct_nobody", active=False)


async def test_a_deposit_counts_once_however_often_it_is_made(database: Database) -> None:
    customer = await make_customer(database, credits=0)

    async def deposit(amount: int = 70) -> transfers.Transaction:
        return await transfers.deposit(
            database, transfer_id="txn_1", account_id=customer.id, amount=amount, description="gift"
        )

    answers = await asyncio.gather(*(deposit() for _ in range(5)))

    assert len(set(map(str, answers))) == 1
    assert (answers[0].type, answers[0].amount, answers[0].balance_after) == ("deposit", 70, 70)
    assert await balance_of(database, customer) == (70, 0)
    with pytest.raises(Conflict):
        await deposit(71)
    await assert_clean(database)


async def test_a_deposit_needs_an_account(database: Database) -> None:
    with pytest.raises(NotFound):
        await transfers.deposit(database, transfer_id="txn_1", account_id="acct_x", amount=1, description="")


async def test_the_transactions_of_another_account_are_not_found(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)
    [transaction], more = await transfers.list_transactions(database, customer.id)

    assert not more
    with pytest.raises(NotFound):
        await transfers.list_transactions(database, other.id, after=transaction.id)


async def test_a_key_is_found_by_its_digest_alone(database: Database) -> None:
    account = await accounts.create_account(database, email="a@example.com", rpm=5, tpm=6, concurrency=3)
    digest = os.urandom(32)
    key = await api_keys.create_key(
        database,
        account_id=account.id,
        name="n",
        digest=digest,
        prefix="inf_ab",
        rpm=1,
        tpm=2,
        concurrency=4,
        scopes=["credits", "keys"],
        allowed_models=["org/a", "org/b"],
        budget=7,
    )

    principal = await api_keys.find_key(database, digest)

    assert await api_keys.find_key(database, os.urandom(32)) is None
    assert principal == api_keys.Principal(
        account_id=account.id,
        key_id=key.id,
        active=True,
        revoked=False,
        expires_at=None,
        rpm=1,
        tpm=2,
        key_concurrency=4,
        account_concurrency=3,
        account_rpm=5,
        account_tpm=6,
        scopes=frozenset({"keys", "credits"}),
        allowed_models=("org/a", "org/b"),
        budget=7,
    )


async def test_only_its_owner_can_revoke_a_key_and_it_stays_listed(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)

    assert not await api_keys.revoke_key(database, other.id, customer.key_id)
    assert await api_keys.revoke_key(database, customer.id, customer.key_id)

    [key], _ = await api_keys.list_keys(database, customer.id)
    await api_keys.revoke_key(database, customer.id, customer.key_id)
    again = await api_keys.get_key(database, customer.id, customer.key_id)
    assert again is not None
    assert key.revoked_at is not None
    assert again.revoked_at == key.revoked_at


async def test_dead_keys_are_told_in_one_query(database: Database) -> None:
    live, revoked, asleep = [await make_customer(database) for _ in range(3)]
    await api_keys.revoke_key(database, revoked.id, revoked.key_id)
    await accounts.set_active(database, asleep.id, active=False)
    expired = await api_keys.create_key(
        database,
        account_id=live.id,
        name="",
        digest=os.urandom(32),
        prefix="",
        expires_at=datetime.now(UTC) - timedelta(seconds=1),
    )
    asked = [live.key_id, revoked.key_id, asleep.key_id, expired.id, "key_unknown"]

    assert await api_keys.find_dead(database, asked) == set(asked[1:])


async def test_keys_are_listed_newest_first_page_by_page(database: Database) -> None:
    customer = await make_customer(database)
    made = [
        await api_keys.create_key(database, account_id=customer.id, name=str(n), digest=os.urandom(32), prefix="")
        for n in range(3)
    ]

    page, more = await api_keys.list_keys(database, customer.id, limit=2)
    rest, end = await api_keys.list_keys(database, customer.id, after=page[-1].id, limit=2)

    assert [key.id for key in page + rest] == [made[2].id, made[1].id, made[0].id, customer.key_id]
    assert (more, end) == (True, False)
    with pytest.raises(NotFound):
        await api_keys.list_keys(database, customer.id, after=ids.new_key_id())


async def test_use_of_a_key_is_noted_at_most_once_a_minute(database: Database) -> None:
    customer = await make_customer(database)
    await api_keys.touch_keys(database, [customer.key_id])
    first = await api_keys.get_key(database, customer.id, customer.key_id)

    await api_keys.touch_keys(database, [customer.key_id])

    assert first is not None
    assert first.last_used_at is not None
    assert await api_keys.get_key(database, customer.id, customer.key_id) == first


async def test_the_catalogue_keeps_a_model_and_its_version_grows_at_each_change(database: Database) -> None:
    empty = await models.read_catalogue(database)
    await models.add_model(database, MODEL)
    added = await models.read_catalogue(database)

    changed = await models.remember_measures(database, MODEL.id, template_tokens=9, message_tokens=4)
    measured = await models.read_catalogue(database)
    again = await models.remember_measures(database, MODEL.id, template_tokens=9, message_tokens=4)

    assert (empty.version, empty.models) == (0, ())
    assert msgspec.structs.replace(added.models[0], created_at=0) == MODEL
    assert (changed, again) == (True, False)
    assert (measured.models[0].template_tokens, measured.models[0].message_tokens) == (9, 4)
    assert added.version < measured.version == (await models.read_catalogue(database)).version


async def test_adding_a_model_again_replaces_all_but_its_measures(database: Database) -> None:
    await models.add_model(database, MODEL)
    await models.remember_measures(database, MODEL.id, template_tokens=9, message_tokens=4)

    await models.add_model(database, msgspec.structs.replace(MODEL, prices=Prices(5, 2, 7), options={}))

    [model] = await models.list_models(database)
    assert (model.prices, model.options, model.template_tokens) == (Prices(5, 2, 7), {}, 9)
    assert await models.list_model_ids(database) == [MODEL.id]


async def test_migrating_twice_changes_nothing(database_url: str) -> None:
    assert await migrate(database_url) == []


async def test_nodes_that_migrate_at_once_apply_each_migration_once(database_url: str, database: Database) -> None:
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    applied = await asyncio.gather(*(migrate(database_url) for _ in range(3)))

    assert sorted(map(len, applied)) == [0, 0, len(read_migrations())]


async def test_a_migration_that_changed_after_it_was_applied_is_refused(database_url: str) -> None:
    changed = read_migrations()
    changed[0] = msgspec.structs.replace(changed[0], checksum="0")

    with pytest.raises(SettingsInvalid, match="0001_create_ledger was changed"):
        await migrate(database_url, changed)


async def test_a_database_newer_than_the_program_is_refused(database_url: str) -> None:
    with pytest.raises(SettingsInvalid, match="newer"):
        await migrate(database_url, read_migrations()[:-1])
