"""A revoked key stops everywhere within five seconds, also where only the ledger was told (promise 5)."""

import asyncio
import time

from shared import keys
from shared.database import api_keys
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream


async def test_a_revoked_key_stops_what_runs_and_what_waits_within_five_seconds(product: Cluster) -> None:
    await product.add_model("sim/one", slots=1, step_ms=20, tokens=4000)
    await product.wait_ready("sim/one")
    account_id, key = await product.add_account()
    running, queued = Received(), Received()

    streams = [asyncio.create_task(stream(product.base_url(), key, model="sim/one", received=running))]
    while len(running.pauses) < 10:
        await asyncio.sleep(0.01)
    streams.append(asyncio.create_task(stream(product.base_url(), key, model="sim/one", received=queued)))
    while await product.redis.zcard(keys.queue("sim/one", "interactive")) == 0:
        await asyncio.sleep(0.01)
    async with product.database.acquire() as connection:
        (row,), _ = await api_keys.list_keys(connection, account_id, limit=1)
        assert await api_keys.revoke_key(connection, account_id, row.id)
    revoked_at = time.monotonic()
    await asyncio.gather(*streams)

    assert time.monotonic() - revoked_at < 5
    assert running.error is not None and running.error["code"] == "key_revoked"
    assert (queued.status, queued.error and queued.error["code"]) == (403, "key_revoked")
    ran = await settled_usage(product.database, running.request_id)
    assert ran.status == "cancelled"
    assert ran.cost == ran.prompt_tokens * PRICES.prompt + ran.completion_tokens * PRICES.completion > 0
    waited = await settled_usage(product.database, queued.request_id)
    assert (waited.status, waited.cost) == ("failed", 0)
    while (refused := await stream(product.base_url(), key, model="sim/one")).status != 403:
        assert time.monotonic() - revoked_at < 5.5
    assert refused.error is not None and refused.error["code"] == "key_revoked"
    await assert_clean(product.database, product.redis)
