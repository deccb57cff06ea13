"""The janitor's look at everything: true gauges for every model of the catalogue, and none for others."""

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from shared import ids, keys
from shared.catalogue import Catalogue, Model
from shared.channel import Fence, LogWriter
from shared.clock import SystemClock
from shared.connections import Redis
from shared.presence import ModelPresence, Presence, announce, write_catalogue
from shared.pricing import Prices
from shared.queue.settlements import SettlementQueue
from shared.settings import QueueSettings, SettlementSettings
from shared.wire import VERSION, Chunk, Seal
from workers.janitor.observer import Observer


def _value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def _catalogue(redis: Redis, *names: str) -> None:
    prices = Prices(prompt=1, cached=1, completion=1)
    models = tuple(Model(id=name, engine="simulator", context=100, prices=prices) for name in names)
    await write_catalogue(redis, Catalogue(version=1, models=models))


async def _say(redis: Redis, owner: str, **models: Any) -> None:
    said = {name: ModelPresence(state=state) for name, state in models.items()}
    await announce(redis, Presence(owner=owner, engine="simulator", models=said))


@pytest.fixture
def observer(redis: Redis) -> Observer:
    settlements = SettlementQueue(redis, SettlementSettings())
    return Observer(redis, settlements, SystemClock(), unserved_seconds=0)


async def test_what_waits_is_told_by_lane_with_the_age_of_the_oldest(redis: Redis, observer: Observer) -> None:
    await _catalogue(redis, "m")
    oldest = ids.new_chat_id()
    await asyncio.sleep(0.01)
    for tag, request_id in enumerate([ids.new_chat_id(), oldest, ids.new_completion_id()]):
        await redis.zadd(keys.queue("m", "batch"), {keys.job_id("m", request_id): tag})

    await observer.look()

    assert _value("inferbase_queue_depth_requests", model="m", lane="batch") == 3
    assert _value("inferbase_queue_depth_requests", model="m", lane="interactive") == 0
    assert _value("inferbase_queue_oldest_seconds", model="m", lane="interactive") == 0
    age = _value("inferbase_queue_oldest_seconds", model="m", lane="batch")
    assert age is not None
    assert 0.01 <= age < 60


async def test_records_that_nobody_settles_are_seen_without_a_settlement_worker(
    redis: Redis, observer: Observer
) -> None:
    await _catalogue(redis, "m")
    await redis.xadd(keys.settlement("m"), {"f": b"record"}, id=f"{int(time.time() * 1000) - 90_000}-0")
    await redis.xadd(keys.dead_letters("m"), {"f": b"record"})

    await observer.look()

    assert _value("inferbase_settlement_backlog_records") == 1
    lag = _value("inferbase_settlement_lag_seconds")
    assert lag is not None
    assert 89 < lag < 150
    assert _value("inferbase_dead_letters_kept_records", model="m") == 1


async def test_a_model_that_only_a_leaving_worker_lists_is_unserved_and_warned_of_once(
    redis: Redis, observer: Observer
) -> None:
    await _catalogue(redis, "a", "b")
    await _say(redis, "own_1", a="ready", b="draining")

    with capture_logs() as logs:
        await observer.look()
        await observer.look()

    assert _value("inferbase_models_unserved") == 1
    assert _value("inferbase_model_workers", model="b", state="draining") == 1
    assert [line["model"] for line in logs if line["event"] == "model_unserved"] == ["b"]


async def test_a_model_that_is_served_again_is_warned_of_again_later(redis: Redis, observer: Observer) -> None:
    await _catalogue(redis, "a")

    with capture_logs() as logs:
        for state in ("draining", "cold", "draining"):
            await _say(redis, "own_1", a=state)
            await observer.look()

    assert [line["event"] for line in logs] == ["model_unserved", "model_served_again", "model_unserved"]


async def test_a_model_that_left_the_catalogue_leaves_no_gauges(redis: Redis, observer: Observer) -> None:
    await _catalogue(redis, "gone", "stays")
    await observer.look()

    await _catalogue(redis, "stays")
    await observer.look()

    assert _value("inferbase_claimed_requests", model="stays") == 0
    for name in ("inferbase_claimed_requests", "inferbase_dead_letters_kept_records"):
        assert _value(name, model="gone") is None
    assert _value("inferbase_queue_depth_requests", model="gone", lane="batch") is None
    assert _value("inferbase_model_workers", model="gone", state="ready") is None


async def test_a_chunk_that_the_log_does_not_take_is_counted_by_its_verdict(redis: Redis) -> None:
    before = _value("inferbase_refused_appends_total", verdict="gone") or 0
    writer = LogWriter(redis, Seal(b"k" * 32), QueueSettings())

    verdict = await writer.append(Fence("m", "nobody", 1, "own_1"), Chunk(VERSION, "nobody", 1, 1, 0, "x", (1,)))
    await writer.close()

    assert verdict == "gone"
    assert _value("inferbase_refused_appends_total", verdict="gone") == before + 1
