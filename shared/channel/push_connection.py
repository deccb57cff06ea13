"""A Redis connection in subscriber mode that hands over everything that has arrived at once.

redis-py makes the connection (address, password, TLS, database) and hiredis parses; only redis-py's PubSub object is
left out, which costs a multiple of the parsing for each message. Two private attributes used here are pinned by a test.
"""

import asyncio
from typing import Any, Final

import hiredis
from redis import exceptions as redis_exceptions
from redis.asyncio.connection import AbstractConnection

from shared.connections import Redis

READ_BYTES: Final = 256 * 1024
CONNECT_SECONDS: Final = 5.0

GONE: Final = (redis_exceptions.RedisError, OSError, TimeoutError)  # what `open` and `read` raise without Redis


def new_connection(redis: Redis) -> AbstractConnection:
    """Return a connection with the client's address that belongs to the caller and not to the pool."""
    connection: AbstractConnection = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


class PushConnection:
    """One connection; who opens, closes."""

    def __init__(
        self, connection: AbstractConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader()

    @classmethod
    async def open(cls, redis: Redis) -> "PushConnection":
        """Connect as `redis` does. Raises one of GONE."""
        connection = new_connection(redis)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        assert connection._reader is not None and connection._writer is not None
        return cls(connection, connection._reader, connection._writer)

    def send(self, *command: str | bytes) -> None:
        """Send without waiting; what is lost with the connection is said again on the next one."""
        if not self._writer.is_closing():  # uvloop raises on a transport that the peer has closed
            self._writer.writelines(self._connection.pack_command(*command))

    async def read(self) -> list[Any]:
        """Return every reply that has arrived, at least a part of one was read. Raises one of GONE."""
        data = await self._reader.read(READ_BYTES)
        if not data:
            raise redis_exceptions.ConnectionError("Redis closed the connection")
        self._parser.feed(data)
        replies = []
        while (reply := self._parser.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise redis_exceptions.ConnectionError(str(reply))
            replies.append(reply)
        return replies

    def abort(self) -> None:
        """Break the connection: the pending `read` raises."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.disconnect(nowait=True)
