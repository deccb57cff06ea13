"""Streams as a client on a socket sees them: every token as it comes, pings in silence, one honest end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from shared.errors import (
    BackendFailed,
)
from shared.wire import Usage
from tests.integration.api_edge import (
    HELLO,
    MODEL,
    Edge,
    body,
    chunk,
    end,
    events,
    open_edge,
    running,
)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge(ping_seconds=0.05, status_hold_seconds=0.05, slow_reader_seconds=0.2) as edge:
        yield edge


async def test_a_stream_ends_with_one_finish_chunk_and_done(edge: Edge) -> None:
    response = await edge.complete(stream=True)

    found = events(response.text)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert found[-1] == "[DONE]"
    assert [e["choices"][0]["finish_reason"] for e in found[:-1]] == [None, None, None, "stop"]
    assert edge.dispatcher.answers[0].told == [(4, 3)]
    assert edge.dispatcher.answers[0].closed == 1


async def test_a_silent_stream_gets_its_status_and_then_pings(edge: Edge) -> None:
    edge.dispatcher.script = [0.18, *HELLO]

    response = await edge.complete(stream=True)

    before = response.text.split("data: ", 1)[0]
    assert before.startswith(": ping\n: ping\n") and set(before.split("\n")) == {": ping", ""}
    assert "ping\n\n" not in response.text
    assert len(events(response.text)) == 5


async def test_a_stream_of_held_back_text_is_pinged_too(edge: Edge) -> None:
    held = [step for seq in range(2, 12) for step in (0.02, chunk(seq))]
    edge.dispatcher.script = [chunk(1), *held, chunk(12, finish="stop"), end(13)]

    response = await edge.complete(stream=True)

    assert response.text.count(": ping\n") >= 2


async def test_the_status_is_held_until_the_first_chunk(edge: Edge) -> None:
    edge.dispatcher.script = []
    sent = asyncio.create_task(edge.complete(stream=True))
    answer = await running(edge)

    answer.push(end(1, status="failed", code="model_unavailable"))

    assert (await sent).status_code == 502


async def test_every_token_is_sent_as_it_comes(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "a")]
    async with edge.client.stream(
        "POST", "/chat/completions", content=body(stream=True), headers={"content-type": "application/json"}
    ) as response:
        lines = response.aiter_lines()
        answer = await running(edge)
        async for line in lines:
            if '"content":"a"' in line:
                break
        assert answer.told == [(1, 1)]

        answer.push(chunk(2, "b", finish="stop"), end(3, usage=Usage(1, 0, 2)))

        assert [line async for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize(
    "broken",
    [end(3, status="failed", code="worker_lost", message="Lost."), BackendFailed("Lost.", code="worker_lost")],
    ids=["ended", "raised"],
)
async def test_what_fails_after_the_first_token_is_one_error_event_and_no_done(edge: Edge, broken: Any) -> None:
    edge.dispatcher.script = [chunk(1, "a"), chunk(2, "b"), 0.01, broken]

    response = await edge.complete(stream=True)

    *said, error = events(response.text)
    assert response.status_code == 200
    assert [e["choices"][0]["delta"].get("content") for e in said] == ["", "a", "b"]
    assert all(e["choices"][0]["finish_reason"] is None for e in said)
    assert error["error"]["code"] == "worker_lost" and error["error"]["message"] == "Lost."
    assert edge.dispatcher.answers[0].closed == 1
    assert edge.dispatcher.answers[0].failed == (["worker_lost"] if isinstance(broken, Exception) else [])


async def test_the_last_token_of_a_broken_answer_is_not_lost(edge: Edge) -> None:
    last = end(2, status="cancelled", code="key_revoked")
    edge.dispatcher.script = [chunk(1, "a"), 0.01, chunk(2, "b", end=last.end)]

    _, *said, error = events((await edge.complete(stream=True)).text)

    assert [e["choices"][0]["delta"]["content"] for e in said] == ["a", "b"]
    assert (error["error"]["type"], error["error"]["code"]) == ("permission_error", "key_revoked")


async def test_a_bug_in_the_middle_of_a_stream_is_an_error_event(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "a"), 0.01, ZeroDivisionError("secret detail")]

    response = await edge.complete(stream=True)

    assert events(response.text)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert edge.dispatcher.answers[0].closed == 1


async def test_openais_client_raises_what_an_error_event_says(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "a"), 0.12, chunk(2, "b"), end(3, status="failed", code="worker_lost")]
    async with openai.AsyncOpenAI(api_key=edge.key, base_url=edge.base_url) as client:
        stream = await client.chat.completions.create(
            model=MODEL.id, messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        text = ""

        with pytest.raises(openai.APIError) as raised:
            async for one in stream:
                text += one.choices[0].delta.content or ""

    assert text == "ab"
    assert raised.value.code == "worker_lost"
