"""The models of one worker: what it says of them while they load, serve and go."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from shared import keys
from shared.catalogue import Catalogue, Model
from shared.clock import SystemClock
from shared.connections import Redis
from shared.errors import SettingsInvalid
from shared.presence import ask_for, judge, read_demands
from shared.pricing import Prices
from shared.settings import WorkerSettings
from tests.integration.queue_rig import until
from workers.engines import open_engine
from workers.engines.base import Engine, EngineOptions
from workers.inference.models import Models, open_models

SLOW = Model(id="sim/slow", engine="simulator", context=64, prices=Prices(1, 1, 1), options={"load_seconds": "60"})
QUICK = msgspec.structs.replace(SLOW, id="sim/quick", options={})


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    async with open_models(WorkerSettings(engine="simulator"), SystemClock()) as opened:
        yield opened


async def test_the_time_until_a_model_is_loaded_counts_down(models: Models) -> None:
    models.follow(Catalogue(version=1, models=(SLOW,)))

    said = models.presence(draining=False)["sim/slow"]

    assert said.loading_since_ms is not None
    later_ms = said.loading_since_ms + 20_000
    health = judge("sim/slow", [said], queue_depth=0, load_seconds=60.0, now_ms=later_ms)
    assert (health.status, health.eta_seconds) == ("loading", 40)


async def test_a_draining_worker_does_not_promise_what_it_was_loading(models: Models) -> None:
    models.follow(Catalogue(version=1, models=(SLOW,)))

    assert models.presence(draining=True) == {}


async def test_a_model_that_is_no_longer_wanted_is_not_said_to_load(models: Models) -> None:
    models.follow(Catalogue(version=1, models=(QUICK,)))
    await until(lambda: models.claimable() == ["sim/quick"])

    models.follow(Catalogue(version=2, models=(SLOW,)))

    assert set(models.presence(draining=False)) == {"sim/slow"}
    await asyncio.sleep(0)


async def test_a_load_that_fails_in_an_unforeseen_way_is_told_and_tried_again_later(
    models: Models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = 0

    def broken(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError("the disk is gone")

    monkeypatch.setattr("workers.inference.models.open_engine", broken)
    for _ in range(3):
        models.follow(Catalogue(version=1, models=(QUICK,)))
        await until(lambda: not models.presence(draining=False))

    assert tries == 1
    assert "the disk is gone" in capsys.readouterr().out


async def test_a_worker_that_leaves_lets_an_engine_finish_that_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []

    @asynccontextmanager
    async def slow_to_close(engine: str, options: EngineOptions) -> AsyncIterator[Engine]:
        async with open_engine(engine, options) as opened:
            yield opened
            await asyncio.sleep(0.01)
            left.append(options.model)

    monkeypatch.setattr("workers.inference.models.open_engine", slow_to_close)
    async with open_models(WorkerSettings(engine="simulator"), SystemClock()) as models:
        models.follow(Catalogue(version=1, models=(QUICK,)))
        await until(lambda: models.claimable() == ["sim/quick"])
        models.follow(Catalogue(version=2, models=()))
        await asyncio.sleep(0)

    assert left == ["sim/quick"]


async def test_one_place_serves_three_models_in_turn(redis: Redis) -> None:
    settings = WorkerSettings(engine="simulator", models_most=1, model_turn_seconds=0.0)
    rows = tuple(msgspec.structs.replace(QUICK, id=f"sim/{name}") for name in "abc")
    catalogue = Catalogue(version=1, models=rows)
    async with open_models(settings, SystemClock()) as models:
        models.follow(catalogue, await read_demands(redis, models.absent()))
        assert models.claimable() == []
        assert {one.state for one in models.presence(draining=False).values()} == {"cold"}
        for row in (*rows, rows[0]):
            await redis.zadd(keys.queue(row.id, "interactive"), {"job": 1})

            async def here(row: Model = row) -> bool:
                models.follow(catalogue, await read_demands(redis, models.absent()))
                await asyncio.sleep(0)
                return models.claimable() == [row.id]

            async with asyncio.timeout(5):
                while not await here():
                    pass
            await redis.delete(keys.queue(row.id, "interactive"))

        assert (models.loads, models.evictions) == (4, 3)


async def test_a_poll_loads_a_cold_model_into_free_room_only(redis: Redis) -> None:
    settings = WorkerSettings(engine="simulator", models_most=1)
    rows = tuple(msgspec.structs.replace(QUICK, id=f"sim/{name}") for name in "ab")
    catalogue = Catalogue(version=1, models=rows)
    async with open_models(settings, SystemClock()) as models:
        models.follow(catalogue, {})
        await ask_for(redis, "sim/a")
        models.follow(catalogue, await read_demands(redis, models.absent()))
        await until(lambda: models.claimable() == ["sim/a"])
        await ask_for(redis, "sim/b")

        models.follow(catalogue, await read_demands(redis, models.absent()))

        assert models.claimable() == ["sim/a"]
        assert models.presence(draining=False)["sim/b"].state == "cold"


class SteppedClock(SystemClock):
    """Monotonic time that moves when told."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


async def test_a_model_that_never_loads_is_tried_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []
    clock = SteppedClock()

    def broken(*_: object) -> None:
        tries.append(clock.seconds)
        raise SettingsInvalid("no such file")

    monkeypatch.setattr("workers.inference.models.open_engine", broken)
    async with open_models(WorkerSettings(engine="simulator"), clock) as models:
        for _ in range(100):
            models.follow(Catalogue(version=1, models=(QUICK,)))
            await until(lambda: not models._loading)
            clock.seconds += 10

    assert tries[:6] == [0, 10, 30, 70, 150, 310]
    assert all(later - earlier <= 320 for earlier, later in itertools.pairwise(tries))
