"""What hostile bodies cost an API node: each is answered within a second of CPU, and the loop never stands still.

The client is a thread with a blocking socket, which needs neither the loop nor the interpreter while it sends.
"""

import asyncio
import http.client
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.settings import QueueSettings
from shared.submission import Submission, prepare
from tests.integration.api_edge import Edge, ScriptedAnswer, body, chunk, end, open_edge
from tests.integration.loop_lag import LAG_MOST, measured_lag

CPU_SECONDS_MOST = 1.0
MEGABYTES = 1_900_000


def said(text: str) -> bytes:
    """A conversation of `text` in UTF-8, as JSON writers outside of Python send it."""
    return body(messages=[{"role": "user", "content": "?"}]).replace(b"?", text.encode())


def with_value(name: str, value: bytes) -> bytes:
    return body()[:-1] + b',"' + name.encode() + b'":' + value + b"}"


def of_schema(schema: Any) -> bytes:
    return body(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})


def calling(arguments: str) -> bytes:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return body(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}])


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def object_of(pairs: list[tuple[str, str]]) -> bytes:
    return ("{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}").encode()


MARKS = "\u0301\u0323"
TEXTS = {f"p{at}": {"type": "string", "description": "d" * 50} for at in range(120)}
BODIES: dict[str, tuple[bytes, int]] = {
    "2 MB of a letter": (said("a" * MEGABYTES), 200),
    "2 MB of emoji": (said("\U0001f600" * (MEGABYTES // 4)), 200),
    "2 MB of combining marks": (said("a" + MARKS * (MEGABYTES // 4)), 200),
    "2 MB of what NFC takes apart": (said("\u0958" * (MEGABYTES // 3)), 200),
    "2 MB of CJK": (said("\u4e2d" * (MEGABYTES // 3)), 200),
    "2 MB of overrides": (said("\u202e" * (MEGABYTES // 3)), 200),
    "2 MB of escapes": (said("\\u4e2d" * (MEGABYTES // 6)), 200),
    "1,024 messages of marks": (body(messages=[{"role": "user", "content": MARKS * 140}] * 1024), 200),
    "100,000 arrays": (with_value("x", b"[" * 100_000 + b"]" * 100_000), 400),
    "100,000 arrays in messages": (with_value("stop", b"[" * 100_000 + b"]" * 100_000), 400),
    "100,000 objects": (with_value("x", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 400),
    "100,000 that only open": (b"[" * 100_000, 400),
    "a million keys": (with_value("x", object_of([(f"{at:x}", "1") for at in range(190_000)])), 400),
    "most keys": (with_value("x", object_of([(f"{at:x}", "1") for at in range(49_000)])), 200),
    "the same key 100,000 times": (with_value("x", object_of([("k", "1")] * 100_000)), 400),
    "the same key 49,000 times": (with_value("x", object_of([("k", "1")] * 49_000)), 400),
    "49,000 unknown fields": (object_of([(f"k{at}", "1") for at in range(49_000)]), 400),
    "colliding token ids": (
        body(logit_bias={str((at << 61) % 2**31 or at << 20): 1 for at in range(1, 1024)}),
        200,
    ),
    "100,000 token ids": (body(logit_bias={str(at): 1 for at in range(100_000)}), 400),
    "49,000 token ids": (body(logit_bias={str(at): 1 for at in range(49_000)}), 400),
    "5,000 digits": (with_value("max_tokens", b"1" * 5000), 400),
    "a million digits": (with_value("seed", b"1" * 1_000_000), 400),
    "a million digits behind the point": (with_value("temperature", b"0." + b"1" * 1_000_000), 400),
    "10,000 tools": (body(tools=[tool(f"f{at}", {}) for at in range(10_000)]), 400),
    "128 tools of 10 KiB": (body(tools=[tool(f"f{at}", {"properties": TEXTS}) for at in range(128)]), 200),
    "a schema of 64 KiB": (of_schema({"properties": {f"p{at}": {"type": "integer"} for at in range(2000)}}), 200),
    "references to one list": (
        of_schema({"$defs": {"all": {"anyOf": [{}] * 10_000}}, "anyOf": [{"$ref": "#/$defs/all"}] * 900}),
        200,
    ),
    "a chain of references": (
        of_schema(
            {"$defs": {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}]} for at in range(900)} | {"d900": {}}}
        ),
        200,
    ),
    "a loop of 900 references": (
        of_schema({"$defs": {f"d{at}": {"$ref": f"#/$defs/d{(at + 1) % 900}"} for at in range(900)}}),
        400,
    ),
    "a pattern that backtracks": (of_schema({"type": "string", "pattern": "^(a+)+$"}), 200),
    "arguments that only open": (calling("[" * MEGABYTES), 200),
    "arguments of marks": (calling(MARKS * (MEGABYTES // 12)), 200),
    "15,000 parts": (body(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 15_000}]), 200),
    "quotes": (b'"' * MEGABYTES, 400),
    "backslashes": (b'{"a":"' + b"\\" * MEGABYTES + b'"}', 400),
    "spaces": (b" " * MEGABYTES, 400),
}


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge() as edge:
        answer = edge.dispatcher.submit

        async def submit(submission: Submission) -> ScriptedAnswer:
            prepare(submission, QueueSettings(), node_id="node_a", now_ms=1)  # as the real dispatcher does first
            return await answer(submission)

        edge.dispatcher.submit = submit  # type: ignore[method-assign]
        edge.dispatcher.script = (chunk(1, "x", finish="stop"), end(2))
        yield edge


def post(edge: Edge, content: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
    headers = {"authorization": f"Bearer {edge.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", content, headers)
    answer = connection.getresponse()
    told = answer.status, answer.read()
    connection.close()
    return told


@pytest.mark.timeout(120)
async def test_no_body_holds_up_the_event_loop_for_50_ms(edge: Edge) -> None:
    lags: dict[str, float] = {}
    for name, (content, status) in itertools.chain(BODIES.items(), BODIES.items()):  # the better of two
        if lags.get(name, 1.0) < LAG_MOST:
            continue
        began = time.process_time()
        async with measured_lag() as lag:
            answered, text = await asyncio.to_thread(post, edge, content)

        lags[name] = min(lag.most, lags.get(name, lag.most))
        assert (name, answered) == (name, status), text[:300]
        assert answered == 200 or set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        assert len(text) < 2000
        assert time.process_time() - began < CPU_SECONDS_MOST, name

    assert {name: lag for name, lag in lags.items() if lag >= LAG_MOST} == {}


async def test_others_are_answered_while_a_large_body_is_read(edge: Edge) -> None:
    content, _ = BODIES["2 MB of what NFC takes apart"]

    async with asyncio.timeout(20):
        hostile = [asyncio.create_task(asyncio.to_thread(post, edge, content)) for _ in range(3)]
        async with measured_lag() as lag:
            while not all(task.done() for task in hostile):
                assert (await edge.complete()).status_code == 200

    assert lag.most < 2 * LAG_MOST  # three at once
