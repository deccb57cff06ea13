"""CANCEL and FENCE: one request is stopped wherever it is, once, and by whom it belongs to."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from compose.stores import free_port
from shared import keys
from shared.connections import Redis, open_redis
from shared.errors import DependencyUnavailable
from shared.settings import QueueSettings, StoreSettings
from shared.wire import Finish, TokenHold, decode_chunk, decode_finish
from tests.integration.queue_rig import MODEL, SEAL, Rig, a_job, fence_of, open_rig, target_of


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


async def _settled(redis: Redis) -> list[Finish]:
    entries = await redis.xrange(keys.settlement(MODEL))
    return [decode_finish(SEAL.open(fields[b"f"])) for _, fields in entries]


async def test_an_unknown_request_gets_a_tombstone_that_expires(rig: Rig, redis: Redis) -> None:
    job = a_job()

    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader="node_a") == "tombstoned"
    assert 0 < await redis.pttl(keys.tombstone(MODEL, job.request_id)) <= 7_200_000


async def test_a_queued_request_is_ended_with_a_free_record(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()

    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader="node_a") == "dequeued"

    (finish,) = await _settled(redis)
    assert (finish.request_id, finish.status, finish.code) == (job.request_id, "cancelled", "request_cancelled")
    assert (finish.usage.completion_tokens, finish.prefill_began) == (0, False)
    assert (await rig.claim()).claims == []
    assert await redis.zcard(keys.waiting(MODEL)) == 0


async def test_the_reader_of_a_dequeued_request_sees_its_end(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(keys.channel(MODEL, job.request_id))
        await pubsub.get_message(timeout=5)

        await rig.client.cancel(target_of(job), code="key_revoked", reader=None)

        message = await pubsub.get_message(timeout=5)
    ((_, fields),) = await redis.xrange(keys.log(MODEL, job.request_id))
    assert message is not None
    assert message["data"] == fields[b"c"]
    end = decode_chunk(fields[b"c"]).end
    assert end is not None
    assert (end.status, end.code) == ("failed", "key_revoked")


async def test_state_and_log_of_a_dequeued_request_expire(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.client.cancel(target_of(job), code="request_cancelled", reader=None)

    for name in (keys.state(MODEL, job.request_id), keys.log(MODEL, job.request_id)):
        assert 0 < await redis.pttl(name) <= 900_000
    assert await redis.exists(keys.job(MODEL, job.request_id)) == 0


async def test_cancelling_twice_ends_once(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()

    verdicts = [await rig.client.cancel(target_of(job), code="request_cancelled", reader=None) for _ in range(2)]

    assert verdicts == ["dequeued", "ended"]
    assert len(await _settled(redis)) == 1


async def test_a_running_request_is_flagged_and_its_worker_is_told(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(keys.commands("own_a"))
        await pubsub.get_message(timeout=5)
        await rig.claim_one("own_a")

        assert await rig.client.cancel(target_of(job), code="request_cancelled", reader="node_a") == "flagged"

        message = await pubsub.get_message(timeout=5)
    assert message is not None
    assert msgspec.msgpack.decode(message["data"]) == [job.request_id, 1, "request_cancelled"]
    assert (await rig.state(job))["cancel"] == "request_cancelled"


async def test_the_first_code_wins(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.claim_one()

    await rig.client.cancel(target_of(job), code="key_revoked", reader=None)
    await rig.client.cancel(target_of(job), code="request_cancelled", reader=None)

    assert (await rig.state(job))["cancel"] == "key_revoked"


async def test_only_the_current_reader_may_cancel(rig: Rig) -> None:
    job = await rig.enqueue()

    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader="node_b") == "not_reader"
    await rig.set_state(job, reader="node_b")
    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader="node_a") == "not_reader"
    assert (await rig.client.depth(MODEL)).interactive == 1


async def test_a_cancel_outlives_cut_connections(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.client.depth(MODEL)
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader=None) == "dequeued"


async def test_a_cancel_gives_up_in_time_where_redis_is_away() -> None:
    nowhere = StoreSettings(redis_url=f"redis://127.0.0.1:{free_port()}/0")

    async with (
        open_redis(nowhere, role="test") as nobody,
        open_rig(nobody, QueueSettings(enqueue_retry_seconds=0.2)) as rig,
    ):
        with pytest.raises(DependencyUnavailable):
            await rig.client.cancel(target_of(a_job()), code="request_cancelled", reader=None)
        with pytest.raises(DependencyUnavailable):
            await rig.client.fence(MODEL, "chatcmpl-x")


async def test_an_ended_request_is_left_as_it_is(rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await rig.finish(await rig.claim_one())
    before = await rig.state(job)

    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader="node_a") == "ended"
    assert await rig.state(job) == before
    assert len(await _settled(redis)) == 1


async def test_a_queued_request_with_tokens_is_closed_by_whoever_claims_it(rig: Rig) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one()
    await rig.append(claim, 2)
    await rig.keeper().release(MODEL, [(job.request_id, 1)])

    assert await rig.client.cancel(target_of(job), code="request_cancelled", reader=None) == "flagged"

    closing = await rig.claim_one("own_b")
    assert (closing.close, closing.seq, closing.attempt) == ("request_cancelled", 2, 2)


async def test_a_flagged_request_is_closed_by_the_reaper_where_no_worker_comes(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.append(await rig.claim_one(), 1)
    await rig.keeper().release(MODEL, [(job.request_id, 1)])
    await rig.client.cancel(target_of(job), code="request_cancelled", reader=None)

    (closing,) = await rig.reap()

    assert (closing.close, closing.seq) == ("request_cancelled", 1)


async def test_a_fence_takes_a_running_request_from_its_worker(rig: Rig) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one()
    await rig.append(claim, 3)

    found = await rig.client.fence(MODEL, job.request_id)

    assert (found.existed, found.status, found.seq, found.attempt) == (True, "claimed", 3, 2)
    assert await rig.finish(claim, after=3) == "fenced"
    (beat,) = await rig.keeper().beat([claim])
    assert not beat.holds


async def test_who_fences_may_finish(rig: Rig) -> None:
    job = await rig.enqueue()
    claim = await rig.claim_one()
    found = await rig.client.fence(MODEL, job.request_id)

    taken = msgspec.structs.replace(claim, owner=found.owner, attempt=found.attempt)

    assert fence_of(taken) != fence_of(claim)
    assert await rig.finish(taken) == "finished"


async def test_a_fenced_request_is_in_no_queue_and_is_not_reaped(rig: Rig, redis: Redis) -> None:
    queued, running = await rig.enqueue(), await rig.enqueue()
    await rig.claim_one()

    for job in (queued, running):
        await rig.client.fence(MODEL, job.request_id)

    depth = await rig.client.depth(MODEL)
    assert (depth.interactive, depth.running, await redis.zcard(keys.waiting(MODEL))) == (0, 0, 0)
    assert (await rig.claim(most=2)).claims == []
    assert await rig.reap() == []
    assert await rig.client.enqueue(queued) == "tombstoned"


async def test_fencing_the_unknown_leaves_a_tombstone(rig: Rig) -> None:
    job = a_job()

    found = await rig.client.fence(MODEL, job.request_id)

    assert (found.existed, found.status, found.seq) == (False, "", 0)
    assert await rig.client.enqueue(job) == "tombstoned"


async def test_fencing_an_ended_request_changes_nothing_but_says_so(rig: Rig) -> None:
    job = await rig.enqueue()
    await rig.finish(await rig.claim_one())
    before = await rig.state(job)

    found = await rig.client.fence(MODEL, job.request_id)

    assert (found.existed, found.status, found.seq) == (True, "ended", 1)
    assert await rig.state(job) == before


async def test_fencing_again_takes_it_from_a_janitor_that_died(rig: Rig) -> None:
    job = await rig.enqueue()
    first = await rig.client.fence(MODEL, job.request_id)

    second = await rig.client.fence(MODEL, job.request_id)

    assert second.attempt == first.attempt + 1
    assert second.owner != first.owner


async def test_a_dequeued_request_takes_its_tokens_along_to_settlement(rig: Rig, redis: Redis) -> None:
    hold = TokenHold(100, (("key_1", 1000, 7),))
    job = await rig.enqueue()
    target = msgspec.structs.replace(target_of(job), token_hold=hold)

    await rig.client.cancel(target, code="request_cancelled", reader="node_a")

    (finish,) = await _settled(redis)
    assert finish.token_hold == hold
