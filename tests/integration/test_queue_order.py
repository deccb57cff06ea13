"""Who is served next: fair between accounts, first come first served inside one, interactive before batch."""

from collections.abc import AsyncIterator

import pytest

from shared import keys
from shared.connections import Redis
from shared.settings import QueueSettings
from tests.integration.queue_rig import MODEL, Rig, open_rig


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


async def _ids(rig: Rig, count: int, **changes: object) -> list[str]:
    return [(await rig.enqueue(**changes)).request_id for _ in range(count)]


async def test_one_account_is_served_in_the_order_of_its_requests(rig: Rig) -> None:
    queued = await _ids(rig, 20)

    assert await rig.claimed_ids(most=20) == queued


async def test_order_holds_when_many_are_claimed_at_once(rig: Rig) -> None:
    queued = await _ids(rig, 10)

    claimed = [claim.job.request_id for claim in (await rig.claim(most=10)).claims]

    assert claimed == queued


async def test_one_request_does_not_wait_behind_a_hundred_of_another_account(rig: Rig) -> None:
    crowd = await _ids(rig, 100, account_id="acct_crowd")
    await rig.claimed_ids(most=3)
    (single,) = await _ids(rig, 1, account_id="acct_single")

    served = await rig.claimed_ids(most=2)

    assert single in served
    assert len(set(served) & set(crowd)) == 1


async def test_two_busy_accounts_alternate(rig: Rig) -> None:
    first = await _ids(rig, 10, account_id="acct_a")
    second = await _ids(rig, 10, account_id="acct_b")

    served = await rig.claimed_ids(most=10)

    assert len(set(served) & set(first)) == 5
    assert [each for each in served if each in second] == second[:5]


async def test_an_account_with_costly_requests_gets_fewer_of_them(rig: Rig) -> None:
    cheap = await _ids(rig, 12, account_id="acct_cheap", cost_tokens=100)
    await _ids(rig, 12, account_id="acct_costly", cost_tokens=300)

    served = await rig.claimed_ids(most=12)

    assert len(set(served) & set(cheap)) == 9


async def test_weight_buys_a_larger_share(rig: Rig) -> None:
    heavy = await _ids(rig, 12, account_id="acct_heavy", weight=3)
    await _ids(rig, 12, account_id="acct_light", weight=1)

    served = await rig.claimed_ids(most=12)

    assert len(set(served) & set(heavy)) == 9


async def test_idling_earns_no_credit(rig: Rig) -> None:
    await _ids(rig, 50, account_id="acct_busy")
    await rig.claimed_ids(most=50)
    busy = await _ids(rig, 10, account_id="acct_busy")
    fresh = await _ids(rig, 10, account_id="acct_fresh")

    served = await rig.claimed_ids(most=10)

    assert abs(len(set(served) & set(busy)) - len(set(served) & set(fresh))) <= 2


async def test_interactive_requests_come_before_batch(rig: Rig) -> None:
    batch = await _ids(rig, 3, lane="batch")
    interactive = await _ids(rig, 3)

    assert await rig.claimed_ids(most=6) == [*interactive, *batch]


async def test_one_claim_takes_batch_only_for_room_that_interactive_leaves(rig: Rig) -> None:
    batch = await _ids(rig, 3, lane="batch")
    interactive = await _ids(rig, 2)

    claimed = [claim.job.request_id for claim in (await rig.claim(most=3)).claims]

    assert claimed == [*interactive, batch[0]]


async def test_a_batch_request_that_waited_long_comes_first(redis: Redis) -> None:
    async with open_rig(redis, QueueSettings(aged_seconds=600)) as rig:
        old = await rig.enqueue(lane="batch")
        await rig.set_state(old, queued_ms=1)
        await _ids(rig, 3)

        assert await rig.claimed_ids(most=1) == [old.request_id]


async def test_a_released_request_comes_before_those_that_waited(rig: Rig) -> None:
    first = await rig.enqueue()
    waiting = await _ids(rig, 3, account_id="acct_b", cost_tokens=1)
    claim = await rig.claim_one()
    assert claim.job.request_id == first.request_id
    await rig.keeper().release(MODEL, [(first.request_id, claim.attempt)])

    assert await rig.claimed_ids(most=2) == [first.request_id, waiting[0]]


async def test_a_release_after_the_tags_were_lost_still_comes_first(rig: Rig, redis: Redis) -> None:
    await _ids(rig, 5)
    await rig.claimed_ids(most=4)
    last = await rig.claim_one()
    await redis.delete(keys.fair(MODEL, "interactive"))
    await _ids(rig, 2)
    await rig.keeper().release(MODEL, [(last.job.request_id, last.attempt)])

    assert (await rig.claimed_ids(most=1)) == [last.job.request_id]


async def test_tags_of_many_past_accounts_are_forgotten_once_the_lane_is_empty(rig: Rig, redis: Redis) -> None:
    name = keys.fair(MODEL, "interactive")
    await redis.hset(name, mapping={"virtual": 500, **{f"acct_{number}": 400 for number in range(1100)}})

    job = await rig.enqueue()

    assert await redis.hlen(name) == 2
    assert (await rig.state(job))["tag"] == "500"


async def test_fair_tags_expire(rig: Rig, redis: Redis) -> None:
    await rig.enqueue()

    assert 0 < await redis.pttl(keys.fair(MODEL, "interactive")) <= 3_600_000
