"""What workers say of themselves and what clients are told of a model, on a real Valkey."""

import msgspec
import pytest

from shared import keys
from shared.catalogue import Catalogue, Model
from shared.connections import Redis
from shared.presence import (
    LOAD_SECONDS_UNKNOWN,
    Demand,
    ModelPresence,
    Presence,
    announce,
    ask_for,
    health,
    judge,
    leave,
    read_all,
    read_catalogue,
    read_demands,
    write_catalogue,
)
from shared.pricing import Prices
from shared.revocation import find_revoked, mark_revoked

MODEL = "sim/plain"
NOW_MS = 1_800_000_000_000


class StoppedClock:
    def unix_ms(self) -> int:
        return NOW_MS

    def monotonic(self) -> float:
        return 0.0


def worker(owner: str = "own_1", **models: ModelPresence) -> Presence:
    return Presence(owner=owner, engine="simulator", models={MODEL: models["model"]} if models else {})


def ready(**fields: object) -> ModelPresence:
    return msgspec.structs.replace(
        ModelPresence(state="ready", slots=4, slots_free=4, last_step_ms=NOW_MS - 1000, load_seconds=2.5), **fields
    )


async def test_what_a_worker_announces_is_what_others_read(redis: Redis) -> None:
    first, second = worker("own_1", model=ready()), worker("own_2", model=ModelPresence(state="loading"))

    await announce(redis, first)
    await announce(redis, second)

    assert await read_all(redis) == [first, second]


async def test_a_silent_worker_is_gone_when_its_lease_ends(redis: Redis) -> None:
    await announce(redis, worker(model=ready()))
    assert 0 < await redis.pttl(keys.presence("own_1")) <= 6000

    await redis.delete(keys.presence("own_1"))

    assert await read_all(redis) == []
    assert (await health(redis, MODEL, clock=StoppedClock())).status == "unavailable"


async def test_a_worker_silent_for_a_minute_leaves_the_list(redis: Redis) -> None:
    await redis.zadd(keys.WORKERS, {"own_old": 1})

    await announce(redis, worker(model=ready()))

    assert await redis.zrange(keys.WORKERS, 0, -1) == [b"own_1"]


async def test_a_worker_that_leaves_is_gone_at_once(redis: Redis) -> None:
    await announce(redis, worker(model=ready()))

    await leave(redis, "own_1")

    assert await read_all(redis) == []
    assert await redis.exists(keys.presence("own_1"), keys.WORKERS) == 0


async def test_every_key_of_presence_has_a_lifetime(redis: Redis) -> None:
    await announce(redis, worker(model=ready()))
    await ask_for(redis, MODEL)
    await mark_revoked(redis, [MODEL], "key_1")

    assert all([await redis.pttl(name) > 0 for name in await redis.keys("*")])


async def test_health_counts_the_queue_and_the_workers(redis: Redis) -> None:
    await announce(redis, worker("own_1", model=ready()))
    await announce(redis, worker("own_2", model=ModelPresence(state="loading")))
    await redis.zadd(keys.queue(MODEL, "interactive"), {"a": 1, "b": 2})
    await redis.zadd(keys.queue(MODEL, "batch"), {"c": 1})

    found = await health(redis, MODEL, clock=StoppedClock())

    assert (found.status, found.eta_seconds, found.queue_depth, found.workers) == ("ready", 0, 3, 2)


async def test_a_load_time_measured_once_is_the_next_eta(redis: Redis) -> None:
    await announce(redis, worker(model=ready(load_seconds=12.4)))
    await leave(redis, "own_1")
    loading = ModelPresence(state="loading", loading_since_ms=NOW_MS - 4000)
    await announce(redis, worker("own_2", model=loading))

    found = await health(redis, MODEL, clock=StoppedClock())

    assert (found.status, found.eta_seconds) == ("loading", 9)


async def test_asking_after_a_cold_model_counts_as_demand_once_in_ten_seconds(redis: Redis) -> None:
    await health(redis, MODEL, clock=StoppedClock())
    first = await redis.pttl(keys.demand(MODEL))
    await redis.pexpire(keys.demand(MODEL), 5000)

    await health(redis, MODEL, clock=StoppedClock())

    assert 9000 < first <= 10_000
    assert await redis.pttl(keys.demand(MODEL)) <= 5000
    assert (await read_demands(redis, [MODEL]))[MODEL] == Demand(0, True)


async def test_asking_after_a_ready_model_is_no_demand(redis: Redis) -> None:
    await announce(redis, worker(model=ready()))

    await health(redis, MODEL, clock=StoppedClock())

    assert (await read_demands(redis, [MODEL]))[MODEL] == Demand(0, False)


@pytest.mark.parametrize(
    ("said", "status", "eta", "workers"),
    [
        ([], "unavailable", None, 0),
        ([ready(state="draining")], "unavailable", None, 0),
        ([ready(last_step_ms=NOW_MS - 61_000)], "loading", 30, 1),
        ([ready(last_step_ms=0)], "loading", 30, 1),
        ([ModelPresence(state="loading")], "loading", 30, 1),
        ([ModelPresence(state="loading", loading_since_ms=NOW_MS - 90_000)], "loading", 60, 1),
        ([ModelPresence(state="loading"), ready()], "ready", 0, 2),
    ],
)
def test_a_model_is_ready_only_by_a_live_worker_with_a_fresh_token(
    said: list[ModelPresence], status: str, eta: int | None, workers: int
) -> None:
    found = judge(MODEL, said, queue_depth=0, load_seconds=LOAD_SECONDS_UNKNOWN, now_ms=NOW_MS)

    assert (found.status, found.eta_seconds, found.workers) == (status, eta, workers)


async def test_the_catalogue_is_read_as_it_was_written(redis: Redis) -> None:
    assert await read_catalogue(redis) is None
    prices = Prices(prompt=100, cached=50, completion=300)
    model = Model(id=MODEL, engine="simulator", context=4096, prices=prices, options={"tokens": "9"})

    await write_catalogue(redis, Catalogue(version=1, models=()))
    await write_catalogue(redis, Catalogue(version=2, models=(model,)))

    assert await read_catalogue(redis) == Catalogue(version=2, models=(model,))


async def test_a_revoked_key_is_marked_for_every_model_and_no_other_key_is(redis: Redis) -> None:
    await mark_revoked(redis, [MODEL, "a/b"], "key_dead")

    assert await find_revoked(redis, MODEL, ["key_dead", "key_alive"]) == {"key_dead"}
    assert await find_revoked(redis, "a/b", ["key_dead"]) == {"key_dead"}
    assert await find_revoked(redis, "c/d", ["key_dead"]) == set()
    assert await find_revoked(redis, MODEL, []) == set()
