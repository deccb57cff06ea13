"""What workers say of themselves, what that makes of a model's health, and the catalogue that they read.

    worker  announce, each beat -> Redis -> read_all, health  API node and janitor
    cli, janitor  write_catalogue -> Redis -> read_catalogue  workers

A worker that falls silent is gone when its lease ends: nobody has to notice.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from shared import keys
from shared.catalogue import Catalogue
from shared.clock import Clock, SystemClock
from shared.connections import Redis, redis_errors
from shared.wire import encode

LEASE_SECONDS: Final = 6.0  # three beats
SILENT_SECONDS_MOST: Final = 60.0  # then a worker is pruned from the list
LOAD_TIMES_SECONDS: Final = 30 * 24 * 3600.0
STEP_SECONDS_MOST: Final = 60.0  # a ready engine made a real token more recently than this
LOAD_SECONDS_UNKNOWN: Final = 30.0  # told as ETA where no load of a model was ever measured
DEMAND_SECONDS: Final = 10.0

_ANNOUNCE: Final = (Path(__file__).parent / "announce.lua").read_text()


class ModelPresence(msgspec.Struct, frozen=True, kw_only=True):
    """One model of one worker. Token counts unless said otherwise; those of the template are as in the catalogue."""

    state: Literal["cold", "loading", "ready", "draining"]  # cold: this worker can load it
    slots: int = 0
    slots_free: int = 0
    context: int = 0
    template_tokens: int = 0
    message_tokens: int = 0
    last_step_ms: int = 0  # Unix milliseconds of the last real token step; 0: none yet
    load_seconds: float | None = None  # as measured at the last load
    loading_since_ms: int | None = None  # Unix milliseconds
    load_progress: float | None = None  # of a load, [0, 1), by the time that the last one took


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """A worker: the owner half of its fences, its engine, its models by id."""

    owner: str
    engine: str
    models: dict[str, ModelPresence]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model can be used. `workers`: live and not draining; `eta_seconds` None where nobody can tell."""

    model: str
    status: Literal["ready", "loading", "unavailable"]
    eta_seconds: int | None
    queue_depth: int
    workers: int
    measured: bool = True  # the ETA rests on an earlier load, and is no guess


class Demand(msgspec.Struct, frozen=True):
    """Who wants a model: jobs that wait in its queue, and whether somebody asked after it lately."""

    queued: int
    asked: bool


_decode_presence: Final = msgspec.msgpack.Decoder(Presence).decode
_decode_catalogue: Final = msgspec.msgpack.Decoder(Catalogue).decode


async def announce(redis: Redis, presence: Presence, *, lease_seconds: float = LEASE_SECONDS) -> None:
    """Say that a worker lives and what it holds. Raises DependencyUnavailable."""
    measured: list[str | float] = []
    for model, said in presence.models.items():
        if said.load_seconds is not None:
            measured += (model, said.load_seconds)
    with redis_errors():
        await redis.execute_command(  # type: ignore[no-untyped-call]
            "EVAL",
            _ANNOUNCE,
            3,
            keys.presence(presence.owner),
            keys.WORKERS,
            keys.LOAD_TIMES,
            presence.owner,
            encode(presence),
            int(lease_seconds * 1000),
            int(SILENT_SECONDS_MOST * 1000),
            int(LOAD_TIMES_SECONDS * 1000),
            *measured,
        )


async def leave(redis: Redis, owner: str) -> None:
    """Take a worker's presence back at once. Raises DependencyUnavailable."""
    with redis_errors():
        await redis.delete(keys.presence(owner))
        await redis.zrem(keys.WORKERS, owner)


async def read_all(redis: Redis) -> list[Presence]:
    """Return every live worker's presence. Raises DependencyUnavailable."""
    with redis_errors():
        owners: list[bytes] = await redis.zrange(keys.WORKERS, 0, -1)
        if not owners:
            return []
        found: list[bytes | None] = await redis.mget([keys.presence(owner.decode()) for owner in owners])
    return [_decode_presence(payload) for payload in found if payload is not None]


