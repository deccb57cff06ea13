"""Hostile bytes against the shipped proxy before real API nodes: each gets a safe answer, in our shape."""

import asyncio
import json

import httpx

from tests.cluster import Cluster
from tests.deploy.proxy import Answer, Proxy, exchange

HOST = b"Host: api.example.com\r\n"
COMPLETIONS = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
MODELS = b"GET /v1/models HTTP/1.1\r\n"
SMUGGLED = b"0\r\n\r\nGET /v1/credits HTTP/1.1\r\n" + HOST + b"\r\n"
HEADER_BYTES = 20_000_000

# What is sent at once -> the status.
CORPUS: dict[str, tuple[bytes, int]] = {
    "length and encoding": (
        COMPLETIONS + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED,
        400,
    ),
    "encoding and length": (
        COMPLETIONS + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + SMUGGLED,
        400,
    ),
    "two lengths": (COMPLETIONS + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}", 400),
    "negative length": (COMPLETIONS + b"Content-Length: -2\r\n\r\n{}", 400),
    "two encodings": (
        COMPLETIONS + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED,
        400,
    ),
    "unknown encoding": (COMPLETIONS + b"Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED, 400),
    "encoding in HTTP/1.0": (
        COMPLETIONS.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + SMUGGLED,
        400,
    ),
    "bad chunk": (COMPLETIONS + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n", 400),
    "two hosts": (MODELS + HOST + b"Host: evil.example\r\n\r\n", 400),
    "two hosts, ours last": (MODELS + b"Host: evil.example\r\n" + HOST + b"\r\n", 400),
    "no host": (MODELS + b"\r\n", 400),
    "another host": (MODELS + b"Host: evil.example\r\n\r\n", 421),
    "another host in the request line": (MODELS.replace(b" /", b" http://evil.example/") + HOST + b"\r\n", 421),
    "folded header": (MODELS + HOST + b"X-Folded: a\r\n  b\r\n\r\n", 400),
    "space before the colon": (MODELS + HOST + b"Content-Length : 4\r\n\r\n", 400),
    "NUL in a header": (MODELS + HOST + b"X-Nul: a\0b\r\n\r\n", 400),
    "bare LF": (MODELS.replace(b"\r", b"") + HOST.replace(b"\r", b"") + b"X-Lf: 1\n\n", 200),
    "header of 20 MB": (MODELS + HOST + b"X-Large: " + b"a" * HEADER_BYTES + b"\r\n\r\n", 431),
    "headers of 20 MB": (MODELS + HOST + b"X-Many: a\r\n" * (HEADER_BYTES // 11) + b"\r\n", 431),
    "long request line": (MODELS.replace(b"models", b"models?" + b"a" * 20_000) + HOST + b"\r\n", 414),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "unknown version": (MODELS.replace(b"1.1", b"3.0") + HOST + b"\r\n", 400),
    "TRACE": (MODELS.replace(b"GET", b"TRACE") + HOST + b"\r\n", 405),
    "CONNECT": (b"CONNECT db:5432 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "above the root": (MODELS.replace(b"/v1/models", b"/v1/../../etc/passwd") + HOST + b"\r\n", 400),
    "unknown path": (MODELS.replace(b"/v1/models", b"/metrics") + HOST + b"\r\n", 404),
    "the path of our errors": (MODELS.replace(b"/v1/models", b"/_error") + HOST + b"\r\n", 404),
    "body over 2 MiB": (COMPLETIONS + b"Content-Length: 2097153\r\n\r\n", 413),
    "body over 16 KiB elsewhere": (
        COMPLETIONS.replace(b"chat/completions", b"keys") + b"Content-Length: 16385\r\n\r\n",
        413,
    ),
}
# Those that take their time, in parts half a second apart -> the status; 0: closed without an answer.
SLOW: dict[str, tuple[list[bytes], set[int]]] = {
    "head that stops": ([MODELS], {0}),
    "head that drips": ([MODELS + HOST, *([b"X-Slow: 1\r\n"] * 30)], {0}),
    "body that stops": ([COMPLETIONS + b"Content-Type: application/json\r\nContent-Length: 90\r\n\r\n{"], {400}),
    "body that drips": (
        [COMPLETIONS + b"Content-Type: application/json\r\nContent-Length: 90\r\n\r\n", *([b" "] * 30)],
        {400},
    ),
}
SLOW_SECONDS = 13.0  # the shipped 10 s between two reads, and room


async def test_hostile_bytes_get_safe_answers_in_our_shape(proxied: tuple[Proxy, Cluster]) -> None:
    proxy, cluster = proxied
    _, key = await cluster.add_account("1")
    slow = asyncio.create_task(_send_slowly(proxy, key))

    answers = {name: await exchange(proxy.port, sent) for name, (sent, _) in CORPUS.items()}
    answers |= await slow

    wanted = {name: {status} for name, (_, status) in CORPUS.items()} | {name: row[1] for name, row in SLOW.items()}
    assert {name: answer.status for name, answer in answers.items() if answer.status not in wanted[name]} == {}
    for name, answer in answers.items():
        assert _is_safe(answer), (name, answer)
    async with httpx.AsyncClient() as client:
        for _ in range(4):  # both nodes still answer
            assert (await client.get(f"{proxy.url}/v1/models")).status_code == 200


async def _send_slowly(proxy: Proxy, key: str) -> dict[str, Answer]:
    """Send all slow requests at once; with a key, since else the body would not be waited for."""
    authorization = b"Authorization: Bearer " + key.encode() + b"\r\n"
    answers = await asyncio.gather(
        *(
            exchange(
                proxy.port,
                parts[0].replace(HOST, HOST + authorization),
                *parts[1:],
                pause_seconds=0.5,
                patience_seconds=SLOW_SECONDS,
            )
            for parts, _ in SLOW.values()
        )
    )
    assert all(answer.seconds < SLOW_SECONDS for answer in answers)
    return dict(zip(SLOW, answers, strict=True))


def _is_safe(answer: Answer) -> bool:
    """Tell whether it is what an OpenAI client understands, or a closed connection."""
    if answer.status == 0:
        return answer.closed and not answer.body
    if not answer.headers.get("x-request-id", "").startswith(("req_", "chatcmpl-")):
        return False
    if answer.status == 200:
        return True
    error = json.loads(answer.body)["error"]
    return set(error) == {"message", "type", "param", "code"} and isinstance(error["code"], str)
