"""LeasedWorker outlives Redis: killed, frozen, emptied of its scripts, or silent when it mattered."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from compose.stores import Valkey, free_port, open_valkey
from shared.connections import Redis, open_redis
from shared.settings import QueueSettings, StoreSettings
from tests.integration.queue_rig import (
    BRISK,
    MODEL,
    Rig,
    Runs,
    a_job,
    blocked_clients,
    lease_is_live,
    open_rig,
    open_worker,
    until,
)


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


@pytest.fixture
def own_valkey(tmp_path: Path) -> "AsyncIterator[Valkey]":
    with open_valkey(tmp_path / "valkey", free_port()) as server:
        yield server  # type: ignore[misc]


async def test_the_worker_loads_its_scripts_again_where_redis_forgot_them(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    async with open_worker(redis, runs, settings=msgspec.structs.replace(BRISK, reap_seconds=60.0)):
        await rig.enqueue()
        await until(lambda: runs.claims)
        await redis.script_flush()
        job = await rig.enqueue()
        await until(lambda: len(runs.claims) == 2)
        await rig.die(job)

        await until(lambda: lease_is_live(redis, job.request_id))


async def test_worker_and_client_outlive_a_killed_redis_and_lose_no_job(own_valkey: Valkey) -> None:
    runs = Runs(slots=64)
    async with (
        open_redis(StoreSettings(redis_url=own_valkey.url), role="test") as redis,
        open_rig(redis) as rig,
        open_worker(redis, runs, settings=QueueSettings(reap_seconds=0.1)),
    ):
        before = await rig.enqueue()
        await until(lambda: runs.claims)
        await _synced(redis)
        os.kill(own_valkey.pid, signal.SIGKILL)
        own_valkey.stop()
        late = a_job()
        enqueued = asyncio.create_task(rig.client.enqueue(late))
        await asyncio.sleep(0)
        own_valkey.start()

        assert await enqueued in ("queued", "already")
        await until(lambda: len(runs.claims) == 2)
        assert runs.cancelled == []
        assert await rig.finish(runs.claims[0]) == "finished"

    assert runs.ids() == [before.request_id, late.request_id]


async def test_a_worker_cut_off_for_half_a_lease_stops_and_later_gives_back(own_valkey: Valkey) -> None:
    runs = Runs()
    settings = msgspec.structs.replace(BRISK, lease_seconds=1.0, reap_seconds=60.0)
    async with (
        open_redis(StoreSettings(redis_url=own_valkey.url), role="test") as redis,
        open_rig(redis) as rig,
        open_worker(redis, runs, settings=settings),
    ):
        job = await rig.enqueue()
        await until(lambda: runs.claims)
        runs.slots = 0  # it claims nothing more itself
        os.kill(own_valkey.pid, signal.SIGSTOP)
        try:
            await until(lambda: runs.cancelled)
        finally:
            os.kill(own_valkey.pid, signal.SIGCONT)
        await until(lambda: rig.client.position(MODEL, job.request_id))
        successor = await rig.claim_one("own_b")

    assert runs.cancelled == [(job.request_id, "fence_lost")]
    assert (successor.attempt, successor.deaths) == (2, 0)


async def test_a_claim_whose_answer_was_lost_is_given_back_without_a_death(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    await rig.claim_one("own_worker")  # Redis gave it to the worker, which never heard of it
    async with open_worker(redis, runs, settings=BRISK):
        await blocked_clients(redis, 1)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        await until(lambda: runs.claims)

    assert (runs.claims[0].job.request_id, runs.claims[0].attempt, runs.claims[0].deaths) == (job.request_id, 2, 0)


async def _synced(redis: Redis) -> None:
    """Wait until the append-only file is on disk."""
    await redis.execute_command("WAITAOF", 1, 0, 5000)
