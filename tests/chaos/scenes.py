"""What the tests of faults have in common: a product started, streams begun, repairs counted."""

import asyncio
from collections.abc import Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from shared.presence import health
from tests.cluster import Cluster, free_port
from tests.streams import Received, stream

BRISK = {"lease_seconds": 2, "beat_seconds": 0.5, "reap_seconds": 0.2}
BEGUN_EVENTS = 10

Gathered = asyncio.Future[list[object]]


async def start(cluster: Cluster, *, workers: int = 1, nodes: int = 1, **settings: object) -> None:
    """Start the product, every process with the same settings, without waiting for a model."""
    for index in range(nodes):
        start_told(cluster, f"api{index}", "api", **settings)
    for index in range(workers):
        start_told(cluster, f"worker{index}", "worker", engine="simulator", **settings)
    start_told(cluster, "settlement0", "settlement", **settings)
    start_told(cluster, "janitor0", "janitor", **settings)


def start_told(cluster: Cluster, name: str, role: str, **settings: object) -> None:
    """Start a process that tells its metrics; see `counted`."""
    cluster.ports[f"{name} metrics"] = free_port()
    cluster.start(name, role, metrics_port=cluster.ports[f"{name} metrics"], **settings)


async def begin(
    cluster: Cluster,
    key: str,
    count: int,
    *,
    model: str = "sim/slow",
    headers: Sequence[dict[str, str]] = ({},),
    **fields: object,
) -> tuple[list[Received], Gathered]:
    """Start `count` streams and return once each has got some tokens; they take `headers` in turn."""
    fields.setdefault("content", "story")
    results = [Received() for _ in range(count)]
    gathered: Gathered = asyncio.gather(
        *(
            stream(cluster.base_url(), key, model=model, received=each, headers=headers[index % len(headers)], **fields)  # type: ignore[arg-type]
            for index, each in enumerate(results)
        ),
        return_exceptions=True,
    )
    while not all(len(each.pauses) > BEGUN_EVENTS for each in results):
        assert not any(each.error for each in results), results
        await asyncio.sleep(0.01)
    return results, gathered


async def workers_ready(cluster: Cluster, count: int, *, model: str = "sim/slow") -> None:
    """Return once so many workers serve `model`."""
    async with asyncio.timeout(60):
        while (await health(cluster.redis, model)).workers < count:
            await asyncio.sleep(0.02)


async def counted(cluster: Cluster, name: str, metric: str, **labels: str) -> float:
    """Return what process `name` has counted, over all series of `metric` with these labels."""
    async with httpx.AsyncClient(timeout=20) as client:
        answer = await client.get(f"http://127.0.0.1:{cluster.ports[f'{name} metrics']}/metrics")
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    )


async def assert_serves(cluster: Cluster, key: str, *, model: str = "sim/slow", node: str = "api0") -> None:
    """Assert that a normal request succeeds."""
    after = await stream(cluster.base_url(node), key, model=model, content="Say exactly: back")
    assert (after.text, after.complete) == ("back", True), after
