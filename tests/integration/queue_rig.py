"""A queue on this test's Valkey, and the named ways to bring a job into a state that would take long to reach."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from shared import ids, keys
from shared.channel import Fence, LogWriter
from shared.connections import Redis
from shared.pricing import Prices
from shared.queue.claimer import Claimed, Claimer
from shared.queue.claims import Claim, ClaimReader
from shared.queue.client import CancelTarget, QueueClient
from shared.queue.keeper import Keeper
from shared.queue.reaper import Reaper
from shared.queue.room import Room
from shared.queue.worker import LeasedWorker
from shared.settings import QueueSettings
from shared.wire import VERSION, Chunk, End, Finish, Job, Message, Sampling, Seal, Usage

MODEL: Final = "org/model"
SEAL: Final = Seal(b"s" * 32)
WAIT_SECONDS: Final = 10.0
BRISK: Final = QueueSettings(lease_seconds=0.6, beat_seconds=0.1, poll_seconds=0.05, reap_seconds=0.05)
SLOW_POLL: Final = QueueSettings(poll_seconds=30.0, reap_seconds=60.0)  # only a wake token brings a job at once


def a_job(**changes: Any) -> Job:
    """Return a job of a new request; `changes` are fields of Job."""
    now = time.time_ns() // 1_000_000
    job = Job(
        version=VERSION,
        request_id=ids.new_chat_id(),
        account_id="acct_a",
        key_id="key_a",
        model=MODEL,
        messages=(Message("user", "hello"),),
        sampling=Sampling(max_tokens=16),
        prices=Prices(100, 50, 300),
        hold=100_000,
        default_max_tokens=4096,
        reader="node_a",
        resumable=False,
        lane="interactive",
        weight=1,
        cost_tokens=100,
        reserved_ms=now,
        queue_deadline_ms=now + 60_000,
        deadline_ms=now + 990_000,
    )
    return msgspec.structs.replace(job, **changes)


def target_of(job: Job) -> CancelTarget:
    """Return what CANCEL wants to know of a job."""
    return CancelTarget(
        request_id=job.request_id,
        account_id=job.account_id,
        key_id=job.key_id,
        model=job.model,
        reserved_ms=job.reserved_ms,
    )


async def until(condition: Callable[[], Any]) -> None:
    """Return once `condition` holds; awaits it where it is a coroutine function."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            answer = condition()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.005)


class Rig:
    """One client, and every part of a worker by itself."""

    def __init__(self, redis: Redis, settings: QueueSettings | None = None) -> None:
        self.redis = redis
        self.settings = settings or QueueSettings()
        self.client = QueueClient(redis, SEAL, self.settings)
        self._writer = LogWriter(redis, SEAL, self.settings)
        self._claimers: dict[str, Claimer] = {}

    async def enqueue(self, **changes: Any) -> Job:
        """Enqueue a new job."""
        job = a_job(**changes)
        assert await self.client.enqueue(job) == "queued"
        return job

    async def claim(
        self, owner: str = "own_a", *, most: int = 1, spare: int | None = None, held: Collection[str] = ()
    ) -> Claimed:
        """Claim as the worker `owner` would; `spare`: slots that batch jobs may have, else all."""
        if owner not in self._claimers:
            reader = ClaimReader(self.redis, SEAL, self.settings, owner)
            self._claimers[owner] = Claimer(self.redis, reader, self.settings, owner)
        return await self._claimers[owner].claim(MODEL, room=Room(most, most if spare is None else spare), held=held)

    async def claim_one(self, owner: str = "own_a") -> Claim:
        """Claim the one job that is there."""
        (claim,) = (await self.claim(owner)).claims
        return claim

    async def claimed_ids(self, owner: str = "own_a", *, most: int, spare: int | None = None) -> list[str]:
        """Claim one after another and return the ids in the order in which they came."""
        found = []
        for _ in range(most):
            found += [claim.job.request_id for claim in (await self.claim(owner, spare=spare)).claims]
        return found

    def keeper(self, owner: str = "own_a") -> Keeper:
        """Return the beating half of a worker."""
        return Keeper(self.redis, self.settings, owner)

    async def reap(self, owner: str = "own_reaper", *, overdue_code: str = "model_unavailable") -> list[Claim]:
        """Reap as the janitor would."""
        reaper = Reaper(self.redis, SEAL, self.settings, owner, overdue_code=lambda _: overdue_code)
        return await reaper.reap(MODEL)

    async def append(self, claim: Claim, count: int = 1) -> None:
        """Put tokens into the log of a claim, from its next position."""
        fence = fence_of(claim)
        for seq in range(claim.seq + 1, claim.seq + 1 + count):
            chunk = Chunk(VERSION, claim.job.request_id, claim.attempt, seq, 0, "x", (seq,))
            assert await self._writer.append(fence, chunk) == "appended"

    async def finish(self, claim: Claim, *, after: int = 0) -> str:
        """End a claim that has appended `after` chunks; return FINISH's verdict."""
        job, usage = claim.job, Usage(1, 0, after)
        end = End("completed", usage)
        chunk = Chunk(VERSION, job.request_id, claim.attempt, claim.seq + after + 1, 0, "", (), "stop", end=end)
        finish = Finish(
            version=VERSION,
            request_id=job.request_id,
            account_id=job.account_id,
            key_id=job.key_id,
            model=job.model,
            status="completed",
            code=None,
            finish_reason="stop",
            usage=usage,
            prefill_began=True,
            attempts=claim.attempt,
            queue_ms=0,
            ttft_ms=0,
            latency_ms=0,
            finished_ms=0,
        )
        return await self._writer.finish(fence_of(claim), chunk, finish)

    async def die(self, job: Job) -> None:
        """Let the lease of a job run out, as the death of its worker does after six seconds."""
        await self.redis.zadd(keys.leases(job.model), {keys.job_id(job.model, job.request_id): 1})

    async def outlast_patience(self, job: Job) -> None:
        """Let the time that a queued job may wait be over, for the reaper."""
        await self.redis.zadd(keys.waiting(job.model), {keys.job_id(job.model, job.request_id): 1})

    async def set_state(self, job: Job, **fields: Any) -> None:
        """Write fields of the state directly."""
        await self.redis.hset(keys.state(job.model, job.request_id), mapping=fields)

    async def state(self, job: Job) -> dict[str, str]:
        """Return the state; empty if there is none."""
        found = await self.redis.hgetall(keys.state(job.model, job.request_id))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()
        await self._writer.close()
        for claimer in self._claimers.values():
            await claimer.close()


