"""The watchdog: an engine that owes a step and makes none ends the process, and no other one does."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.errors import EngineDead, EngineFailed
from workers.engines.base import EngineOptions
from workers.engines.simulator import Simulator
from workers.engines.simulator_script import Script
from workers.inference.models import LoadedModel
from workers.inference.watchdog import LOOK_SECONDS_MOST, Watchdog

IDLE_SECONDS = 30.0
SILENCE_SECONDS = 10.0


class MortalSimulator(Simulator):
    """A simulator whose warm-up fails by `failure`, or hangs while `hangs`."""

    def __init__(self) -> None:
        super().__init__(EngineOptions(model="sim/mortal", context=64), Script())
        self.failure: Exception | None = None
        self.hangs = False
        self.warm_ups = 0

    async def warm_up(self) -> None:
        self.warm_ups += 1
        if self.failure is not None:
            raise self.failure
        if self.hangs:
            await asyncio.Event().wait()
        await super().warm_up()


class Kennel:
    """A watchdog, the engine it watches, and time that moves when told."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.deaths: list[str] = []
        self.engine = MortalSimulator()
        self.loaded = LoadedModel(self.engine, 0.0)
        self.watchdog = Watchdog(
            self, silence_seconds=SILENCE_SECONDS, on_dead=self.deaths.append, idle_seconds=IDLE_SECONDS
        )

    def monotonic(self) -> float:
        return self.seconds

    def unix_ms(self) -> int:
        return int(self.seconds * 1000)

    async def look_for(self, seconds: float) -> None:
        """Look each second for so long, and let begun warm-ups end."""
        for _ in range(int(seconds)):
            self.watchdog.look([self.loaded])
            for _ in range(5):
                await asyncio.sleep(0)
            self.seconds += 1


@pytest.fixture
async def kennel() -> AsyncIterator[Kennel]:
    kennel = Kennel()
    yield kennel
    kennel.watchdog.close()
    await kennel.engine.close()


async def test_an_idle_engine_proves_now_and_then_that_it_lives(kennel: Kennel) -> None:
    await kennel.look_for(5 * IDLE_SECONDS)

    assert kennel.deaths == []
    assert 4 <= kennel.engine.warm_ups <= 5
    assert kennel.unix_ms() - kennel.loaded.last_step_ms <= 1000 * (IDLE_SECONDS + 2)


async def test_an_engine_found_dead_while_idle_ends_the_process_at_once(kennel: Kennel) -> None:
    kennel.engine.failure = EngineDead("The engine does not answer.")

    await kennel.look_for(IDLE_SECONDS + 2)

    assert kennel.deaths[0] == "The engine does not answer."


@pytest.mark.parametrize(("failure", "hangs"), [(None, True), (EngineFailed("status 503"), False)])
async def test_an_idle_engine_that_makes_no_token_ends_the_process_in_time(
    kennel: Kennel, failure: Exception | None, hangs: bool
) -> None:
    kennel.engine.failure, kennel.engine.hangs = failure, hangs

    await kennel.look_for(IDLE_SECONDS + SILENCE_SECONDS)
    assert kennel.deaths == []

    await kennel.look_for(3)
    assert kennel.deaths[0].startswith("sim/mortal made no step for")


async def test_an_engine_that_recovers_owes_nothing(kennel: Kennel) -> None:
    kennel.engine.failure = EngineFailed("status 503")
    await kennel.look_for(IDLE_SECONDS + SILENCE_SECONDS - 1)

    kennel.engine.failure = None

    await kennel.look_for(IDLE_SECONDS + SILENCE_SECONDS)
    assert kennel.deaths == []


async def test_an_engine_with_work_and_without_a_step_ends_the_process(kennel: Kennel) -> None:
    await kennel.look_for(1)
    kennel.loaded.running = 1

    await kennel.look_for(SILENCE_SECONDS)
    assert kennel.deaths == []

    await kennel.look_for(2)
    assert len(kennel.deaths) >= 1
    assert kennel.engine.warm_ups == 0


async def test_time_in_which_the_process_stood_still_does_not_count(kennel: Kennel) -> None:
    await kennel.look_for(1)
    kennel.loaded.running = 1
    kennel.seconds += 600

    await kennel.look_for(SILENCE_SECONDS - LOOK_SECONDS_MOST)

    assert kennel.deaths == []


async def test_an_engine_that_is_closed_meanwhile_kills_nobody(kennel: Kennel) -> None:
    kennel.engine.hangs = True
    await kennel.look_for(IDLE_SECONDS + 2)

    kennel.watchdog.look([])
    kennel.seconds += 600
    kennel.watchdog.look([])

    assert kennel.deaths == []
