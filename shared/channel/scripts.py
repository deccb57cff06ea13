"""Runs Lua scripts on one connection of its own, several calls in one write, through restarts of Redis.

Used by the writer, whose order of calls must be the order in Redis; a pool would give no such promise. Every script it
runs is idempotent, so a write whose answer was lost is simply written again.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from redis import exceptions as redis_exceptions
from redis.asyncio.connection import AbstractConnection

from shared.channel.push_connection import new_connection
from shared.connections import Redis
from shared.errors import DependencyUnavailable
from shared.log import get_logger

ANSWER_SECONDS: Final = 5.0  # for one write and its answers
BACKOFF_SECONDS: Final = 0.02  # doubled at each failure in a row
BACKOFF_SECONDS_MOST: Final = 0.5

_RETRIED: Final = (redis_exceptions.RedisError, OSError, TimeoutError)

logger = get_logger("scripts")


class Call(msgspec.Struct, frozen=True):
    """One EVALSHA."""

    script: str
    keys: tuple[str, ...]
    arguments: tuple[str | bytes, ...]


class ScriptPipeline:
    """The scripts `names` of `folder`, on one connection. One `run` at a time."""

    def __init__(self, redis: Redis, names: Sequence[str], *, folder: Path, retry_seconds: float) -> None:
        self._redis = redis
        self._sources = {name: (folder / f"{name}.lua").read_text() for name in names}
        self._digests = {
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self._sources.items()
        }
        self._retry_seconds = retry_seconds
        self._connection: AbstractConnection | None = None

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run the calls in order, in one write, and return their answers.

        Raises DependencyUnavailable where Redis refuses for longer than `retry_seconds`.
        """
        answers: dict[int, Any] = {}
        give_up = time.monotonic() + self._retry_seconds
        backoff = BACKOFF_SECONDS
        while True:
            missing = [index for index in range(len(calls)) if index not in answers]
            error = await self._try([calls[index] for index in missing], missing, answers)
            if error is None:
                return [answers[index] for index in range(len(calls))]
            if time.monotonic() + backoff > give_up:
                raise DependencyUnavailable("The queue is unavailable: retry shortly.") from error
            if isinstance(error, redis_exceptions.NoScriptError):
                continue  # loaded just now
            if backoff == BACKOFF_SECONDS:
                logger.warning("redis_write_retried", error=type(error).__name__)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_SECONDS_MOST)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)
            self._connection = None

    async def _try(self, calls: Sequence[Call], places: Sequence[int], answers: dict[int, Any]) -> Exception | None:
        """Put the answer of each call at its place; return the error of those that have none."""
        error: Exception | None = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                connection = self._connected()
                await connection.send_packed_command(connection.pack_commands(map(self._command, calls)))
                for place in places:
                    try:
                        answers[place] = await connection.read_response()
                    except redis_exceptions.ResponseError as refused:
                        error = refused
                if isinstance(error, redis_exceptions.NoScriptError):
                    await self._load(connection)
        except _RETRIED as failure:
            return failure
        return error

    def _connected(self) -> AbstractConnection:
        if self._connection is None:
            self._connection = new_connection(self._redis)
        return self._connection

    def _command(self, call: Call) -> tuple[str | bytes | int, ...]:
        return ("EVALSHA", self._digests[call.script], len(call.keys), *call.keys, *call.arguments)

    async def _load(self, connection: AbstractConnection) -> None:
        for source in self._sources.values():
            await connection.send_command("SCRIPT", "LOAD", source)
            await connection.read_response()
