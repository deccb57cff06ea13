"""Both ends of the log while Valkey is killed, started again, frozen, or has lost its last second."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from compose.stores import Valkey, free_port
from shared import keys
from shared.channel import Fence, LogReader, LogWriter, NodeBeat, open_log_reader, read_log
from shared.connections import Redis, open_redis
from shared.errors import BackendFailed, DependencyUnavailable
from shared.settings import StoreSettings
from tests.integration.channel_states import MODEL, SEAL, SETTINGS, chunk, claimed, end_chunk, finish
from tests.integration.test_channel_reader import collect


class MortalValkey(Valkey):
    """A server to be killed and started again on the same folder and port."""

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.stop()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[MortalValkey]:
    server = MortalValkey(tmp_path / "valkey", free_port(), password="secret-of-this-test")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(mortal: MortalValkey):
    async with open_redis(StoreSettings(redis_url=mortal.url), role="test") as redis:
        yield redis


@pytest.fixture
async def reader(client: Redis):
    async with open_log_reader(client, SETTINGS) as log_reader:
        yield log_reader


@pytest.fixture
async def writer(client: Redis):
    log_writer = LogWriter(client, SEAL, SETTINGS)
    yield log_writer
    await log_writer.close()


async def test_streams_go_on_over_a_killed_valkey(
    client: Redis, mortal: MortalValkey, reader: LogReader, writer: LogWriter
) -> None:
    fences = [await claimed(client) for _ in range(20)]
    subscriptions = [reader.subscribe(MODEL, fence.request_id) for fence in fences]
    for subscription in subscriptions:
        subscription.enqueued()
    answers = [asyncio.create_task(_answer(writer, fence, 400)) for fence in fences]
    reads = [asyncio.create_task(collect(subscription, seconds=20)) for subscription in subscriptions]
    await asyncio.sleep(0.1)

    mortal.kill()
    await asyncio.sleep(0.3)
    mortal.start()

    verdicts = await asyncio.gather(*answers)
    for read in reads:
        assert [one.seq for one in await read] == list(range(1, 401))
    assert {verdict for each in verdicts for verdict in each} <= {"appended", "already", "finished"}
    assert await client.xlen(keys.settlement(MODEL)) == 20
    assert [one.seq for one in await read_log(client, MODEL, fences[0].request_id)] == list(range(1, 401))


async def test_a_valkey_that_stays_away_ends_streams_honestly(
    client: Redis, mortal: MortalValkey, reader: LogReader, writer: LogWriter
) -> None:
    fence = await claimed(client)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()
    await writer.append(fence, chunk(fence, 1))
    assert await subscription.next(5) == [chunk(fence, 1)]
    mortal.kill()
    started = time.monotonic()

    with pytest.raises(BackendFailed) as lost:
        await subscription.next(20)

    assert lost.value.code == "worker_lost"
    assert 4.5 <= time.monotonic() - started <= 7
    mortal.start()


async def test_a_frozen_valkey_is_noticed_and_its_return_too(
    client: Redis, mortal: MortalValkey, reader: LogReader, writer: LogWriter
) -> None:
    fence = await claimed(client)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()
    await writer.append(fence, chunk(fence, 1))
    assert await subscription.next(5) == [chunk(fence, 1)]
    os.kill(mortal.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BackendFailed):
            async with asyncio.timeout(9):
                await subscription.next(20)
    finally:
        os.kill(mortal.pid, signal.SIGCONT)
    subscription.close()

    later = await claimed(client)
    another = reader.subscribe(MODEL, later.request_id)
    another.enqueued()
    _, chunks = await asyncio.gather(_answer(writer, later, 10), collect(another))

    assert len(chunks) == 10


async def test_a_short_freeze_is_survived(
    client: Redis, mortal: MortalValkey, reader: LogReader, writer: LogWriter
) -> None:
    fence = await claimed(client)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()
    task = asyncio.create_task(_answer(writer, fence, 200))
    read = asyncio.create_task(collect(subscription, seconds=15))
    await asyncio.sleep(0.02)

    os.kill(mortal.pid, signal.SIGSTOP)
    await asyncio.sleep(2.5)
    os.kill(mortal.pid, signal.SIGCONT)

    await task
    assert [one.seq for one in await read] == list(range(1, 201))


async def test_what_valkey_lost_is_filled_by_the_same_worker_and_nobody_notices(
    client: Redis, mortal: MortalValkey, reader: LogReader, writer: LogWriter
) -> None:
    fence = await claimed(client)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()
    read = asyncio.create_task(collect(subscription, seconds=15))
    for seq in range(1, 11):
        await writer.append(fence, chunk(fence, seq))
    while subscription.tail < 10:
        await asyncio.sleep(0.005)
    await _restart_without_tail(client, mortal, fence, tip=6)

    await _answer(writer, fence, 20, first=11)

    assert [one.seq for one in await read] == list(range(1, 21))
    assert writer.refills == 1


async def test_a_successor_after_a_loss_is_never_spliced_onto_what_was_sent(
    client: Redis, mortal: MortalValkey, reader: LogReader, writer: LogWriter
) -> None:
    fence = await claimed(client)
    subscription = reader.subscribe(MODEL, fence.request_id)
    subscription.enqueued()
    for seq in range(1, 11):
        await writer.append(fence, chunk(fence, seq))
    seen = 0
    while seen < 10:
        seen += len(await subscription.next(5) or [])
    await _restart_without_tail(client, mortal, fence, tip=6)
    successor = Fence(MODEL, fence.request_id, 2, "own_successor")
    await client.hset(
        keys.state(MODEL, fence.request_id), mapping={"attempt": 2, "owner": successor.owner, "status": "claimed"}
    )

    assert await writer.append(fence, chunk(fence, 11)) == "fenced"
    await _answer(writer, successor, 15, first=7)

    with pytest.raises(BackendFailed) as lost:
        async with asyncio.timeout(8):
            await subscription.next(10)
    assert lost.value.code == "worker_lost"


async def test_the_node_beats_again_after_a_restart(client: Redis, mortal: MortalValkey) -> None:
    beat = NodeBeat(client, "node_1", SETTINGS)
    await beat.start()
    assert 0 < await client.pttl(keys.node("node_1")) <= SETTINGS.node_lease_seconds * 1000
    await _restart(client, mortal)
    await client.delete(keys.node("node_1"))

    async with asyncio.timeout(6):
        while not await client.exists(keys.node("node_1")):
            await asyncio.sleep(0.02)

    await beat.close()
    assert not await client.exists(keys.node("node_1"))


async def test_without_redis_reading_a_log_says_so(client: Redis, mortal: MortalValkey) -> None:
    mortal.kill()

    with pytest.raises(DependencyUnavailable):
        await read_log(client, MODEL, "chatcmpl-x")


async def _answer(writer: LogWriter, fence: Fence, last: int, *, first: int = 1) -> list[str]:
    verdicts: list[str] = []
    for seq in range(first, last):
        verdicts.append(await writer.append(fence, chunk(fence, seq)))
        if verdicts[-1] not in ("appended", "already"):
            return verdicts
    verdicts.append(await writer.finish(fence, end_chunk(fence, last), finish(fence)))
    return verdicts


async def _restart_without_tail(client: Redis, mortal: MortalValkey, fence: Fence, *, tip: int) -> None:
    """Kill Valkey and let it come back with a log that is some chunks older."""
    log = keys.log(MODEL, fence.request_id)
    kept = await client.xrange(log, max=f"{tip}-0")
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(log)
        for entry_id, fields in kept:
            pipeline.xadd(log, fields, id=entry_id)
        await pipeline.execute()
    await _restart(client, mortal)


async def _restart(client: Redis, mortal: MortalValkey) -> None:
    """Kill and start Valkey; return once `client` has noticed both."""
    mortal.kill()
    mortal.start()
    while True:
        try:
            await client.ping()
        except RedisError:
            continue
        return
