"""The whole product over a Valkey that a test may kill."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from compose.stores import Valkey, free_port
from shared.connections import Database, open_redis
from shared.settings import StoreSettings
from tests.cluster import Cluster, open_cluster
from tests.cluster_fixtures import cluster, product

__all__ = ["cluster", "mortal_cluster", "mortal_valkey", "product"]


class MortalValkey(Valkey):
    """A Valkey with a data folder that lasts, to be killed and started again."""

    def kill(self) -> None:
        """End it as a crash would: no last sync, no goodbye."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()


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
