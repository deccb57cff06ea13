"""ENQUEUE: a job enters once, bounded and with an end of its life, or is refused."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from compose.stores import free_port
from shared import keys
from shared.connections import Redis, open_redis
from shared.errors import DependencyUnavailable, SealInvalid
from shared.queue.client import QUEUE_FULL_SECONDS
from shared.settings import QueueSettings, StoreSettings
from shared.wire import Seal
from tests.integration.queue_rig import MODEL, SEAL, Rig, a_job, open_rig, target_of


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


async def test_enqueueing_twice_queues_once(rig: Rig) -> None:
    job = a_job()

    first, second = await rig.client.enqueue(job), await rig.client.enqueue(job)

    assert (first, second) == ("queued", "already")
    assert (await rig.client.depth(MODEL)).interactive == 1


async def test_the_same_job_twice_in_one_call_queues_once(rig: Rig) -> None:
    job = a_job()

    verdicts = await asyncio.gather(rig.client.enqueue(job), rig.client.enqueue(job))

    assert sorted(verdicts) == ["already", "queued"]


async def test_a_running_job_is_not_queued_again(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()

    assert await rig.client.enqueue(job) == "already"
    assert (await rig.client.depth(MODEL)).interactive == 0


async def test_an_ended_job_is_not_queued_again(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.finish(await rig.claim_one())

    assert await rig.client.enqueue(job) == "already"


async def test_a_job_cancelled_before_it_arrived_is_refused(rig: Rig) -> None:
    job = a_job()
    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader=None) == "tombstoned"

    assert await rig.client.enqueue(job) == "tombstoned"
    assert await rig.state(job) == {}
    assert (await rig.client.depth(MODEL)).interactive == 0


async def test_a_full_lane_refuses_and_leaves_nothing_behind(redis: Redis) -> None:
    async with open_rig(redis, QueueSettings(queue_most=2)) as rig:
        await rig.enqueue()
        await rig.enqueue()
        job = a_job()

        assert await rig.client.enqueue(job) == "queue_full"
        assert await rig.state(job) == {}
        assert await redis.exists(keys.job(MODEL, job.request_id)) == 0


async def test_a_full_batch_lane_refuses_no_interactive_job(redis: Redis) -> None:
    async with open_rig(redis, QueueSettings(queue_most=1)) as rig:
        await rig.enqueue(lane="batch")

        assert await rig.client.enqueue(a_job(lane="batch")) == "queue_full"
        assert await rig.client.enqueue(a_job()) == "queued"


@pytest.mark.parametrize(("waited_seconds", "told"), [(0, 1), (200, 20), (5000, 120)])
async def test_a_full_lane_is_worth_another_try_once_it_has_moved_by_a_tenth(
    rig: Rig, waited_seconds: int, told: int
) -> None:
    job = await rig.enqueue()
    await rig.set_state(job, queued_ms=time.time_ns() // 1_000_000 - waited_seconds * 1000)

    assert await rig.client.seconds_until_room(MODEL, "interactive") == told


async def test_of_an_empty_lane_nobody_knows_how_fast_it_is(rig: Rig) -> None:
    assert await rig.client.seconds_until_room(MODEL, "batch") == QUEUE_FULL_SECONDS


async def test_each_job_of_one_call_gets_its_own_verdict(redis: Redis) -> None:
    async with open_rig(redis, QueueSettings(queue_most=2)) as rig:
        dead = a_job()
        await rig.client.cancel(target_of(dead), code="request_cancelled", reader=None)
        old = await rig.enqueue()

        verdicts = await asyncio.gather(*[rig.client.enqueue(job) for job in (dead, old, a_job(), a_job())])

        assert verdicts == ["tombstoned", "already", "queued", "queue_full"]


async def test_jobs_of_two_models_go_to_their_own_queues(rig: Rig) -> None:
    await asyncio.gather(*[rig.client.enqueue(a_job(model=model)) for model in (MODEL, "org/other", MODEL)])

    assert (await rig.client.depth(MODEL)).interactive == 2
    assert (await rig.client.depth("org/other")).interactive == 1


async def test_state_and_job_outlive_the_deadline_by_an_hour(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()

    for name in (keys.state(MODEL, job.request_id), keys.job(MODEL, job.request_id)):
        assert await redis.pexpiretime(name) == job.deadline_ms + 3_600_000


async def test_the_state_holds_what_the_contract_names(rig: Rig) -> None:
    job = await rig.enqueue(resumable=True, lane="batch")

    state = await rig.state(job)

    assert state["status"] == "queued"
    assert (state["attempt"], state["owner"], state["deaths"]) == ("0", "", "0")
    assert (state["reader"], state["resumable"], state["lane"]) == ("node_a", "1", "batch")
    assert (state["account"], state["key"]) == ("acct_a", "key_a")
    assert (state["reserved_ms"], state["deadline_ms"]) == (str(job.reserved_ms), str(job.deadline_ms))
    assert "cancel" not in state


async def test_position_counts_suspects_then_interactive_then_batch(rig: Rig) -> None:
    suspect = await rig.enqueue()
    await rig.claim_one()
    await rig.die(suspect)
    await rig.reap()
    batch, first, second = await rig.enqueue(lane="batch"), await rig.enqueue(), await rig.enqueue()

    positions = [await rig.client.position(MODEL, job.request_id) for job in (suspect, first, second, batch)]

    assert positions == [1, 2, 3, 4]
    assert await rig.client.position(MODEL, "chatcmpl-unknown") is None


async def test_enqueue_loads_its_script_again_where_redis_forgot_it(rig: Rig, redis: Redis) -> None:
    await rig.enqueue()
    await redis.script_flush()

    assert await rig.client.enqueue(a_job()) == "queued"


async def test_enqueue_outlives_a_cut_connection(rig: Rig, redis: Redis) -> None:
    await rig.enqueue()
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert await rig.client.enqueue(a_job()) == "queued"


async def test_enqueue_gives_up_in_time_where_redis_is_away() -> None:
    nowhere = StoreSettings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    started = time.monotonic()

    async with (
        open_redis(nowhere, role="test") as redis,
        open_rig(redis, QueueSettings(enqueue_retry_seconds=0.2)) as rig,
    ):
        with pytest.raises(DependencyUnavailable):
            await rig.client.enqueue(a_job())

    assert time.monotonic() - started < 2


async def test_enqueue_gives_up_in_time_where_redis_is_out_of_memory(redis: Redis) -> None:
    async with open_rig(redis, QueueSettings(enqueue_retry_seconds=0.2)) as rig:
        await redis.config_set("maxmemory", "1")
        try:
            with pytest.raises(DependencyUnavailable):
                await rig.client.enqueue(a_job())
        finally:
            await redis.config_set("maxmemory", "0")

        assert await rig.client.enqueue(a_job()) == "queued"


async def test_a_waiter_that_left_leaves_its_job_in_the_queue(rig: Rig) -> None:
    waiter = asyncio.create_task(rig.client.enqueue(a_job()))
    await asyncio.sleep(0)
    waiter.cancel()
    await rig.client.flush()

    assert (await rig.client.depth(MODEL)).interactive == 1


async def test_a_job_lies_in_redis_under_our_seal(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()

    sealed = await redis.get(keys.job(MODEL, job.request_id))

    assert sealed is not None
    with pytest.raises(SealInvalid):
        Seal(b"another key" * 3).open(sealed)
    assert SEAL.open(sealed) == sealed[:-16]
