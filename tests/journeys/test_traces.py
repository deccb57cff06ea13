"""One request, one trace and one set of figures, through real processes: API node, queue, worker, settlement."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from compose.ports import free_port
from tests.cluster import Cluster
from tests.otlp import Collector

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
PROMPT = "a secret question"


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


async def _metrics(port: int) -> dict[str, float]:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def _until(check: Any, seconds: float = 15.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await check()):
            await asyncio.sleep(0.02)
        return found


async def _ready(port: int) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        except httpx.TransportError:
            return False


async def test_one_request_leaves_one_trace_and_its_figures(cluster: Cluster, collector: Collector) -> None:
    ports = {role: free_port() for role in ("api", "worker", "settlement", "janitor")}
    await cluster.add_model("sim/plain")
    for role, port in ports.items():
        cluster.start(f"{role}0", role, engine="simulator", metrics_port=port, otel_endpoint=collector.url)
    await cluster.wait_ready()
    _, key = await cluster.add_account()

    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"{cluster.base_url()}/chat/completions",
            json={"model": "sim/plain", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5},
            headers={"Authorization": f"Bearer {key}", "traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN}-01"},
        )
    assert answer.status_code == 200, answer.text

    async def all_spans() -> list[dict[str, Any]]:
        return collector.spans if len(collector.spans) >= 4 else []

    spans = {span["name"]: span for span in await _until(all_spans)}
    request, queue = spans["POST /chat/completions"], spans["queue"]
    run, settle = spans["chat sim/plain"], spans["settle"]
    assert {span["traceId"] for span in spans.values()} == {TRACE_ID}
    assert request["parentSpanId"] == CLIENT_SPAN
    assert queue["parentSpanId"] == run["parentSpanId"] == request["spanId"]
    assert settle["parentSpanId"] == run["spanId"]
    assert [span["service"] for span in (request, queue, run, settle)] == [
        "inferbase-api",
        "inferbase-worker",
        "inferbase-worker",
        "inferbase-settlement",
    ]
    told = {one["key"]: one["value"] for one in run["attributes"]}
    assert told["gen_ai.request.model"] == {"stringValue": "sim/plain"}
    assert told["gen_ai.usage.output_tokens"] == {"intValue": "5"}
    assert PROMPT not in str(collector.spans)

    worker = await _metrics(ports["worker"])
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="inferbase",gen_ai_request_model="sim/plain"'
    assert worker[f"gen_ai_server_time_to_first_token_seconds_count{{{labels}}}"] == 1
    assert worker['inferbase_tokens_total{kind="completion",model="sim/plain"}'] == 5
    assert worker['inferbase_ended_requests_total{model="sim/plain",status="completed"}'] == 1
    assert worker['inferbase_slots{model="sim/plain"}'] == worker['inferbase_slots_free{model="sim/plain"}'] > 0
    assert worker['inferbase_model_loads_total{model="sim/plain",outcome="loaded"}'] == 1
    api = await _metrics(ports["api"])
    assert api['inferbase_http_responses_total{route="/chat/completions",status="200"}'] == 1
    settlement = await _metrics(ports["settlement"])
    assert settlement['inferbase_settled_records_total{verdict="settled"}'] == 1
    for port in ports.values():
        assert await _until(lambda port=port: _ready(port))
    janitor = await _metrics(ports["janitor"])
    assert janitor['inferbase_model_workers{model="sim/plain",state="ready"}'] == 1
    assert janitor["inferbase_models_unserved"] == 0
    assert janitor['inferbase_queue_depth_requests{lane="interactive",model="sim/plain"}'] == 0


async def test_the_janitor_tells_what_waits_for_a_model_that_nobody_serves(cluster: Cluster) -> None:
    port = free_port()
    await cluster.add_model("sim/plain")
    cluster.start("janitor0", "janitor", metrics_port=port, unserved_seconds=0)
    cluster.start("api0", "api", stream_patience_seconds=60)
    await _until(lambda: _ready(port))
    _, key = await cluster.add_account()
    body = {"model": "sim/plain", "messages": [{"role": "user", "content": "Hi"}], "stream": True}

    async def figures() -> dict[str, float]:
        found = await _metrics(port)
        return found if found.get('inferbase_queue_oldest_seconds{lane="interactive",model="sim/plain"}') else {}

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                try:
                    url = f"{cluster.base_url()}/chat/completions"
                    await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask())
    found = await _until(figures)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    assert found['inferbase_queue_depth_requests{lane="interactive",model="sim/plain"}'] == 1
    assert 0 < found['inferbase_queue_oldest_seconds{lane="interactive",model="sim/plain"}'] < 15
    assert found["inferbase_models_unserved"] == 1
    assert "model_unserved" in (cluster.folder / "janitor0.log").read_text()
