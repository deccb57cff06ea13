"""The API node's end of the log, on a real Valkey."""

import asyncio

import msgspec
import pytest

from shared import ids, keys
from shared.channel import Fence, LogReader, LogWriter, Subscription, open_log_reader
from shared.connections import Redis
from shared.errors import BackendFailed
from shared.wire import Chunk, encode
from tests.integration.channel_states import MODEL, SEAL, SETTINGS, chunk, claimed, end_chunk, finish


@pytest.fixture
async def writer(redis: Redis):
    log_writer = LogWriter(redis, SEAL, SETTINGS)
    yield log_writer
    await log_writer.close()


@pytest.fixture
async def reader(redis: Redis):
    async with open_log_reader(redis, SETTINGS) as log_reader:
        yield log_reader


async def collect(subscription: Subscription, *, seconds: float = 10.0) -> list[Chunk]:
    """Read to the end."""
    chunks: list[Chunk] = []
    async with asyncio.timeout(seconds):
        while not chunks or chunks[-1].end is None:
            chunks += await subscription.next(seconds) or []
    return chunks


async def answer(writer: LogWriter, fence: Fence, last: int, *, first: int = 1) -> None:
    """Write a whole answer, one token per turn."""
    for seq in range(first, last):
        await writer.append(fence, chunk(fence, seq))
    await writer.finish(fence, end_chunk(fence, last), finish(fence))


