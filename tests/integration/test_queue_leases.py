"""BEAT and RELEASE: who holds a lease keeps it or hands it over; a zombie writes nothing and takes nothing."""

from collections.abc import AsyncIterator

import pytest

from shared import keys
from shared.connections import Redis
from tests.integration.queue_rig import MODEL, Rig, open_rig


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


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
