"""REAP, BEAT and RELEASE: what a dead worker held goes on, what may not go on is closed, a zombie writes nothing."""

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


async def test_a_zombie_writes_nothing_and_is_told(rig: Rig) -> None:
    job = await rig.enqueue()
    zombie = await rig.claim_one("own_a")
    await rig.die(job)
    await rig.reap()
    successor = await rig.claim_one("own_b")

    (beat,) = await rig.keeper("own_a").beat([zombie])

    assert not beat.holds
    assert await rig.finish(zombie) == "fenced"
    assert await rig.finish(successor) == "finished"


async def test_a_zombie_cannot_release_what_its_successor_runs(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one("own_a")
    await rig.die(job)
    await rig.reap()
    await rig.claim_one("own_b")

    assert await rig.keeper("own_a").release(MODEL, [(job.request_id, 1)]) == ["fenced"]
    assert (await rig.state(job))["owner"] == "own_b"


async def test_an_owner_alone_is_no_fence_for_a_release(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one("own_a")

    assert await rig.keeper("own_a").release(MODEL, [(job.request_id, 2)]) == ["fenced"]


async def test_an_attempt_alone_is_no_fence_for_a_release(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one("own_a")

    assert await rig.keeper("own_b").release(MODEL, [(job.request_id, 1)]) == ["fenced"]


async def test_what_was_finished_cannot_be_released(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.finish(await rig.claim_one())

    assert await rig.keeper().release(MODEL, [(job.request_id, 1)]) == ["fenced"]
    assert (await rig.client.depth(MODEL)).interactive == 0


async def test_an_attempt_alone_is_no_fence_for_a_beat(rig: Rig) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one("own_a")
    await rig.die(job)

    (beat,) = await rig.keeper("own_b").beat([claim])

    assert not beat.holds
    await rig.reap()
    assert (await rig.state(job))["deaths"] == "1"


async def test_a_beat_of_the_same_owner_with_an_old_attempt_is_refused(rig: Rig) -> None:
    job = await rig.enqueue()
    old = await rig.claim_one("own_a")
    await rig.die(job)
    await rig.reap()
    new = await rig.claim_one("own_a")

    beats = await rig.keeper("own_a").beat([old, new])

    assert [beat.holds for beat in beats] == [False, True]


async def test_a_beat_renews_the_lease_and_brings_flag_and_reader(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one()
    await rig.die(job)
    await rig.set_state(job, reader="node_b", cancel="key_revoked")

    (beat,) = await rig.keeper().beat([claim])

    assert (beat.holds, beat.cancel, beat.reader) == (True, "key_revoked", "node_b")
    assert await rig.reap() == []
    lease = await redis.zscore(keys.leases(MODEL), keys.job_id(MODEL, job.request_id))
    assert lease is not None
    assert lease > claim.first_claim_ms


async def test_a_beat_does_not_bring_back_an_ended_lease(rig: Rig) -> None:
    await rig.enqueue()
    claim = await rig.claim_one()
    await rig.finish(claim)

    (beat,) = await rig.keeper().beat([claim])

    assert beat.holds
    assert (await rig.client.depth(MODEL)).running == 0


async def test_a_beat_for_a_state_that_is_gone_is_a_lost_fence(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one()
    await redis.delete(keys.state(MODEL, job.request_id))

    (beat,) = await rig.keeper().beat([claim])

    assert not beat.holds


async def test_a_hand_over_is_no_death(rig: Rig) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one()
    await rig.append(claim, 1)

    assert await rig.keeper().release(MODEL, [(job.request_id, 1)]) == ["released"]

    again = await rig.claim_one("own_b")
    assert (again.deaths, again.seq, again.attempt) == (0, 1, 2)


async def test_releasing_twice_queues_once(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()

    verdicts = [await rig.keeper().release(MODEL, [(job.request_id, 1)]) for _ in range(2)]

    assert verdicts == [["released"], ["fenced"]]
    assert (await rig.client.depth(MODEL)).interactive == 1


async def test_releasing_what_is_gone_says_so(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await redis.delete(keys.state(MODEL, job.request_id))

    assert await rig.keeper().release(MODEL, [(job.request_id, 1)]) == ["gone"]


async def test_a_worker_gets_one_suspect_at_a_time(rig: Rig) -> None:
    await _suspects(rig, 3)

    first = await rig.claim("own_b", most=4)
    second = await rig.claim("own_b", most=4, held=[first.claims[0].job.request_id])
    other = await rig.claim("own_c", most=4)

    assert [len(claimed.claims) for claimed in (first, second, other)] == [1, 0, 1]
    assert second.suspects_wait
    assert not second.more


async def test_innocent_jobs_run_beside_a_suspect(rig: Rig) -> None:
    await _suspects(rig, 2)
    innocent = [(await rig.enqueue()).request_id for _ in range(2)]

    claimed = (await rig.claim("own_b", most=4)).claims

    assert [claim.deaths for claim in claimed] == [1, 0, 0]
    assert [claim.job.request_id for claim in claimed[1:]] == innocent


async def test_a_suspect_that_made_a_token_makes_room_for_the_next(rig: Rig) -> None:
    await _suspects(rig, 2)
    (first,) = (await rig.claim("own_b", most=4)).claims
    await rig.append(first, 1)

    second = await rig.claim("own_b", most=4, held=[first.job.request_id])

    assert second.cleared == {first.job.request_id}
    assert len(second.claims) == 1


async def test_tokens_of_an_earlier_attempt_clear_nobody(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.append(await rig.claim_one(), 5)
    await rig.die(job)
    await rig.reap()
    await _suspects(rig, 1)
    (first,) = (await rig.claim("own_b", most=4)).claims

    second = await rig.claim("own_b", most=4, held=[first.job.request_id])

    assert second.cleared == set()
    assert second.claims == []


async def test_a_second_death_as_suspect_is_closed_as_quarantined(rig: Rig) -> None:
    job = await rig.enqueue()
    for owner in ("own_a", "own_b"):
        assert (await rig.claim_one(owner)).close is None
        await rig.die(job)
        closing = await rig.reap()

    assert [(claim.close, claim.deaths, claim.attempt) for claim in closing] == [("request_quarantined", 2, 3)]
    assert await rig.finish(closing[0]) == "finished"


async def test_a_cleared_suspect_is_not_quarantined_for_its_neighbours_crime(rig: Rig) -> None:
    await _suspects(rig, 2)
    (innocent,) = (await rig.claim("own_b", most=4)).claims
    await rig.append(innocent, 1)
    (poison,) = (await rig.claim("own_b", most=4, held=[innocent.job.request_id])).claims
    await rig.die(innocent.job)
    await rig.die(poison.job)

    closing = await rig.reap()

    assert [claim.job.request_id for claim in closing] == [poison.job.request_id]
    again = await rig.claim_one("own_c")
    assert (again.job.request_id, again.deaths, again.close) == (innocent.job.request_id, 2, None)


async def test_a_job_that_died_twice_is_not_cleared_by_a_token(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await rig.set_state(job, deaths=1)
    await rig.die(job)
    await rig.reap()
    claim = await rig.claim_one("own_b")
    await rig.append(claim, 1)

    again = await rig.claim("own_b", held=[job.request_id])

    assert claim.deaths == 2
    assert again.cleared == set()


async def test_a_released_suspect_stays_a_suspect(rig: Rig) -> None:
    await _suspects(rig, 1)
    claim = await rig.claim_one("own_b")

    await rig.keeper("own_b").release(MODEL, [(claim.job.request_id, claim.attempt)])

    assert (await rig.claim("own_c", held=["chatcmpl-other"])).claims == []
    assert len((await rig.claim("own_c")).claims) == 1


async def test_a_reaper_that_dies_before_it_closed_is_reaped_itself(rig: Rig) -> None:
    job = await rig.enqueue()
    for owner in ("own_a", "own_b"):
        await rig.claim_one(owner)
        await rig.die(job)
        await rig.reap("own_x")
    await rig.die(job)

    (closing,) = await rig.reap("own_y")

    assert (closing.close, closing.owner) == ("request_quarantined", "own_y")


async def test_a_death_while_closing_is_no_second_death_as_suspect(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one("own_a")
    await rig.die(job)
    await rig.reap()
    await rig.outlast_patience(job)
    (closing,) = await rig.reap("own_x")
    await rig.die(job)

    assert closing.close == "model_unavailable"
    assert await rig.reap("own_y") == []


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


async def _suspects(rig: Rig, count: int) -> None:
    jobs = [await rig.enqueue() for _ in range(count)]
    await rig.claim("own_dead", most=count)
    for job in jobs:
        await rig.die(job)
    assert await rig.reap() == []
