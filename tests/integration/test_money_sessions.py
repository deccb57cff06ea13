"""A session reserves like a key, and is paid for like one; the books stay right."""

import random

import pytest

from shared.connections import Database
from shared.database import accounts, sessions, users
from shared.database.requests import reserve_many
from shared.database.settlements import settle_many
from shared.database.usage import find_usage
from tests.integration.ledger_factories import (
    Customer,
    assert_clean,
    balance_of,
    make_customer,
    make_finish,
    make_reserve,
)

HASH = "$argon2id$v=19$m=19456,t=2,p=1$AAAA$AAAA"


async def log_in(database: Database, customer: Customer, *, seconds: float = 3600) -> Customer:
    """Return the same account, with a session in the place of its key."""
    async with database.acquire() as connection:
        user_id = await connection.fetchval("SELECT id FROM users WHERE account_id = $1", customer.id)
        if user_id is None:
            user_id = f"user_{customer.id}"
            await connection.execute(
                "INSERT INTO users (id, account_id, email, password_hash) VALUES ($1, $2, $3, $4)",
                user_id,
                customer.id,
                f"{customer.id}@example.com",
                HASH,
            )
        begun = await sessions.begin_session(connection, user_id=user_id, seconds_most=seconds)
    return Customer(customer.id, begun.id)


async def test_a_session_is_charged_like_a_key(database: Database) -> None:
    session = await log_in(database, await make_customer(database, credits=1_000))
    row = make_reserve(session)

    async with database.acquire() as connection:
        (verdict,) = await reserve_many(connection, [row])
        settled = await settle_many(connection, [make_finish(row)])
        used = await find_usage(connection, row.request_id)

    assert (verdict.verdict, settled) == ("reserved", ["settled"])
    assert used is not None and used.key_id == session.key_id and used.cost > 0
    assert await balance_of(database, session) == (1_000 - used.cost, 0)
    await assert_clean(database, quiesced=True)


async def test_only_a_live_session_of_the_same_account_reserves(database: Database) -> None:
    customer, stranger = await make_customer(database), await make_customer(database)
    live, ended = await log_in(database, customer), await log_in(database, customer)
    expired = await log_in(database, customer, seconds=-1)
    async with database.acquire() as connection:
        await sessions.end_session(connection, ended.key_id)
    asked = [
        live,
        ended,
        expired,
        Customer(stranger.id, live.key_id),
        Customer(customer.id, "sess_unknown"),
        Customer(customer.id, ""),
        customer,
    ]
    expected = ["reserved", "key_revoked", "key_revoked", "key_revoked", "key_revoked", "key_revoked", "reserved"]

    async with database.acquire() as connection:
        together = await reserve_many(connection, [make_reserve(one, hold=10) for one in asked])
        alone = [(await reserve_many(connection, [make_reserve(one, hold=10)]))[0] for one in asked]

    assert [one.verdict for one in together] == [one.verdict for one in alone] == expected
    await assert_clean(database)


async def test_a_session_of_a_stopped_account_reserves_nothing(database: Database) -> None:
    session = await log_in(database, await make_customer(database))
    async with database.acquire() as connection:
        await accounts.set_active(connection, session.id, active=False)
        (verdict,) = await reserve_many(connection, [make_reserve(session)])

    assert verdict.verdict == "account_inactive"


@pytest.mark.parametrize("seed", range(8))
async def test_a_batch_of_keys_and_sessions_equals_one_by_one(database: Database, seed: int) -> None:
    dice = random.Random(seed)
    twins = []
    for _ in range(2):
        customer = await make_customer(database, credits=300)
        holders = [customer, await log_in(database, customer), await log_in(database, customer)]
        async with database.acquire() as connection:
            await sessions.end_session(connection, holders[2].key_id)
        twins.append(holders)
    plan = [(dice.randrange(3), dice.choice([20, 50, 120])) for _ in range(10)]

    async with database.acquire() as connection:
        batch = await reserve_many(connection, [make_reserve(twins[0][who], hold=hold) for who, hold in plan])
        single = [(await reserve_many(connection, [make_reserve(twins[1][who], hold=hold)]))[0] for who, hold in plan]

    assert batch == single
    await assert_clean(database)


async def test_find_ended_names_what_opens_nothing(database: Database) -> None:
    customer, stopped = await make_customer(database), await make_customer(database)
    live, ended = await log_in(database, customer), await log_in(database, customer)
    expired, asleep = await log_in(database, customer, seconds=-1), await log_in(database, stopped)

    async with database.acquire() as connection:
        await sessions.end_session(connection, ended.key_id)
        await accounts.set_active(connection, stopped.id, active=False)
        found = await sessions.find_ended(
            connection, [one.key_id for one in (live, ended, expired, asleep)] + ["sess_unknown"]
        )

    assert found == {ended.key_id, expired.key_id, asleep.key_id, "sess_unknown"}


async def test_sessions_are_never_deleted(database: Database) -> None:
    await log_in(database, await make_customer(database))

    with pytest.raises(Exception, match="never deleted"):
        await database.execute("DELETE FROM sessions")


async def test_a_failed_registration_leaves_no_account(database: Database) -> None:
    async with database.acquire() as connection:
        with pytest.raises(Exception, match="check constraint"):
            await users.register(connection, email="a@b.cc", password_hash="plain text")
        assert await accounts.list_accounts(connection) == []
