"""What the queue costs: jobs per second, enqueue to start, and CPU per job of python and of Redis.

    python -m tests.bench.queue [--jobs 20000] [--flight 64] [--claim 4]

Loopback, a Valkey of its own. `closed`: client and worker in this process keep `flight` jobs in flight; a job counts as
done when its run starts (log, settlement and FINISH are the channel's and the product's bench). `enqueue` and `claim`:
each side alone, which batches better than life does.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop

from compose.stores import free_port, open_valkey
from shared import ids
from shared.connections import Redis, open_redis
from shared.pricing import Prices
from shared.queue.claims import Claim
from shared.queue.client import QueueClient
from shared.queue.worker import LeasedWorker
from shared.settings import QueueSettings, StoreSettings
from shared.wire import VERSION, Job, Message, Sampling, Seal

MODEL = "bench/queue"
SEAL = Seal(b"b" * 32)
WARM_UP_JOBS = 500


class Result(msgspec.Struct, frozen=True):
    """One phase."""

    jobs_per_second: float
    python_us: float
    redis_us: float


class Bench:
    """One client and one worker on one Valkey."""

    def __init__(self, redis: Redis, *, flight: int, claim_most: int) -> None:
        settings = QueueSettings(lease_seconds=600.0, queue_most=1_000_000, claim_most=claim_most)
        self._redis = redis
        self._room = asyncio.Semaphore(flight)
        self._flight = flight
        self._client = QueueClient(redis, SEAL, settings)
        self._settings = settings
        self.waits: list[float] = []  # ms from enqueue to start

    async def closed(self, jobs: int) -> Result:
        """Keep `flight` jobs between enqueue and start."""
        worker = self._worker(self._room)
        main_task = asyncio.ensure_future(worker.main())
        await self._enqueue(WARM_UP_JOBS, self._room)
        self.waits.clear()
        result = await self._measure(jobs, self._enqueue(jobs, self._room))
        await worker.drain(1)
        await main_task
        return result

    async def enqueue_alone(self, jobs: int) -> Result:
        """Enqueue with `flight` calls in flight and nobody who claims."""

        async def some(count: int) -> None:
            for _ in range(count):
                await self._client.enqueue(_job())

        async def all_of_them() -> None:
            await asyncio.gather(*[some(jobs // self._flight) for _ in range(self._flight)])

        return await self._measure(jobs, all_of_them())

    async def claim_alone(self, jobs: int) -> Result:
        """Claim what `enqueue_alone` left."""
        started = asyncio.Semaphore(0)
        worker = self._worker(started)

        async def all_of_them() -> None:
            main_task = asyncio.ensure_future(worker.main())
            for _ in range(jobs // self._flight * self._flight):
                await started.acquire()
            await worker.drain(1)
            await main_task

        return await self._measure(jobs, all_of_them())

    async def close(self) -> None:
        await self._client.close()

    def _worker(self, started: asyncio.Semaphore) -> LeasedWorker:
        async def run(claim: Claim) -> None:
            self.waits.append((time.monotonic_ns() - int(claim.job.messages[0].content)) / 1e6)
            started.release()

        return LeasedWorker(
            redis=self._redis,
            seal=SEAL,
            settings=self._settings,
            owner=ids.new_owner_id(),
            models=lambda: [MODEL],
            run=run,
            free_slots=lambda _: self._flight,
        )

    async def _enqueue(self, jobs: int, room: asyncio.Semaphore) -> None:
        tasks = set()
        for _ in range(jobs):
            await room.acquire()
            task = asyncio.ensure_future(self._client.enqueue(_job()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for _ in range(self._flight):
            await room.acquire()
        for _ in range(self._flight):
            room.release()

    async def _measure(self, jobs: int, work: object) -> Result:
        redis_before, before, started = await self._redis_seconds(), time.process_time(), time.perf_counter()
        await work  # type: ignore[misc]
        seconds, used = time.perf_counter() - started, time.process_time() - before
        redis_used = await self._redis_seconds() - redis_before
        return Result(jobs / seconds, used / jobs * 1e6, redis_used / jobs * 1e6)

    async def _redis_seconds(self) -> float:
        used = await self._redis.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])


def main() -> None:
    """Run the three phases and print one line each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.queue")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--flight", type=int, default=64)
    parser.add_argument("--claim", type=int, default=QueueSettings().claim_most)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-queue-") as folder, open_valkey(Path(folder), free_port()) as server:
        uvloop.run(_run(server.url, options))


async def _run(url: str, options: argparse.Namespace) -> None:
    async with open_redis(StoreSettings(redis_url=url), role="bench") as redis:
        bench = Bench(redis, flight=options.flight, claim_most=options.claim)
        closed = await bench.closed(options.jobs)
        waits = sorted(bench.waits)
        p50, p99 = statistics.median(waits), waits[len(waits) * 99 // 100]
        _print(f"closed, {options.flight} in flight", closed, f"; enqueue to start p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        _print("enqueue alone", await bench.enqueue_alone(options.jobs))
        _print("claim alone", await bench.claim_alone(options.jobs))
        await bench.close()


def _print(name: str, result: Result, more: str = "") -> None:
    per_second, python, redis = result.jobs_per_second, result.python_us, result.redis_us
    print(f"{name}: {per_second:,.0f} jobs/s; CPU per job: python {python:.1f} us, Redis {redis:.1f} us{more}")


def _job() -> Job:
    now = time.time_ns() // 1_000_000
    return Job(
        version=VERSION,
        request_id=ids.new_chat_id(),
        account_id="acct_bench",
        key_id="key_bench",
        model=MODEL,
        messages=(Message("user", str(time.monotonic_ns())),),
        sampling=Sampling(max_tokens=16),
        prices=Prices(100, 50, 300),
        hold=100_000,
        default_max_tokens=4096,
        reader="node",
        resumable=False,
        lane="interactive",
        weight=1,
        cost_tokens=64,
        reserved_ms=now,
        queue_deadline_ms=now + 60_000,
        deadline_ms=now + 990_000,
    )


if __name__ == "__main__":
    main()
