"""A model that was taken out of the catalogue while requests of it were open: they still end, and hold up no others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared import keys
from shared.catalogue import Model
from shared.clock import SystemClock
from shared.connections import Database, Redis
from shared.crash_points import CrashPoints
from shared.database.models import OPEN_SECONDS, add_model, list_model_ids
from shared.database.session import Session
from shared.presence import read_catalogue
from shared.queue.client import QueueClient
from shared.queue.settlements import SettlementQueue
from shared.settings import Settings
from shared.wire import encode
from tests.integration.janitor_rig import (
    WAIT_SECONDS,
    add_customer,
    ending,
    make_job,
    make_seal,
    make_sweeper,
    reserve,
)
from tests.integration.ledger_factories import MODEL, PRICES, Customer, assert_clean, make_finish
from workers.janitor.worker import open_janitor
from workers.settlement.settle import Settler
from workers.settlement.worker import SettlementWorker

REMOVED = "org/removed"


@pytest.fixture
async def customer(database: Database) -> Customer:
    """A customer of a catalogue that holds MODEL, and REMOVED until a test removes it."""
    await add_model(database, Model(id=REMOVED, engine="simulator", context=100, prices=PRICES))
    return await add_customer(database)


async def remove(database: Database) -> None:
    await database.execute("DELETE FROM models WHERE id = $1", REMOVED)


@asynccontextmanager
async def janitor(settings: Settings) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    async with open_janitor(settings) as opened:
        running = asyncio.create_task(opened.run(settings.stores.redis_url, stopping))
        try:
            yield
        finally:
            stopping.set()
            await running


async def test_the_mirror_loses_a_removed_model_that_was_not_the_newest(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    async with janitor(settings), asyncio.timeout(WAIT_SECONDS):
        while (mirror := await read_catalogue(redis)) is None or len(mirror.models) != 2:
            await asyncio.sleep(0.02)

        await remove(database)

        while (mirror := await read_catalogue(redis)) is None or len(mirror.models) != 1:
            await asyncio.sleep(0.02)

    assert [model.id for model in mirror.models] == [MODEL]


async def test_a_queued_request_of_a_removed_model_ends_when_its_patience_is_over(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    patience_ends_ms = SystemClock().unix_ms() + 50
    row = await reserve(
        database, customer, model=REMOVED, age_seconds=OPEN_SECONDS + 1, queue_deadline_ms=patience_ends_ms
    )
    queue = QueueClient(redis, make_seal(settings), settings.queue)
    assert await queue.enqueue(make_job(row)) == "queued"
    await queue.close()
    await remove(database)

    async with janitor(settings), asyncio.timeout(WAIT_SECONDS):
        while not await redis.xlen(keys.settlement(REMOVED)):
            await asyncio.sleep(0.02)


async def test_what_a_request_of_a_removed_model_ended_with_is_settled(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    row = await reserve(database, customer, model=REMOVED)
    await redis.xadd(keys.settlement(REMOVED), {"f": make_seal(settings).close(encode(make_finish(row)))})
    await remove(database)
    session, stopping = Session(database), asyncio.Event()
    queue = SettlementQueue(redis, settings.settlement)
    settler = Settler(queue, session, make_seal(settings), CrashPoints(), tries_most=5)
    worker = SettlementWorker(settings.settlement, queue=queue, settler=settler, session=session)

    running = asyncio.create_task(worker.run(stopping))
    async with asyncio.timeout(WAIT_SECONDS):
        while await ending(database, row) is None:
            await asyncio.sleep(0.02)
    stopping.set()
    await running

    await session.close()
    assert await ending(database, row) == ("completed", None, 40)
    await assert_clean(database, quiesced=True)


async def test_a_removed_model_is_forgotten_with_its_last_open_request(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    await reserve(database, customer, model=REMOVED)
    await remove(database)
    open_ids = await list_model_ids(database)
    session = Session(database)

    assert await make_sweeper(settings, session, redis).sweep() == 1

    await session.close()
    assert (open_ids, await list_model_ids(database)) == ([MODEL, REMOVED], [MODEL])


async def test_records_that_nobody_settles_hold_up_the_sweep_of_their_own_model_only(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    stuck, free = await reserve(database, customer, model=REMOVED), await reserve(database, customer)
    await redis.xadd(keys.settlement(REMOVED), {"f": make_seal(settings).close(encode(make_finish(stuck)))})
    session = Session(database)

    assert await make_sweeper(settings, session, redis).sweep() == 1

    await session.close()
    assert await ending(database, free) == ("failed", "not_run", 0)
    assert await ending(database, stuck) is None
