"""What one chunk costs on its way: CPU of publisher, Valkey and subscriber, each a process of its own.

    python -m tests.bench.channel    64 requests per step and 1: none written, LogWriter, one awaited PUBLISH per chunk

Steps are paced as an engine's, STEP_SECONDS apart, so that wake-ups are paid for as in production; `idle` is what the
publisher's pacing alone costs on this machine. The PUBLISH of the comparison writes no log: it buys less for more.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from compose.stores import free_port, open_valkey
from shared import keys
from shared.channel import Fence, LogWriter, Subscription, open_log_reader
from shared.connections import Redis, open_redis
from shared.settings import QueueSettings, StoreSettings
from shared.wire import VERSION, Chunk, Seal, encode
from tests.bench.measure import Roles, cpu_between, cpu_seconds

MODEL: Final = "bench/model"
OWNER: Final = "own_bench"
STEP_SECONDS: Final = 0.005
RUNS: Final = ((64, 800), (1, 2000))  # requests per step, steps
BUDGET_US: Final = {"publisher": 6.0, "redis": 3.0, "subscriber": 6.0}  # at 64 requests per step
SETTINGS: Final = QueueSettings()


def main() -> None:
    """Print one line per run."""
    print(f"{'way':<12}{'requests':>9}{'publisher':>11}{'redis':>8}{'subscriber':>12}   us of CPU per chunk")
    with tempfile.TemporaryDirectory() as folder, open_valkey(Path(folder) / "valkey", free_port()) as valkey:
        for way in ("idle", "log", "publish"):
            for requests, steps in RUNS:
                costs = _measure(valkey.url, valkey.pid, way, requests, steps)
                print(
                    f"{way:<12}{requests:>9}{costs['publisher']:>11.2f}{costs['redis']:>8.2f}{costs['subscriber']:>12.2f}"
                )
    print(f"{'budget':<12}{64:>9}" + "{publisher:>11.2f}{redis:>8.2f}{subscriber:>12.2f}".format(**BUDGET_US))


def _measure(url: str, redis_pid: int, way: str, requests: int, steps: int) -> dict[str, float]:
    subscriber = _start("subscribe", url, way, requests, steps)
    publisher = _start(way, url, way, requests, steps)
    roles: Roles = {"publisher": [publisher.pid], "subscriber": [subscriber.pid], "redis": [redis_pid]}
    for process in (publisher, subscriber):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    before = cpu_seconds(roles)
    for process in (subscriber, publisher):
        _say(process, "go")
    for process in (publisher, subscriber):
        assert process.stdout is not None and process.stdout.readline() == "done\n"
    spent = cpu_between(before, cpu_seconds(roles))
    for process in (publisher, subscriber):
        _say(process, "bye")
        assert process.wait(10) == 0
    return {role: seconds / (requests * steps) * 1e6 for role, seconds in spent.items()}


def _start(role: str, url: str, way: str, requests: int, steps: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.bench.channel", role, url, f"{way}-{requests}", str(requests), str(steps)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _say(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


async def _play(role: str, url: str, run: str, requests: int, steps: int) -> None:
    """One of the two processes, told when by its standard input."""
    fences = [Fence(MODEL, f"chatcmpl-{run}-{number:018}", 1, OWNER) for number in range(requests)]
    async with open_redis(StoreSettings(redis_url=url), role="bench") as redis:
        if role == "subscribe":
            await _subscribe(redis, fences, steps)
        elif role == "idle":
            await _idle(steps)
        elif role == "log":
            await _append(redis, fences, steps)
        else:
            await _publish(redis, fences, steps)


async def _hear(word: str) -> None:
    assert (await asyncio.to_thread(sys.stdin.readline)).strip() == word


def _tell(word: str) -> None:
    print(word, flush=True)


async def _subscribe(redis: Redis, fences: list[Fence], steps: int) -> None:
    async with open_log_reader(redis, SETTINGS) as reader:
        subscriptions = [reader.subscribe(fence.model, fence.request_id) for fence in fences]
        while len(await redis.pubsub_channels("*")) < len(fences):
            await asyncio.sleep(0.01)
        _tell("ready")
        await _hear("go")
        if "-idle-" in fences[0].request_id:
            steps = 0
        counts = await asyncio.gather(*(_consume(subscription, steps) for subscription in subscriptions))
        assert set(counts) == {steps} and reader.dropped == 0
        _tell("done")
        await _hear("bye")


async def _consume(subscription: Subscription, steps: int) -> int:
    count = 0
    while count < steps:
        count += len(await subscription.next(10) or [])
    return count


async def _idle(steps: int) -> None:
    _tell("ready")
    await _hear("go")
    for _ in range(steps):
        await asyncio.sleep(STEP_SECONDS)
    _tell("done")
    await _hear("bye")


async def _append(redis: Redis, fences: list[Fence], steps: int) -> None:
    for fence in fences:
        state = {
            "status": "claimed",
            "attempt": 1,
            "owner": OWNER,
            "deadline_ms": int(time.time() * 1000) + 10**6,
        }
        await redis.hset(keys.state(fence.model, fence.request_id), mapping=state)
    writer = LogWriter(redis, Seal(b"k" * 32), SETTINGS)
    _tell("ready")
    await _hear("go")
    for seq in range(1, steps + 1):
        futures = [writer.append(fence, _chunk(fence, seq)) for fence in fences]
        await asyncio.sleep(STEP_SECONDS)
    assert await futures[-1] == "appended"
    _tell("done")
    await _hear("bye")
    await writer.close()


async def _publish(redis: Redis, fences: list[Fence], steps: int) -> None:
    _tell("ready")
    await _hear("go")
    for seq in range(1, steps + 1):
        for fence in fences:
            await redis.publish(keys.channel(fence.model, fence.request_id), encode(_chunk(fence, seq)))
        await asyncio.sleep(STEP_SECONDS)
    _tell("done")
    await _hear("bye")


def _chunk(fence: Fence, seq: int) -> Chunk:
    return Chunk(VERSION, fence.request_id, 1, seq, 0, " word", (seq,))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        uvloop.install()
        asyncio.run(_play(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
