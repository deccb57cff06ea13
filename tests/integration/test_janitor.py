"""The janitor on real stores: it closes what nobody closed, by the best evidence, and nothing else."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import keys
from shared.catalogue import Model
from shared.channel import read_log
from shared.clock import SystemClock
from shared.connections import Database, Redis
from shared.crash_points import CrashPoints
from shared.database.models import add_model, list_models
from shared.database.requests import Reserve, Witness, reserve_many, witness_many
from shared.database.session import Session
from shared.database.settlements import settle_many
from shared.database.usage import find_usage
from shared.errors import DependencyUnavailable
from shared.presence import ModelPresence, Presence, announce, read_catalogue
from shared.queue.client import QueueClient
from shared.queue.settlements import SettlementQueue
from shared.settings import Settings, SettlementSettings
from shared.wire import VERSION, Chunk, End, Job, Message, Sampling, Seal, Usage, decode_finish, encode
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
from workers.janitor.sweep import Sweeper
from workers.janitor.worker import open_janitor

OLD_SECONDS = 31
WAIT_SECONDS = 15.0
ROOT = Path(__file__).parents[2]
SERVE = "import asyncio; from workers.janitor.worker import serve; from shared.settings import load_settings; "
SERVE += "asyncio.run(serve(load_settings()))"


@pytest.fixture
async def customer(database: Database) -> Customer:
    await add_model(database, Model(id=MODEL, engine="simulator", context=100, prices=PRICES))
    return await make_customer(database, credits=1_000)


@pytest.fixture
async def sweeper(database: Database, redis: Redis, settings: Settings) -> AsyncIterator[Sweeper]:
    session = Session(database)
    yield make_sweeper(settings, session, redis)
    await session.close()


def make_sweeper(settings: Settings, session: Session, redis: Redis) -> Sweeper:
    settlement = SettlementSettings(backlog_patience_seconds=0.2)
    return Sweeper(
        settlement,
        session=session,
        redis=redis,
        queue=QueueClient(redis, make_seal(settings), settings.queue),
        settlements=SettlementQueue(redis, settlement),
        crash=CrashPoints(),
        clock=SystemClock(),
    )


def make_seal(settings: Settings) -> Seal:
    return Seal(settings.secrets.wire_key.encode())


async def reserve(
    database: Database, customer: Customer, *, age_seconds: float = OLD_SECONDS, **changes: Any
) -> Reserve:
    row = make_reserve(customer, hold=200, age_seconds=age_seconds, **changes)
    await reserve_many(database, [row])
    return row


def make_job(row: Reserve) -> Job:
    return Job(
        version=VERSION,
        request_id=row.request_id,
        account_id=row.account_id,
        key_id=row.key_id,
        model=row.model,
        messages=(Message("user", "hello"),),
        sampling=Sampling(),
        prices=row.prices,
        hold=row.hold_full,
        default_max_tokens=4,
        reader="node_1",
        resumable=False,
        lane="interactive",
        weight=1,
        cost_tokens=12,
        reserved_ms=row.reserved_ms,
        queue_deadline_ms=row.queue_deadline_ms,
        deadline_ms=row.deadline_ms,
    )


async def write_state(redis: Redis, row: Reserve, *, status: str = "claimed") -> None:
    state = {"status": status, "attempt": "1", "owner": "own_1", "seq": "2", "deaths": "0"}
    await redis.hset(keys.state(row.model, row.request_id), mapping=state)  # type: ignore[arg-type,misc]


async def write_log(redis: Redis, row: Reserve, end: End | None = None) -> None:
    chunks = [
        Chunk(VERSION, row.request_id, 1, 1, 0, "a", (1, 2), prompt_tokens=3, cached_tokens=0),
        Chunk(VERSION, row.request_id, 1, 2, 0, "b", (3,), "stop" if end else None, end=end),
    ]
    for chunk in chunks:
        await redis.xadd(keys.log(row.model, row.request_id), {"c": encode(chunk)}, id=f"{chunk.seq}-0")


async def ending(database: Database, row: Reserve) -> tuple[str, str | None, int] | None:
    usage = await find_usage(database, row.request_id)
    return None if usage is None else (usage.status, usage.code, usage.cost)


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
