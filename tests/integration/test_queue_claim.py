"""CLAIM: a fence for each job, no more than there is room for, and nothing is run that must not run."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from shared import keys
from shared.clock import SystemClock
from shared.connections import Redis
from shared.queue.job_format import JobFormat
from shared.wire import Seal, decode_chunk, encode
from tests.integration.queue_rig import MODEL, SEAL, Rig, a_job, open_rig, target_of


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


async def test_a_claim_carries_the_job_and_a_fence(rig: Rig) -> None:
    job = await rig.enqueue()

    claim = await rig.claim_one("own_a")

    assert claim.job == job
    assert (claim.owner, claim.attempt, claim.seq, claim.deaths, claim.close) == ("own_a", 1, 0, 0, None)
    state = await rig.state(job)
    assert (state["status"], state["owner"], state["attempt"]) == ("claimed", "own_a", "1")
    assert (await rig.client.depth(MODEL)).running == 1


async def test_the_run_deadline_counts_from_the_first_claim_only(rig: Rig) -> None:
    await rig.enqueue()
    first = await rig.claim_one()
    await rig.keeper().release(MODEL, [(first.job.request_id, 1)])

    second = await rig.claim_one("own_b")

    assert first.run_deadline_ms == first.first_claim_ms + 900_000
    assert (second.first_claim_ms, second.run_deadline_ms) == (first.first_claim_ms, first.run_deadline_ms)
    assert (second.attempt, second.owner) == (2, "own_b")


async def test_a_claim_that_continues_knows_when_the_first_token_was_logged(rig: Rig) -> None:
    await rig.enqueue()
    first = await rig.claim_one()
    before_ms = SystemClock().unix_ms()
    await rig.append(first, 1)
    after_ms = SystemClock().unix_ms()
    await rig.append(msgspec.structs.replace(first, seq=1), 1)
    await rig.keeper().release(MODEL, [(first.job.request_id, 1)])

    second = await rig.claim_one("own_b")

    assert first.first_token_ms is None
    assert second.first_token_ms is not None
    assert before_ms <= second.first_token_ms <= after_ms


async def test_no_more_is_claimed_than_asked_for(rig: Rig) -> None:
    for _ in range(5):
        await rig.enqueue()

    claimed = await rig.claim(most=3)

    assert len(claimed.claims) == 3
    assert claimed.more
    assert (await rig.client.depth(MODEL)).interactive == 2


async def test_two_workers_never_claim_the_same_job(rig: Rig) -> None:
    queued = {(await rig.enqueue()).request_id for _ in range(6)}

    first, second = await rig.claim("own_a", most=4), await rig.claim("own_b", most=4)

    ids = [claim.job.request_id for claim in (*first.claims, *second.claims)]
    assert len(ids) == 6
    assert set(ids) == queued


async def test_an_empty_queue_gives_nothing_and_keeps_no_token(rig: Rig, redis: Redis) -> None:
    await redis.lpush(keys.wake(MODEL), "1")

    claimed = await rig.claim()

    assert claimed.claims == []
    assert not claimed.more
    assert await redis.llen(keys.wake(MODEL)) == 0


async def test_many_enqueues_leave_one_wake_token(rig: Rig, redis: Redis) -> None:
    for _ in range(5):
        await rig.enqueue()

    assert await redis.llen(keys.wake(MODEL)) == 1


async def test_a_claim_that_leaves_jobs_passes_the_token_on(rig: Rig, redis: Redis) -> None:
    await rig.enqueue()
    await rig.enqueue()
    await redis.delete(keys.wake(MODEL))

    await rig.claim()

    assert await redis.llen(keys.wake(MODEL)) == 1


async def test_a_revoked_key_closes_its_queued_job(rig: Rig, redis: Redis) -> None:
    await rig.enqueue(key_id="key_revoked")
    other = await rig.enqueue(key_id="key_good")
    await redis.set(keys.revoked(MODEL, "key_revoked"), "1")

    closed, runs = (await rig.claim(most=2)).claims

    assert closed.close == "key_revoked"
    assert (runs.close, runs.job.request_id) == (None, other.request_id)


async def test_a_tombstone_closes_a_queued_job(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await redis.set(keys.tombstone(MODEL, job.request_id), "request_cancelled")

    assert (await rig.claim_one()).close == "request_cancelled"


async def test_patience_over_closes_a_queued_job(rig: Rig) -> None:
    await rig.enqueue(queue_deadline_ms=1)

    assert (await rig.claim_one()).close == "model_unavailable"


async def test_patience_does_not_end_what_was_claimed_before(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await rig.keeper().release(MODEL, [(job.request_id, 1)])
    await rig.set_state(job, queue_deadline_ms=1)

    assert (await rig.claim_one()).close is None


async def test_the_last_deadline_closes_whatever_happened_before(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()
    await rig.keeper().release(MODEL, [(job.request_id, 1)])
    await rig.set_state(job, deadline_ms=1)

    assert (await rig.claim_one()).close == "worker_lost"


async def test_a_flagged_job_is_closed_by_its_code(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.set_state(job, cancel="no_reader")

    assert (await rig.claim_one()).close == "no_reader"


async def test_the_claim_that_closes_holds_a_fence_that_can_finish(rig: Rig) -> None:
    job = await rig.enqueue(queue_deadline_ms=1)

    assert await rig.finish(await rig.claim_one()) == "finished"
    assert (await rig.state(job))["status"] == "ended"


async def test_a_job_whose_state_is_gone_is_skipped_and_swept(rig: Rig, redis: Redis) -> None:
    lost = await rig.enqueue()
    good = await rig.enqueue()
    await redis.delete(keys.state(MODEL, lost.request_id))

    claimed = await rig.claim(most=1)

    assert [claim.job.request_id for claim in claimed.claims] == [good.request_id]
    assert await redis.zcard(keys.waiting(MODEL)) == 0


async def test_a_job_without_our_seal_is_never_run_but_kept_for_inspection(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    forged = JobFormat(Seal(b"not our key" * 3)).write(job)
    await redis.set(keys.job(MODEL, job.request_id), forged)

    claimed = await rig.claim(most=1)

    assert claimed.claims == []
    ((_, fields),) = await redis.xrange(keys.dead_letters(MODEL))
    assert (fields[b"f"], fields[b"kind"], fields[b"of"]) == (forged, b"job", job.request_id.encode())
    assert await rig.state(job) == {}
    assert (await rig.client.depth(MODEL)).running == 0


async def test_the_reader_of_a_forged_job_is_told_at_once(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await redis.set(keys.job(MODEL, job.request_id), b"garbage")

    await rig.claim(most=1)

    ((entry_id, fields),) = await redis.xrange(keys.log(MODEL, job.request_id))
    chunk = decode_chunk(fields[b"c"])
    assert entry_id == b"1-0"
    assert chunk.end is not None
    assert (chunk.end.status, chunk.end.code) == ("failed", "engine_error")
    assert await redis.pttl(keys.log(MODEL, job.request_id)) > 0


async def test_one_forged_job_does_not_hold_up_the_next(rig: Rig, redis: Redis) -> None:
    forged, good = await rig.enqueue(), await rig.enqueue()
    await redis.set(keys.job(MODEL, forged.request_id), b"")

    claimed = await rig.claim(most=2)

    assert [claim.job.request_id for claim in claimed.claims] == [good.request_id]


async def test_a_sealed_job_under_another_id_is_not_run(rig: Rig, redis: Redis) -> None:
    mine, other = await rig.enqueue(), await rig.enqueue()
    swapped = await redis.get(keys.job(MODEL, other.request_id))
    assert swapped is not None
    await redis.set(keys.job(MODEL, mine.request_id), swapped)

    claimed = await rig.claim(most=2)

    assert [claim.job.request_id for claim in claimed.claims] == [other.request_id]


async def test_a_sealed_job_for_another_function_is_not_run(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    data = {"t": None, "f": "delete_everything", "a": (encode(job),), "k": {}, "et": 0}
    await redis.set(keys.job(MODEL, job.request_id), SEAL.close(encode(data)))

    assert (await rig.claim(most=1)).claims == []


async def test_a_job_of_the_previous_wire_key_is_still_run(rig: Rig, redis: Redis) -> None:
    job = a_job()
    rotated = JobFormat(Seal(b"n" * 32, b"s" * 32))

    assert rotated.read(JobFormat(SEAL).write(job), model=MODEL, request_id=job.request_id) == job


async def test_claim_loads_its_script_again_where_redis_forgot_it(rig: Rig, redis: Redis) -> None:
    await rig.enqueue()
    await rig.enqueue()
    await rig.claim_one()
    await redis.script_flush()

    assert len((await rig.claim()).claims) == 1


async def test_an_ended_claim_leaves_no_lease_and_no_job(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.finish(await rig.claim_one())

    assert (await rig.client.depth(MODEL)).running == 0
    assert await redis.exists(keys.job(MODEL, job.request_id)) == 0
    assert 0 < await redis.pttl(keys.state(MODEL, job.request_id)) <= 900_000
    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader=None) == "ended"
