"""A batch is decided exactly as its rows would be one by one, whatever is in it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import ids
from shared.connections import Database
from shared.database import accounts, api_keys
from shared.database.requests import Reserve, release_many, reserve_many
from shared.database.settlements import settle_many
from tests.integration.ledger_factories import (
    Customer,
    assert_clean,
    balance_of,
    make_customer,
    make_finish,
    make_key,
    make_reserve,
)

EXAMPLES = 60


class Wish(msgspec.Struct, frozen=True):
    """One row of a batch, its customer, their key, request id and idempotency key by number."""

    customer: int
    key: int
    hold: int
    least: int
    request: int
    idempotency: int | None


wishes = st.builds(
    lambda customer, key, hold, share, request, idempotency: Wish(
        customer, key, hold, hold * share // 4, request, idempotency
    ),
    customer=st.integers(0, 3),
    key=st.integers(0, 2),
    hold=st.integers(0, 60),
    share=st.integers(0, 4),
    request=st.integers(0, 30),
    idempotency=st.none() | st.integers(0, 3),
)


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Any]:
    async with database.acquire() as connection:
        yield connection


async def test_a_batch_of_reservations_equals_one_by_one(connection: Any) -> None:
    async def compare(batch: list[Wish]) -> None:
        together = await make_world(connection, batch)
        apart = await make_world(connection, batch)

        at_once = await reserve_many(connection, together)
        one_by_one = [verdict for row in apart for verdict in await reserve_many(connection, [row])]

        assert at_once == one_by_one
        assert await balances(connection, together) == await balances(connection, apart)

    await for_all(st.lists(wishes, min_size=1, max_size=12), compare)


async def test_a_batch_of_settlements_equals_one_by_one(connection: Any) -> None:
    async def compare(batch: list[tuple[int, int, str]]) -> None:
        outcomes = []
        for size in (len(batch), 1):
            customer = await make_customer(connection, credits=500, budget=400)
            other = await make_key(connection, customer, budget=None)
            rows = [make_reserve(customer, hold=80, key_id=key) for key in [customer.key_id, other] * 2 + [other]]
            await reserve_many(connection, rows)
            finishes = [make_finish(rows[number], completion=tokens, status=status) for number, tokens, status in batch]
            verdicts = []
            for start in range(0, len(finishes), size):
                verdicts += await settle_many(connection, finishes[start : start + size])
            outcomes.append((verdicts, await balances(connection, rows)))

        assert outcomes[0] == outcomes[1]

    finish = st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from(["completed", "cancelled", "failed"]))
    await for_all(st.lists(finish, min_size=1, max_size=8), compare)


async def test_every_history_leaves_a_clean_ledger(database: Database, connection: Any) -> None:
    async def run(batch: list[Wish]) -> None:
        rows = await make_world(connection, batch)
        await reserve_many(connection, rows)
        first = {row.request_id: row for row in rows[::-1]}
        await settle_many(connection, [make_finish(row, completion=row.hold_least % 3) for row in first.values()][::2])
        await release_many(connection, [(request_id, "test") for request_id in first], now_ms=rows[0].reserved_ms + 7)

    await for_all(st.lists(wishes, min_size=1, max_size=12), run)

    await assert_clean(database)


async def make_world(connection: Any, batch: list[Wish]) -> list[Reserve]:
    """Return the batch on customers of its own: a poor, a rich, a deactivated one, and one whose key is revoked.

    The first two have a key with a small budget and one with a larger one beside.
    """
    customers = [await make_customer(connection, credits=credits) for credits in (50, 100_000, 100, 100)]
    await accounts.set_active(connection, customers[2].id, active=False)
    await api_keys.revoke_key(connection, customers[3].id, customers[3].key_id)
    keys = [[customer.key_id] * 3 for customer in customers]
    for number in (0, 1):
        keys[number][1:] = [await make_key(connection, customers[number], budget=budget) for budget in (30, 90)]
    request_ids = [ids.new_chat_id() for _ in range(31)]
    return [
        make_row(wish, Customer(customers[wish.customer].id, keys[wish.customer][wish.key]), request_ids[wish.request])
        for wish in batch
    ]


def make_row(wish: Wish, customer: Customer, request_id: str) -> Reserve:
    return make_reserve(
        customer,
        request_id=request_id,
        hold_full=wish.hold,
        hold_least=wish.least,
        idempotency_key=None if wish.idempotency is None else str(wish.idempotency),
    )


async def balances(connection: Any, rows: list[Reserve]) -> list[tuple[int, int, int | None, int | None]]:
    """Return (balance, held, spent of the key's budget, what remains of it) beside each row."""
    found = []
    for row in rows:
        key = await api_keys.get_key(connection, row.account_id, row.key_id)
        assert key is not None
        found.append(
            (*await balance_of(connection, Customer(row.account_id, row.key_id)), key.spent, key.remaining),
        )
    return found


async def for_all(strategy: Any, check: Callable[[Any], Awaitable[None]]) -> None:
    """Run an asynchronous property on this loop: hypothesis runs in a thread and hands every example over."""
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(example=strategy)
    def run(example: Any) -> None:
        asyncio.run_coroutine_threadsafe(_awaited(check(example)), loop).result(timeout=30)

    await asyncio.to_thread(run)


async def _awaited(work: Awaitable[None]) -> None:
    await work
