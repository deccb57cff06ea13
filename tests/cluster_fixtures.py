"""Fixtures of the whole product: real processes over this test's stores, for journeys and chaos."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.connections import Database, Redis
from tests.cluster import Cluster, open_cluster


@pytest.fixture
async def cluster(
    database_url: str, redis_url: str, database: Database, redis: Redis, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """No process yet; everything that the test starts is ended."""
    async with open_cluster(
        database_url=database_url, redis_url=redis_url, database=database, redis=redis, folder=tmp_path
    ) as cluster:
        yield cluster


@pytest.fixture
async def product(cluster: Cluster) -> Cluster:
    """One of each process, with the model `sim/plain` ready."""
    await cluster.add_model("sim/plain")
    cluster.start("api0", "api")
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    await cluster.wait_ready()
    return cluster
