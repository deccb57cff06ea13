"""REAP: what a dead worker held goes on, and what may not go on is closed."""

from collections.abc import AsyncIterator

import pytest

from shared import keys
from shared.connections import Redis
from tests.integration.queue_rig import MODEL, Rig, open_rig, target_of


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


async def test_a_live_lease_is_left_alone(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()

    assert await rig.reap() == []
    assert (await rig.state(job))["status"] == "claimed"


async def test_the_job_of_a_dead_worker_goes_back_to_the_front_with_its_death_counted(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.append(await rig.claim_one(), 2)
    await rig.enqueue()
    await rig.die(job)

    assert await rig.reap() == []

    claim = await rig.claim_one("own_b")
    assert (claim.job.request_id, claim.attempt, claim.seq, claim.deaths) == (job.request_id, 2, 2, 1)
    assert claim.close is None


async def test_a_reap_that_requeues_leaves_a_wake_token(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await rig.die(job)

    await rig.reap()

    assert await redis.llen(keys.wake(MODEL)) == 1


async def test_two_reapers_count_one_death(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await rig.die(job)

    await rig.reap("own_x")
    await rig.reap("own_y")

    assert (await rig.state(job))["deaths"] == "1"


async def test_a_reaper_that_dies_before_it_closed_is_reaped_itself(rig: Rig) -> None:
    job = await rig.enqueue()
    for owner in ("own_a", "own_b"):
        await rig.claim_one(owner)
        await rig.die(job)
        await rig.reap("own_x")
    await rig.die(job)

    (closing,) = await rig.reap("own_y")

    assert (closing.close, closing.owner) == ("request_quarantined", "own_y")


async def test_a_dead_workers_cancelled_job_is_closed_instead_of_rerun(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.append(await rig.claim_one(), 2)
    await rig.client.cancel(target_of(job), code="request_cancelled", reader=None)
    await rig.die(job)

    (closing,) = await rig.reap()

    assert (closing.close, closing.seq) == ("request_cancelled", 2)


async def test_a_dead_workers_job_of_a_revoked_key_is_closed(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await redis.set(keys.revoked(MODEL, job.key_id), "1")
    await rig.die(job)

    (closing,) = await rig.reap()

    assert closing.close == "key_revoked"


async def test_a_dead_workers_job_past_its_deadline_is_closed(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await rig.set_state(job, deadline_ms=1)
    await rig.die(job)

    (closing,) = await rig.reap()

    assert closing.close == "worker_lost"


async def test_patience_over_without_any_worker_is_closed_by_the_reaper(rig: Rig) -> None:
    await rig.enqueue(queue_deadline_ms=1)
    patient = await rig.enqueue()

    (closing,) = await rig.reap(overdue_code="model_loading")

    assert closing.close == "model_loading"
    assert await rig.client.position(MODEL, patient.request_id) == 1


async def test_a_broken_answer_that_no_worker_continues_ends_as_worker_lost(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.append(await rig.claim_one(), 1)
    await rig.die(job)
    await rig.reap()
    await rig.outlast_patience(job)

    (closing,) = await rig.reap()

    assert closing.close == "worker_lost"
    assert (await rig.claim("own_b")).claims == []


async def test_a_requeued_job_may_wait_at_least_as_long_as_a_token(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one()
    await rig.set_state(job, queue_deadline_ms=1)
    await rig.die(job)
    await rig.reap()

    until_ms = await redis.zscore(keys.waiting(MODEL), keys.job_id(MODEL, job.request_id))

    assert until_ms is not None
    assert until_ms >= claim.first_claim_ms + 30_000


async def test_a_lease_without_state_is_swept(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await redis.delete(keys.state(MODEL, job.request_id))
    await rig.die(job)

    assert await rig.reap() == []
    assert (await rig.client.depth(MODEL)).running == 0


async def test_a_reap_is_bounded_and_the_next_one_goes_on(rig: Rig) -> None:
    jobs = [await rig.enqueue(queue_deadline_ms=1) for _ in range(70)]

    first, second = await rig.reap(), await rig.reap()

    assert (len(first), len(second)) == (64, 6)
    assert {claim.job.request_id for claim in (*first, *second)} == {job.request_id for job in jobs}
