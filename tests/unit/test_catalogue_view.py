"""A node's copy of the catalogue: fresh while Postgres is well, from memory while it is slow or away, never ancient."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from api.catalogue import STALE_SECONDS_MOST, CatalogueView
from shared.catalogue import Model
from shared.errors import DependencyUnavailable, NotFound
from shared.pricing import Prices

MODEL = Model(id="org/model", engine="simulator", context=100, prices=Prices(100, 50, 300))
DEARER = msgspec.structs.replace(MODEL, prices=Prices(200, 50, 300))
FRESH_SECONDS = 2.0


class TickingClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def unix_ms(self) -> int:
        return int(self.seconds * 1000)


class Postgres:
    """A catalogue that can be down, or frozen while `thawed` is not set; counts the reads."""

    def __init__(self) -> None:
        self.model = MODEL
        self.down = False
        self.reads = 0
        self.thawed = asyncio.Event()
        self.thawed.set()

    async def list_models(self) -> list[Model]:
        self.reads += 1
        await self.thawed.wait()
        if self.down:
            raise DependencyUnavailable
        return [self.model]


@pytest.fixture
def clock() -> TickingClock:
    return TickingClock()


@pytest.fixture
async def postgres() -> Postgres:
    return Postgres()


@pytest.fixture
async def view(postgres: Postgres, clock: TickingClock) -> AsyncIterator[CatalogueView]:
    view = CatalogueView(postgres.list_models, fresh_seconds=FRESH_SECONDS, clock=clock, patience_seconds=0.01)
    yield view
    await view.close()


async def test_a_fresh_copy_is_not_read_again(view: CatalogueView, postgres: Postgres, clock: TickingClock) -> None:
    for clock.seconds in (0.0, 1.0, 1.9):
        assert await view.all() == [MODEL]

    assert postgres.reads == 1


async def test_after_any_idle_time_a_well_postgres_is_asked_before_the_answer(
    view: CatalogueView, postgres: Postgres, clock: TickingClock
) -> None:
    await view.all()

    for clock.seconds, postgres.model in ((2.0, DEARER), (100.0, MODEL), (1e6, DEARER)):
        assert await view.find(MODEL.id) is postgres.model


async def test_a_frozen_postgres_holds_nobody_up_who_can_be_told_from_memory(
    view: CatalogueView, postgres: Postgres, clock: TickingClock
) -> None:
    await view.all()
    postgres.thawed.clear()
    began = time.monotonic()

    for clock.seconds in (3.0, 4.0, 60.0, STALE_SECONDS_MOST - 1):
        assert await view.all() == [MODEL]
        assert await view.find(MODEL.id) is MODEL

    assert time.monotonic() - began < 0.5
    assert postgres.reads == 2, "one read at a time"


async def test_a_read_that_came_late_is_told_to_the_next_who_asks(
    view: CatalogueView, postgres: Postgres, clock: TickingClock
) -> None:
    await view.all()
    postgres.thawed.clear()
    clock.seconds, postgres.model = 3.0, DEARER
    assert await view.all() == [MODEL]

    postgres.thawed.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert await view.all() == [DEARER]
    assert postgres.reads == 2


async def test_who_leaves_does_not_cut_the_read_of_the_others(view: CatalogueView, postgres: Postgres) -> None:
    postgres.thawed.clear()
    leaving, staying = asyncio.create_task(view.all()), asyncio.create_task(view.all())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    postgres.thawed.set()

    assert await staying == [MODEL]
    assert postgres.reads == 1


async def test_the_catalogue_is_kept_while_postgres_is_away(
    view: CatalogueView, postgres: Postgres, clock: TickingClock
) -> None:
    await view.find(MODEL.id)

    postgres.down, clock.seconds = True, 100.0

    assert await view.find(MODEL.id) is MODEL
    with pytest.raises(NotFound):
        await view.find("other")
    assert postgres.reads == 2, "a failed read is not tried again for each who asks"


async def test_a_memory_of_long_ago_is_no_answer(view: CatalogueView, postgres: Postgres, clock: TickingClock) -> None:
    await view.all()
    postgres.down = True

    for clock.seconds in (STALE_SECONDS_MOST, STALE_SECONDS_MOST + 1):
        with pytest.raises(DependencyUnavailable):
            await view.all()

    postgres.down = False
    assert await view.all() == [MODEL]


async def test_a_catalogue_never_read_is_unavailable_not_empty(view: CatalogueView, postgres: Postgres) -> None:
    postgres.down = True

    with pytest.raises(DependencyUnavailable):
        await view.all()


async def test_closing_stops_a_read_that_hangs(view: CatalogueView, postgres: Postgres, clock: TickingClock) -> None:
    await view.all()
    postgres.thawed.clear()
    clock.seconds = 3.0
    await view.all()

    await asyncio.wait_for(view.close(), 1)
