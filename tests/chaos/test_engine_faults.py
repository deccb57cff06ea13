"""Workers and engines that die, hang or are handed nonsense (C12, C16, C17, C19)."""

import asyncio
import signal
import time

import httpx
import msgspec
import pytest

from api.node import Node, open_node
from shared.database import models
from shared.settings import SecretSettings, Settings, StoreSettings
from shared.submission import Submission
from shared.wire import Job, Message, Sampling
from tests.chaos.scenes import BRISK, assert_serves, begin, counted, start, start_told
from tests.cluster import PEPPER, WIRE_KEY, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream

OUT_OF_MEMORY_STATUS = 137
ENGINE_DEAD_STATUS = 70
NAN = float("nan")
BAD_FIELDS = (
    {"temperature": -0.1},
    {"temperature": 2.0001},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": -1},
    {"min_p": 2},
    {"repetition_penalty": 0},
    {"presence_penalty": 3},
    {"max_tokens": 0},
    {"max_tokens": 2**63},
)
BAD_SAMPLINGS = (
    Sampling(max_tokens=0),
    Sampling(max_tokens=-1),
    Sampling(max_tokens=4, temperature=-1.0),
    Sampling(max_tokens=4, temperature=NAN),
    Sampling(max_tokens=4, top_p=0.0),
    Sampling(max_tokens=4, top_p=NAN),
    Sampling(max_tokens=4, top_k=-1),
    Sampling(max_tokens=4, min_p=7.0),
    Sampling(max_tokens=4, repetition_penalty=0.0),
    Sampling(max_tokens=4, presence_penalty=float("inf")),
    Sampling(max_tokens=4, logit_bias=((10**9, 1.0),)),
    Sampling(max_tokens=4, top_logprobs=10**6),
)


async def test_c12_a_worker_killed_before_its_first_token_is_replaced_in_silence(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", step_ms=5, tokens=40)
    await start(cluster, workers=0, **BRISK)
    start_told(cluster, "worker0", "worker", engine="simulator", crash_point="after_claim", **BRISK)
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    got = Received()

    asking = asyncio.create_task(stream(cluster.base_url(), key, model="sim/slow", content="story", received=got))
    assert await asyncio.to_thread(cluster.processes["worker0"].wait, 20) == -signal.SIGKILL
    killed_at = time.monotonic()
    start_told(cluster, "worker1", "worker", engine="simulator", **BRISK)
    await cluster.wait_ready("sim/slow")
    ready_at = time.monotonic()
    await asking

    assert got.complete and got.status == 200
    assert time.monotonic() < max(killed_at + BRISK["lease_seconds"], ready_at) + 2
    expected = await stream(cluster.base_url(), key, model="sim/slow", content="story")
    assert got.text == expected.text
    row = await settled_usage(cluster.database, got.request_id)
    assert (row.status, row.completion_tokens, row.attempts) == ("completed", 40, 2)
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)


@pytest.mark.parametrize(
    ("fault", "status"),
    [("hang_after_tokens", ENGINE_DEAD_STATUS), ("exit_after_tokens", OUT_OF_MEMORY_STATUS)],
    ids=["c16 it hangs", "c17 it is out of memory"],
)
async def test_a_dead_engine_ends_its_process_and_every_stream_goes_on_in_the_next_one(
    cluster: Cluster, fault: str, status: int
) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=300)
    await cluster.add_model("sim/quick", tokens=300)  # says the same
    await cluster.add_model("sim/faulty", step_ms=5, tokens=45, **{fault: 30})
    await start(cluster, step_silence_seconds=2, **BRISK)
    await cluster.wait_ready("sim/slow")
    await cluster.wait_ready("sim/faulty")
    _, key = await cluster.add_account()
    results, running = await begin(cluster, key, 2)

    began = time.monotonic()
    faulty = asyncio.create_task(stream(cluster.base_url(), key, model="sim/faulty"))
    assert await asyncio.to_thread(cluster.processes["worker0"].wait, 30) == status
    noticed_seconds = time.monotonic() - began
    start_told(cluster, "worker1", "worker", engine="simulator", **BRISK)
    await running
    got = await faulty

    assert noticed_seconds < 15
    assert (got.complete, got.usage and got.usage["completion_tokens"]) == (True, 45)
    expected = await stream(cluster.base_url(), key, model="sim/quick", content="story")
    assert all(each.complete and each.text == expected.text for each in results)
    for each in results:
        row = await settled_usage(cluster.database, each.request_id)
        assert (row.completion_tokens, row.attempts) == (300, 2)
    assert await counted(cluster, "worker1", "inferbase_resumed_requests_total") == 3
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)


async def test_c19_a_bad_sampling_value_reaches_no_engine_past_the_api_nor_past_the_worker(
    cluster: Cluster, database_url: str, redis_url: str
) -> None:
    await cluster.add_model("sim/slow", tokens=4)
    await start(cluster, **BRISK)
    await cluster.wait_ready("sim/slow")
    account_id, key = await cluster.add_account()
    body = {"model": "sim/slow", "messages": [{"role": "user", "content": "hi"}]}
    stores = StoreSettings(database_url=database_url, redis_url=redis_url)
    lenient = Settings(stores=stores, secrets=SecretSettings(key_pepper=PEPPER, wire_key=WIRE_KEY))

    async with httpx.AsyncClient(timeout=20, headers={"Authorization": f"Bearer {key}"}) as client:
        url = cluster.base_url() + "/chat/completions"
        answers = [await client.post(url, json=body | field) for field in BAD_FIELDS]
    reserved_by_api = await cluster.database.fetchval("SELECT count(*) FROM requests")
    async with open_node(lenient) as node:  # an API that lets everything through
        endings = [await _submitted(node, cluster, account_id, sampling) for sampling in BAD_SAMPLINGS]

    assert [(answer.status_code, answer.json()["error"]["type"]) for answer in answers] == [
        (400, "invalid_request_error")
    ] * len(BAD_FIELDS)
    assert reserved_by_api == 0
    assert {status for status, _ in endings} == {"failed"}
    assert {code for _, code in endings} <= {"invalid_value", "unsupported_parameter"}, endings
    assert cluster.processes["worker0"].alive()
    assert await counted(cluster, "worker0", "inferbase_tokens_total", kind="completion") == 0
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)
    assert await cluster.database.fetchval("SELECT count(*) FROM usage WHERE cost > 0") == 1


async def _submitted(node: Node, cluster: Cluster, account_id: str, sampling: Sampling) -> tuple[str, str | None]:
    """Return how a request ends that neither API nor ledger checked."""
    async with cluster.database.acquire() as connection:
        (model,) = await models.list_models(connection)
        key_id = await connection.fetchval("SELECT id FROM api_keys WHERE account_id = $1", account_id)
    enqueue = node.dispatcher._queue.enqueue

    async def forge(job: Job) -> str:
        return await enqueue(msgspec.structs.replace(job, sampling=sampling))

    node.dispatcher._queue.enqueue = forge  # type: ignore[method-assign, assignment]
    answer = await node.dispatcher.submit(
        Submission(
            account_id=account_id,
            key_id=key_id,
            model=model,
            messages=(Message("user", "hi"),),
            sampling=Sampling(max_tokens=4),
            stream=True,
            patience_seconds=20,
        )
    )
    node.dispatcher._queue.enqueue = enqueue  # type: ignore[method-assign]
    try:
        while answer.end is None:
            await answer.next(20)
        return answer.end.status, answer.end.code
    finally:
        answer.close()
