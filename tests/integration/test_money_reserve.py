"""Reservations on a real Postgres: what fits is held, what does not consumes nothing."""

import asyncio

import asyncpg
import pytest

from shared.connections import Database
from shared.database import accounts, api_keys
from shared.database.requests import ReserveVerdict, release_many, reserve_many
from shared.database.settlements import settle_many
from shared.pricing import Prices
from tests.integration.ledger_factories import MODEL, assert_clean, balance_of, make_customer, make_finish, make_reserve


async def test_a_reservation_holds_its_credits(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)

    verdicts = await reserve_many(database, [make_reserve(customer, hold=300)])

    assert verdicts == [ReserveVerdict("reserved", hold=300)]
    assert await balance_of(database, customer) == (1_000, 300)
    await assert_clean(database)


async def test_what_does_not_fit_is_refused_and_told_what_is_left(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)

    verdicts = await reserve_many(database, [make_reserve(customer, hold=1_001)])

    assert verdicts == [ReserveVerdict("insufficient", available=1_000)]
    assert await balance_of(database, customer) == (1_000, 0)


async def test_a_refused_row_consumes_nothing_from_later_rows(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    rows = [make_reserve(customer, hold=hold) for hold in (400, 700, 500, 200, 100)]

    verdicts = await reserve_many(database, rows)

    assert [verdict.verdict for verdict in verdicts] == [
        "reserved",
        "insufficient",
        "reserved",
        "insufficient",
        "reserved",
    ]
    assert await balance_of(database, customer) == (1_000, 1_000)
    await assert_clean(database)


async def test_an_open_ended_hold_is_lowered_to_what_is_available(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    rows = [make_reserve(customer, hold=600), make_reserve(customer, hold_full=900, hold_least=50)]

    verdicts = await reserve_many(database, rows)

    assert verdicts == [ReserveVerdict("reserved", 600), ReserveVerdict("reserved", 400)]


async def test_an_open_ended_hold_below_its_least_is_refused(database: Database) -> None:
    customer = await make_customer(database, credits=49)

    verdicts = await reserve_many(database, [make_reserve(customer, hold_full=900, hold_least=50)])

    assert verdicts == [ReserveVerdict("insufficient", available=49)]


async def test_a_free_model_needs_no_credits(database: Database) -> None:
    customer = await make_customer(database, credits=0)
    rows = [make_reserve(customer, hold=0, prices=Prices(0, 0, 0)) for _ in range(3)]

    reserved = await reserve_many(database, rows)
    settled = await settle_many(database, [make_finish(row) for row in rows])

    assert [verdict.verdict for verdict in reserved] == ["reserved"] * 3
    assert settled == ["settled"] * 3
    await assert_clean(database)


async def test_a_retried_batch_reads_back_its_own_rows(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    rows = [make_reserve(customer, hold=600), make_reserve(customer, hold_full=900, hold_least=1)]
    first = await reserve_many(database, rows)

    second = await reserve_many(database, rows)

    assert second == first
    assert await balance_of(database, customer) == (1_000, 1_000)


async def test_a_retried_batch_with_newcomers_decides_only_those(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    known, new, too_much = (make_reserve(customer, hold=hold) for hold in (300, 300, 500))
    await reserve_many(database, [known])

    verdicts = await reserve_many(database, [known, new, too_much])

    assert [verdict.verdict for verdict in verdicts] == ["reserved", "reserved", "insufficient"]
    assert await balance_of(database, customer) == (1_000, 600)


async def test_a_closed_request_cannot_be_reserved_again(database: Database) -> None:
    row = make_reserve(await make_customer(database))
    await reserve_many(database, [row])
    await settle_many(database, [make_finish(row)])

    assert await reserve_many(database, [row]) == [ReserveVerdict("duplicate")]


async def test_the_request_of_another_account_is_a_duplicate(database: Database) -> None:
    row = make_reserve(await make_customer(database))
    await reserve_many(database, [row])

    stolen = make_reserve(await make_customer(database), request_id=row.request_id)

    assert await reserve_many(database, [stolen]) == [ReserveVerdict("duplicate")]


async def test_a_request_id_twice_in_one_batch_reads_back_the_first(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    row = make_reserve(customer, hold=300)

    verdicts = await reserve_many(database, [row, make_reserve(customer), row])

    assert [verdict.hold for verdict in verdicts] == [300, 100, 300]
    assert await balance_of(database, customer) == (1_000, 400)


async def test_an_idempotency_key_reserves_once(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)
    rows = [make_reserve(customer, idempotency_key="k") for _ in range(2)]

    verdicts = await reserve_many(database, [*rows, make_reserve(other, idempotency_key="k")])

    assert [verdict.verdict for verdict in verdicts] == ["reserved", "duplicate", "reserved"]


@pytest.mark.parametrize(("status", "expected"), [("failed", "reserved"), ("completed", "duplicate")])
async def test_an_idempotency_key_is_free_again_after_a_free_failure(
    database: Database, status: str, expected: str
) -> None:
    customer = await make_customer(database)
    row = make_reserve(customer, idempotency_key="k")
    await reserve_many(database, [row])
    await settle_many(database, [make_finish(row, status=status)])

    verdicts = await reserve_many(database, [make_reserve(customer, idempotency_key="k")])

    assert verdicts[0].verdict == expected
    await assert_clean(database)


async def test_an_idempotency_key_is_kept_a_day(database: Database) -> None:
    customer = await make_customer(database)
    row = make_reserve(customer, idempotency_key="k", age_seconds=25 * 3600)
    await reserve_many(database, [row])
    await settle_many(database, [make_finish(row)])

    verdicts = await reserve_many(database, [make_reserve(customer, idempotency_key="k")])

    assert verdicts[0].verdict == "reserved"


async def test_a_revoked_key_reserves_nothing(database: Database) -> None:
    customer = await make_customer(database)
    await api_keys.revoke_key(database, customer.id, customer.key_id)

    assert await reserve_many(database, [make_reserve(customer)]) == [ReserveVerdict("key_revoked")]


async def test_the_key_of_another_account_reserves_nothing(database: Database) -> None:
    customer, other = await make_customer(database), await make_customer(database)

    verdicts = await reserve_many(database, [make_reserve(customer, key_id=other.key_id)])

    assert verdicts == [ReserveVerdict("key_revoked")]


async def test_a_deactivated_or_unknown_account_reserves_nothing(database: Database) -> None:
    customer = await make_customer(database)
    await accounts.set_active(database, customer.id, active=False)

    verdicts = await reserve_many(
        database, [make_reserve(customer), make_reserve(customer, account_id="acct_nobody"), make_reserve(customer)]
    )

    assert verdicts == [ReserveVerdict("account_inactive")] * 3


async def test_no_mix_of_nodes_settlers_and_releases_overspends(database: Database) -> None:
    customers = [await make_customer(database, credits=2_000) for _ in range(3)]

    async def node(number: int) -> None:
        async with database.acquire() as connection:
            for turn in range(12):
                rows = [make_reserve(customers[(number + i) % 3], hold=150 + i) for i in range(7)]
                verdicts = await reserve_many(connection, rows)
                held = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict.verdict == "reserved"]
                finishes = [make_finish(row, prompt=1, completion=turn % 3) for row in held[::-1]]
                assert set(await settle_many(connection, finishes[1:])) <= {"settled"}
                await release_many(connection, [(row.request_id, "test") for row in held], now_ms=2**41)

    async def auditor() -> None:
        for _ in range(5):
            await assert_clean(database)

    await asyncio.gather(*(node(number) for number in range(6)), auditor())

    await assert_clean(database)
    for customer in customers:
        balance, held = await balance_of(database, customer)
        assert held == 0
        assert 0 <= balance < 2_000


async def test_a_hold_beyond_the_balance_is_refused_by_the_table_itself(database: Database) -> None:
    customer = await make_customer(database, credits=10)

    with pytest.raises(asyncpg.CheckViolationError):
        await database.execute("UPDATE accounts SET held = 11 WHERE id = $1", customer.id)


async def test_the_price_of_the_moment_is_kept_with_the_request(database: Database) -> None:
    row = make_reserve(await make_customer(database), hold=400, prices=Prices(7, 3, 9))
    await reserve_many(database, [row])

    await settle_many(database, [make_finish(row, prompt=10, cached=4, completion=5)])

    found = await database.fetchrow("SELECT model, cost FROM v_request WHERE id = $1", row.request_id)
    assert tuple(found or ()) == (MODEL, 6 * 7 + 4 * 3 + 5 * 9)
