"""This node's questions to Postgres outside of admission: one connection of the pool each."""

from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from shared.catalogue import Model
from shared.connections import Connection, Database, postgres_errors
from shared.database import api_keys, models, sessions
from shared.database.api_keys import Principal

ResultT = TypeVar("ResultT")


class Ledger:
    """Runs queries. Each raises DependencyUnavailable where Postgres is not there."""

    def __init__(self, database: Database, *, timeout_seconds: float) -> None:
        self._database = database
        self._timeout_seconds = timeout_seconds

    async def query(self, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns, given a connection."""
        with postgres_errors():
            async with self._database.acquire(timeout=self._timeout_seconds) as connection:
                return await work(connection)

    async def find_key(self, digest: bytes) -> Principal | None:
        """Return whose key this is, in any state."""
        return await self.query(lambda connection: api_keys.find_key(connection, digest))

    async def find_dead(self, key_ids: Collection[str]) -> set[str]:
        """Return those keys, and sessions, that may not go on."""
        ended = [key_id for key_id in key_ids if sessions.is_session(key_id)]
        keys = [key_id for key_id in key_ids if not sessions.is_session(key_id)]

        async def look(connection: Connection) -> set[str]:
            dead = await api_keys.find_dead(connection, keys) if keys else set()
            return dead | (await sessions.find_ended(connection, ended) if ended else set())

        return await self.query(look)

    async def touch_keys(self, key_ids: Collection[str]) -> None:
        """Note that keys were used."""
        await self.query(lambda connection: api_keys.touch_keys(connection, key_ids))

    async def list_models(self) -> list[Model]:
        """Return the catalogue."""
        return await self.query(models.list_models)
