"""Settling on a real Postgres: each ending charged by the table, once."""

import asyncio

import asyncpg
import pytest

from shared.connections import Database
from shared.database.requests import Witness, release_many, reserve_many, witness_many
from shared.database.settlements import settle_many
from shared.database.transfers import list_transactions
from shared.database.usage import find_usage, get_receipt, list_usage
from shared.errors import NotFound
from shared.wire import Usage
from tests.integration.ledger_factories import (
    assert_clean,
    balance_of,
    make_customer,
    make_finish,
    make_reserve,
)

# prompt 3 (1 cached) and completion 2 at 10, 5 and 20 each
FULL_COST = 2 * 10 + 1 * 5 + 2 * 20


@pytest.mark.parametrize(
    ("status", "prefill_began", "cost"),
    [
        ("completed", True, FULL_COST),
        ("completed", False, FULL_COST),
        ("cancelled", True, FULL_COST),
        ("cancelled", False, 0),
        ("failed", True, 0),
        ("failed", False, 0),
    ],
)
async def test_each_ending_is_charged_by_the_table(
    database: Database, status: str, prefill_began: bool, cost: int
) -> None:
    customer = await make_customer(database, credits=1_000)
    row = make_reserve(customer, hold=100)
    await reserve_many(database, [row])
    finish = make_finish(row, prompt=3, cached=1, completion=2, status=status, prefill_began=prefill_began)

    assert await settle_many(database, [finish]) == ["settled"]

    usage = await find_usage(database, row.request_id)
    assert usage is not None
    assert (usage.status, usage.cost) == (status, cost)
    assert await balance_of(database, customer) == (1_000 - cost, 0)
    await assert_clean(database, quiesced=True)


