"""Bad input on a socket: always OpenAI's error body, never a 5xx, never an echo of the secret, never a stalled loop."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.integration.api_edge import Edge, body, open_edge
from tests.unit.test_openai_bounded_json import INVALID, NOT_JSON

LIMIT = 64 * 1024


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge() as edge:
        yield edge


@pytest.fixture
async def small_edge() -> AsyncIterator[Edge]:
    async with open_edge(body_bytes_most=LIMIT, body_seconds_most=0.2) as edge:
        yield edge


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "Traceback" not in response.text


async def test_every_bad_body_is_400_and_nothing_is_submitted(edge: Edge) -> None:
    for code, bodies in (("invalid_json", NOT_JSON), ("invalid_value", INVALID)):
        for content in bodies.values():
            assert_error(await edge.post(content), 400, code)

    assert edge.dispatcher.submissions == []


async def test_large_bodies_never_stall_the_event_loop(edge: Edge) -> None:
    lag_most = 0.0

    async def measure() -> None:
        nonlocal lag_most
        while True:
            slept = time.monotonic()
            await asyncio.sleep(0.001)
            lag_most = max(lag_most, time.monotonic() - slept)

    measuring = asyncio.create_task(measure())
    used = time.process_time()
    for unit in (b"a", "😀".encode(), rb"\u4e2d", rb"\n"):
        content = body(messages=[{"role": "user", "content": "?"}]).replace(b"?", unit * (1_900_000 // len(unit)))
        assert (await edge.post(content)).status_code == 200
    for name in ("many keys", "100,000 objects deep", "a million numbers"):
        assert_error(await edge.post(INVALID[name]), 400, "invalid_value")
    used = time.process_time() - used
    measuring.cancel()

    assert lag_most < 0.05 + 0.2 * used  # the client of this test runs in the same loop and copies 2 MB at a time


async def test_an_unknown_model_is_404_and_says_which_exist(edge: Edge) -> None:
    response = await edge.complete(model="../../etc")

    assert_error(response, 404, "model_not_found")
    assert "Org/sim-1" in response.json()["error"]["message"]


@pytest.mark.parametrize("declared", [True, False], ids=["Content-Length", "chunked"])
async def test_a_body_over_the_limit_is_413(small_edge: Edge, declared: bool) -> None:
    content = body(user="u" * LIMIT)

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 8192):
            yield content[start : start + 8192]

    response = await small_edge.client.post(
        "/chat/completions",
        content=content if declared else parts(),
        headers={"content-type": "application/json"},
    )

    assert_error(response, 413, "request_too_large")
    assert (await small_edge.complete()).status_code == 200


async def test_413_comes_before_the_body_is_read(small_edge: Edge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", small_edge.port)
    writer.write(head(small_edge, **{"content-length": "9999999999"}))

    status = await asyncio.wait_for(reader.readline(), 0.5)

    assert b" 413 " in status
    assert b"request_too_large" in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_a_body_that_does_not_come_is_400_in_time(small_edge: Edge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", small_edge.port)
    writer.write(head(small_edge, **{"content-length": "100"}) + b'{"model"')

    status = await asyncio.wait_for(reader.readline(), 5)

    assert b" 400 " in status
    writer.close()


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_nobody(small_edge: Edge) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", small_edge.port)
    writer.write(head(small_edge, **{"content-length": "100"}) + b'{"model"')
    writer.close()
    await writer.wait_closed()

    assert (await small_edge.complete()).status_code == 200
    assert len(small_edge.dispatcher.submissions) == 1


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
async def test_a_wrong_content_type_is_415(edge: Edge, kind: str) -> None:
    assert_error(await edge.post(body(), content_type=kind), 415, "unsupported_media_type")


async def test_a_missing_content_type_is_415(edge: Edge) -> None:
    assert_error(await edge.client.post("/chat/completions", content=body()), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_in_utf8_is_taken_however_it_is_spelled(edge: Edge, kind: str) -> None:
    assert (await edge.post(body(), content_type=kind)).status_code == 200


async def test_a_content_encoding_is_415(edge: Edge) -> None:
    assert_error(await edge.post(body(), content_encoding="gzip"), 415, "unsupported_media_type")


async def test_the_key_is_asked_for_before_anything_else(edge: Edge) -> None:
    response = await edge.post(b"not json", authorization="Bearer inf_wrong", content_type="text/plain")

    assert_error(response, 401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "inf_wrong" not in response.text
    assert edge.keys.lookups == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_another_method_is_405(edge: Edge, method: str) -> None:
    response = await edge.client.request(method, "/chat/completions")

    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_both_bases_serve_the_same(edge: Edge) -> None:
    response = await edge.client.post(
        f"http://127.0.0.1:{edge.port}/api/v1/inference/chat/completions",
        content=body(),
        headers={"content-type": "application/json"},
    )

    assert response.status_code == 200


async def test_an_offer_to_upgrade_does_not_lose_the_body(edge: Edge) -> None:
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__"}

    for _ in range(2):
        assert (await edge.post(body(), **headers)).status_code == 200


async def test_what_is_no_http_gets_our_error_too(edge: Edge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"\x16\x03\x01 not http\r\n\r\n")

    answer = await asyncio.wait_for(reader.read(), 5)

    assert answer.startswith(b"HTTP/1.1 400 ") and b'"code":"invalid_value"' in answer
    writer.close()


async def test_headers_beyond_64_kib_are_refused(edge: Edge) -> None:
    response = await edge.post(body(), x_padding="x" * 70_000)

    assert_error(response, 400, "invalid_value")


@pytest.mark.parametrize("said", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost:"], ids=["nothing", "half a head"])
async def test_a_connection_that_says_too_little_is_dropped(
    edge: Edge, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.protocol.HEAD_SECONDS_MOST", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(said)

    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()


async def test_a_long_bad_key_is_401(edge: Edge) -> None:
    assert_error(await edge.post(body(), authorization="Bearer " + "x" * 8192), 401, "invalid_api_key")


async def test_an_image_part_makes_no_connection(edge: Edge) -> None:
    asked = asyncio.Event()
    server = await asyncio.start_server(lambda *_: asked.set(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.png"

    response = await edge.complete(
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    )

    assert_error(response, 400, "unsupported_parameter")
    assert not asked.is_set()
    server.close()


def head(edge: Edge, **headers: str) -> bytes:
    """Return the head of a completions request, written by hand."""
    named = {"host": "x", "authorization": f"Bearer {edge.key}", "content-type": "application/json", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode()