async def read_load_times(redis: Redis) -> dict[str, float]:
    """Return how many seconds the last load of each model took, by whatever worker. Raises DependencyUnavailable."""
    with redis_errors():
        found: dict[bytes, bytes] = await redis.hgetall(keys.LOAD_TIMES)  # type: ignore[misc]
    return {model.decode(): float(seconds) for model, seconds in found.items()}


async def health(redis: Redis, model: str, *, clock: Clock | None = None) -> Health:
    """Return the health of a model of the catalogue; asking after one that is not ready counts as demand.

    Raises DependencyUnavailable.
    """
    said = [presence.models[model] for presence in await read_all(redis) if model in presence.models]
    with redis_errors():
        async with redis.pipeline(transaction=False) as pipeline:
            for lane in (*keys.LANES, keys.SUSPECTS):
                pipeline.zcard(keys.queue(model, lane))
            pipeline.hget(keys.LOAD_TIMES, model)
            *depths, load_time = await pipeline.execute()
    load_seconds = LOAD_SECONDS_UNKNOWN if load_time is None else float(load_time)
    found = judge(
        model, said, queue_depth=sum(depths), load_seconds=load_seconds, now_ms=(clock or SystemClock()).unix_ms()
    )
    if found.status != "ready":
        await ask_for(redis, model)
    return found if load_time is not None else msgspec.structs.replace(found, measured=False)


def judge(model: str, said: list[ModelPresence], *, queue_depth: int, load_seconds: float, now_ms: int) -> Health:
    """Decide from what live workers say of a model; `load_seconds`: how long a load of it takes."""
    working = [one for one in said if one.state != "draining"]
    status: Literal["ready", "loading", "unavailable"] = "unavailable"
    eta_seconds: int | None = None
    if any(one.state == "ready" and now_ms - one.last_step_ms < STEP_SECONDS_MOST * 1000 for one in working):
        status, eta_seconds = "ready", 0
    elif working:
        waited_ms = max((now_ms - one.loading_since_ms for one in working if one.loading_since_ms), default=0)
        left_seconds = load_seconds - waited_ms / 1000
        status, eta_seconds = "loading", max(1, math.ceil(abs(left_seconds)))  # late: as late again
    return Health(model=model, status=status, eta_seconds=eta_seconds, queue_depth=queue_depth, workers=len(working))


async def ask_for(redis: Redis, model: str) -> bool:
    """Mark that somebody wants a cold model; False where the mark stands already. Raises DependencyUnavailable."""
    with redis_errors():
        return bool(await redis.set(keys.demand(model), b"1", nx=True, px=int(DEMAND_SECONDS * 1000)))


async def order_to_drain(redis: Redis, owner: str) -> bool:
    """Tell a worker to leave as at SIGTERM; False where it does not listen. Raises DependencyUnavailable."""
    with redis_errors():
        return bool(await redis.publish(keys.commands(owner), encode(("", 0, "drain"))))


async def read_demands(redis: Redis, models: Sequence[str]) -> dict[str, Demand]:
    """Return who wants each of `models`. Raises DependencyUnavailable."""
    if not models:
        return {}
    queues = (*keys.LANES, keys.SUSPECTS)
    with redis_errors():
        async with redis.pipeline(transaction=False) as pipeline:
            for model in models:
                for lane in queues:
                    pipeline.zcard(keys.queue(model, lane))
                pipeline.exists(keys.demand(model))
            found: list[int] = await pipeline.execute()
    width = len(queues) + 1
    rows = [found[at : at + width] for at in range(0, len(found), width)]
    return {model: Demand(sum(row[:-1]), bool(row[-1])) for model, row in zip(models, rows, strict=True)}


async def write_catalogue(redis: Redis, catalogue: Catalogue) -> None:
    """Replace the mirror that workers read. Raises DependencyUnavailable."""
    with redis_errors():
        await redis.set(keys.CATALOGUE, encode(catalogue))


async def read_catalogue(redis: Redis) -> Catalogue | None:
    """Return the mirror; None where Redis has none: keep the last one. Raises DependencyUnavailable."""
    with redis_errors():
        payload: bytes | None = await redis.get(keys.CATALOGUE)
    return None if payload is None else _decode_catalogue(payload)
