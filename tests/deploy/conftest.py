"""Fixtures of what is run as it ships."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster_fixtures import cluster
from tests.deploy.proxy import Proxy, open_proxy

__all__ = ["cluster", "proxied"]

PING_SECONDS = 0.3  # of the nodes behind the proxy: 10 as they ship
BODY_SECONDS = 2.0  # likewise, 30


@pytest.fixture
async def proxied(cluster: Cluster, tmp_path: Path) -> AsyncIterator[tuple[Proxy, Cluster]]:
    """The shipped proxy before two API nodes, with a worker that has `sim/plain` and `sim/slow` ready."""
    await cluster.add_model("sim/plain")
    await cluster.add_model("sim/slow", tokens=5, step_ms=700)
    for name in ("api0", "api1"):
        cluster.start(
            name,
            "api",
            ping_seconds=PING_SECONDS,
            status_hold_seconds=PING_SECONDS,
            body_seconds_most=BODY_SECONDS,
            trusted_proxies="127.0.0.1",
        )
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    for name in ("api0", "api1"):
        await cluster.wait_ready("sim/slow", node=name)
    folder = tmp_path / "proxy"
    folder.mkdir()
    with open_proxy(folder, [cluster.ports["api0"], cluster.ports["api1"]]) as proxy:
        yield proxy, cluster
