"""One run, one charge and one answer, however often a request with an `Idempotency-Key` is sent (C05)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from shared import keys, secrets
from shared.database import api_keys
from tests.cluster import PEPPER, Cluster
from tests.ledger import assert_clean, settled_usage

BODY = {"model": "sim/plain", "messages": [{"role": "user", "content": "tell me a story"}], "max_tokens": 16}


@pytest.fixture
async def pair(cluster: Cluster) -> AsyncIterator[Cluster]:
    """Two API nodes before one worker."""
    await cluster.add_model("sim/plain", tokens=16, step_ms=10)
    cluster.start("api0", "api")
    cluster.start("api1", "api")
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    await cluster.wait_ready(node="api0")
    await cluster.wait_ready(node="api1")
    yield cluster


async def send(
    cluster: Cluster, node: int, key: str, name: str, *, timeout: float = 30, **fields: Any
) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "idempotency-key": name}
    async with httpx.AsyncClient(timeout=timeout) as client:
        return await client.post(
            f"{cluster.base_url(f'api{node}')}/chat/completions", headers=headers, json={**BODY, **fields}
        )


def text_of(answer: httpx.Response) -> str:
    """Return the text of a whole or a streamed answer."""
    if "event-stream" not in answer.headers["content-type"]:
        return str(answer.json()["choices"][0]["message"]["content"])
    data = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    choices = [choice for one in data for choice in msgspec.json.decode(one)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def count(cluster: Cluster, table: str) -> int:
    counts = {
        "requests": "SELECT count(*) FROM requests",
        "charges": "SELECT count(*) FROM transfers WHERE type = 'deduction'",
    }
    return int(await cluster.database.fetchval(counts[table]))


async def test_ten_at_once_over_two_nodes_are_one_run_one_charge_and_ten_equal_answers(pair: Cluster) -> None:
    _, key = await pair.add_account()

    answers = await asyncio.gather(*(send(pair, number % 2, key, "order 7") for number in range(10)))

    assert [answer.status_code for answer in answers] == [200] * 10
    assert len({answer.content for answer in answers}) == 1
    (request_id,) = {answer.headers["x-request-id"] for answer in answers}
    assert answers[0].json()["id"] == request_id
    usage = await settled_usage(pair.database, request_id)
    assert usage.cost > 0
    await assert_clean(pair.database, pair.redis)
    assert await count(pair, "requests") == await count(pair, "charges") == 1


async def test_a_client_that_comes_back_after_its_own_timeout_gets_the_answer_of_its_first_try(pair: Cluster) -> None:
    _, key = await pair.add_account()
    with pytest.raises(httpx.ReadTimeout):
        await send(pair, 0, key, "order 8", timeout=0.08)

    whole = await send(pair, 1, key, "order 8")
    streamed = await send(pair, 0, key, "order 8", stream=True, stream_options={"include_usage": True})

    assert (whole.status_code, streamed.status_code) == (200, 200)
    assert text_of(whole) == text_of(streamed) != ""
    assert whole.json()["usage"]["completion_tokens"] == 16
    assert whole.headers["x-request-id"] == streamed.headers["x-request-id"]
    await assert_clean(pair.database, pair.redis)
    assert await count(pair, "charges") == 1


async def test_without_a_key_a_retry_is_a_second_honest_run(pair: Cluster) -> None:
    _, key = await pair.add_account()

    async with httpx.AsyncClient(timeout=30, headers={"authorization": f"Bearer {key}"}) as client:
        answers = [await client.post(f"{pair.base_url()}/chat/completions", json=BODY) for _ in range(2)]

    assert len({answer.headers["x-request-id"] for answer in answers}) == 2
    await assert_clean(pair.database, pair.redis)
    assert await count(pair, "charges") == 2


async def test_another_body_and_a_forgotten_answer_are_refused_by_name(pair: Cluster) -> None:
    account_id, key = await pair.add_account()
    first = await send(pair, 0, key, "order 9")
    await settled_usage(pair.database, first.headers["x-request-id"])

    other = await send(pair, 1, key, "order 9", max_tokens=15)
    await pair.redis.delete(
        keys.state("sim/plain", first.headers["x-request-id"]), keys.log("sim/plain", first.headers["x-request-id"])
    )
    forgotten = await send(pair, 1, key, "order 9")
    _, another_account = await pair.add_account()
    theirs = await send(pair, 1, another_account, "order 9", max_tokens=15)

    for refused in (other, forgotten):
        assert refused.status_code == 409
        assert refused.headers["x-should-retry"] == "false"
        assert refused.json()["error"]["code"] == "idempotency_key_reused"
        assert first.headers["x-request-id"] in refused.json()["error"]["message"]
    assert theirs.status_code == 200
    assert account_id


async def test_a_run_that_failed_free_of_charge_is_made_anew(pair: Cluster) -> None:
    await pair.add_model("sim/broken", fail_before_first_token=1, tokens=4)
    for node in ("api0", "api1"):
        await pair.wait_ready("sim/broken", node=node)
    _, key = await pair.add_account()

    tries = [await send(pair, number, key, "order 10", model="sim/broken") for number in range(2)]

    assert [answer.status_code for answer in tries] == [502, 502]
    assert len({answer.headers["x-request-id"] for answer in tries}) == 2
    await assert_clean(pair.database, pair.redis)
    assert await count(pair, "charges") == 0


async def test_a_run_that_its_client_left_keeps_its_slot_until_its_end(pair: Cluster) -> None:
    await pair.add_model("sim/slow", tokens=60, step_ms=20)
    await pair.wait_ready("sim/slow")
    _, key = await pair.add_account(concurrency=1)
    with pytest.raises(httpx.ReadTimeout):
        await send(pair, 0, key, "order 11", timeout=0.2, model="sim/slow", max_tokens=60)

    refused = await send(pair, 1, key, "order 12", model="sim/slow")
    attached = await send(pair, 1, key, "order 11", model="sim/slow", max_tokens=60)
    await settled_usage(pair.database, attached.headers["x-request-id"])
    async with asyncio.timeout(5):
        while (after := await send(pair, 1, key, "order 12", model="sim/slow")).status_code == 429:
            await asyncio.sleep(0.02)

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
    assert (attached.status_code, after.status_code) == (200, 200)


async def test_a_revoked_key_reads_no_run_of_another_key_on_and_does_not_end_it(pair: Cluster) -> None:
    await pair.add_model("sim/slow", tokens=400, step_ms=20)
    await pair.wait_ready("sim/slow")
    account_id, key = await pair.add_account()
    reading = secrets.make_key()
    async with pair.database.acquire() as connection:
        made = await api_keys.create_key(
            connection,
            account_id=account_id,
            name="reads",
            digest=secrets.digest(reading, PEPPER),
            prefix=secrets.prefix(reading),
        )
    fields = {"model": "sim/slow", "max_tokens": 400}
    first = asyncio.create_task(send(pair, 0, key, "order 13", **fields))
    while await pair.redis.zcard(keys.leases("sim/slow")) == 0:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(send(pair, 1, reading, "order 13", **fields))
    await asyncio.sleep(0.02)

    async with pair.database.acquire() as connection:
        await api_keys.revoke_key(connection, account_id, made.id)
    async with asyncio.timeout(5.5):
        refused = await second
    answer = await first

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_revoked")
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 400


@pytest.mark.parametrize("name", [b"", b"x" * 256, "schlüssel".encode("latin-1"), b"tab\there"])
async def test_what_cannot_be_a_key_is_refused(pair: Cluster, name: bytes) -> None:
    _, key = await pair.add_account()

    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(
            f"{pair.base_url()}/chat/completions",
            headers={b"authorization": f"Bearer {key}".encode(), b"idempotency-key": name},  # type: ignore[arg-type]
            json=BODY,
        )

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"
