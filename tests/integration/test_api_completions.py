"""Completions as a client on a socket sees them; behind the edge stands a scripted dispatcher."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from shared.errors import (
    BackendFailed,
    DependencyUnavailable,
    InsufficientCredits,
    InvalidRequest,
    RateLimited,
)
from shared.wire import Message, Usage
from tests.integration.api_edge import HELLO, MODEL, Edge, ScriptedAnswer, body, chunk, end, events, open_edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge(ping_seconds=0.05, status_hold_seconds=0.05, slow_reader_seconds=0.2) as edge:
        yield edge


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait for something that happens in this event loop."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def running(edge: Edge) -> ScriptedAnswer:
    """Return the answer that was just begun."""
    await until(lambda: edge.dispatcher.answers)
    return edge.dispatcher.answers[-1]


async def test_a_whole_answer_is_the_fold_of_its_chunks(edge: Edge) -> None:
    response = await edge.complete()

    (answer,) = edge.dispatcher.answers
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == response.json()["id"] == answer.request_id
    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    assert (answer.told, answer.closed) == ([(4, 3)], 1)


async def test_what_was_decoded_is_what_is_submitted(edge: Edge) -> None:
    await edge.complete(temperature=0, max_tokens=5, stop="x", stream=True)

    (submission,) = edge.dispatcher.submissions
    assert submission.messages == (Message("user", "Hi"),)
    assert (submission.model, submission.stream, submission.account_id) == (MODEL, True, "acct_1")
    assert (submission.sampling.temperature, submission.sampling.max_tokens) == (0, 5)
    assert submission.patience_seconds == edge.node.settings.api.stream_patience_seconds


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


async def test_stream_and_whole_say_the_same(edge: Edge) -> None:
    whole = (await edge.complete()).json()

    *chunks, usage, _ = events((await edge.complete(stream=True, stream_options={"include_usage": True})).text)

    assert "".join(e["choices"][0]["delta"].get("content", "") for e in chunks) == "Hello"
    assert usage["usage"] == whole["usage"]


@pytest.mark.parametrize("stream", [False, True])
async def test_ignored_fields_are_named_in_a_header(edge: Edge, stream: bool) -> None:
    response = await edge.complete(stream=stream, zeta=1, ignore_eos=True, **{"bad\r\nname": 1})

    assert response.status_code == 200
    assert response.headers["x-inferbase-ignored"] == "ignore_eos, zeta"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [("context_length_exceeded", 400), ("key_revoked", 403), ("model_unavailable", 502), ("model_loading", 502)],
)
async def test_what_fails_before_the_first_token_is_a_real_status(
    edge: Edge, stream: bool, code: str, status: int
) -> None:
    edge.dispatcher.script = [0.01, end(1, status="failed", code=code, message="Why.", retry_after_seconds=9)]

    response = await edge.complete(stream=stream)

    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers.get("retry-after") == ("9" if status == 502 else None)
    assert response.headers["x-request-id"] == edge.dispatcher.answers[0].request_id
    assert edge.dispatcher.answers[0].closed == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (InsufficientCredits(), 402),
        (InvalidRequest(code="context_length_exceeded"), 400),
        (RateLimited(code="concurrency_limit_exceeded"), 429),
        (BackendFailed(code="queue_full"), 502),
        (DependencyUnavailable(), 503),
    ],
)
async def test_a_refused_submission_is_a_real_status(edge: Edge, stream: bool, refusal: Exception, status: int) -> None:
    edge.dispatcher.refusal = refusal

    assert (await edge.complete(stream=stream)).status_code == status


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


async def test_a_whole_answer_that_breaks_is_a_real_status(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "a"), 0.01, end(2, status="failed", code="worker_lost")]

    response = await edge.complete()

    assert response.status_code == 502
    assert edge.dispatcher.answers[0].told == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_500_and_tells_nothing(edge: Edge, stream: bool) -> None:
    edge.dispatcher.refusal = ZeroDivisionError("secret detail")

    response = await edge.complete(stream=stream)

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


async def test_a_bug_in_the_middle_of_a_stream_is_an_error_event(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "a"), 0.01, ZeroDivisionError("secret detail")]

    response = await edge.complete(stream=True)

    assert events(response.text)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in response.text
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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [[], [chunk(1, "a")]], ids=["before the first token", "in the middle"])
async def test_who_leaves_is_let_go_at_once(edge: Edge, stream: bool, script: list[Any]) -> None:
    edge.dispatcher.script = script
    leaving = asyncio.create_task(edge.complete(stream=stream))
    answer = await running(edge)
    await asyncio.sleep(0.02)
    left = time.monotonic()

    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
    await until(lambda: answer.closed)

    assert time.monotonic() - left < 0.2
    assert answer.closed == 1
    assert answer.end is None


async def test_who_leaves_while_being_submitted_is_let_go(edge: Edge) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def submit(_: Any) -> Any:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    edge.dispatcher.submit = submit  # type: ignore[method-assign]
    leaving = asyncio.create_task(edge.complete(stream=True))
    await entered.wait()

    leaving.cancel()

    await asyncio.wait_for(left.wait(), 2)
    await asyncio.gather(leaving, return_exceptions=True)


async def test_who_stops_reading_is_cut(edge: Edge) -> None:
    edge.dispatcher.script = []
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, limit=1024)
    await send_request(writer, edge, body(stream=True))
    answer = await running(edge)

    seq = 0
    async with asyncio.timeout(10):
        while not answer.closed:
            seq += 1
            answer.push(chunk(seq, "x" * 100_000))
            await asyncio.sleep(0.005)

    seen = seq * 100_000
    assert answer.told[-1][0] < seq
    assert seen < 60_000_000  # what the two sockets and the server's buffer take
    reader.feed_eof()
    writer.close()


async def test_a_connection_serves_one_completion_after_another(edge: Edge) -> None:
    for _ in range(3):
        assert (await edge.complete(stream=True)).text.endswith("data: [DONE]\n\n")
        assert (await edge.complete()).status_code == 200

    assert [answer.closed for answer in edge.dispatcher.answers] == [1] * 6


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stopping_server_lets_its_answers_finish(edge: Edge, stream: bool) -> None:
    edge.dispatcher.script = [chunk(1, "a")]
    asked = asyncio.create_task(edge.complete(stream=stream))
    answer = await running(edge)
    await until(lambda: answer.told or not stream)
    stopping = asyncio.create_task(edge.stop())
    await asyncio.sleep(0.02)

    answer.push(chunk(2, "b", finish="stop"), end(3))

    response = await asked
    assert response.status_code == 200
    assert response.text.endswith("[DONE]\n\n" if stream else "}")
    await asyncio.wait_for(stopping, 2)
    assert answer.closed == 1


@pytest.mark.parametrize("script", [[], [chunk(1, "a")]], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_does_not_finish_in_time_ends_honestly(stream: bool, script: list[Any]) -> None:
    async with open_edge(drain_seconds=1) as edge:
        edge.dispatcher.script = script
        asked = asyncio.create_task(edge.complete(stream=stream))
        answer = await running(edge)
        await until(lambda: answer.told or not (stream and script))

        await edge.stop()

        response = await asked
        assert answer.closed == 1
        assert answer.failed == ["dependency_unavailable"], "the client did not leave: nothing is charged"
        if stream and script:
            assert events(response.text)[-1]["error"]["code"] == "dependency_unavailable"
        else:
            assert response.status_code == 503


@pytest.mark.parametrize(
    ("wait", "status", "patience"), [("0", 200, 0), ("600", 200, 600), ("601", 400, 0), ("-1", 400, 0), ("x", 400, 0)]
)
async def test_a_client_may_say_how_long_it_waits(edge: Edge, wait: str, status: int, patience: float) -> None:
    response = await edge.post(body(), inferbase_wait=wait)

    assert response.status_code == status
    if status == 200:
        assert edge.dispatcher.submissions[-1].patience_seconds == patience


async def test_openais_client_streams_and_folds(edge: Edge) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    async with openai.AsyncOpenAI(api_key=edge.key, base_url=edge.base_url) as client:
        whole = await client.chat.completions.create(model=MODEL.id, messages=messages)
        stream = await client.chat.completions.create(
            model=MODEL.id, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [one async for one in stream]

    assert whole.choices[0].message.content == "Hello"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 10


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


async def send_request(writer: asyncio.StreamWriter, edge: Edge, content: bytes, **headers: str) -> None:
    """Write a completions request by hand."""
    named = {
        "host": "x",
        "authorization": f"Bearer {edge.key}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + content)
    await writer.drain()