async def test_a_stream_arrives_once_and_in_order(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()

    _, chunks = await asyncio.gather(answer(writer, fence, 200), collect(subscription))

    assert [one.seq for one in chunks] == list(range(1, 201))


async def test_a_confirmation_before_the_enqueue_reads_no_log(
    redis: Redis, writer: LogWriter, reader: LogReader
) -> None:
    fence = await claimed(redis)
    subscription = reader.subscribe(MODEL, fence.request_id)
    await _confirmed(redis, reader, fence)
    subscription.enqueued()

    _, chunks = await asyncio.gather(answer(writer, fence, 20), collect(subscription))

    assert len(chunks) == 20
    assert reader.refills == 0


async def test_who_subscribes_late_reads_everything_from_the_log(
    redis: Redis, writer: LogWriter, reader: LogReader
) -> None:
    fence = await claimed(redis)
    await answer(writer, fence, 30)

    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()

    assert [one.seq for one in await collect(subscription, seconds=1)] == list(range(1, 31))


async def test_who_resumes_reads_only_what_is_behind(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    for seq in range(1, 11):
        await writer.append(fence, chunk(fence, seq))
    subscription = reader.subscribe(MODEL, fence.request_id, after=7)

    _, chunks = await asyncio.gather(answer(writer, fence, 15, first=11), collect(subscription))

    assert [one.seq for one in chunks] == list(range(8, 16))


async def test_lost_messages_are_read_from_the_log(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    subscription = reader.subscribe(MODEL, fence.request_id)
    await _subscribed(redis, 1)
    await writer.append(fence, chunk(fence, 1))
    await _append_unheard(redis, fence, 2, 3, 4)

    _, chunks = await asyncio.gather(answer(writer, fence, 8, first=5), collect(subscription, seconds=1))

    assert [one.seq for one in chunks] == list(range(1, 9))
    assert reader.refills >= 1


async def test_the_last_message_lost_is_noticed_by_silence(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    subscription = reader.subscribe(MODEL, fence.request_id)
    await _subscribed(redis, 1)
    await _append_unheard(redis, fence, 1)

    assert await subscription.next(4) == [chunk(fence, 1)]


async def test_messages_of_another_request_are_dropped_and_counted(redis: Redis, reader: LogReader) -> None:
    mine, other = await claimed(redis), await claimed(redis)
    subscription = reader.subscribe(MODEL, mine.request_id)
    await _subscribed(redis, 1)

    for payload in (encode(chunk(other, 1)), b"\xc1 not msgpack", b"", encode({"a": 1}), encode(chunk(mine, 1))):
        await redis.publish(keys.channel(MODEL, mine.request_id), payload)

    assert await subscription.next(2) == [chunk(mine, 1)]
    assert reader.dropped == 4


async def test_a_slow_reader_is_bounded_and_still_gets_everything(redis: Redis, writer: LogWriter) -> None:
    fence = await claimed(redis)
    small = msgspec.structs.replace(SETTINGS, reader_chunks_most=50)
    async with open_log_reader(redis, small) as reader:
        subscription = reader.subscribe(MODEL, fence.request_id)
        await _subscribed(redis, 1)
        for seq in range(1, 1000):
            writer.append(fence, chunk(fence, seq))
        await writer.finish(fence, end_chunk(fence, 1000), finish(fence))
        held = len(subscription._ready)

        chunks: list[Chunk] = []
        async with asyncio.timeout(10):
            while not chunks or chunks[-1].end is None:
                some = await subscription.next(5) or []
                assert len(some) <= 50
                chunks += some

    assert held <= 50
    assert [one.seq for one in chunks] == list(range(1, 1001))


async def test_a_thousand_subscriptions_are_few_commands(redis: Redis, reader: LogReader) -> None:
    await redis.config_resetstat()

    subscriptions = [reader.subscribe(MODEL, ids.new_chat_id()) for _ in range(1000)]
    await _subscribed(redis, 1000)
    for subscription in subscriptions:
        subscription.close()
    await _subscribed(redis, 0)

    calls = await redis.info("commandstats")
    assert calls["cmdstat_subscribe"]["calls"] <= 3
    assert calls["cmdstat_unsubscribe"]["calls"] <= 3
    assert reader.open == 0


async def test_idle_streams_are_looked_after_in_few_commands(redis: Redis, reader: LogReader) -> None:
    for _ in range(500):
        fence = await claimed(redis, status="queued", owner="", attempt=0)
        reader.subscribe(MODEL, fence.request_id).enqueued()
    await _subscribed(redis, 500)
    await asyncio.sleep(0.1)
    before = reader.refills

    await asyncio.sleep(2.6)

    assert reader.refills - before <= 500, "queued requests are asked after each 5 s, not each 2 s"


async def test_two_readers_of_one_request_both_get_all(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    first = reader.subscribe(MODEL, fence.request_id)
    await _subscribed(redis, 1)
    await writer.append(fence, chunk(fence, 1))
    second = reader.subscribe(MODEL, fence.request_id)
    second.enqueued()

    _, one, two = await asyncio.gather(answer(writer, fence, 9, first=2), collect(first), collect(second))

    assert one == two
    assert [each.seq for each in one] == list(range(1, 10))


async def test_closing_one_of_two_readers_leaves_the_other(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    first, second = (reader.subscribe(MODEL, fence.request_id) for _ in range(2))
    await _subscribed(redis, 1)

    first.close()
    _, chunks = await asyncio.gather(answer(writer, fence, 5), collect(second))

    assert len(chunks) == 5


async def test_subscribing_again_right_after_closing_works(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    reader.subscribe(MODEL, fence.request_id).close()
    before = reader.subscribe(MODEL, fence.request_id)
    await _subscribed(redis, 1)
    before.close()
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()

    _, chunks = await asyncio.gather(answer(writer, fence, 5), collect(subscription))

    assert len(chunks) == 5


async def test_a_state_that_vanishes_ends_the_stream(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()
    await writer.append(fence, chunk(fence, 1))
    assert await subscription.next(2) == [chunk(fence, 1)]
    await redis.flushall()

    with pytest.raises(BackendFailed) as lost:
        async with asyncio.timeout(5):
            await subscription.next(10)

    assert lost.value.code == "worker_lost"


async def test_a_log_that_lost_its_tail_ends_the_stream(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fence = await claimed(redis)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()
    for seq in (1, 2, 3):
        await writer.append(fence, chunk(fence, seq))
    read = 0
    while read < 3:
        read += len(await subscription.next(2) or [])
    await redis.xtrim(keys.log(MODEL, fence.request_id), maxlen=0)

    with pytest.raises(BackendFailed) as lost:
        async with asyncio.timeout(8):
            await subscription.next(10)

    assert lost.value.code == "worker_lost"


async def test_a_log_that_cannot_be_read_ends_the_stream(redis: Redis, reader: LogReader) -> None:
    fence = await claimed(redis)
    await redis.xadd(keys.log(MODEL, fence.request_id), {"c": b"\xc1"}, id="1-0")
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()

    with pytest.raises(BackendFailed):
        async with asyncio.timeout(5):
            await subscription.next(10)


async def test_a_broken_connection_loses_nothing(redis: Redis, writer: LogWriter, reader: LogReader) -> None:
    fences = [await claimed(redis) for _ in range(10)]
    subscriptions = [reader.subscribe(MODEL, fence.request_id) for fence in fences]
    await _subscribed(redis, 10)

    async def cut() -> None:
        for _ in range(3):
            await asyncio.sleep(0.02)
            await redis.client_kill_filter(_type="pubsub")

    answers = [answer(writer, fence, 150) for fence in fences]
    *_, chunks = await asyncio.gather(*answers, cut(), asyncio.gather(*map(collect, subscriptions)))

    assert all([one.seq for one in each] == list(range(1, 151)) for each in chunks)
    assert reader.reconnects >= 1


async def _subscribed(redis: Redis, channels: int) -> None:
    """Return once Redis counts so many channels."""
    async with asyncio.timeout(5):
        while len(await redis.pubsub_channels("*")) != channels:
            await asyncio.sleep(0.005)


async def _confirmed(redis: Redis, reader: LogReader, fence: Fence) -> None:
    """Return once the reader itself knows that it is subscribed: a message came after the confirmation."""
    async with asyncio.timeout(5):
        while not reader.dropped:
            await redis.publish(keys.channel(fence.model, fence.request_id), b"not a chunk")
            await asyncio.sleep(0.005)


async def _append_unheard(redis: Redis, fence: Fence, *seqs: int) -> None:
    """Write to the log as APPEND does, but publish nothing."""
    for seq in seqs:
        await redis.xadd(keys.log(MODEL, fence.request_id), {"c": encode(chunk(fence, seq))}, id=f"{seq}-0")
