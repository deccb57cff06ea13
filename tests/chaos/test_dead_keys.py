"""A key that expires, or whose account is deactivated, stops everywhere within five seconds as a revoked one does."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from shared import keys
from shared.database import accounts
from tests.cluster import Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream

LIFE_SECONDS = 4.0  # enough to see one request run and one wait


async def test_an_expired_key_stops_what_runs_and_what_waits_within_five_seconds(product: Cluster) -> None:
    await one_slot(product)
    dies = datetime.now(UTC) + timedelta(seconds=LIFE_SECONDS)
    _, key = await product.add_account(expires_at=dies)

    running, queued = Received(), Received()
    streams = await run_and_queue(product, key, running, queued)
    assert datetime.now(UTC) < dies
    await asyncio.gather(*streams)

    assert time.time() - dies.timestamp() < 5
    await assert_stopped(product, running, queued)
    refused = await stream(product.base_url(), key, model="sim/one")
    assert (refused.status, refused.error and refused.error["code"]) == (401, "token_expired")


async def test_a_deactivated_account_stops_what_runs_and_what_waits_within_five_seconds(product: Cluster) -> None:
    await one_slot(product)
    account_id, key = await product.add_account()

    running, queued = Received(), Received()
    streams = await run_and_queue(product, key, running, queued)
    async with product.database.acquire() as connection:
        assert await accounts.set_active(connection, account_id, active=False)
    stopped = time.monotonic()
    await asyncio.gather(*streams)

    assert time.monotonic() - stopped < 5
    await assert_stopped(product, running, queued)
    while (refused := await stream(product.base_url(), key, model="sim/one")).status != 403:
        assert time.monotonic() - stopped < 5.5
    assert refused.error is not None
    assert refused.error["code"] == "account_deactivated"


async def one_slot(product: Cluster) -> None:
    await product.add_model("sim/one", slots=1, step_ms=20, tokens=4000)
    await product.wait_ready("sim/one")


async def run_and_queue(product: Cluster, key: str, running: Received, queued: Received) -> list["asyncio.Task[Any]"]:
    """Return one stream that has begun and one that waits for its slot."""
    streams = [asyncio.create_task(stream(product.base_url(), key, model="sim/one", received=running))]
    while len(running.pauses) < 10:
        await asyncio.sleep(0.01)
    streams.append(asyncio.create_task(stream(product.base_url(), key, model="sim/one", received=queued)))
    while await product.redis.zcard(keys.queue("sim/one", "interactive")) == 0:
        await asyncio.sleep(0.01)
    return streams


async def assert_stopped(product: Cluster, running: Received, queued: Received) -> None:
    """Assert that what ran was cancelled and charged, and that what waited was free."""
    assert running.error is not None
    assert running.error["code"] == "key_revoked"
    assert queued.status == 403
    ran, waited = [await settled_usage(product.database, one.request_id) for one in (running, queued)]
    assert ran.status == "cancelled"
    assert ran.cost > 0
    assert (waited.status, waited.cost) == ("failed", 0)
    await assert_clean(product.database, product.redis)
