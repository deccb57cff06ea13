"""How to reach Postgres and Redis: pools that their opener closes, and the translation of their connection errors."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg
import redis.asyncio
from redis import exceptions as redis_exceptions

from shared.errors import DependencyUnavailable
from shared.settings import StoreSettings

if TYPE_CHECKING:
    Database = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Database = asyncpg.Pool
    Connection = asyncpg.Connection

Redis = redis.asyncio.Redis

_POSTGRES_DOWN = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement met the server's end of its connection half-read
)
_REDIS_DOWN = (OSError, TimeoutError, redis_exceptions.ConnectionError, redis_exceptions.TimeoutError)


@asynccontextmanager
async def open_database(settings: StoreSettings, *, role: str) -> AsyncIterator[Database]:
    """Yield a Postgres pool and close it; `role` is its `application_name`."""
    pool = await asyncpg.create_pool(
        settings.database_url,
        min_size=1,
        max_size=settings.database_connections_most,
        timeout=settings.store_timeout_seconds,
        command_timeout=settings.store_timeout_seconds * 2,
        server_settings={"application_name": f"inferbase-{role}", "jit": "off"},
        reset=_keep_session,
    )
    try:
        yield pool
    finally:
        await _close(pool, settings.store_timeout_seconds)


async def _close(pool: Database, seconds: float) -> None:
    """Close `pool`; by force where a connection that its server cut is never given back."""
    try:
        async with asyncio.timeout(seconds):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def _keep_session(connection: object) -> None:
    """Return a connection to the pool without asyncpg's RESET round trip: no query of ours changes its session."""


@asynccontextmanager
async def open_redis(settings: StoreSettings, *, role: str) -> AsyncIterator[Redis]:
    """Yield a Redis client (bytes in, bytes out) with a pool of its own and close both."""
    client = redis.asyncio.Redis.from_url(
        settings.redis_url,
        client_name=f"inferbase-{role}",
        max_connections=settings.redis_connections_most,
        socket_connect_timeout=settings.store_timeout_seconds,
        socket_timeout=None,
        health_check_interval=0,
    )
    try:
        yield client
    finally:
        await client.aclose()


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Turn `Postgres is not there, or not able to` into DependencyUnavailable; errors of a statement pass."""
    try:
        yield
    except ValueError:  # a value that asyncpg cannot encode; asyncpg counts it among its InterfaceErrors
        raise
    except _POSTGRES_DOWN as error:
        raise DependencyUnavailable("The database is unavailable: retry shortly.", retry_after_seconds=2) from error


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn `Redis is not there` into DependencyUnavailable; errors of a command pass."""
    try:
        yield
    except _REDIS_DOWN as error:
        raise DependencyUnavailable("The queue is unavailable: retry shortly.", retry_after_seconds=2) from error
