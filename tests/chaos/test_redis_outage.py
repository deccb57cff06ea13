"""A Redis that stays away for longer than streams wait: what we broke is free, and nothing runs on for nobody."""

import asyncio

from tests.chaos.conftest import MortalValkey
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream


async def test_what_a_long_outage_broke_is_free_and_what_a_client_left_meanwhile_ends(
    mortal_cluster: Cluster, mortal_valkey: MortalValkey
) -> None:
    cluster = mortal_cluster
    await cluster.add_model("sim/slow", step_ms=20, tokens=4000)
    for name, role in (("api0", "api"), ("settlement0", "settlement"), ("janitor0", "janitor")):
        cluster.start(name, role)
    cluster.start("worker0", "worker", engine="simulator")
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    broken, left = Received(), Received()
    streams = [
        asyncio.create_task(stream(cluster.base_url(), key, model="sim/slow", received=each)) for each in (broken, left)
    ]
    while not all(len(each.pauses) > 10 for each in (broken, left)):
        await asyncio.sleep(0.01)

    mortal_valkey.kill()
    streams[1].cancel()
    await streams[0]
    mortal_valkey.start()

    assert broken.error is not None and broken.error["code"] == "worker_lost"
    row = await settled_usage(cluster.database, broken.request_id)
    assert (row.status, row.code, row.cost) == ("failed", "worker_lost", 0)
    row = await settled_usage(cluster.database, left.request_id)
    assert row.status == "cancelled"
    assert 10 <= row.completion_tokens < 1000
    assert row.cost == row.prompt_tokens * PRICES.prompt + row.completion_tokens * PRICES.completion
    await assert_clean(cluster.database, cluster.redis)
