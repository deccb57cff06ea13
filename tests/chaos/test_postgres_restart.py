"""C27: Postgres is killed and started again under load."""

import asyncio

from tests.chaos.conftest import MortalPostgres
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream


async def test_c27_running_streams_outlive_a_killed_postgres_and_no_commit_is_lost(
    mortal_ledger: Cluster, mortal_postgres: MortalPostgres
) -> None:
    cluster = mortal_ledger
    await cluster.add_model("sim/slow", step_ms=20, tokens=120)
    for name, role in (("api0", "api"), ("settlement0", "settlement"), ("janitor0", "janitor")):
        cluster.start(name, role, reserve_retry_seconds=0.2)
    cluster.start("worker0", "worker", engine="simulator")
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    before = await stream(cluster.base_url(), key, model="sim/slow", content="Say exactly: before")
    await settled_usage(cluster.database, before.request_id)
    results = [Received() for _ in range(6)]
    streams = [
        asyncio.create_task(stream(cluster.base_url(), key, model="sim/slow", received=each)) for each in results
    ]
    while not all(len(each.pauses) > 10 for each in results):
        await asyncio.sleep(0.01)

    mortal_postgres.kill()
    refused = await stream(cluster.base_url(), key, model="sim/slow")
    await asyncio.gather(*streams)
    mortal_postgres.start()

    assert refused.status == 503
    assert refused.error is not None and refused.error["code"] == "dependency_unavailable"
    assert all(each.complete for each in results)
    for each in results:
        row = await settled_usage(cluster.database, each.request_id)
        assert (row.status, row.completion_tokens) == ("completed", 120)
        assert row.cost == row.prompt_tokens * PRICES.prompt + row.completion_tokens * PRICES.completion
    assert (await settled_usage(cluster.database, before.request_id)).status == "completed"
    after = await stream(cluster.base_url(), key, model="sim/slow", content="Say exactly: after")
    assert (after.text, after.complete) == ("after", True)
    await assert_clean(cluster.database, cluster.redis)