async def test_settling_twice_charges_once(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    row = make_reserve(customer)
    await reserve_many(database, [row])
    finish = make_finish(row)

    verdicts = await settle_many(database, [finish, finish]) + await settle_many(database, [finish])

    assert verdicts == ["settled", "already", "already"]
    assert await balance_of(database, customer) == (960, 0)


async def test_two_settlers_on_one_record_charge_once(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    rows = [make_reserve(customer) for _ in range(8)]
    await reserve_many(database, rows)
    finishes = [make_finish(row) for row in rows]

    answers = await asyncio.gather(
        *(settle_many(database, finishes if turn % 2 else finishes[::-1]) for turn in range(4))
    )

    assert sorted(verdict for answer in answers for verdict in answer) == ["already"] * 24 + ["settled"] * 8
    assert await balance_of(database, customer) == (1_000 - 8 * 40, 0)
    await assert_clean(database, quiesced=True)


async def test_a_record_must_match_its_reservation(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)
    row = make_reserve(customer, hold=100)
    await reserve_many(database, [row])

    verdicts = await settle_many(
        database,
        [
            make_finish(row, account_id=other.id),
            make_finish(row, model="org/other"),
            make_finish(row, completion=6),
            make_finish(make_reserve(customer)),
            make_finish(row),
        ],
    )

    assert verdicts == ["mismatch", "mismatch", "too_costly", "unknown", "settled"]
    assert await balance_of(database, other) == (1_000, 0)


async def test_a_cost_of_exactly_the_hold_settles(database: Database) -> None:
    row = make_reserve(await make_customer(database, credits=100), hold=100)
    await reserve_many(database, [row])

    assert await settle_many(database, [make_finish(row, prompt=4, completion=3)]) == ["settled"]
    await assert_clean(database, quiesced=True)


async def test_impossible_counts_change_nothing(database: Database) -> None:
    customer = await make_customer(database)
    row = make_reserve(customer)
    await reserve_many(database, [row])

    with pytest.raises(asyncpg.CheckViolationError):
        await settle_many(database, [make_finish(row, usage=Usage(2, 3, 1))])

    assert await balance_of(database, customer) == (1_000, 100)


async def test_charges_are_listed_newest_first_with_the_balance_after_each(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    rows = [make_reserve(customer) for _ in range(3)]
    await reserve_many(database, rows)
    await settle_many(database, [make_finish(row, completion=number) for number, row in enumerate(rows)])

    listed, more = await list_transactions(database, customer.id, limit=3)
    rest, end = await list_transactions(database, customer.id, after=listed[-1].id)

    assert [(t.type, t.amount, t.balance_after) for t in listed + rest] == [
        ("deduction", -60, 880),
        ("deduction", -40, 940),
        ("deduction", -20, 980),
        ("deposit", 1_000, 1_000),
    ]
    assert [t.request_id for t in listed] == [row.request_id for row in rows[::-1]]
    assert (more, end) == (True, False)


async def test_usage_is_listed_newest_first_and_only_to_its_owner(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)
    rows = [make_reserve(customer) for _ in range(3)]
    await reserve_many(database, rows)
    await settle_many(database, [make_finish(row) for row in rows])

    listed, more = await list_usage(database, customer.id, limit=2)
    rest, _ = await list_usage(database, customer.id, after=listed[-1].id, limit=2)

    assert [row.request_id for row in listed + rest] == [row.request_id for row in rows[::-1]]
    assert more
    assert await list_usage(database, other.id) == ([], False)
    assert await get_receipt(database, other.id, rows[0].request_id) is None
    with pytest.raises(NotFound):
        await list_usage(database, other.id, after=listed[0].id)


@pytest.mark.parametrize(("code", "status"), [("queue_full", "failed"), ("request_cancelled", "cancelled")])
async def test_a_release_gives_the_hold_back_and_leaves_a_free_usage_row(
    database: Database, code: str, status: str
) -> None:
    customer = await make_customer(database)
    row = make_reserve(customer)
    await reserve_many(database, [row])
    pairs = [(row.request_id, code), ("chatcmpl-nobody", code)]

    first = await release_many(database, pairs, now_ms=row.reserved_ms + 40)
    second = await release_many(database, pairs, now_ms=row.reserved_ms + 50)

    usage = await find_usage(database, row.request_id)
    assert (first, second) == (["released", "unknown"], ["already", "unknown"])
    assert usage is not None
    assert (usage.status, usage.code, usage.cost, usage.latency_ms) == (status, code, 0, 40)
    assert await balance_of(database, customer) == (1_000, 0)
    await assert_clean(database, quiesced=True)


async def test_a_witness_only_grows_and_keeps_a_seen_end(database: Database) -> None:
    customer = await make_customer(database)
    row = make_reserve(customer)
    await reserve_many(database, [row])

    def witness(tokens: int, prompt: int | None, ended: str) -> Witness:
        return Witness(
            request_id=row.request_id, delivered_tokens=tokens, delivered_seq=tokens, prompt_tokens=prompt, ended=ended
        )

    for seen in (witness(3, 7, "client_left"), witness(5, None, "finished"), witness(4, None, "lost")):
        await witness_many(database, [seen])

    found = await database.fetchrow(
        "SELECT delivered_tokens, delivered_seq, witnessed_prompt_tokens, ended, state FROM v_request WHERE id = $1",
        row.request_id,
    )
    assert tuple(found or ()) == (5, 5, 7, "finished", "open")
    assert await balance_of(database, customer) == (1_000, 100)


async def test_witnesses_from_two_nodes_and_settlers_never_deadlock(database: Database) -> None:
    customer = await make_customer(database, credits=100_000)
    rows = [make_reserve(customer) for _ in range(200)]
    await reserve_many(database, rows)
    witnesses = [
        Witness(request_id=row.request_id, delivered_tokens=1, delivered_seq=1, prompt_tokens=2, ended="finished")
        for row in rows
    ]

    await asyncio.gather(
        witness_many(database, witnesses),
        witness_many(database, witnesses[::-1]),
        settle_many(database, [make_finish(row) for row in rows[::-1]]),
        settle_many(database, [make_finish(row) for row in rows]),
    )

    await assert_clean(database, quiesced=True)


@pytest.mark.parametrize("table", ["transfers", "usage"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET account_id = 'x'", "TRUNCATE {}"])
async def test_written_rows_of_the_ledger_never_change(database: Database, table: str, statement: str) -> None:
    row = make_reserve(await make_customer(database))
    await reserve_many(database, [row])
    await settle_many(database, [make_finish(row)])

    with pytest.raises(asyncpg.RestrictViolationError):
        await database.execute(statement.format(table))


@pytest.mark.parametrize("table", ["accounts", "requests", "api_keys"])
async def test_what_the_ledger_refers_to_is_never_deleted(database: Database, table: str) -> None:
    await make_customer(database)

    with pytest.raises(asyncpg.RestrictViolationError):
        await database.execute(f"DELETE FROM {table}")
