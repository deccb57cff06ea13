"""THE job over a real queue and a simulated engine: however it is cut, its end says what the log holds."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared import keys
from shared.channel import LogWriter, read_log
from shared.clock import SystemClock
from shared.connections import Redis
from shared.errors import DependencyUnavailable
from shared.queue.claims import HANDED_OVER, Claim
from shared.settings import QueueSettings
from shared.wire import Chunk, Finish, Job, Sampling, decode_finish
from tests.integration.queue_rig import MODEL, SEAL, Rig, open_rig, until
from workers.engines import open_engine
from workers.engines.base import EngineOptions
from workers.inference.complete import Completer
from workers.inference.models import LoadedModel
from workers.inference.stops import TextStream


class GatedWriter(LogWriter):
    """A writer whose writes wait until the gate is opened, as where Redis is slow."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, SEAL, QueueSettings())
        self.gate = asyncio.Event()
        self.sending = False

    async def _send(self, entries: Sequence[Any]) -> list[str]:
        self.sending = True
        await self.gate.wait()
        return await super()._send(entries)

    @property
    def remembered(self) -> int:
        return self._memory.size


class Bench:
    """One completer with one simulated model, and one claim at a time."""

    def __init__(self, redis: Redis, rig: Rig, writer: GatedWriter, loaded: LoadedModel) -> None:
        self.redis = redis
        self.rig = rig
        self.writer = writer
        self.loaded = loaded
        self.died: list[str] = []
        self.completer = Completer(
            lambda _: loaded,
            writer=writer,
            redis=redis,
            clock=SystemClock(),
            settings=QueueSettings(),
            on_dead=self.died.append,
        )

    async def claim(self, **changes: Any) -> Claim:
        changes = {"sampling": Sampling(max_tokens=100_000), "hold": 10**12, **changes}
        await self.rig.enqueue(**changes)
        return await self.rig.claim_one()

    async def record(self) -> Finish:
        """Return the one settlement record."""
        ((_, fields),) = await self.redis.xrange(keys.settlement(MODEL))
        return decode_finish(SEAL.open(fields[b"f"]))

    async def logged_tokens(self, job: Job) -> int:
        return sum(len(chunk.token_ids) for chunk in await read_log(self.redis, MODEL, job.request_id))


@pytest.fixture
async def bench(redis: Redis) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(open_rig(redis))
        options = EngineOptions(
            model=MODEL, context=200_000, path="", slots=4, options={"tokens": "150000", "step_ms": "1"}
        )
        engine = await stack.enter_async_context(open_engine("simulator", options))
        writer = GatedWriter(redis)
        stack.push_async_callback(writer.close)
        stack.callback(writer.gate.set)
        yield Bench(redis, rig, writer, LoadedModel(engine, 0.0))


@pytest.mark.parametrize("code", ["request_cancelled", "no_reader", "key_revoked"])
async def test_a_cancel_during_a_slow_write_ends_with_exactly_what_is_in_the_log(bench: Bench, code: str) -> None:
    claim = await bench.claim()
    running = asyncio.create_task(bench.completer(claim))
    await until(lambda: bench.writer.sending)
    await until(lambda: bench.loaded.engine.steps() > 10)

    claim.cancel.set(code)
    bench.writer.gate.set()
    await running

    assert (await bench.rig.state(claim.job))["status"] == "ended"
    record = await bench.record()
    assert (record.status, record.code) == ("cancelled", code)
    assert record.usage.completion_tokens == await bench.logged_tokens(claim.job) > 0
    assert bench.loaded.running == 0


async def test_an_answer_that_is_cut_by_its_time_limit_has_no_hole_in_its_text(bench: Bench) -> None:
    claim = await bench.claim()
    running = asyncio.create_task(bench.completer(claim))
    await until(lambda: bench.writer.sending)
    await until(lambda: bench.loaded.engine.steps() > 10)

    late = claim.run_deadline_ms + 1
    for run in list(bench.completer._running):
        run.expire(late, 0.0)
    bench.writer.gate.set()
    await running

    record = await bench.record()
    assert (record.status, record.finish_reason) == ("completed", "length")
    chunks = await read_log(bench.redis, MODEL, claim.job.request_id)
    token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    stream = TextStream(bench.loaded.engine.tokenizer, ())
    whole = stream.push(token_ids, None) + stream.finish()
    assert "".join(chunk.text for chunk in chunks) == whole


