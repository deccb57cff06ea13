"""The whole product over a Valkey or a Postgres that a test may kill."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from compose.stores import Postgres, Valkey, free_port
from shared.connections import Database, Redis, open_database, open_redis
from shared.database.migrate import migrate
from shared.settings import StoreSettings
from tests.cluster import Cluster, open_cluster
from tests.cluster_fixtures import cluster, product

__all__ = ["cluster", "mortal_cluster", "mortal_ledger", "mortal_postgres", "mortal_valkey", "product"]


class MortalValkey(Valkey):
    """A Valkey with a data folder that lasts, to be killed and started again."""

    @property
    def folder(self) -> Path:
        return self._folder

    def kill(self) -> None:
        """End it as a crash would: no last sync, no goodbye."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()


class MortalPostgres(Postgres):
    """A Postgres that writes through to its disk, to be killed and started again."""

    def kill(self) -> None:
        """End it as a crash would; its backends follow their parent."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()


@pytest.fixture
def mortal_postgres(store_folder: Path) -> Iterator[MortalPostgres]:
    """A started and empty Postgres of this test's own."""
    server = MortalPostgres(store_folder / "mortal", free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def mortal_ledger(
    mortal_postgres: MortalPostgres, redis_url: str, redis: Redis, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """A cluster over `mortal_postgres`, migrated; no process yet."""
    await migrate(mortal_postgres.url)
    async with (
        open_database(StoreSettings(database_url=mortal_postgres.url), role="test") as database,
        open_cluster(
            database_url=mortal_postgres.url, redis_url=redis_url, database=database, redis=redis, folder=tmp_path
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def mortal_valkey(tmp_path: Path) -> Iterator[MortalValkey]:
    """A started Valkey of this test's own."""
    server = MortalValkey(tmp_path / "valkey", free_port(), password="")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def mortal_cluster(
    database_url: str, database: Database, mortal_valkey: MortalValkey, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """A cluster over `mortal_valkey`; no process yet."""
    async with (
        open_redis(StoreSettings(redis_url=mortal_valkey.url), role="test") as redis,
        open_cluster(
            database_url=database_url, redis_url=mortal_valkey.url, database=database, redis=redis, folder=tmp_path
        ) as cluster,
    ):
        yield cluster
