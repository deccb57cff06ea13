"""Named test factory: a request as CLAIM leaves it, without the queue's scripts."""

import time

from shared import ids, keys
from shared.channel import Fence
from shared.connections import Redis
from shared.settings import QueueSettings
from shared.wire import VERSION, Chunk, End, Finish, Seal, Usage

MODEL = "sim/plain"
OWNER = "own_test"
SEAL = Seal(b"wire-key-of-the-tests-wire-key-of-the-tests")
SETTINGS = QueueSettings()


async def claimed(redis: Redis, **fields: object) -> Fence:
    """Write the state, lease and job of a claimed request and return its fence."""
    request_id = str(fields.pop("request_id", "")) or ids.new_chat_id()
    state = {
        "status": "claimed",
        "attempt": 1,
        "owner": OWNER,
        "deaths": 0,
        "reader": "node_test",
        "deadline_ms": time.time_ns() // 1_000_000 + 960_000,
        **fields,
    }
    fence = Fence(MODEL, request_id, int(str(state["attempt"])), str(state["owner"]))
    name = keys.state(MODEL, request_id)
    await redis.hset(name, mapping=state)
    await redis.expire(name, 4560)
    await redis.zadd(keys.leases(MODEL), {keys.job_id(MODEL, request_id): state["deadline_ms"]})
    await redis.set(keys.job(MODEL, request_id), b"sealed job", ex=4560)
    return fence


def chunk(fence: Fence, seq: int, *, text: str = "", end: End | None = None) -> Chunk:
    """Return one chunk with one token."""
    return Chunk(VERSION, fence.request_id, fence.attempt, seq, 0, text or f" {seq}", (seq,), end=end)


def end_chunk(fence: Fence, seq: int) -> Chunk:
    """Return the last chunk."""
    return chunk(fence, seq, end=End("completed", Usage(3, 0, seq)))


def finish(fence: Fence) -> Finish:
    """Return a settlement record."""
    return Finish(
        version=VERSION,
        request_id=fence.request_id,
        account_id="acct_test",
        key_id="key_test",
        model=fence.model,
        status="completed",
        code=None,
        finish_reason="stop",
        usage=Usage(3, 0, 4),
        prefill_began=True,
        attempts=fence.attempt,
        queue_ms=1,
        ttft_ms=2,
        latency_ms=3,
        finished_ms=4,
    )
