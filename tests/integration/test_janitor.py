"""The janitor as a process: its ticks mirror the catalogue, reap and sweep, whatever Redis and kill -9 do to it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from shared import keys
from shared.channel import read_log
from shared.clock import SystemClock
from shared.connections import Database, Redis
from shared.database.models import list_models
from shared.database.session import Session
from shared.database.settlements import settle_many
from shared.presence import ModelPresence, Presence, announce, read_catalogue
from shared.queue.client import QueueClient
from shared.settings import Settings, SettlementSettings
from shared.wire import Usage, decode_finish
from tests.integration.janitor_rig import (
    WAIT_SECONDS,
    add_customer,
    ending,
    make_job,
    make_seal,
    make_sweeper,
    reserve,
)
from tests.integration.ledger_factories import (
    MODEL,
    Customer,
    assert_clean,
)
from workers.janitor.worker import open_janitor

ROOT = Path(__file__).parents[2]
SERVE = "import asyncio; from workers.janitor.worker import serve; from shared.settings import load_settings; "
SERVE += "asyncio.run(serve(load_settings()))"


@pytest.fixture
async def customer(database: Database) -> Customer:
    return await add_customer(database)


async def test_the_janitor_mirrors_the_catalogue_and_keeps_what_workers_measured(
    database: Database, redis: Redis, settings: Settings, customer: Customer
) -> None:
    measured = ModelPresence(state="ready", template_tokens=11, message_tokens=4)
    await announce(redis, Presence(owner="own_1", engine="simulator", models={MODEL: measured}))
    stopping = asyncio.Event()

    async with open_janitor(settings) as janitor:
        running = asyncio.create_task(janitor.run(settings.stores.redis_url, stopping))
        async with asyncio.timeout(WAIT_SECONDS):
            while (mirror := await read_catalogue(redis)) is None or mirror.models[0].template_tokens != 11:
                await asyncio.sleep(0.02)
        stopping.set()
        await running

    [model] = await list_models(database)
    assert (model.template_tokens, model.message_tokens) == (11, 4)


async def test_the_janitor_sweeps_by_itself_and_survives_redis_cutting_it_off(
    database: Database, redis: Redis, settings: Settings, customer: Customer
) -> None:
    row = await reserve(database, customer)
    stopping = asyncio.Event()
    quick = msgspec.structs.replace(settings, settlement=SettlementSettings(sweep_seconds=1))

    async with open_janitor(quick) as janitor:
        running = asyncio.create_task(janitor.run(settings.stores.redis_url, stopping))
        async with asyncio.timeout(WAIT_SECONDS):
            while await ending(database, row) is None:
                await asyncio.sleep(0.02)
        for client in await redis.client_list():
            if client["lib-name"] == "redis-py" and client["name"] != "inferbase-test":
                await redis.client_kill_filter(_id=client["id"])
        second = await reserve(database, customer)
        async with asyncio.timeout(WAIT_SECONDS):
            while await ending(database, second) is None:
                await asyncio.sleep(0.02)
        stopping.set()
        await running


async def test_a_request_whose_model_no_worker_has_ends_when_its_patience_is_over(
    database: Database, redis: Redis, settings: Settings, customer: Customer
) -> None:
    row = await reserve(database, customer, age_seconds=1, queue_deadline_ms=SystemClock().unix_ms() + 50)
    seal = make_seal(settings)
    queue = QueueClient(redis, seal, settings.queue)
    assert await queue.enqueue(make_job(row)) == "queued"
    await queue.close()
    stopping = asyncio.Event()

    async with open_janitor(settings) as janitor:
        running = asyncio.create_task(janitor.run(settings.stores.redis_url, stopping))
        async with asyncio.timeout(WAIT_SECONDS):
            while not (entries := await redis.xrange(keys.settlement(MODEL))):
                await asyncio.sleep(0.02)
        stopping.set()
        await running

    finish = decode_finish(seal.open(entries[0][1][b"f"]))
    [chunk] = await read_log(redis, MODEL, row.request_id)
    assert (finish.status, finish.code, finish.usage) == ("failed", "model_unavailable", Usage())
    assert chunk.end is not None
    assert await settle_many(database, [finish]) == ["settled"]


async def test_a_janitor_killed_behind_its_fence_leaves_the_closing_to_the_next_one(
    database: Database, redis: Redis, settings: Settings, customer: Customer
) -> None:
    row = await reserve(database, customer)
    environment = os.environ | {
        "DATABASE_URL": settings.stores.database_url,
        "REDIS_URL": settings.stores.redis_url,
        "INFERBASE_KEY_PEPPER": settings.secrets.key_pepper,
        "INFERBASE_WIRE_KEY": settings.secrets.wire_key,
        "INFERBASE_SWEEP_SECONDS": "1",
        "INFERBASE_CRASH_POINT": "janitor_after_fence",
        "INFERBASE_LOG_LEVEL": "error",
    }
    first = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", SERVE], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    assert await asyncio.to_thread(first.wait, WAIT_SECONDS) == -signal.SIGKILL
    assert await ending(database, row) is None
    assert await redis.exists(keys.tombstone(MODEL, row.request_id))

    session = Session(database)
    assert await make_sweeper(settings, session, redis).sweep() == 1

    await session.close()
    assert await ending(database, row) == ("failed", "not_run", 0)
    await assert_clean(database, quiesced=True)


async def test_sigterm_stops_the_process_cleanly(settings: Settings, customer: Customer) -> None:
    from workers.janitor.worker import serve

    loop = asyncio.get_running_loop()
    loop.call_later(0.02, os.kill, os.getpid(), signal.SIGTERM)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await serve(settings)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
