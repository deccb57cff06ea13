"""Budgets of keys on a real Postgres: exact at any concurrency, corrected by whatever closes a request."""

import asyncio
import contextlib

import asyncpg
import pytest

from shared.connections import Database
from shared.database import api_keys
from shared.database.api_keys import ApiKey
from shared.database.requests import ReserveVerdict, release_many, reserve_many
from shared.database.settlements import settle_many
from shared.errors import InvalidRequest
from shared.pricing import Prices
from tests.integration.ledger_factories import (
    Customer,
    assert_clean,
    balance_of,
    make_customer,
    make_finish,
    make_key,
    make_reserve,
)


async def budget_of(database: Database, customer: Customer) -> tuple[int | None, int | None]:
    """Return (spent, remaining) of the customer's key."""
    key = await key_of(database, customer)
    return key.spent, key.remaining


async def key_of(database: Database, customer: Customer) -> ApiKey:
    key = await api_keys.get_key(database, customer.id, customer.key_id)
    assert key is not None
    return key


async def test_a_hold_counts_against_the_budget_until_its_charge_does(database: Database) -> None:
    customer = await make_customer(database, credits=1_000, budget=500)
    rows = [make_reserve(customer, hold=100) for _ in range(3)]

    await reserve_many(database, rows)
    held = await budget_of(database, customer)
    await settle_many(database, [make_finish(rows[0])])  # costs 40
    await release_many(database, [(rows[1].request_id, "test")], now_ms=2**41)

    assert held == (0, 200)
    assert await budget_of(database, customer) == (40, 360)
    await assert_clean(database)


async def test_beyond_the_budget_nothing_is_reserved_though_the_account_has_more(database: Database) -> None:
    customer = await make_customer(database, credits=1_000, budget=250)

    verdicts = await reserve_many(database, [make_reserve(customer, hold=hold) for hold in (200, 100, 50)])

    assert verdicts == [
        ReserveVerdict("reserved", 200),
        ReserveVerdict("budget_exceeded"),
        ReserveVerdict("reserved", 50),
    ]
    assert await balance_of(database, customer) == (1_000, 250)
    await assert_clean(database)


async def test_an_open_ended_hold_is_lowered_to_what_the_budget_has(database: Database) -> None:
    customer = await make_customer(database, credits=1_000, budget=70)

    verdicts = await reserve_many(database, [make_reserve(customer, hold_full=900, hold_least=50)])

    assert verdicts == [ReserveVerdict("reserved", 70)]


async def test_an_empty_account_is_told_before_an_empty_budget(database: Database) -> None:
    customer = await make_customer(database, credits=10, budget=5)

    assert await reserve_many(database, [make_reserve(customer)]) == [ReserveVerdict("insufficient", available=10)]


async def test_a_used_up_budget_still_runs_what_is_free(database: Database) -> None:
    customer = await make_customer(database, credits=1_000, budget=40)
    row = make_reserve(customer, hold=40)
    await reserve_many(database, [row])
    await settle_many(database, [make_finish(row)])

    free, dear = make_reserve(customer, hold=0, prices=Prices(0, 0, 0)), make_reserve(customer, hold=1)

    verdicts = await reserve_many(database, [free, dear])
    assert [verdict.verdict for verdict in verdicts] == ["reserved", "budget_exceeded"]


async def test_a_retried_batch_is_held_against_the_budget_once(database: Database) -> None:
    customer = await make_customer(database, credits=1_000, budget=250)
    rows = [make_reserve(customer, hold=100), make_reserve(customer, hold=100)]
    first = await reserve_many(database, rows)

    second = await reserve_many(database, [*rows, make_reserve(customer, hold=100)])

    assert second == [*first, ReserveVerdict("budget_exceeded")]
    assert await budget_of(database, customer) == (0, 50)
    await assert_clean(database)


async def test_the_budget_of_one_key_does_not_bind_another(database: Database) -> None:
    customer = await make_customer(database, credits=1_000, budget=100)
    other = await make_key(database, customer)

    verdicts = await reserve_many(
        database, [make_reserve(customer), make_reserve(customer), make_reserve(customer, key_id=other)]
    )

    assert [verdict.verdict for verdict in verdicts] == ["reserved", "budget_exceeded", "reserved"]
    assert await budget_of(database, Customer(customer.id, other)) == (None, None)
    await assert_clean(database)


async def test_no_mix_of_nodes_settlers_and_new_keys_exceeds_a_budget(database: Database) -> None:
    customer = await make_customer(database, credits=100_000, budget=3_000)
    rich = await make_key(database, customer)

    async def node(number: int) -> None:
        async with database.acquire() as connection:
            for turn in range(10):
                rows = [make_reserve(customer, hold=150 + i) for i in range(6)]
                rows.insert(number, make_reserve(customer, key_id=rich))
                verdicts = await reserve_many(connection, rows)
                held = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict.verdict == "reserved"]
                await settle_many(connection, [make_finish(row, prompt=1, completion=turn % 3) for row in held[1:]])
                await release_many(connection, [(row.request_id, "test") for row in held], now_ms=2**41)

    async def parent() -> None:
        for _ in range(10):
            with contextlib.suppress(InvalidRequest):  # what runs may hold all of the budget for a moment
                await make_key(database, customer, budget=20, parent_id=customer.key_id)

    async def auditor() -> None:
        for _ in range(5):
            await assert_clean(database)

    await asyncio.gather(*(node(number) for number in range(6)), parent(), auditor())

    await assert_clean(database)
    key = await key_of(database, customer)
    assert key.spent is not None
    given_on = 20 * (len((await api_keys.list_keys(database, customer.id))[0]) - 2)
    assert 0 < key.spent <= 3_000 - given_on
    assert key.remaining == 3_000 - given_on - key.spent


async def test_what_a_key_gives_on_is_taken_from_its_own_budget(database: Database) -> None:
    customer = await make_customer(database, credits=1_000, budget=100)
    child = await make_key(database, customer, budget=60, parent_id=customer.key_id)

    verdicts = await reserve_many(
        database, [make_reserve(customer, hold=41), make_reserve(customer, key_id=child, hold=60)]
    )

    assert [verdict.verdict for verdict in verdicts] == ["budget_exceeded", "reserved"]
    assert await budget_of(database, customer) == (0, 40)
    await assert_clean(database)


@pytest.mark.parametrize("budget", [101, None])
async def test_a_key_gives_on_no_more_than_it_has(database: Database, budget: int | None) -> None:
    customer = await make_customer(database, credits=1_000, budget=100)

    with pytest.raises(InvalidRequest, match=r"at most 0\.000000100"):
        await make_key(database, customer, budget=budget, parent_id=customer.key_id)

    assert await budget_of(database, customer) == (0, 100)
    assert len((await api_keys.list_keys(database, customer.id))[0]) == 1


async def test_a_budget_beyond_its_bounds_is_refused_by_the_table_itself(database: Database) -> None:
    await make_customer(database, budget=10)

    with pytest.raises(asyncpg.CheckViolationError):
        await database.execute("UPDATE key_budgets SET held = 11")
