"""What every test may ask for: two real servers per session, a fresh database and an empty Valkey per test."""

import asyncio
import inspect
import itertools
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import redis as redis_client

from compose.stores import Postgres, Valkey, free_port, open_postgres, open_valkey
from shared.connections import Database, Redis, open_database, open_redis
from shared.settings import SecretSettings, Settings, StoreSettings

TEMPLATE = "template_inferbase"

_database_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def store_folder() -> Iterator[Path]:
    """Open to other users, since Postgres may have to run as one of them."""
    with tempfile.TemporaryDirectory(prefix="inferbase-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@pytest.fixture(scope="session")
def postgres_server(store_folder: Path) -> Iterator[Postgres]:
    """One Postgres for the session, without fsync; it holds an empty template until a test asks for a database."""
    with open_postgres(store_folder / "postgres", free_port(), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(store_folder: Path) -> Iterator[Valkey]:
    """One Valkey for the session."""
    with open_valkey(store_folder / "valkey", free_port()) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: Postgres) -> str:
    """The name of a database that has every migration, to be copied."""
    run_apart(_make_template(postgres_server))
    return TEMPLATE


@pytest.fixture
async def database_url(postgres_server: Postgres, migrated_template: str) -> AsyncIterator[str]:
    """The address of a database of this test's own, migrated and empty."""
    name = f"test_{next(_database_numbers)}"
    await _execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY FILE_COPY")
    yield postgres_server.url_of(name)
    await _execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(valkey_server: Valkey) -> str:
    """The address of logical database 0, flushed."""
    with redis_client.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    """Settings with this test's stores and secrets that are no secret."""
    return Settings(
        stores=StoreSettings(database_url=database_url, redis_url=redis_url),
        secrets=SecretSettings(key_pepper="pepper-of-the-tests-" * 2, wire_key="wire-key-of-the-tests-" * 2),
        log_json=False,
    )


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on this test's database."""
    async with open_database(StoreSettings(database_url=database_url), role="test") as pool:
        yield pool


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client on this test's Valkey."""
    async with open_redis(StoreSettings(redis_url=redis_url), role="test") as client:
        yield client


def run_apart(work: object) -> None:
    """Run a coroutine to its end on a loop of a thread of its own, so that pytest's own loop is not touched."""
    assert inspect.iscoroutine(work)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


async def _make_template(server: Postgres) -> None:
    from shared.database.migrate import migrate

    await _execute(server, f"CREATE DATABASE {TEMPLATE}")
    outcome = migrate(server.url_of(TEMPLATE))
    if inspect.isawaitable(outcome):
        await outcome


async def _execute(server: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
