"""`inferbase workers …`, as an operator types it: one row for each model, and a drain that was heard."""

import asyncio
import sys

from shared import keys
from shared.clock import SystemClock
from shared.connections import Redis
from shared.presence import ModelPresence, Presence, announce, leave
from shared.settings import Settings, environment_of, inherited_environment
from shared.wire import encode
from tests.house.sources import ROOT
from tests.integration.test_account_commands import run


def worker(owner: str, **models: ModelPresence) -> Presence:
    return Presence(owner=owner, engine="simulator", models=models)


async def printed(settings: Settings, *arguments: str) -> str:
    """Return what a command printed for people."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "compose.cli",
        *arguments,
        env=inherited_environment() | environment_of(settings),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return out.decode()


async def test_a_worker_without_models_is_listed_beside_the_others(settings: Settings, redis: Redis) -> None:
    await announce(redis, worker("own_1", model=ModelPresence(state="ready", slots=2, slots_free=1, load_seconds=1.25)))
    await announce(redis, worker("own_2"))

    status, listed = await run(settings, "workers", "list")
    table = await printed(settings, "workers", "list", "--text")

    assert status == 0
    assert [(row["model"], row["state"]) for row in listed["data"]] == [("model", "ready"), (None, "empty")]
    lines = table.splitlines()
    assert len(lines) == 3
    assert [line.split()[0] for line in lines] == ["worker", "own_1", "own_2"]


async def test_a_worker_that_could_load_has_not_heard_of_its_drain(settings: Settings, redis: Redis) -> None:
    await announce(redis, worker("own_1", model=ModelPresence(state="cold")))
    async with redis.pubsub() as listening:
        await listening.subscribe(keys.commands("own_1"))
        draining = asyncio.create_task(run(settings, "workers", "drain", "own_1"))
        while (message := await listening.get_message(timeout=5)) is None or message["type"] != "message":
            pass
        early = draining.done()
        await announce(redis, worker("own_1"))

        status, said = await draining

    assert message["data"] == encode(("", 0, "drain"))
    assert (early, status, said) == (False, 0, {"worker": "own_1", "state": "draining"})


async def test_a_first_load_shows_how_far_it_is_by_what_an_earlier_worker_measured(
    settings: Settings, redis: Redis
) -> None:
    await announce(redis, worker("own_0", model=ModelPresence(state="ready", load_seconds=100.0)))
    await leave(redis, "own_0")
    since_ms = SystemClock().unix_ms() - 50_000
    loading = ModelPresence(state="loading", loading_since_ms=since_ms)
    late = ModelPresence(state="loading", loading_since_ms=since_ms - 90_000)
    await announce(redis, worker("own_1", model=loading, other=loading))
    await announce(redis, worker("own_2", model=late))

    _, listed = await run(settings, "workers", "list")

    first, unmeasured, second = (row["load_progress"] for row in listed["data"])
    assert 0.5 <= first < 0.8
    assert unmeasured is None
    assert second == 0.99
