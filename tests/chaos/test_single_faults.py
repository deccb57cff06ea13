"""One fault at a time, each at a named point (FAULTS section 1)."""

import asyncio
import signal
import time

from tests.chaos.conftest import MortalValkey
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, quiesced, settled_usage
from tests.streams import Received, stream

LEASE_SECONDS = 6.0


async def _reference_text(cluster: Cluster, key: str, model: str, content: str) -> str:
    return (await stream(cluster.base_url(), key, model=model, content=content)).text


async def test_c01_a_client_that_leaves_mid_stream_pays_for_the_log_and_frees_its_slot(product: Cluster) -> None:
    await product.add_model("sim/slow", step_ms=20, tokens=2000)
    await product.wait_ready("sim/slow")
    account_id, key = await product.add_account()

    got = await stream(product.base_url(), key, model="sim/slow", leave_after=10)
    left_at = time.monotonic()
    row = await settled_usage(product.database, got.request_id, seconds=3)

    assert time.monotonic() - left_at < 3
    assert row.status == "cancelled"
    assert 8 <= row.completion_tokens <= 10 + 50 * 2
    assert row.cost == row.prompt_tokens * PRICES.prompt + row.completion_tokens * PRICES.completion
    await assert_clean(product.database, product.redis)
    assert account_id


async def test_c02_a_client_that_leaves_the_queue_pays_nothing(product: Cluster) -> None:
    await product.add_model("sim/one", slots=1, step_ms=50, tokens=100)
    await product.wait_ready("sim/one")
    _, key = await product.add_account()
    running = asyncio.create_task(stream(product.base_url(), key, model="sim/one"))
    while await product.redis.zcard("arq:in-progress:{sim/one}") == 0:
        await asyncio.sleep(0.01)

    queued = asyncio.create_task(stream(product.base_url(), key, model="sim/one"))
    while await product.redis.zcard("arq:queue:{sim/one}:interactive") == 0:
        await asyncio.sleep(0.01)
    queued.cancel()
    left_at = time.monotonic()
    while await product.database.fetchval("SELECT count(*) FROM usage") == 0:
        await asyncio.sleep(0.01)

    assert time.monotonic() - left_at < 2
    row = await product.database.fetchrow("SELECT status, cost FROM usage")
    assert row is not None
    assert (row["status"], row["cost"]) == ("cancelled", 0)
    assert (await running).complete
    await assert_clean(product.database, product.redis)


async def test_c13_a_killed_worker_is_continued_without_gap_or_duplicate(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=300)
    cluster.start("api0", "api")
    for index in range(2):
        cluster.start(f"worker{index}", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    expected = {str(i): await _reference_text(cluster, key, "sim/slow", f"story {i}") for i in range(2)}
    results = [Received() for _ in range(8)]

    streams = [
        asyncio.create_task(
            stream(cluster.base_url(), key, model="sim/slow", content=f"story {i % 2}", received=results[i])
        )
        for i in range(8)
    ]
    while not all(len(result.pauses) > 20 for result in results):
        await asyncio.sleep(0.01)
    cluster.processes["worker0"].kill()
    await asyncio.gather(*streams)

    for index, result in enumerate(results):
        assert result.complete, (result.error, index)
        assert result.text == expected[str(index % 2)]
    assert max(max(result.pauses) for result in results) < LEASE_SECONDS + 1
    await assert_clean(cluster.database, cluster.redis)
    for result in results:
        row = await settled_usage(cluster.database, result.request_id)
        assert row.completion_tokens == 300


async def test_c07_an_api_node_killed_between_reserve_and_enqueue_holds_nothing_for_long(product: Cluster) -> None:
    product.start("api1", "api", crash_point="after_reserve_commit")
    await product.wait_ready(node="api1")
    _, key = await product.add_account()

    broken = await asyncio.gather(stream(product.base_url("api1"), key), return_exceptions=True)
    assert isinstance(broken[0], Exception)
    assert product.processes["api1"].wait(5) == -signal.SIGKILL
    killed_at = time.monotonic()
    await quiesced(product.database, seconds=45)

    assert time.monotonic() - killed_at < 45
    row = await product.database.fetchrow("SELECT status, cost FROM usage")
    assert row is not None
    assert (row["status"], row["cost"]) == ("failed", 0)
    await assert_clean(product.database, product.redis)


async def test_c22_settlement_killed_between_commit_and_acknowledgement_charges_once(product: Cluster) -> None:
    _, key = await product.add_account()
    product.processes["settlement0"].kill()
    product.start("settlement1", "settlement", crash_point="after_settle_commit")

    got = await stream(product.base_url(), key)
    assert product.processes["settlement1"].wait(20) == -signal.SIGKILL
    product.start("settlement2", "settlement", settle_idle_ms=500)
    row = await settled_usage(product.database, got.request_id)
    while await product.redis.xlen("settlement:{sim/plain}"):
        await asyncio.sleep(0.02)

    assert row.status == "completed"
    assert await product.database.fetchval("SELECT count(*) FROM usage") == 1
    assert await product.database.fetchval("SELECT count(*) FROM transfers WHERE request_id IS NOT NULL") == 1
    await assert_clean(product.database, product.redis)


async def test_c25_streams_survive_or_end_honestly_when_valkey_is_killed(
    mortal_cluster: Cluster, mortal_valkey: MortalValkey
) -> None:
    cluster = mortal_cluster
    await cluster.add_model("sim/slow", step_ms=20, tokens=250)
    cluster.start("api0", "api")
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    expected = await _reference_text(cluster, key, "sim/slow", "story")
    results = [Received() for _ in range(8)]

    streams = [
        asyncio.create_task(stream(cluster.base_url(), key, model="sim/slow", content="story", received=result))
        for result in results
    ]
    while not all(len(result.pauses) > 20 for result in results):
        await asyncio.sleep(0.01)
    mortal_valkey.kill()
    mortal_valkey.start()
    await asyncio.gather(*streams)

    for result in results:
        if result.complete:
            assert result.text == expected
        else:
            assert result.error is not None
            assert expected.startswith(result.text)
    after = await stream(cluster.base_url(), key, model="sim/slow", content="story")
    assert after.complete
    await assert_clean(cluster.database, cluster.redis, seconds=90)
