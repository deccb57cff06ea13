"""Tokens written past the framework, straight to the socket: nothing is lost, mixed up or kept for who has gone."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tests.integration.api_edge import Edge, ScriptedAnswer, body, chunk, end, events, open_edge

WORDS_MOST = 2000
WORD = "x" * 10_000


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge(status_hold_seconds=5, slow_reader_seconds=5) as edge:
        yield edge


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def begin(edge: Edge, data: bytes, *, limit: int = 65536) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, limit=limit)
    writer.write(request(edge, data))
    return reader, writer


def request(edge: Edge, data: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {edge.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def answer_of(edge: Edge, number: int = 0) -> ScriptedAnswer:
    await until(lambda: len(edge.dispatcher.answers) > number)
    return edge.dispatcher.answers[number]


async def test_a_reader_that_pauses_gets_every_token_in_order_when_it_reads_on(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "1 ")]
    reader, writer = await begin(edge, body(stream=True), limit=1024)
    answer = await answer_of(edge)
    seq = 1
    while answer.told[-1:] == [(seq, seq)] or not answer.told:  # until the sockets are full
        seq += 1
        assert seq < WORDS_MOST
        answer.push(chunk(seq, f"{seq}{WORD} "))
        await asyncio.sleep(0.002)
    held_at = answer.told[-1][0]
    for _ in range(10):
        seq += 1
        answer.push(chunk(seq, f"{seq}{WORD} "))
        await asyncio.sleep(0)
    assert answer.told[-1][0] == held_at

    answer.push(chunk(seq + 1, finish="stop"), end(seq + 2))
    received = await asyncio.wait_for(_whole(reader), 10)

    said = "".join(event["choices"][0]["delta"].get("content", "") for event in received[:-1])
    assert [word.rstrip("x") for word in said.split()] == [str(number) for number in range(1, seq + 1)]
    assert received[-1] == "[DONE]"
    assert answer.told[-1][0] == seq + 2
    writer.close()


async def test_who_leaves_between_two_tokens_is_told_of_no_more(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "a")]
    _, writer = await begin(edge, body(stream=True))
    answer = await answer_of(edge)
    answer.push(chunk(2, "b"))
    await until(lambda: answer.told[-1:] == [(2, 2)])

    writer.close()
    await until(lambda: answer.closed)
    answer.push(chunk(3, "c"))
    await asyncio.sleep(0.01)

    assert answer.told[-1] == (2, 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_after_a_large_body_is_noticed(edge: Edge, stream: bool) -> None:
    edge.dispatcher.script = []
    large = [{"role": "user", "content": "x" * 1_000_000}]
    _, writer = await begin(edge, body(stream=stream, messages=large))
    answer = await answer_of(edge)

    writer.close()

    await until(lambda: answer.closed)


async def test_who_leaves_while_its_key_is_looked_up_is_let_go(edge: Edge) -> None:
    edge.dispatcher.script = []
    found, looked = edge.node.authenticator.authenticate, asyncio.Event()

    async def authenticate(authorization: bytes | None) -> Any:
        looked.set()
        await asyncio.sleep(0.02)
        return await found(authorization)

    edge.node.authenticator.authenticate = authenticate  # type: ignore[method-assign]
    _, writer = await begin(edge, body(stream=True))
    await looked.wait()

    writer.close()

    await asyncio.sleep(0.05)
    assert all(answer.closed for answer in edge.dispatcher.answers)


async def test_pipelined_requests_are_answered_one_after_the_other(edge: Edge) -> None:
    reader, writer = await begin(edge, body())
    writer.write(request(edge, body(stream=True)) + request(edge, body()))

    answers = [await _response(reader) for _ in range(3)]

    assert answers[0]["choices"][0]["message"]["content"] == "Hello"
    assert answers[1][-1] == "[DONE]"
    assert answers[2]["choices"][0]["message"]["content"] == "Hello"
    writer.close()


async def test_who_leaves_with_another_request_waiting_behind_is_let_go(edge: Edge) -> None:
    edge.dispatcher.script = []
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(request(edge, body(stream=True)) + request(edge, body()))
    answer = await answer_of(edge)

    writer.transport.abort()

    await until(lambda: answer.closed)


async def test_who_wants_the_connection_closed_gets_the_whole_answer_and_the_end(edge: Edge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(request(edge, body()).replace(b"host: x", b"host: x\r\nconnection: close"))

    head, _, data = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")

    assert b"connection: close" in head
    assert msgspec.json.decode(data)["choices"][0]["message"]["content"] == "Hello"
    writer.close()


async def test_a_whole_answer_waits_for_a_client_that_has_not_read_the_one_before(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "x" * 20_000_000, finish="stop"), end(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, limit=1024)
    writer.write(request(edge, body()))
    await until(lambda: edge.dispatcher.answers and edge.dispatcher.answers[0].closed)
    edge.dispatcher.script = [chunk(1, "Hello", finish="stop"), end(2)]
    writer.write(request(edge, body()))
    second = await answer_of(edge, 1)
    await asyncio.sleep(0.02)
    assert not second.closed, "its answer waits"

    contents = [(await _response(reader))["choices"][0]["message"]["content"] for _ in range(2)]

    assert [len(content) for content in contents] == [20_000_000, 5]
    assert second.told == [(2, 1)]
    writer.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/api/v1/inference/chat/completions"])
async def test_every_spelling_of_the_path_is_served(edge: Edge, path: str) -> None:
    response = await edge.client.post(
        f"http://127.0.0.1:{edge.port}{path}", content=body(), headers={"content-type": "application/json"}
    )

    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello"


def test_uvicorns_cycle_has_what_an_exchange_takes_from_it() -> None:
    made = inspect.getsource(RequestResponseCycle.__init__)
    sent = inspect.getsource(RequestResponseCycle.send)

    for name in ("flow", "transport", "body", "more_body", "keep_alive", "message_event", "on_response"):
        assert f"self.{name}" in made
    for name in ("response_started", "response_complete", "waiting_for_100_continue"):
        assert f"self.{name} = " in sent
    assert r'[b"%x\r\n" % len(body), body, b"\r\n"]' in sent, "our own framing is that of uvicorn"


async def _response(reader: asyncio.StreamReader) -> Any:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"chunked" in head:
        return await _whole(reader, in_head=False)
    (length,) = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    return msgspec.json.decode(await reader.readexactly(int(length.split(b":")[1])))


async def _whole(reader: asyncio.StreamReader, *, in_head: bool = True) -> list[Any]:
    """Return the events of a chunked response, read to its end."""
    if in_head:
        await reader.readuntil(b"\r\n\r\n")
    data = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return events(data.decode())