async def test_an_older_attempt_that_ends_late_takes_nothing_from_the_newer_one(bench: Bench) -> None:
    older = await bench.claim()
    first = asyncio.create_task(bench.completer(older))
    await until(lambda: bench.writer.sending)
    await bench.rig.die(older.job)
    await bench.rig.reap()
    newer = await bench.rig.claim_one()

    second = asyncio.create_task(bench.completer(newer))
    await until(lambda: bench.completer.running == 2)
    first.cancel()
    await asyncio.wait({first})
    assert bench.completer.running == 1
    newer.cancel.set("request_cancelled")
    bench.writer.gate.set()
    await second

    assert bench.loaded.running == 0
    assert bench.completer.running == 0
    assert (await bench.record()).attempts == newer.attempt


async def test_a_request_that_is_handed_over_is_not_remembered(bench: Bench) -> None:
    bench.writer.gate.set()
    claim = await bench.claim()
    running = asyncio.create_task(bench.completer(claim))
    await until(lambda: bench.writer.remembered > 0)

    claim.cancel.set(HANDED_OVER)
    await asyncio.wait({running})
    await bench.writer.flush()

    assert running.cancelled()
    assert bench.writer.remembered == 0


@pytest.mark.parametrize("close", ["request_cancelled", "worker_lost"])
async def test_a_claim_that_must_be_closed_is_closed_by_its_own_code_with_the_whole_log(
    bench: Bench, close: str
) -> None:
    bench.writer.gate.set()
    first = await bench.claim()
    await bench.rig.append(first, 3)
    await bench.rig.set_state(first.job, cancel=close)
    await bench.rig.die(first.job)
    (claim,) = await bench.rig.reap()
    running = asyncio.create_task(bench.completer(claim))
    await asyncio.sleep(0)  # it reads the log now

    for run in list(bench.completer._running):
        run.expire(claim.run_deadline_ms + 1, 0.0)
    claim.cancel.set("no_reader")
    await running

    record = await bench.record()
    assert record.code == close
    assert record.usage.completion_tokens == 3


async def test_a_cancel_before_the_log_was_replayed_still_counts_what_it_holds(bench: Bench) -> None:
    bench.writer.gate.set()
    first = await bench.claim()
    await bench.rig.append(first, 3)
    await bench.rig.die(first.job)
    await bench.rig.reap()
    claim = await bench.rig.claim_one()
    running = asyncio.create_task(bench.completer(claim))
    await asyncio.sleep(0)  # it reads the log now

    claim.cancel.set("request_cancelled")
    await running

    record = await bench.record()
    assert record.status == "cancelled"
    assert record.usage.completion_tokens == await bench.logged_tokens(claim.job) >= 3


async def test_a_redis_that_blinks_during_the_replay_costs_no_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.writer.gate.set()
    first = await bench.claim(sampling=Sampling(max_tokens=8))
    await bench.rig.append(first, 3)
    await bench.rig.die(first.job)
    await bench.rig.reap()
    claim = await bench.rig.claim_one()
    blinks = 2

    async def blinking(*arguments: Any, **options: Any) -> list[Chunk]:
        nonlocal blinks
        blinks -= 1
        if blinks >= 0:
            raise DependencyUnavailable
        return await read_log(*arguments, **options)

    monkeypatch.setattr("workers.inference.run.read_log", blinking)
    await bench.completer(claim)

    record = await bench.record()
    assert (record.status, record.finish_reason, record.usage.completion_tokens) == ("completed", "length", 8)


async def test_the_time_to_the_first_token_outlives_the_attempt_that_made_it(bench: Bench) -> None:
    bench.writer.gate.set()
    first = await bench.claim(sampling=Sampling(max_tokens=8))
    await bench.rig.append(first, 3)
    logged_ms = SystemClock().unix_ms()
    await bench.rig.die(first.job)
    await bench.rig.reap()

    await bench.completer(await bench.rig.claim_one())

    record = await bench.record()
    assert record.attempts == 2
    assert record.ttft_ms is not None
    assert 0 <= record.ttft_ms <= logged_ms - first.job.reserved_ms