class Runs:
    """The `run` of a worker under test: it holds each claim until it is told to let go."""

    def __init__(self, slots: int = 8) -> None:
        self.slots = slots
        self.claims: list[Claim] = []
        self.cancelled: list[tuple[str, str | None]] = []  # (request id, code) of runs whose task was cancelled
        self.running = 0
        self.let_go = asyncio.Event()

    async def __call__(self, claim: Claim) -> None:
        self.running += 1
        self.claims.append(claim)
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.append((claim.job.request_id, claim.cancel.code))
            raise
        finally:
            self.running -= 1

    def free_slots(self, _: str) -> int:
        return self.slots - self.running

    def ids(self) -> list[str]:
        return [claim.job.request_id for claim in self.claims]


def fence_of(claim: Claim) -> Fence:
    """Return the fence under which a claim writes."""
    return Fence(claim.job.model, claim.job.request_id, claim.attempt, claim.owner)


@asynccontextmanager
async def open_rig(redis: Redis, settings: QueueSettings | None = None) -> AsyncIterator[Rig]:
    """Yield a rig and close its connections."""
    rig = Rig(redis, settings)
    try:
        yield rig
    finally:
        await rig.close()


@asynccontextmanager
async def open_worker(
    redis: Redis, runs: Callable[[Claim], Awaitable[None]], *, settings: QueueSettings | None = None, **options: Any
) -> AsyncIterator[LeasedWorker]:
    """Yield a worker whose `main` runs, and drain it."""
    free_slots = options.pop("free_slots", None) or getattr(runs, "free_slots", lambda _: 8)
    worker = LeasedWorker(
        redis=redis,
        seal=SEAL,
        settings=settings or QueueSettings(),
        owner=options.pop("owner", "own_worker"),
        models=options.pop("models", lambda: [MODEL]),
        run=runs,
        free_slots=free_slots,
        **options,
    )
    main = asyncio.create_task(worker.main())
    try:
        yield worker
    finally:
        if not main.done():
            await _drain_at_once(redis, worker)
        await main


async def _drain_at_once(redis: Redis, worker: LeasedWorker) -> None:
    """Drain without waiting for the poll: wake tokens until the claim loop has seen one."""
    draining = asyncio.create_task(worker.drain(0))
    while not draining.done():
        await redis.lpush(keys.wake(MODEL), "1")
        await asyncio.wait({draining}, timeout=0.02)
    await redis.delete(keys.wake(MODEL))
    await draining


async def blocked_clients(redis: Redis, count: int) -> None:
    """Wait until as many clients wait for a wake token."""

    async def blocked() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) == count

    await until(blocked)


async def lease_is_live(redis: Redis, request_id: str) -> bool:
    """Tell whether a beat has renewed a lease since `Rig.die`."""
    return (await redis.zscore(keys.leases(MODEL), keys.job_id(MODEL, request_id)) or 0) > 1
