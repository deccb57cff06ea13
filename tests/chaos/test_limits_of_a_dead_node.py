"""What a killed API node took of its keys' limits comes back: slots when its lease ends, tokens at settlement."""

import asyncio
import time

import httpx

from shared import ids, secrets
from shared.database import api_keys
from tests.cluster import PEPPER, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream

TPM = 5_000
SLOT_SECONDS_MOST = 10.0  # the lease of a node, and a beat
SETTLED_SECONDS_MOST = 25.0  # no reader for 10 s, then cancelled and settled


async def test_slots_come_back_by_lease_and_tokens_by_settlement(product: Cluster) -> None:
    await product.add_model("sim/slow", tokens=4000, step_ms=10)
    product.start("api1", "api")
    await product.wait_ready("sim/slow", node="api1")
    account_id, _ = await product.add_account()
    key = secrets.make_key()
    async with product.database.acquire() as connection:
        await api_keys.create_key(
            connection,
            account_id=account_id,
            name=ids.new_id("t"),
            digest=secrets.digest(key, PEPPER),
            prefix=secrets.prefix(key),
            tpm=TPM,
            concurrency=1,
        )
    running = Received()
    reading = asyncio.create_task(stream(product.base_url(), key, model="sim/slow", max_tokens=4000, received=running))
    while len(running.pauses) < 5:
        await asyncio.sleep(0.01)

    product.processes["api0"].kill()
    killed_at = time.monotonic()
    await asyncio.gather(reading, return_exceptions=True)
    refused = await _send(product, key)
    while (served := await _send(product, key)).status_code == 429:
        assert time.monotonic() - killed_at < SLOT_SECONDS_MOST
        await asyncio.sleep(0.05)
    before = int(served.headers["x-ratelimit-remaining-tokens"])
    usage = await settled_usage(product.database, running.request_id, seconds=SETTLED_SECONDS_MOST)
    after = int((await _send(product, key)).headers["x-ratelimit-remaining-tokens"])

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
    assert usage.status == "cancelled"
    assert before < TPM - 4000 + (time.monotonic() - killed_at + 2) * TPM / 60
    assert after > TPM - usage.prompt_tokens - usage.completion_tokens - 200
    await assert_clean(product.database, product.redis)


async def _send(product: Cluster, key: str) -> httpx.Response:
    body = {"model": "sim/plain", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    async with httpx.AsyncClient(timeout=20, headers={"authorization": f"Bearer {key}"}) as client:
        return await client.post(f"{product.base_url('api1')}/chat/completions", json=body)
