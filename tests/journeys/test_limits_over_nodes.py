"""The limits of a key hold over three API nodes, and every answer tells what is left of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared import ids, secrets
from shared.database import api_keys
from tests.cluster import PEPPER, Cluster
from tests.ledger import assert_clean, settled_usage

BODY = {"model": "sim/plain", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
SECONDS_MOST = 20.0  # for one burst


@pytest.fixture
async def three(cluster: Cluster) -> AsyncIterator[Cluster]:
    """Three API nodes before one worker."""
    await cluster.add_model("sim/plain", tokens=4)
    for index in range(3):
        cluster.start(f"api{index}", "api")
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    for index in range(3):
        await cluster.wait_ready(node=f"api{index}")
    yield cluster


async def add_key(cluster: Cluster, **limits: Any) -> str:
    account_id, _ = await cluster.add_account()
    raw = secrets.make_key()
    async with cluster.database.acquire() as connection:
        await api_keys.create_key(
            connection,
            account_id=account_id,
            name=ids.new_id("t"),
            digest=secrets.digest(raw, PEPPER),
            prefix=secrets.prefix(raw),
            **limits,
        )
    return raw


async def send(client: httpx.AsyncClient, cluster: Cluster, node: int, key: str, **fields: Any) -> httpx.Response:
    return await client.post(
        f"{cluster.base_url(f'api{node}')}/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        json={**BODY, **fields},
    )


async def test_a_burst_over_three_nodes_admits_what_the_limit_allows_and_no_more(three: Cluster) -> None:
    rpm, asked = 30, 150
    key = await add_key(three, rpm=rpm)
    clock = asyncio.get_running_loop().time
    async with httpx.AsyncClient(timeout=SECONDS_MOST) as client:
        started = clock()

        answers = await asyncio.gather(*(send(client, three, number % 3, key) for number in range(asked)))

    drained = int((clock() - started) * rpm / 60) + 1
    statuses = [answer.status_code for answer in answers]
    assert rpm <= statuses.count(200) <= rpm + drained
    assert statuses.count(200) + statuses.count(429) == asked
    for refused in (answer for answer in answers if answer.status_code == 429):
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.headers["x-ratelimit-limit-requests"] == str(rpm)
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(refused.headers["retry-after"]) <= 3  # 2 s from one to the next
    await assert_clean(three.database, three.redis)


async def test_every_answer_tells_what_is_left_and_settlement_gives_unused_tokens_back(three: Cluster) -> None:
    key = await add_key(three, rpm=100, tpm=100_000)
    async with httpx.AsyncClient(timeout=SECONDS_MOST) as client:
        whole = await send(client, three, 0, key, max_tokens=4000)
        await settled_usage(three.database, whole.headers["x-request-id"])
        streamed = await send(client, three, 1, key, stream=True)

    used = whole.json()["usage"]["total_tokens"]
    assert int(whole.headers["x-ratelimit-remaining-tokens"]) < 100_000 - 4000
    assert whole.headers["x-ratelimit-limit-requests"] == "100"
    assert whole.headers["x-ratelimit-remaining-requests"] == "99"
    assert whole.headers["x-ratelimit-reset-requests"].endswith(("ms", "s"))
    assert streamed.status_code == 200
    assert int(streamed.headers["x-ratelimit-remaining-tokens"]) > 100_000 - 4000
    assert int(streamed.headers["x-ratelimit-remaining-tokens"]) <= 100_000 - 4
    assert used < 100


async def test_a_request_above_the_whole_limit_is_told_not_to_come_again(three: Cluster) -> None:
    key = await add_key(three, tpm=1000)
    async with httpx.AsyncClient(timeout=SECONDS_MOST) as client:
        refused = await send(client, three, 0, key, max_tokens=4000)
        served = await send(client, three, 1, key)

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert served.status_code == 200


async def test_a_key_without_limits_is_told_of_none(three: Cluster) -> None:
    key = await add_key(three)
    async with httpx.AsyncClient(timeout=SECONDS_MOST) as client:
        answer = await send(client, three, 0, key)

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
