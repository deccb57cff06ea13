"""One connection kept for one batcher: no walk through the pool per batch, and statements stay prepared.

Also how statements fail: `DependencyUnavailable` where Postgres is not there (retry the same rows), `StatementFailed`
where it refuses these rows (retrying cannot help; halving finds the bad one).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import asyncpg

from shared.connections import Connection, Database, postgres_errors
from shared.errors import DependencyUnavailable, StatementFailed

RowT = TypeVar("RowT")
ResultT = TypeVar("ResultT")


class Session:
    """A connection of its own out of `database`, replaced when it breaks; for one user at a time."""

    def __init__(self, database: Database, *, timeout_seconds: float = 5.0) -> None:
        self._database = database
        self._timeout_seconds = timeout_seconds
        self._connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None = None

    async def run(self, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns, given the connection. Raises DependencyUnavailable and StatementFailed."""
        try:
            with statement_errors():
                if self._connection is not None and self._connection.is_closed():
                    await self._drop()
                if self._connection is None:
                    self._connection = await self._database.acquire(timeout=self._timeout_seconds)
                # asyncpg may never answer a statement that crosses the server's end of the connection.
                async with asyncio.timeout(self._timeout_seconds):
                    return await work(self._connection)
        except (DependencyUnavailable, asyncio.CancelledError):  # the connection may be in the middle of something
            await self._drop()
            raise

    async def close(self) -> None:
        """Give the connection back to the pool."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await self._database.release(connection, timeout=self._timeout_seconds)

    async def _drop(self) -> None:
        if self._connection is not None:
            with suppress(asyncpg.InterfaceError):
                self._connection.terminate()
        await self.close()


@contextmanager
def statement_errors() -> Iterator[None]:
    """Translate what a statement raises: see the module's first lines."""
    try:
        with postgres_errors():
            yield
    except (asyncpg.PostgresError, ValueError) as error:
        raise StatementFailed(f"{type(error).__name__}: {error}") from error


async def halve(
    rows: Sequence[RowT],
    send: Callable[[Sequence[RowT]], Awaitable[Sequence[ResultT]]],
    refuse: Callable[[RowT, StatementFailed], ResultT],
) -> list[ResultT]:
    """Send `rows`; where the statement fails, send each half, until each bad row stands alone and is refused."""
    try:
        return list(await send(rows))
    except StatementFailed as error:
        if len(rows) == 1:
            return [refuse(rows[0], error)]
    middle = len(rows) // 2
    return await halve(rows[:middle], send, refuse) + await halve(rows[middle:], send, refuse)
