"""A worker killed around its writes: what stands in Redis is whole, and the same words again change nothing."""

import subprocess
import sys

import pytest

from shared import keys
from shared.channel import LogWriter, read_log
from shared.connections import Redis
from tests.integration.channel_states import MODEL, SEAL, SETTINGS, chunk, claimed, end_chunk, finish

_WORKER = """
import asyncio, sys
from shared.channel import Fence, LogWriter
from shared.connections import open_redis
from shared.crash_points import CrashPoints
from shared.settings import StoreSettings
from tests.integration.channel_states import MODEL, OWNER, SEAL, SETTINGS, chunk, end_chunk, finish

async def work(url, request_id, point):
    fence = Fence(MODEL, request_id, 1, OWNER)
    async with open_redis(StoreSettings(redis_url=url), role="test") as redis:
        writer = LogWriter(redis, SEAL, SETTINGS, CrashPoints(point))
        await writer.append(fence, chunk(fence, 1))
        await writer.finish(fence, end_chunk(fence, 2), finish(fence))
        await writer.close()

asyncio.run(work(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("point", "chunks", "records"),
    [("before_append", 0, 0), ("after_append", 1, 0), ("before_finish", 1, 0), ("after_finish", 2, 1)],
)
async def test_a_kill_around_a_write_leaves_it_done_or_not_done(
    redis: Redis, redis_url: str, point: str, chunks: int, records: int
) -> None:
    fence = await claimed(redis)

    ended = subprocess.run([sys.executable, "-c", _WORKER, redis_url, fence.request_id, point], timeout=30, check=False)

    assert ended.returncode == -9
    assert len(await read_log(redis, MODEL, fence.request_id)) == chunks
    assert await redis.xlen(keys.settlement(MODEL)) == records


@pytest.mark.parametrize("point", ["before_append", "after_append", "before_finish", "after_finish"])
async def test_whatever_was_written_saying_it_again_ends_the_request_once(
    redis: Redis, redis_url: str, point: str
) -> None:
    fence = await claimed(redis)
    subprocess.run([sys.executable, "-c", _WORKER, redis_url, fence.request_id, point], timeout=30, check=False)

    writer = LogWriter(redis, SEAL, SETTINGS)
    writer.append(fence, chunk(fence, 1))
    await writer.finish(fence, end_chunk(fence, 2), finish(fence))
    await writer.close()

    assert [one.seq for one in await read_log(redis, MODEL, fence.request_id)] == [1, 2]
    assert await redis.xlen(keys.settlement(MODEL)) == 1
    assert await redis.hget(keys.state(MODEL, fence.request_id), "status") == b"ended"
