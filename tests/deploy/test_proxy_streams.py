"""Streams through the shipped proxy before real API nodes: as they come, and over when the client leaves."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx

from tests.cluster import Cluster
from tests.deploy.proxy import Proxy

STEP_SECONDS = 0.7  # of the model sim/slow


def _body(model: str, **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "count"}], "stream": True, **fields}


async def _lines(proxy: Proxy, key: str, body: dict[str, object]) -> AsyncIterator[tuple[float, str]]:
    """Yield each line of a streamed completion with the moment at which it came."""
    async with (
        httpx.AsyncClient(timeout=20, headers={"Authorization": f"Bearer {key}"}) as client,
        client.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-request-id"].startswith("chatcmpl-")
        async for line in response.aiter_lines():
            yield time.monotonic(), line


async def test_a_stream_passes_as_it_comes_with_its_pings(proxied: tuple[Proxy, Cluster]) -> None:
    proxy, cluster = proxied
    _, key = await cluster.add_account("1")

    lines = [each async for each in _lines(proxy, key, _body("sim/slow", max_tokens=5))]

    tokens = [
        at
        for at, line in lines
        if line.startswith("data: {") and any(c["delta"].get("content") for c in json.loads(line[6:])["choices"])
    ]
    pings = [at for at, line in lines if line.startswith(":")]
    assert len(tokens) == 5
    assert lines[-1][1] == "data: [DONE]" or lines[-2][1] == "data: [DONE]"
    assert tokens[-1] - tokens[0] > 4 * STEP_SECONDS / 2
    assert len(pings) >= len(tokens)
    assert any(tokens[0] < at < tokens[-1] for at in pings)


async def test_a_client_that_leaves_ends_its_run_behind_the_proxy(proxied: tuple[Proxy, Cluster]) -> None:
    proxy, cluster = proxied
    account, key = await cluster.add_account("1")

    async for _, line in _lines(proxy, key, _body("sim/slow", max_tokens=5)):
        if line.startswith("data: "):
            break

    deadline = time.monotonic() + 10
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as client:
        while not (rows := (await client.get(f"{proxy.url}/v1/usage")).json()["data"]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    assert rows[0]["status"] == "cancelled"
    assert rows[0]["completion_tokens"] < 5
    assert account
