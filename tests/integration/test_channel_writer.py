"""The worker's end of the log, on a real Valkey."""

import asyncio

import msgspec
import pytest

from shared import keys
from shared.channel import LogWriter, read_log
from shared.connections import Redis
from shared.wire import decode_finish
from tests.integration.channel_states import MODEL, SEAL, SETTINGS, chunk, claimed, end_chunk, finish


@pytest.fixture
async def writer(redis: Redis):
    log_writer = LogWriter(redis, SEAL, SETTINGS)
    yield log_writer
    await log_writer.close()


async def test_chunks_reach_the_log_in_the_order_given(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)

    verdicts = await asyncio.gather(*[writer.append(fence, chunk(fence, seq)) for seq in range(1, 600)])

    assert set(verdicts) == {"appended"}
    assert [one.seq for one in await read_log(redis, MODEL, fence.request_id)] == list(range(1, 600))


async def test_a_log_of_several_pages_is_read_whole(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    for seq in range(1, 2200):
        writer.append(fence, chunk(fence, seq))
    await writer.flush()

    read = await read_log(redis, MODEL, fence.request_id, after=40)

    assert [one.seq for one in read] == list(range(41, 2200))


async def test_the_log_holds_the_very_chunk(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    sent = chunk(fence, 1, text="naïve 🦙\x00\r\n")

    await writer.append(fence, sent)

    assert await read_log(redis, MODEL, fence.request_id) == [sent]


async def test_one_turn_of_many_requests_is_one_script_call(redis: Redis, writer: LogWriter) -> None:
    fences = [await claimed(redis) for _ in range(64)]
    await writer.append(fences[0], chunk(fences[0], 1))
    await redis.config_resetstat()

    futures = [writer.append(fence, chunk(fence, 1)) for fence in fences[1:]]
    futures += [writer.finish(fences[0], end_chunk(fences[0], 2), finish(fences[0]))]
    await asyncio.gather(*futures)

    calls = await redis.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] == 2, "one APPEND and one FINISH"


async def test_a_chunk_said_twice_stands_once(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    await writer.append(fence, chunk(fence, 1))

    verdict = await writer.append(fence, chunk(fence, 1))

    assert verdict == "already"
    assert len(await read_log(redis, MODEL, fence.request_id)) == 1


@pytest.mark.parametrize("other", [{"attempt": 2}, {"owner": "own_other"}, {"status": "queued"}])
async def test_a_zombie_is_refused(redis: Redis, writer: LogWriter, other: dict[str, object]) -> None:
    fence = await claimed(redis)
    await redis.hset(keys.state(MODEL, fence.request_id), mapping=other)

    appended = await writer.append(fence, chunk(fence, 1))
    finished = await writer.finish(fence, end_chunk(fence, 1), finish(fence))

    assert (appended, finished) == ("fenced", "fenced")
    assert await redis.exists(keys.log(MODEL, fence.request_id), keys.settlement(MODEL)) == 0


async def test_a_request_without_state_is_gone(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    await redis.delete(keys.state(MODEL, fence.request_id))

    verdicts = await asyncio.gather(
        writer.append(fence, chunk(fence, 1)), writer.finish(fence, end_chunk(fence, 2), finish(fence))
    )

    assert verdicts == ["gone", "gone"]
    assert await redis.exists(keys.log(MODEL, fence.request_id), keys.state(MODEL, fence.request_id)) == 0


async def test_a_gap_that_memory_cannot_fill_is_refused(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)

    assert await writer.append(fence, chunk(fence, 5)) == "gap"
    assert await writer.finish(fence, end_chunk(fence, 9), finish(fence)) == "gap"
    assert await redis.hget(keys.state(MODEL, fence.request_id), "status") == b"claimed"


async def test_what_redis_lost_is_appended_again(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    sent = [chunk(fence, seq) for seq in range(1, 11)]
    for one in sent[:9]:
        writer.append(fence, one)
    await writer.flush()
    await _lose_tail(redis, fence.request_id, tip=4)

    verdict = await writer.append(fence, sent[9])

    assert verdict in ("appended", "already")
    assert await read_log(redis, MODEL, fence.request_id) == sent
    assert writer.refills == 1


async def test_a_finish_first_fills_what_redis_lost(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    for seq in range(1, 6):
        writer.append(fence, chunk(fence, seq))
    await writer.flush()
    await _lose_tail(redis, fence.request_id, tip=0)

    verdict = await writer.finish(fence, end_chunk(fence, 6), finish(fence))

    assert verdict == "finished"
    assert [one.seq for one in await read_log(redis, MODEL, fence.request_id)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["no stream", "a stream that was emptied"])
async def test_a_log_that_nobody_can_append_to_stops_only_itself(redis: Redis, writer: LogWriter, kind: str) -> None:
    broken, sound = await claimed(redis), await claimed(redis)
    name = keys.log(MODEL, broken.request_id)
    if kind == "no stream":
        await redis.set(name, b"?")
    else:
        await redis.xadd(name, {"c": b"?"}, id="7-0")
        await redis.xdel(name, "7-0")

    verdicts = await asyncio.gather(
        writer.append(broken, chunk(broken, 1)),
        writer.append(sound, chunk(sound, 1)),
        writer.finish(broken, end_chunk(broken, 1), finish(broken)),
        writer.finish(sound, end_chunk(sound, 2), finish(sound)),
    )

    assert verdicts == ["gone", "appended", "gone", "finished"]


async def test_finish_writes_end_and_record_together(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    writer.append(fence, chunk(fence, 1))

    verdict = await writer.finish(fence, end_chunk(fence, 2), finish(fence))

    assert verdict == "finished"
    assert [one.end is not None for one in await read_log(redis, MODEL, fence.request_id)] == [False, True]
    assert await _records(redis) == [finish(fence)]
    assert await redis.hget(keys.state(MODEL, fence.request_id), "status") == b"ended"
    assert await redis.xlen(keys.log(MODEL, fence.request_id)) == 2
    assert await redis.exists(keys.job(MODEL, fence.request_id), keys.leases(MODEL)) == 0


async def test_finishing_twice_leaves_one_record(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    first = await writer.finish(fence, end_chunk(fence, 1), finish(fence))

    second = await writer.finish(fence, end_chunk(fence, 1), finish(fence))
    late = await writer.append(fence, chunk(fence, 2))

    assert (first, second, late) == ("finished", "already", "fenced")
    assert len(await _records(redis)) == 1
    assert len(await read_log(redis, MODEL, fence.request_id)) == 1


async def test_finish_shortens_the_life_of_state_and_log(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    await writer.append(fence, chunk(fence, 1))
    running = await redis.ttl(keys.log(MODEL, fence.request_id))

    await writer.finish(fence, end_chunk(fence, 2), finish(fence))

    assert SETTINGS.state_keep_seconds < running <= 960 + SETTINGS.state_keep_seconds
    for name in (keys.log(MODEL, fence.request_id), keys.state(MODEL, fence.request_id)):
        assert 0 < await redis.ttl(name) <= SETTINGS.finished_keep_seconds


async def test_only_the_settlement_queue_lives_for_ever(redis: Redis, writer: LogWriter) -> None:
    running, ended = await claimed(redis), await claimed(redis)
    await writer.append(running, chunk(running, 1))
    await writer.finish(ended, end_chunk(ended, 1), finish(ended))

    endless = {name for name in await redis.keys("*") if await redis.ttl(name) == -1}

    assert endless == {keys.settlement(MODEL).encode(), keys.leases(MODEL).encode()}


async def test_scripts_that_redis_forgot_are_loaded_again(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    await writer.append(fence, chunk(fence, 1))
    await redis.script_flush()

    verdicts = await asyncio.gather(
        writer.append(fence, chunk(fence, 2)), writer.finish(fence, end_chunk(fence, 3), finish(fence))
    )

    assert verdicts == ["appended", "finished"]


async def test_memory_is_empty_once_all_requests_ended(redis: Redis, writer: LogWriter) -> None:
    ended, lost = await claimed(redis), await claimed(redis)
    await asyncio.gather(writer.append(ended, chunk(ended, 1)), writer.append(lost, chunk(lost, 1)))
    assert writer._memory.size > 0
    await redis.hset(keys.state(MODEL, lost.request_id), "attempt", 2)

    await asyncio.gather(writer.finish(ended, end_chunk(ended, 2), finish(ended)), writer.append(lost, chunk(lost, 2)))

    assert writer._memory.size == 0


async def test_writes_given_up_are_fenced_and_never_raise(redis: Redis) -> None:
    fence = await claimed(redis)
    await redis.config_set("maxmemory", "1")
    impatient = LogWriter(redis, SEAL, msgspec.structs.replace(SETTINGS, write_retry_seconds=0.05))
    try:
        verdict = await impatient.append(fence, chunk(fence, 1))
    finally:
        await redis.config_set("maxmemory", "0")
        await impatient.close()

    assert verdict == "fenced"


async def test_a_full_redis_delays_writes_until_there_is_room(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    await redis.config_set("maxmemory", "1")
    try:
        futures = [writer.append(fence, chunk(fence, seq)) for seq in (1, 2, 3)]
        await asyncio.sleep(0.02)
        assert not futures[0].done()
    finally:
        await redis.config_set("maxmemory", "0")

    assert set(await asyncio.gather(*futures)) <= {"appended", "already"}
    assert len(await read_log(redis, MODEL, fence.request_id)) == 3


async def test_a_log_that_vanished_is_filled_again_from_memory(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    for seq in (1, 2, 3):
        await writer.append(fence, chunk(fence, seq))

    await redis.delete(keys.log(MODEL, fence.request_id))
    verdict = await writer.append(fence, chunk(fence, 4))

    assert verdict == "already"  # with what was lost
    assert [one.seq for one in await read_log(redis, MODEL, fence.request_id)] == [1, 2, 3, 4]


async def _records(redis: Redis) -> list[object]:
    entries = await redis.xrange(keys.settlement(MODEL))
    return [decode_finish(SEAL.open(fields[b"f"])) for _, fields in entries]


async def _lose_tail(redis: Redis, request_id: str, *, tip: int) -> None:
    """Do to one log what a lost second does."""
    kept = await redis.xrange(keys.log(MODEL, request_id), max=f"{tip}-0")
    await redis.delete(keys.log(MODEL, request_id))
    for entry_id, fields in kept:
        await redis.xadd(keys.log(MODEL, request_id), fields, id=entry_id)
