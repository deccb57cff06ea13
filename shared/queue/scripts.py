"""Lua scripts beside their callers: loaded from disk once, run by digest, loaded again where Redis forgot them."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from redis import exceptions as redis_exceptions

from shared import keys
from shared.connections import Redis

# What a loop of ours survives: Redis away, starting, out of memory, or answering an error.
REDIS_FAILED: Final = (redis_exceptions.RedisError, OSError, TimeoutError)

_FOLDER: Final = Path(__file__).parent

Argument = str | bytes | int


class Script:
    """One script; `heads` are files put in front of it. `names.lua` always comes first."""

    def __init__(self, name: str, *heads: str) -> None:
        parts = ("names", *heads, name)
        self.text: Final = "\n".join((_FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
        self.digest: Final = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def command(self, names: Sequence[str], arguments: Iterable[Argument]) -> tuple[Argument, ...]:
        """Return the EVALSHA command, for a pipeline."""
        return ("EVALSHA", self.digest, len(names), *names, *arguments)

    async def run(self, redis: Redis, names: Sequence[str], arguments: Iterable[Argument]) -> Any:
        """Run the script and return its answer; errors of Redis pass."""
        command = self.command(names, arguments)
        try:
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except redis_exceptions.NoScriptError:
            await self.load(redis)
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def load(self, redis: Redis) -> None:
        """Give the script to Redis."""
        await redis.script_load(self.text)


@lru_cache(maxsize=1024)
def script_keys(model: str) -> tuple[str, ...]:
    """Return the names of one model in the order of names.lua; a prefix wants a request id behind it."""
    return (
        keys.queue(model, "interactive"),
        keys.queue(model, "batch"),
        keys.queue(model, keys.SUSPECTS),
        keys.waiting(model),
        keys.leases(model),
        keys.wake(model),
        keys.state(model, ""),
        keys.job(model, ""),
        keys.tombstone(model, ""),
        keys.revoked(model, ""),
        keys.log(model, ""),
        keys.channel(model, ""),
    )


@lru_cache(maxsize=1024)
def fair_keys(model: str) -> tuple[str, ...]:
    """Return `script_keys` and the fair-queueing tags of both lanes."""
    return (*script_keys(model), keys.fair(model, "interactive"), keys.fair(model, "batch"))


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds."""
    return int(seconds * 1000)
