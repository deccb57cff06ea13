"""Several API nodes and workers share one ledger: nobody spends more than there is."""

import asyncio

from shared import pricing
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean
from tests.streams import stream

STREAMS = 200
AFFORDABLE = 40


async def test_two_hundred_streams_over_three_nodes_never_overspend(cluster: Cluster) -> None:
    await cluster.add_model("sim/plain", tokens=16, step_ms=5)
    for index in range(3):
        cluster.start(f"api{index}", "api")
    for index in range(2):
        cluster.start(f"worker{index}", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    for index in range(3):
        await cluster.wait_ready(node=f"api{index}")
    _, rich = await cluster.add_account()
    probe = await stream(cluster.base_url(), rich, max_tokens=16)
    assert probe.usage is not None
    cost = probe.usage["prompt_tokens"] * PRICES.prompt + probe.usage["completion_tokens"] * PRICES.completion
    account_id, key = await cluster.add_account(pricing.format_credits(cost * AFFORDABLE))

    results = await asyncio.gather(
        *(stream(cluster.base_url(f"api{index % 3}"), key, max_tokens=16) for index in range(STREAMS))
    )

    await assert_clean(cluster.database, cluster.redis)
    served = [result for result in results if result.status == 200]
    refused = [result for result in results if result.status == 402]
    assert all(result.complete for result in served)
    assert 1 <= len(served) <= AFFORDABLE
    assert len(served) + len(refused) == STREAMS
    balance, held = await cluster.database.fetchrow(  # type: ignore[misc]
        "SELECT balance, held FROM accounts WHERE id = $1", account_id
    )
    assert held == 0
    assert balance == cost * AFFORDABLE - cost * len(served) >= 0
