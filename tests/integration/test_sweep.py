"""The sweep on real stores: it closes what nobody closed, by the best evidence, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from shared import keys
from shared.connections import Database, Redis
from shared.database.requests import Reserve, Witness, witness_many
from shared.database.session import Session
from shared.database.settlements import settle_many
from shared.errors import DependencyUnavailable
from shared.settings import Settings
from shared.wire import VERSION, Chunk, End, Usage, encode
from tests.integration.janitor_rig import (
    add_customer,
    ending,
    make_seal,
    make_sweeper,
    reserve,
    write_state,
)
from tests.integration.ledger_factories import (
    MODEL,
    Customer,
    assert_clean,
    balance_of,
    make_finish,
)
from workers.janitor.sweep import Sweeper


@pytest.fixture
async def customer(database: Database) -> Customer:
    return await add_customer(database)


@pytest.fixture
async def sweeper(database: Database, redis: Redis, settings: Settings) -> AsyncIterator[Sweeper]:
    session = Session(database)
    yield make_sweeper(settings, session, redis)
    await session.close()


async def write_log(redis: Redis, row: Reserve, end: End | None = None) -> None:
    chunks = [
        Chunk(VERSION, row.request_id, 1, 1, 0, "a", (1, 2), prompt_tokens=3, cached_tokens=0),
        Chunk(VERSION, row.request_id, 1, 2, 0, "b", (3,), "stop" if end else None, end=end),
    ]
    for chunk in chunks:
        await redis.xadd(keys.log(row.model, row.request_id), {"c": encode(chunk)}, id=f"{chunk.seq}-0")


async def test_a_reservation_that_was_never_queued_is_given_back(
    database: Database, customer: Customer, sweeper: Sweeper
) -> None:
    row = await reserve(database, customer)

    assert await sweeper.sweep() == 1

    assert await ending(database, row) == ("failed", "not_run", 0)
    assert await balance_of(database, customer) == (1_000, 0)
    await assert_clean(database, quiesced=True)


async def test_a_young_request_is_left_alone(database: Database, customer: Customer, sweeper: Sweeper) -> None:
    row = await reserve(database, customer, age_seconds=29)

    assert await sweeper.sweep() == 0

    assert await ending(database, row) is None


async def test_an_old_request_that_redis_knows_is_left_alone_until_its_deadline(
    database: Database, redis: Redis, customer: Customer, sweeper: Sweeper
) -> None:
    running = await reserve(database, customer)
    overdue = await reserve(database, customer, age_seconds=991)
    for row in (running, overdue):
        await write_state(redis, row)

    assert await sweeper.sweep() == 1

    assert await ending(database, running) is None
    assert await ending(database, overdue) == ("failed", "not_run", 0)


async def test_a_closed_request_cannot_be_queued_or_written_any_more(
    database: Database, redis: Redis, customer: Customer, sweeper: Sweeper
) -> None:
    row = await reserve(database, customer, age_seconds=991)
    await write_state(redis, row)

    await sweeper.sweep()

    assert await redis.exists(keys.tombstone(row.model, row.request_id))
    attempt, owner = await redis.hmget(keys.state(row.model, row.request_id), "attempt", "owner")  # type: ignore[misc]
    assert int(attempt) == 2
    assert owner != b"own_1"


async def test_an_end_in_the_log_is_charged(
    database: Database, redis: Redis, customer: Customer, sweeper: Sweeper
) -> None:
    row = await reserve(database, customer, age_seconds=991)
    await write_state(redis, row, status="ended")
    await write_log(redis, row, End("completed", Usage(3, 0, 3)))

    await sweeper.sweep()

    assert await ending(database, row) == ("completed", None, 90)
    assert await balance_of(database, customer) == (910, 0)
    await assert_clean(database, quiesced=True)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ("finished", ("completed", None, 90)),
        ("client_left", ("cancelled", "request_cancelled", 90)),
        ("failed", ("failed", "worker_lost", 0)),
        ("lost", ("failed", "worker_lost", 0)),
    ],
)
async def test_where_redis_lost_everything_the_witness_decides(
    database: Database, customer: Customer, sweeper: Sweeper, ended: Any, expected: tuple[str, str | None, int]
) -> None:
    row = await reserve(database, customer)
    seen = Witness(request_id=row.request_id, delivered_tokens=3, delivered_seq=2, prompt_tokens=3, ended=ended)
    await witness_many(database, [seen])

    await sweeper.sweep()

    assert await ending(database, row) == expected
    await assert_clean(database, quiesced=True)


async def test_an_unread_settlement_record_stops_the_sweep_and_is_the_better_evidence(
    database: Database, redis: Redis, customer: Customer, sweeper: Sweeper, settings: Settings
) -> None:
    row = await reserve(database, customer, age_seconds=991)
    finish = make_finish(row, prompt=1, completion=1)
    await redis.xadd(keys.settlement(MODEL), {"f": make_seal(settings).close(encode(finish))})

    assert await sweeper.sweep() == 0
    assert await ending(database, row) is None

    await settle_many(database, [finish])
    await redis.delete(keys.settlement(MODEL))
    assert await sweeper.sweep() == 0
    assert await ending(database, row) == ("completed", None, 30)


async def test_records_that_keep_coming_do_not_stop_the_sweep(
    database: Database, redis: Redis, customer: Customer, sweeper: Sweeper
) -> None:
    row = await reserve(database, customer)

    async def settle_busily() -> None:
        while True:
            entry = await redis.xadd(keys.settlement(MODEL), {"f": b"of another request"})
            await redis.xtrim(keys.settlement(MODEL), minid=entry)
            await asyncio.sleep(0)

    busy = asyncio.create_task(settle_busily())
    try:
        assert await sweeper.sweep() == 1
    finally:
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)

    assert await ending(database, row) == ("failed", "not_run", 0)


async def test_nothing_is_closed_while_redis_is_unreachable(
    database: Database, customer: Customer, settings: Settings
) -> None:
    row = await reserve(database, customer, age_seconds=991)
    session = Session(database)
    unreachable = Redis.from_url("redis://127.0.0.1:1/0")

    with pytest.raises(DependencyUnavailable):
        await make_sweeper(settings, session, unreachable).sweep()

    assert await ending(database, row) is None
    await session.close()
    await unreachable.aclose()


async def test_evidence_dearer_than_the_hold_frees_the_customer(
    database: Database, customer: Customer, sweeper: Sweeper
) -> None:
    row = await reserve(database, customer)
    seen = Witness(
        request_id=row.request_id, delivered_tokens=3_000, delivered_seq=2, prompt_tokens=3, ended="finished"
    )
    await witness_many(database, [seen])

    assert await sweeper.sweep() == 1

    assert await ending(database, row) == ("failed", "evidence_impossible", 0)
    await assert_clean(database, quiesced=True)


async def test_a_sweep_walks_page_by_page(
    database: Database, customer: Customer, redis: Redis, settings: Settings
) -> None:
    rows = [await reserve(database, customer, hold_full=0, hold_least=0) for _ in range(7)]
    for row in rows[::2]:
        await write_state(redis, row)
    session = Session(database)
    sweeper = make_sweeper(settings, session, redis)
    sweeper._settings = msgspec.structs.replace(sweeper._settings, sweep_page_most=2)

    assert await sweeper.sweep() == 3

    await session.close()
