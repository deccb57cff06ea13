"""The two lanes: batch jobs take spare slots only, and still none of them waits for ever."""

from collections.abc import AsyncIterator

import pytest

from shared import keys
from shared.connections import Redis
from shared.settings import QueueSettings
from tests.integration.queue_rig import BRISK, MODEL, Rig, Runs, open_rig, open_worker, until

AGED = QueueSettings(aged_seconds=0.0)  # every batch job has waited long


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


@pytest.fixture
async def aged(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis, AGED) as opened:
        yield opened


async def _ids(rig: Rig, count: int, **changes: object) -> list[str]:
    return [(await rig.enqueue(**changes)).request_id for _ in range(count)]


async def test_batch_jobs_leave_the_reserve_free(rig: Rig) -> None:
    batch = await _ids(rig, 5, lane="batch")

    claimed = await rig.claim(most=4, spare=3)

    assert [claim.job.request_id for claim in claimed.claims] == batch[:3]


async def test_interactive_jobs_take_the_reserve_and_leave_that_much_less_to_batch(rig: Rig) -> None:
    await _ids(rig, 5, lane="batch")
    interactive = await _ids(rig, 2)

    claimed = [claim.job.request_id for claim in (await rig.claim(most=4, spare=3)).claims]

    assert claimed[:2] == interactive
    assert len(claimed) == 3


async def test_a_claim_that_leaves_batch_jobs_without_a_slot_does_not_ask_for_another_claim(rig: Rig) -> None:
    await _ids(rig, 2, lane="batch")

    claimed = await rig.claim(most=4, spare=1)

    assert (claimed.more, claimed.batch_waits) == (False, True)


async def test_a_claim_that_leaves_interactive_jobs_asks_for_another(rig: Rig) -> None:
    await _ids(rig, 2)
    await _ids(rig, 1, lane="batch")

    claimed = await rig.claim(most=1, spare=0)

    assert (claimed.more, claimed.batch_waits) == (True, False)


async def test_an_aged_batch_job_may_have_a_reserved_slot(aged: Rig) -> None:
    (old,) = await _ids(aged, 1, lane="batch")
    await _ids(aged, 3)

    assert await aged.claimed_ids(most=1, spare=0) == [old]


async def test_a_backlog_that_has_aged_gets_one_slot_in_nine_while_interactive_jobs_wait(aged: Rig) -> None:
    batch = set(await _ids(aged, 20, lane="batch"))
    await _ids(aged, 40)

    served = await aged.claimed_ids(most=36, spare=0)

    assert [index for index, each in enumerate(served) if each in batch] == [0, 9, 18, 27]


async def test_an_aged_backlog_alone_leaves_the_reserve_free_but_for_its_share(aged: Rig) -> None:
    await _ids(aged, 20, lane="batch")

    served = await aged.claimed_ids(most=10, spare=0)

    assert len(served) == 1


async def test_a_batch_job_ends_its_wait_however_much_is_interactive(aged: Rig) -> None:
    (single,) = await _ids(aged, 1, lane="batch")
    served: list[str] = []
    for _ in range(20):  # two come for each one that is served
        await _ids(aged, 2)
        served += await aged.claimed_ids(most=1, spare=0)

    assert single in served


async def test_busy_accounts_of_the_batch_lane_do_not_pass_an_aged_job_for_ever(aged: Rig) -> None:
    crowd = await _ids(aged, 3, lane="batch", account_id="acct_crowd")
    served: list[str] = []
    for number in range(60):
        await _ids(aged, 1, lane="batch", account_id=f"acct_{number % 5}")
        await _ids(aged, 9)
        served += await aged.claimed_ids(most=9, spare=0)

    assert set(crowd) <= set(served)


async def test_a_worker_keeps_its_reserve_free_and_fills_it_with_interactive_jobs(rig: Rig, redis: Redis) -> None:
    runs = Runs(slots=8)
    batch = await _ids(rig, 20, lane="batch")
    async with open_worker(redis, runs, settings=BRISK, slots=lambda _: 8):
        await until(lambda: runs.running == 7)
        (single,) = await _ids(rig, 1)
        await until(lambda: runs.running == 8)

    assert set(runs.ids()) == {*batch[:7], single}


async def test_batch_jobs_follow_as_slots_become_spare(rig: Rig, redis: Redis) -> None:
    runs = Runs(slots=4)
    batch = await _ids(rig, 9, lane="batch")
    async with open_worker(redis, runs, settings=BRISK, slots=lambda _: 4):
        await until(lambda: runs.running == 3)
        runs.let_go.set()
        await until(lambda: len(runs.claims) == 9)

    assert set(runs.ids()) == set(batch)
    assert await redis.zcard(keys.queue(MODEL, "batch")) == 0
