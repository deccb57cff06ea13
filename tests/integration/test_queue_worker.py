"""LeasedWorker: it runs what is queued as its slots allow, wakes for it, and takes over what a dead one left."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from shared import keys
from shared.connections import Redis
from shared.queue.claims import Claim
from shared.queue.room import room_of
from shared.settings import QueueSettings
from tests.integration.queue_rig import (
    BRISK,
    MODEL,
    SLOW_POLL,
    Rig,
    Runs,
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


def test_a_large_worker_claims_a_quarter_of_its_free_slots() -> None:
    rooms = [room_of(free, 64, QueueSettings(claim_most=4)) for free in (-1, 0, 1, 4, 16, 17, 64)]

    assert [room.most for room in rooms] == [0, 0, 1, 4, 4, 4, 16]


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
    turns = [0, 0]  # of each worker's claim loop, which asks for its models once in each, and again where jobs came
    first, second = Runs(), Runs()

    def models(number: int) -> list[str]:
        turns[number] += 1
        return [MODEL]

    async with (
        open_worker(redis, first, owner="own_1", settings=SLOW_POLL, models=lambda: models(0)),
        open_worker(redis, second, owner="own_2", settings=SLOW_POLL, models=lambda: models(1)),
    ):
        await blocked_clients(redis, 2)
        assert turns == [1, 1]

        await rig.enqueue()

        await until(lambda: first.claims or second.claims)
        await blocked_clients(redis, 2)
        assert sorted(turns) == [1, 3]
        assert len(first.claims) + len(second.claims) == 1


async def test_a_worker_of_two_models_wakes_for_either(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    async with open_worker(redis, runs, settings=SLOW_POLL, models=lambda: [MODEL, "org/other"]):
        await blocked_clients(redis, 1)
        await rig.enqueue(model="org/other")
        await until(lambda: len(runs.claims) == 1)
        await rig.enqueue()
        await until(lambda: len(runs.claims) == 2)

    assert [claim.job.model for claim in runs.claims] == ["org/other", MODEL]


async def test_a_job_whose_model_was_closed_while_it_was_claimed_goes_back(rig: Rig, redis: Redis) -> None:
    runs, held = Runs(), [MODEL]
    async with open_worker(redis, runs, settings=SLOW_POLL, models=lambda: list(held)):
        await blocked_clients(redis, 1)
        held.clear()
        job = await rig.enqueue()

        async def is_back() -> bool:
            state = await rig.state(job)
            return (state["status"], state["attempt"]) == ("queued", "1")

        await until(is_back)

    claim = await rig.claim_one("own_other")
    assert (runs.claims, claim.attempt, claim.deaths, claim.close) == ([], 2, 0, None)


async def test_a_lost_wake_token_costs_at_most_a_poll(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    await rig.enqueue()
    await redis.delete(keys.wake(MODEL))
    async with open_worker(redis, runs, settings=BRISK):
        await until(lambda: runs.claims)


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


async def test_beats_keep_a_job_beyond_its_lease(rig: Rig, redis: Redis) -> None:
    runs = Runs()
    job = await rig.enqueue()
    async with open_worker(redis, runs, settings=msgspec.structs.replace(BRISK, reap_seconds=60.0)):
        await until(lambda: runs.claims)
        for _ in range(3):  # nothing but a beat moves the lease
            await rig.die(job)
            await until(lambda: lease_is_live(redis, job.request_id))

        assert runs.cancelled == []
