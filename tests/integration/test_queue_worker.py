"""LeasedWorker as a whole: it runs what is queued, hears why to stop, hands over, and outlives Redis."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from compose.stores import Valkey, free_port, open_valkey
from shared import keys
from shared.connections import Redis, open_redis
from shared.queue.claims import Claim
from shared.queue.worker import claim_size
from shared.settings import QueueSettings, StoreSettings
from tests.integration.queue_rig import MODEL, Rig, Runs, a_job, open_rig, open_worker, target_of, until

BRISK = QueueSettings(lease_seconds=0.6, beat_seconds=0.1, poll_seconds=0.05, reap_seconds=0.05)
SLOW_POLL = QueueSettings(poll_seconds=30.0, reap_seconds=60.0)  # only a wake token brings a job at once


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


@pytest.fixture
def own_valkey(tmp_path: Path) -> "AsyncIterator[Valkey]":
    with open_valkey(tmp_path / "valkey", free_port()) as server:
        yield server  # type: ignore[misc]


def test_a_large_worker_claims_a_quarter_of_its_free_slots() -> None:
    assert [claim_size(free, 4) for free in (-1, 0, 1, 4, 16, 17, 64)] == [0, 0, 1, 4, 4, 4, 16]


async def test_every_queued_job_is_run_once(rig: Rig, redis: Redis) -> None:
    runs = Runs(slots=64)
    async with open_worker(redis, runs):
        queued = [await rig.enqueue() for _ in range(30)]

        await until(lambda: len(runs.claims) == 30)

    assert runs.ids() == [job.request_id for job in queued]


async def test_no_more_runs_than_there_are_slots(rig: Rig, redis: Redis) -> None:
    runs = Runs(slots=3)
    for _ in range(6):
        await rig.enqueue()
    async with open_worker(redis, runs, settings=BRISK):
        await until(lambda: runs.running == 3)
        await asyncio.sleep(0.02)

        assert runs.running == 3
        assert (await rig.client.depth(MODEL)).interactive == 3


async def test_a_freed_slot_takes_the_next_job_without_a_poll(rig: Rig, redis: Redis) -> None:
    runs = Runs(slots=1)
    first, second = await rig.enqueue(), await rig.enqueue()
    async with open_worker(redis, runs, settings=SLOW_POLL):
        await until(lambda: runs.running == 1)
        await rig.finish(runs.claims[0])
        runs.let_go.set()

        await until(lambda: len(runs.claims) == 2)

    assert runs.ids() == [first.request_id, second.request_id]


async def test_one_job_wakes_one_of_two_idle_workers(rig: Rig, redis: Redis) -> None:
    turns = [0, 0]  # of each worker's claim loop, which asks for its models once in each
    first, second = Runs(), Runs()

    def models(number: int) -> list[str]:
        turns[number] += 1
        return [MODEL]

    async with (
        open_worker(redis, first, owner="own_1", settings=SLOW_POLL, models=lambda: models(0)),
        open_worker(redis, second, owner="own_2", settings=SLOW_POLL, models=lambda: models(1)),
    ):
        await _blocked_clients(redis, 2)
        assert turns == [1, 1]

        await rig.enqueue()

        await until(lambda: first.claims or second.claims)
        await _blocked_clients(redis, 2)
        assert sorted(turns) == [1, 2]
        assert len(first.claims) + len(second.claims) == 1


async def test_a_worker_of_two_models_wakes_for_either(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    async with open_worker(redis, runs, settings=SLOW_POLL, models=lambda: [MODEL, "org/other"]):
        await _blocked_clients(redis, 1)
        await rig.enqueue(model="org/other")
        await until(lambda: len(runs.claims) == 1)
        await rig.enqueue()
        await until(lambda: len(runs.claims) == 2)

    assert [claim.job.model for claim in runs.claims] == ["org/other", MODEL]


async def test_a_lost_wake_token_costs_at_most_a_poll(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    await rig.enqueue()
    await redis.delete(keys.wake(MODEL))
    async with open_worker(redis, runs, settings=BRISK):
        await until(lambda: runs.claims)


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


async def test_beats_keep_a_job_beyond_its_lease(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=msgspec.structs.replace(BRISK, reap_seconds=60.0)):
        await until(lambda: runs.claims)
        for _ in range(3):  # nothing but a beat moves the lease
            await rig.die(job)
            await until(lambda: _lease_is_live(redis, job.request_id))

        assert runs.cancelled == []


async def test_a_run_that_fails_ends_neither_the_worker_nor_its_job(rig: Rig, redis: Redis) -> None:
    attempts: list[Claim] = []

    async def fail_once(claim: Claim) -> None:
        attempts.append(claim)
        if len(attempts) == 1:
            raise RuntimeError("planted")

    job = await rig.enqueue()
    async with open_worker(redis, fail_once, settings=BRISK):
        await until(lambda: len(attempts) == 2)

    assert [(claim.attempt, claim.deaths) for claim in attempts] == [(1, 0), (2, 1)]
    assert attempts[1].job.request_id == job.request_id


async def test_a_worker_reaps_what_a_dead_one_left(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    await rig.claim_one("own_dead")
    await rig.die(job)
    async with open_worker(redis, runs, settings=BRISK):
        await until(lambda: runs.claims)

    assert (runs.claims[0].attempt, runs.claims[0].deaths) == (2, 1)


async def test_suspects_follow_each_other_as_each_makes_its_first_token(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    jobs = [await rig.enqueue() for _ in range(3)]
    await rig.claim("own_dead", most=3)
    for job in jobs:
        await rig.die(job)
    await rig.reap()
    async with open_worker(redis, runs, settings=SLOW_POLL):
        for count in (1, 2, 3):
            await until(lambda n=count: len(runs.claims) == n)
            assert runs.running == count
            await rig.append(runs.claims[-1], 1)

    assert sorted(runs.ids()) == sorted(job.request_id for job in jobs)


async def test_what_must_be_closed_is_handed_to_the_run(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    await rig.enqueue(queue_deadline_ms=1)
    async with open_worker(redis, runs, settings=BRISK):
        await until(lambda: runs.claims)

    assert runs.claims[0].close == "model_unavailable"


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


async def test_the_worker_loads_its_scripts_again_where_redis_forgot_them(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    async with open_worker(redis, runs, settings=msgspec.structs.replace(BRISK, reap_seconds=60.0)):
        await rig.enqueue()
        await until(lambda: runs.claims)
        await redis.script_flush()
        job = await rig.enqueue()
        await until(lambda: len(runs.claims) == 2)
        await rig.die(job)

        await until(lambda: _lease_is_live(redis, job.request_id))


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
        await _blocked_clients(redis, 1)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        await until(lambda: runs.claims)

    assert (runs.claims[0].job.request_id, runs.claims[0].attempt, runs.claims[0].deaths) == (job.request_id, 2, 0)


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


async def _count_blocked(redis: Redis) -> int:
    return int((await redis.info("clients"))["blocked_clients"])


async def _blocked_clients(redis: Redis, count: int) -> None:
    async def blocked() -> bool:
        return await _count_blocked(redis) == count

    await until(blocked)


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


async def _lease_is_live(redis: Redis, request_id: str) -> bool:
    return (await redis.zscore(keys.leases(MODEL), keys.job_id(MODEL, request_id)) or 0) > 1


async def _synced(redis: Redis) -> None:
    """Wait until the append-only file is on disk."""
    await redis.execute_command("WAITAOF", 1, 0, 5000)
