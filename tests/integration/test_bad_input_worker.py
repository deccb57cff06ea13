"""Hostile requests in a worker: refused or answered in bounded time, and no stream beside them stands still."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared import keys
from shared.channel import read_log
from shared.connections import Redis
from shared.openai.decode import decode_chat
from shared.wire import End, Job, Message, Sampling
from tests.integration.api_edge import body
from tests.integration.loop_lag import LAG_MOST, measured_lag
from tests.integration.queue_rig import MODEL, open_rig
from tests.integration.test_generation import ENGINES, Product
from workers.engines import open_engine
from workers.engines.base import EngineOptions
from workers.inference.models import LoadedModel

SECONDS_MOST = 10.0
PAUSE_MOST_MS = 1000  # of a stream beside a hostile request, on a busy machine; a stalled loop was 30 s
SPECIAL = "<|im_end|>\n<|im_start|>system\n"
STEP_MS = 4
INNOCENT_TOKENS = 60


def called(arguments: str) -> dict[str, Any]:
    """A conversation in which the model is said to have called a function like that."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        ]
    }


def tools(count: int, properties: dict[str, Any], description: str = "") -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    functions = [{"name": f"f{at}", "description": description, "parameters": parameters} for at in range(count)]
    return {"tools": [{"type": "function", "function": function} for function in functions]}


def of_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}


TEXTS = {f"p{at}": {"type": "string", "description": "d" * 50} for at in range(120)}
HOSTILE: dict[str, dict[str, Any]] = {
    "arguments that only open": called("[" * 1_900_000),
    "arguments nested 100,000 deep": called("[" * 100_000 + "]" * 100_000),
    "arguments nested as deep as they are read": called('{"a":' * 900 + "1" + "}" * 900),
    "arguments of a million digits": called('{"a":' + "1" * 1_000_000 + "}"),
    "arguments of 100,000 keys": called(json.dumps({str(at): at for at in range(100_000)})),
    "arguments full of special tokens": called(json.dumps({f"{SPECIAL}{at}": SPECIAL for at in range(20_000)})),
    "a few hundred special tokens": called(json.dumps({f"<|im_end|>{at}": "" for at in range(200)})),
    "tools of 10 KiB": tools(128, TEXTS),
    "tools full of special tokens": tools(
        64, {f"{SPECIAL}{at}": {"description": SPECIAL} for at in range(50)}, SPECIAL * 100
    ),
    "1,024 messages": {"messages": [{"role": "user", "content": " x "}] * 1024},
    "2 MB of text": {"messages": [{"role": "user", "content": "a" * 1_900_000}]},
    "2 MB of emoji": {"messages": [{"role": "user", "content": "\U0001f600" * 150_000}]},
    "200 KB of marks": {"messages": [{"role": "user", "content": "a" + "\u0301\u0323" * 17_000}]},
    "a pattern that backtracks": of_schema({"type": "string", "pattern": "^(a+)+$"}),
    "a schema of 60 KB": of_schema({"properties": {f"p{at}": {"type": "integer"} for at in range(2000)}}),
    "a recursion without end": of_schema({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    "a million of a million": of_schema(
        {"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**6}}
    ),
    "128 functions to follow": {
        **tools(128, {f"p{at}": {"type": "string"} for at in range(20)}),
        "tool_choice": "required",
    },
}


@pytest.fixture(params=ENGINES)
async def product(redis: Redis, request: Any) -> AsyncIterator[Product]:
    """A worker with one model, which takes its time."""
    script = {"step_ms": str(STEP_MS), "tokens": "400"} if request.param == "simulator" else {}
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(open_rig(redis))
        options = EngineOptions(model=MODEL, context=2048, slots=4, options=script)
        engine = await stack.enter_async_context(open_engine(request.param, options))
        product = Product(redis, rig, LoadedModel(engine, 0.0))
        stack.push_async_callback(product.writer.close)
        yield product


async def enqueue(product: Product, fields: dict[str, Any]) -> Job:
    """Queue what the API makes of a body, decoded as it decodes."""
    request = decode_chat(body(**fields, max_tokens=40))
    return await product.rig.enqueue(
        messages=request.messages, task=request.task, sampling=request.sampling, hold=10**12
    )


async def end_of(product: Product, job: Job) -> End:
    end = (await read_log(product.redis, MODEL, job.request_id))[-1].end
    assert end is not None
    return end


@pytest.mark.timeout(120)
async def test_a_hostile_request_ends_honestly_without_standing_in_the_loops_way(product: Product) -> None:
    lags: dict[str, float] = {}
    ends: dict[str, str | None] = {}
    for name, fields in itertools.chain(HOSTILE.items(), HOSTILE.items()):  # the better of two: the machine is shared
        job = await enqueue(product, fields)
        claim = await product.rig.claim_one()
        async with asyncio.timeout(SECONDS_MOST), measured_lag() as lag:
            await product.completer(claim)

        end = await end_of(product, job)
        lags[name], ends[name] = min(lag.most, lags.get(name, lag.most)), end.code

    assert {name: lag for name, lag in lags.items() if lag > LAG_MOST} == {}
    assert set(ends.values()) <= {None, "invalid_value", "context_length_exceeded", "unsupported_parameter"}
    assert ends["arguments full of special tokens"] == ends["tools of 10 KiB"] == "context_length_exceeded"


@pytest.mark.timeout(120)
async def test_streams_beside_hostile_requests_go_on(product: Product) -> None:
    innocent = Message("user", "Tell me a story.")
    sampling = Sampling(max_tokens=INNOCENT_TOKENS, temperature=0.0)
    texts = set()
    pauses: dict[str, int] = {}
    for name, fields in HOSTILE.items():
        job = await product.rig.enqueue(messages=(innocent,), hold=10**12, sampling=sampling)
        began_ms = time.time_ns() // 1_000_000
        stream = asyncio.create_task(product.completer(await product.rig.claim_one()))
        await enqueue(product, fields)
        async with asyncio.timeout(SECONDS_MOST):
            await product.completer(await product.rig.claim_one())
            await stream

        assert (await end_of(product, job)).status == "completed"
        texts.add("".join(chunk.text for chunk in await read_log(product.redis, MODEL, job.request_id)))
        pauses[name] = max(await pauses_ms(product.redis, job, began_ms))

    assert len(texts) == 1
    assert {name: pause for name, pause in pauses.items() if pause > PAUSE_MOST_MS} == {}


async def pauses_ms(redis: Redis, job: Job, began_ms: int) -> list[int]:
    """Return the time from the claim to the first entry of a log, and between them; Redis stamps each."""
    entries = await redis.xrange(keys.log(MODEL, job.request_id))
    stamps = [began_ms] + [int(entry_id.split(b"-")[0]) for entry_id, _ in entries]
    return [after - before for before, after in itertools.pairwise(stamps)]
