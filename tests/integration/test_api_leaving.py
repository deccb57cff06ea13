"""A client that leaves or stops reading, and a server that stops: every answer is let go, none is cut in silence."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.api_edge import (
    Edge,
    body,
    chunk,
    end,
    events,
    open_edge,
    running,
    until,
)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge(ping_seconds=0.05, status_hold_seconds=0.05, slow_reader_seconds=0.2) as edge:
        yield edge


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
