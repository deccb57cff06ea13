"""Poison: a job that ended a worker is a suspect, one at a time per worker, and quarantined at its second death."""

from collections.abc import AsyncIterator

import pytest

from shared.connections import Redis
from tests.integration.queue_rig import MODEL, Rig, open_rig


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


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


async def _suspects(rig: Rig, count: int) -> None:
    jobs = [await rig.enqueue() for _ in range(count)]
    await rig.claim("own_dead", most=count)
    for job in jobs:
        await rig.die(job)
    assert await rig.reap() == []
