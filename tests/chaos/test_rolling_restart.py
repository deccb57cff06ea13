"""C11: all API nodes and all workers are restarted, one of each kind at a time, under load; no stream is dropped."""

import asyncio
from itertools import count

import httpx

from tests.chaos.scenes import assert_serves, start, workers_ready
from tests.cluster import Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream

WORKERS = 4
NODES = 2
STREAMS = 50
TOKENS = 50


class Load:
    """Clients as the SDKs are: a connection that fails before any answer is tried again, here on the next node."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.results: list[Received] = []
        self.stopping = False
        self._cluster = cluster
        self._key = key
        self._turns = count()

    async def keep_streaming(self) -> None:
        while not self.stopping:
            self.results.append(await self._one())

    async def _one(self) -> Received:
        while True:
            url, got = self._cluster.base_url(f"api{next(self._turns) % NODES}"), Received()
            try:
                return await stream(url, self._key, model="sim/slow", content="story", received=got)
            except httpx.TransportError:
                if got.status:
                    return got  # dropped
                await asyncio.sleep(0.01)


async def test_c11_a_rolling_restart_under_fifty_streams_drops_none(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", step_ms=40, tokens=TOKENS)
    await start(cluster, workers=WORKERS, nodes=NODES, drain_seconds=0.5)
    for index in range(NODES):
        await cluster.wait_ready("sim/slow", node=f"api{index}")
    await _ready(cluster, "workers")
    _, key = await cluster.add_account()
    expected = (await stream(cluster.base_url(), key, model="sim/slow", content="story")).text
    load = Load(cluster, key)
    clients = [asyncio.create_task(load.keep_streaming()) for _ in range(STREAMS)]

    async def roll(names: list[str]) -> list[int]:
        statuses = []
        for name in names:
            statuses.append(await asyncio.to_thread(cluster.processes[name].stop, 60))
            cluster.processes[name].start()
            await _ready(cluster, name)
        return statuses

    statuses = await asyncio.gather(
        roll([f"worker{index}" for index in range(WORKERS)]), roll([f"api{index}" for index in range(NODES)])
    )
    load.stopping = True
    await asyncio.gather(*clients)

    assert statuses == [[0] * WORKERS, [0] * NODES]
    assert [each for each in load.results if not each.complete or each.text != expected] == []
    assert len(load.results) >= STREAMS
    rows = [await settled_usage(cluster.database, each.request_id) for each in load.results]
    assert {(row.status, row.completion_tokens) for row in rows} == {("completed", TOKENS)}
    assert any(row.attempts > 1 for row in rows)
    for index in range(NODES):
        await assert_serves(cluster, key, node=f"api{index}")
    await assert_clean(cluster.database, cluster.redis)


async def _ready(cluster: Cluster, name: str) -> None:
    """Return once a process is back: a node when it serves, a worker when all of them are there."""
    if name.startswith("api"):
        await cluster.wait_ready("sim/slow", node=name)
        return
    await workers_ready(cluster, WORKERS)
