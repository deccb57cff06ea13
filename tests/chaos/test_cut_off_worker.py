"""A worker that Redis is out of reach of: it stops by itself before anybody else may go on, and can write nothing."""

import asyncio
import time

from compose.stores import Valkey
from tests.chaos.proxy import open_proxy
from tests.chaos.scenes import assert_serves, begin, counted, start, start_told, workers_ready
from tests.cluster import Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import stream

LEASE_SECONDS = 4.0
LEASED = {"lease_seconds": LEASE_SECONDS, "beat_seconds": 0.5, "reap_seconds": 0.2}
TOKENS = 200


async def test_a_worker_cut_off_from_redis_stops_within_its_lease_and_another_goes_on(
    cluster: Cluster, valkey_server: Valkey
) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=TOKENS)
    await cluster.add_model("sim/quick", tokens=TOKENS)  # says the same
    async with open_proxy(valkey_server.port) as proxy:
        through = valkey_server.url.replace(f":{valkey_server.port}/", f":{proxy.port}/")
        await start(cluster, workers=0, **LEASED)
        start_told(cluster, "worker0", "worker", engine="simulator", redis_url=through, **LEASED)
        await cluster.wait_ready("sim/slow")
        _, key = await cluster.add_account()
        expected = await stream(cluster.base_url(), key, model="sim/quick", content="story")
        results, running = await begin(cluster, key, 3)

        proxy.silence()
        silent_at = time.monotonic()
        start_told(cluster, "worker1", "worker", engine="simulator", **LEASED)
        while await counted(cluster, "worker0", "inferbase_leases_lost_total") < len(results):
            await asyncio.sleep(0.05)
        stopped_seconds = time.monotonic() - silent_at
        await running
        proxy.heal()
        cluster.processes["worker1"].stop()
        await workers_ready(cluster, 1)
        await assert_serves(cluster, key)

        assert stopped_seconds < LEASE_SECONDS
        assert all(each.complete and each.text == expected.text for each in results), [each.error for each in results]
        for each in results:
            row = await settled_usage(cluster.database, each.request_id)
            assert (row.status, row.completion_tokens, row.attempts) == ("completed", TOKENS, 2)
        assert cluster.processes["worker0"].alive()
        await assert_clean(cluster.database, cluster.redis)
        cluster.processes["worker0"].kill()
