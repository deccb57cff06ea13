"""The wait for a model: patience by its load time, and what a waiting stream is told."""

import asyncio

import pytest

from api import sse
from api.waiting import WaitingRoom
from shared.errors import DependencyUnavailable
from shared.presence import Health
from shared.settings import ApiSettings
from tests.unit.test_auth_keys import StillClock


class Backend:
    """What Redis would say of one model, and how often it was asked."""

    def __init__(self) -> None:
        self.health = Health(model="m", status="loading", eta_seconds=90, queue_depth=1, workers=1)
        self.place: int | None = 3
        self.down = False
        self.asked = 0
        self.clock = StillClock()
        self.room = WaitingRoom(self.ask_health, self.ask_place, clock=self.clock)

    async def ask_health(self, model: str) -> Health:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise DependencyUnavailable
        return self.health

    async def ask_place(self, model: str, request_id: str) -> int | None:
        if self.down:
            raise DependencyUnavailable
        return self.place


@pytest.mark.parametrize(("eta", "patience"), [(0, 60), (None, 60), (20, 60), (90, 180), (500, 600)])
async def test_a_stream_waits_twice_as_long_as_a_load_takes(eta: int | None, patience: float) -> None:
    backend = Backend()
    backend.health = Health(model="m", status="loading", eta_seconds=eta, queue_depth=1, workers=1)

    assert await backend.room.patience_seconds("m", ApiSettings()) == patience


async def test_a_first_load_is_given_time() -> None:
    backend = Backend()
    backend.health = Health(model="m", status="loading", eta_seconds=30, queue_depth=1, workers=1, measured=False)

    assert await backend.room.patience_seconds("m", ApiSettings()) == 300


async def test_a_waiting_stream_is_told_its_place_and_when_the_model_is_there() -> None:
    backend = Backend()

    assert await backend.room.comment("m", "r") == b": queued position=3 eta_s=90 model=loading\n"
    backend.place = None
    assert await backend.room.comment("m", "r") == sse.PING


async def test_one_question_serves_everybody_for_a_while() -> None:
    backend = Backend()

    await asyncio.gather(*(backend.room.look("m") for _ in range(20)))
    await backend.room.look("m")
    assert backend.asked == 1

    backend.clock.seconds += 3
    assert backend.room.eta_seconds("m") == 87
    await backend.room.look("m")
    assert backend.asked == 2


async def test_without_redis_nothing_is_known_and_nobody_waits() -> None:
    backend = Backend()
    backend.down = True

    assert await backend.room.patience_seconds("m", ApiSettings()) == 60
    assert await backend.room.comment("m", "r") == sse.PING
