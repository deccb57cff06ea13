"""A Redis connection of one caller: several commands in one write, one exchange at a time.

The two hot callers (enqueue, claim) use it instead of a pool: redis-py packs commands in Python, and taking a
connection from its pool costs a read of the socket. It connects at its first use and again after any failure.
"""

import asyncio
from typing import Any, cast

import hiredis
from redis import exceptions as redis_exceptions
from redis.asyncio.connection import AbstractConnection

from shared.connections import Redis
from shared.queue.scripts import Argument, Script


class Line:
    """Opens by itself; its owner closes it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connection: AbstractConnection | None = None
        self._busy = asyncio.Lock()

    async def exchange(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """Send `commands` in one write and return their answers; an error of one is its answer, as an exception.

        Where it is cut (timeout, cancel) the connection is dropped: no later caller can read an answer of ours.
        """
        # The stub of hiredis asks for tuples of one element; it packs any.
        packed = b"".join(hiredis.pack_command(cast(Any, command)) for command in commands)
        async with self._busy:
            if self._connection is None:
                self._connection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
            connection = self._connection
            await connection.send_packed_command(packed, check_health=False)
            answers: list[Any] = []
            for _ in commands:
                try:
                    answers.append(await connection.read_response())
                except redis_exceptions.ResponseError as error:
                    answers.append(error)
        return answers

    async def run(self, script: Script, command: tuple[Argument, ...]) -> Any:
        """Exchange `command`, which runs `script`, and return its answer; load it where it is missing."""
        return (await self.run_all(script, command))[0]

    async def run_all(self, script: Script, *commands: tuple[Argument, ...]) -> list[Any]:
        """Exchange `commands`, the last of which runs `script`, return their answers; load the script if need be."""
        answers = await self.exchange(*commands)
        if isinstance(answers[-1], redis_exceptions.NoScriptError):
            answers[-1] = (await self.exchange(("SCRIPT", "LOAD", script.text), commands[-1]))[-1]
        for each in answers:
            if isinstance(each, Exception):
                raise each
        return answers

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.disconnect()
            self._connection = None
