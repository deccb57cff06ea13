"""Workers that drain, freeze, die of a request or are all gone; readers that die (FAULTS section 1)."""

import asyncio
import signal
import time

import httpx

from shared import keys
from tests.chaos.scenes import assert_serves, workers_ready
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream

BRISK = {"lease_seconds": 2, "beat_seconds": 0.5}


async def _start(cluster: Cluster, *, workers: int = 1, **settings: object) -> None:
    """Start the product without waiting for a model."""
    cluster.start("api0", "api", **settings)
    for index in range(workers):
        cluster.start(f"worker{index}", "worker", engine="simulator", **settings)
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor", **settings)


async def _begin(cluster: Cluster, key: str, count: int) -> tuple[list[Received], "asyncio.Future[list[object]]"]:
    """Start `count` streams of `sim/slow` and return once each has got some tokens."""
    results = [Received() for _ in range(count)]
    streams = [stream(cluster.base_url(), key, model="sim/slow", content="story", received=each) for each in results]
    gathered: asyncio.Future[list[object]] = asyncio.gather(*streams, return_exceptions=True)
    while not all(len(each.pauses) > 10 for each in results):
        await asyncio.sleep(0.01)
    return results, gathered


async def test_c15_a_worker_told_to_stop_hands_over_and_no_client_sees_it(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=120, slots=4)
    await _start(cluster, workers=2, drain_seconds=0.5, lease_seconds=60)
    await cluster.wait_ready("sim/slow")
    await workers_ready(cluster, 2)
    _, key = await cluster.add_account()
    expected = (await stream(cluster.base_url(), key, model="sim/slow", content="story")).text
    results, task = await _begin(cluster, key, 8)  # the slots of both workers

    status = await asyncio.to_thread(cluster.processes["worker0"].stop)
    await task

    assert status == 0
    assert all(each.complete and each.text == expected for each in results)
    rows = [await settled_usage(cluster.database, each.request_id) for each in results]
    assert sum(row.attempts > 1 for row in rows) == 4, "what worker0 had"
    assert max(max(each.pauses) for each in results) < 30, "a hand-over waits for no lease"
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)


async def test_c14_a_frozen_worker_comes_back_and_can_write_nothing(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=120)
    await _start(cluster, workers=1, **BRISK)
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    expected = (await stream(cluster.base_url(), key, model="sim/slow", content="story")).text
    results, task = await _begin(cluster, key, 6)
    owners = {await cluster.redis.hget(keys.state("sim/slow", each.request_id), "owner") for each in results}
    cluster.start("worker1", "worker", engine="simulator", **BRISK)

    cluster.processes["worker0"].send(signal.SIGSTOP)
    while owners & {await cluster.redis.hget(keys.state("sim/slow", each.request_id), "owner") for each in results}:
        await asyncio.sleep(0.02)
    cluster.processes["worker0"].send(signal.SIGCONT)
    await task

    assert all(each.complete and each.text == expected for each in results)
    for each in results:
        row = await settled_usage(cluster.database, each.request_id)
        assert (row.completion_tokens, row.attempts > 1) == (120, True)
    assert cluster.processes["worker0"].alive()
    cluster.processes["worker1"].kill()
    again = await stream(cluster.base_url(), key, model="sim/slow", content="Say exactly: back")
    assert (again.text, again.complete) == ("back", True)
    await assert_clean(cluster.database, cluster.redis)


async def test_c18_a_request_that_kills_its_worker_takes_nobody_with_it(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", prefill_ms=300, step_ms=5, tokens=40)
    await cluster.add_model("sim/poison", exit_after_tokens=0)
    await _start(cluster, workers=2, **BRISK)
    await cluster.wait_ready("sim/slow")
    await cluster.wait_ready("sim/poison")
    _, key = await cluster.add_account()
    workers = [cluster.processes[f"worker{index}"] for index in range(2)]
    deaths = 0

    async def supervise() -> None:
        nonlocal deaths
        while True:
            for worker in workers:
                if not worker.alive():
                    deaths += 1
                    worker.start()
            await asyncio.sleep(0.05)

    supervisor = asyncio.create_task(supervise())
    innocent = [asyncio.create_task(stream(cluster.base_url(), key, model="sim/slow")) for _ in range(20)]
    while await cluster.redis.zcard(keys.leases("sim/slow")) < 20:
        await asyncio.sleep(0.005)
    poison = await stream(cluster.base_url(), key, model="sim/poison")
    results = await asyncio.gather(*innocent)
    supervisor.cancel()

    assert poison.error is not None and poison.error["code"] == "request_quarantined"
    assert deaths == 2
    assert all(each.complete for each in results), [each.error for each in results]
    row = await settled_usage(cluster.database, poison.request_id)
    assert (row.status, row.cost) == ("failed", 0)
    await assert_clean(cluster.database, cluster.redis)


async def test_c20_without_any_worker_requests_end_within_their_patience_and_health_says_so(product: Cluster) -> None:
    _, key = await product.add_account()
    product.processes["worker0"].kill()
    killed_at = time.monotonic()
    headers = {"Authorization": f"Bearer {key}", "Inferbase-Wait": "2"}
    body = {"model": "sim/plain", "messages": [{"role": "user", "content": "hi"}]}

    async with httpx.AsyncClient(timeout=30, headers=headers) as client:
        url = product.base_url()
        answers = await asyncio.gather(
            *[client.post(f"{url}/chat/completions", json={**body, "stream": stream}) for stream in (False, True)]
        )
        answered_seconds = time.monotonic() - killed_at
        while (await client.get(f"{url}/models/sim/plain/health")).json()["status"] != "unavailable":
            assert time.monotonic() - killed_at < 15
            await asyncio.sleep(0.05)

    assert answered_seconds < 5
    for answer in answers:
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "model_unavailable"
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        row = await settled_usage(product.database, answer.headers["x-request-id"])
        assert (row.status, row.cost) == ("failed", 0)
    await assert_clean(product.database, product.redis)


async def test_c08_what_a_killed_api_node_relayed_stops_although_the_node_is_back_at_once(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=4000)
    await _start(cluster, no_reader_seconds=5)
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    (got,), task = await _begin(cluster, key, 1)

    cluster.processes["api0"].kill()
    killed_at = time.monotonic()
    cluster.processes["api0"].start()
    row = await settled_usage(cluster.database, got.request_id, seconds=10)

    assert time.monotonic() - killed_at < 10
    assert (row.status, row.finish_reason) == ("cancelled", None)
    assert 10 <= row.completion_tokens < 500
    assert row.cost == row.prompt_tokens * PRICES.prompt + row.completion_tokens * PRICES.completion
    assert isinstance((await task)[0], httpx.TransportError)
    await cluster.wait_ready("sim/slow")
    await assert_clean(cluster.database, cluster.redis)
