"""The settlement worker on real stores: once, at once, and through every interruption."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from shared import keys
from shared.catalogue import Model
from shared.connections import Database, Redis
from shared.crash_points import CrashPoints
from shared.database.models import add_model
from shared.database.requests import Reserve, reserve_many
from shared.database.session import Session
from shared.database.usage import find_usage
from shared.queue.settlements import SettlementQueue
from shared.settings import Settings, SettlementSettings
from shared.wire import Finish, Seal, encode
from tests.integration.ledger_factories import (
    MODEL,
    PRICES,
    Customer,
    assert_clean,
    balance_of,
    make_customer,
    make_finish,
    make_reserve,
)
from workers.settlement.settle import Settler
from workers.settlement.worker import SettlementWorker

WAIT_SECONDS = 30.0  # longer than a statement on a cut connection may hang
ROOT = Path(__file__).parents[2]
SERVE = "import asyncio; from workers.settlement.worker import serve; from shared.settings import load_settings; "
SERVE += "asyncio.run(serve(load_settings()))"


@pytest.fixture
async def customer(database: Database) -> Customer:
    await add_model(database, Model(id=MODEL, engine="simulator", context=100, prices=PRICES))
    return await make_customer(database, credits=10_000)


async def reserve(database: Database, customer: Customer, count: int = 1) -> list[Reserve]:
    rows = [make_reserve(customer) for _ in range(count)]
    await reserve_many(database, rows)
    return rows


async def write(redis: Redis, settings: Settings, finish: Finish) -> None:
    sealed = Seal(settings.secrets.wire_key.encode()).close(encode(finish))
    await redis.xadd(keys.settlement(finish.model), {"f": sealed})


async def settled(database: Database, rows: list[Reserve]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        for row in rows:
            while await find_usage(database, row.request_id) is None:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(settings: Settings, database: Database, redis: Redis) -> AsyncIterator[asyncio.Event]:
    """A worker of this process; stopped at the end, its queue emptied first."""
    session = Session(database)
    queue = SettlementQueue(redis, settings.settlement)
    seal = Seal(settings.secrets.wire_key.encode())
    settler = Settler(queue, session, seal, CrashPoints(), tries_most=5)
    stopping = asyncio.Event()
    worker = SettlementWorker(settings.settlement, queue=queue, settler=settler, session=session)
    task = asyncio.create_task(worker.run(stopping))
    try:
        yield stopping
    finally:
        stopping.set()
        await task
        await session.close()


async def test_a_record_becomes_a_charge_and_leaves_the_queue(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    rows = await reserve(database, customer)

    async with running(settings, database, redis):
        await write(redis, settings, make_finish(rows[0]))
        await settled(database, rows)

    assert await balance_of(database, customer) == (9_960, 0)
    assert await redis.xlen(keys.settlement(MODEL)) == 0
    await assert_clean(database, quiesced=True)


async def test_a_stopping_worker_empties_its_queue_first(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    rows = await reserve(database, customer, 50)
    settings = msgspec.structs.replace(settings, settlement=SettlementSettings(settle_most=8))
    async with running(settings, database, redis) as stopping:
        await write(redis, settings, make_finish(rows[0]))
        await settled(database, rows[:1])
        for row in rows[1:]:
            await write(redis, settings, make_finish(row))
        stopping.set()

    assert await balance_of(database, customer) == (10_000 - 50 * 40, 0)
    assert await redis.xlen(keys.settlement(MODEL)) == 0


async def test_a_poison_record_is_set_aside_and_the_others_go_on(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    rows = await reserve(database, customer, 2)

    async with running(settings, database, redis):
        await redis.xadd(keys.settlement(MODEL), {"f": b"forged"})
        await write(redis, settings, make_finish(rows[0], prompt=1_000))
        await write(redis, settings, make_finish(make_reserve(customer)))
        await write(redis, settings, make_finish(rows[1], completion=2**40))
        await write(redis, settings, make_finish(rows[1]))
        await settled(database, rows[1:])

    reasons = [fields[b"reason"] for _, fields in await redis.xrange(keys.dead_letters(MODEL))]
    assert sorted(reasons) == [b"invalid", b"invalid_seal", b"too_costly", b"unknown"]
    assert await redis.xlen(keys.settlement(MODEL)) == 0
    await assert_clean(database)


async def test_a_model_that_is_added_later_is_settled_too(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    row = make_reserve(customer, model="org/later")
    await reserve_many(database, [row])

    async with running(settings, database, redis):
        await write(redis, settings, make_finish(row))
        await add_model(database, Model(id="org/later", engine="simulator", context=100, prices=PRICES))
        await settled(database, [row])


async def test_two_workers_on_the_same_queue_charge_each_request_once(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    rows = await reserve(database, customer, 60)

    async with running(settings, database, redis), running(settings, database, redis):
        for row in rows:
            for _ in range(2):
                await write(redis, settings, make_finish(row))
        await settled(database, rows)

    assert await balance_of(database, customer) == (10_000 - 60 * 40, 0)
    assert await redis.xlen(keys.dead_letters(MODEL)) == 0
    await assert_clean(database, quiesced=True)


async def test_the_worker_goes_on_when_its_connections_are_cut(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    rows = await reserve(database, customer, 3)

    async with running(settings, database, redis):
        await write(redis, settings, make_finish(rows[0]))
        await settled(database, rows[:1])
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        await write(redis, settings, make_finish(rows[1]))
        await settled(database, rows[:2])
        await redis.client_kill_filter(_type="normal", skipme=True)
        await write(redis, settings, make_finish(rows[2]))
        await settled(database, rows)

    assert await balance_of(database, customer) == (10_000 - 3 * 40, 0)


@pytest.mark.parametrize("point", ["before_settle_commit", "after_settle_commit", "before_ack"])
async def test_a_worker_killed_at_any_point_leaves_one_charge(
    settings: Settings, database: Database, redis: Redis, customer: Customer, point: str
) -> None:
    rows = await reserve(database, customer, 2)
    for row in rows:
        await write(redis, settings, make_finish(row))

    first = await start_process(settings, crash_point=point)
    assert await asyncio.to_thread(first.wait, WAIT_SECONDS) == -signal.SIGKILL
    second = await start_process(settings)
    async with asyncio.timeout(WAIT_SECONDS):
        while await redis.xlen(keys.settlement(MODEL)):
            await asyncio.sleep(0.02)
    second.send_signal(signal.SIGTERM)

    assert await asyncio.to_thread(second.wait, WAIT_SECONDS) == 0
    assert await redis.xlen(keys.settlement(MODEL)) == 0
    assert await balance_of(database, customer) == (10_000 - 2 * 40, 0)
    await assert_clean(database, quiesced=True)


async def start_process(settings: Settings, *, crash_point: str = "") -> "subprocess.Popen[bytes]":
    environment = os.environ | {
        "DATABASE_URL": settings.stores.database_url,
        "REDIS_URL": settings.stores.redis_url,
        "INFERBASE_KEY_PEPPER": settings.secrets.key_pepper,
        "INFERBASE_WIRE_KEY": settings.secrets.wire_key,
        "INFERBASE_SETTLE_IDLE_MS": "100",
        "INFERBASE_CRASH_POINT": crash_point,
        "INFERBASE_LOG_LEVEL": "error",
    }
    return await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", SERVE], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
