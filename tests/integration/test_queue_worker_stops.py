"""LeasedWorker hears why a run must stop: a cancel, a lost fence, a reader that has gone, a drain."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from shared import keys
from shared.connections import Redis
from shared.queue.claims import Claim
from tests.integration.queue_rig import (
    BRISK,
    MODEL,
    SLOW_POLL,
    Rig,
    Runs,
    open_rig,
    open_worker,
    target_of,
    until,
)


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


async def test_a_cancel_reaches_the_running_job_at_once(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=SLOW_POLL) as worker:
        await until(lambda: runs.claims)
        await until(lambda: _subscribers(redis, "own_worker"))

        await rig.client.cancel(target_of(job), code="request_cancelled", reader="node_a")

        await until(lambda: runs.claims[0].cancel.code == "request_cancelled")
        assert worker.cancelled(job.request_id, 1) == "request_cancelled"
        assert worker.cancelled(job.request_id, 2) is None
    assert runs.cancelled == [(job.request_id, "request_cancelled")]


async def test_a_cancel_whose_message_was_lost_is_read_at_the_next_beat(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=BRISK):
        await until(lambda: runs.claims)

        await rig.set_state(job, cancel="key_revoked")

        await until(lambda: runs.claims[0].cancel.code == "key_revoked")
        assert runs.running == 1  # the run ends itself, under its own fence


async def test_nonsense_on_the_command_channel_is_ignored(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=SLOW_POLL):
        await until(lambda: runs.claims)
        await until(lambda: _subscribers(redis, "own_worker"))
        for message in (b"", b"\xc1", b"[]", msgspec.msgpack.encode([job.request_id, 2, "key_revoked"])):
            await redis.publish(keys.commands("own_worker"), message)

        await rig.client.cancel(target_of(job), code="request_cancelled", reader=None)

        await until(lambda: runs.claims[0].cancel.code == "request_cancelled")


async def test_a_lost_fence_cancels_the_run(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=BRISK):
        await until(lambda: runs.claims)

        await rig.client.fence(MODEL, job.request_id)

        await until(lambda: runs.cancelled)
    assert runs.cancelled == [(job.request_id, "fence_lost")]


async def test_the_cleanup_of_a_run_that_lost_its_fence_is_not_cut_by_later_beats(rig: Rig, redis: Redis) -> None:
    cleaning, cleaned = asyncio.Event(), asyncio.Event()
    cuts = 0

    async def run(_: Claim) -> None:
        nonlocal cuts
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            try:
                await cleaned.wait()
            except asyncio.CancelledError:
                cuts += 1
                raise

    job = await rig.enqueue()
    async with open_worker(redis, run, settings=BRISK) as worker:
        await until(lambda: worker.running(MODEL))
        await rig.client.fence(MODEL, job.request_id)
        await cleaning.wait()
        await _beats(redis, 3)

        assert cuts == 0
        cleaned.set()


async def test_an_older_attempt_here_is_stopped_by_a_newer_one(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=SLOW_POLL):
        await until(lambda: runs.claims)
        await rig.die(job)
        await rig.reap()

        await until(lambda: len(runs.claims) == 2)
        await until(lambda: runs.cancelled)

        assert runs.cancelled == [(job.request_id, "fence_lost")]
        assert runs.running == 1


async def test_a_reader_that_has_gone_cancels_its_request_but_not_resumable_ones(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    settings = msgspec.structs.replace(BRISK, no_reader_seconds=0.1)
    await redis.set(keys.node("node_live"), "1", px=60_000)
    left = await rig.enqueue(reader="node_gone")
    for kept in ({"reader": "node_live"}, {"reader": "node_gone", "resumable": True}, {"lane": "batch"}):
        await rig.enqueue(**kept)
    async with open_worker(redis, runs, settings=settings):
        await until(lambda: any(claim.cancel.code for claim in runs.claims))
        await until(lambda: len(runs.claims) == 4)
        codes = {claim.job.request_id: claim.cancel.code for claim in runs.claims if claim.cancel.code}

    assert codes == {left.request_id: "no_reader"}


async def test_an_idle_worker_does_not_hurry_its_beats_for_a_reader_of_the_past(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    settings = msgspec.structs.replace(BRISK, no_reader_seconds=0.3)
    await redis.set(keys.node("node_a"), "1", px=60_000)
    async with open_worker(redis, runs, settings=settings) as worker:
        await rig.enqueue()
        await until(lambda: worker._readers.seconds_to_limit() < 1)

        runs.let_go.set()

        await until(lambda: worker._readers.seconds_to_limit() == float("inf"))


async def test_draining_waits_for_what_runs(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    await rig.enqueue()
    async with open_worker(redis, runs, settings=BRISK) as worker:
        await until(lambda: runs.claims)
        draining = asyncio.create_task(worker.drain(10))
        await asyncio.sleep(0.02)
        assert not draining.done()

        await rig.finish(runs.claims[0])
        runs.let_go.set()
        await draining

    assert runs.cancelled == []


async def test_draining_claims_nothing_more(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    await rig.enqueue()
    async with open_worker(redis, runs, settings=BRISK) as worker:
        await until(lambda: runs.claims)
        draining = asyncio.create_task(worker.drain(10))
        await asyncio.sleep(0)
        waiting = await rig.enqueue()
        await rig.finish(runs.claims[0])
        runs.let_go.set()
        await draining

        assert await rig.client.position(MODEL, waiting.request_id) == 1
    assert len(runs.claims) == 1


async def test_draining_hands_over_what_does_not_end_in_time(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=BRISK) as worker:
        await until(lambda: runs.claims)
        await rig.append(runs.claims[0], 2)

        await worker.drain(0)

    assert runs.cancelled == [(job.request_id, "handed_over")]
    successor = await rig.claim_one("own_b")
    assert (successor.attempt, successor.deaths, successor.seq) == (2, 0, 2)


async def _subscribers(redis: Redis, owner: str) -> bool:
    ((_, count),) = await redis.pubsub_numsub(keys.commands(owner))
    return bool(count)


async def _beats(redis: Redis, count: int) -> None:
    """Wait until Redis has answered so many more questions about readers, one of which follows each beat."""

    async def asked() -> int:
        stats = await redis.info("commandstats")
        return int(stats.get("cmdstat_pttl", {}).get("calls", 0))

    before = await asked()

    async def enough() -> bool:
        return await asked() >= before + count

    await until(enough)
