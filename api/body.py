"""Reading the body of a completions request: typed, bounded in bytes and in seconds, refused before it is all read."""

import asyncio
from typing import Final

from litestar.types import Receive, Send

from api.exchange import Exchange
from shared.errors import InvalidRequest, Refusal

SMALL_BYTES_MOST: Final = 64 * 1024  # not worth closing a connection for, when refused unread
LINGER_SECONDS: Final = 1.0  # how long a refused upload may go on, so that the client sees the answer and not a reset
LINGER_BYTES_MOST: Final = 16 * 1024 * 1024


class ClientLeft(Exception):
    """The client closed the connection before its request was complete."""


def check_json(headers: dict[bytes, bytes]) -> None:
    """Raise Refusal (415) unless the body is declared as plain JSON in UTF-8."""
    kind, _, parameters = headers.get(b"content-type", b"").lower().partition(b";")
    charset = parameters.replace(b" ", b"").replace(b'"', b"")
    if kind.strip() != b"application/json" or charset not in (b"", b"charset=utf-8", b"charset=utf8"):
        raise Refusal("The Content-Type must be application/json.", code="unsupported_media_type")
    if headers.get(b"content-encoding", b"identity").lower() not in (b"", b"identity"):
        raise Refusal("A Content-Encoding is not supported.", code="unsupported_media_type")


async def read_body(
    headers: dict[bytes, bytes], exchange: Exchange, receive: Receive, *, most: int, seconds_most: float
) -> bytes:
    """Return the whole body of at most `most` bytes, without waiting where it is there.

    Raises Refusal (413) as soon as the declared or the received size is over it, InvalidRequest where it takes longer
    than `seconds_most`, and ClientLeft.
    """
    if int(headers.get(b"content-length", b"0")) > most:
        raise _too_large(most)
    body = exchange.take_body()
    if body is not None:
        if len(body) > most:
            raise _too_large(most)
        return body
    try:
        async with asyncio.timeout(seconds_most):
            return await _read(receive, most)
    except TimeoutError:
        message = f"The request body did not arrive within {seconds_most:g} seconds."
        raise InvalidRequest(message, code="invalid_json") from None


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        part = message["body"]
        if not message["more_body"] and not parts:
            if len(part) > most:
                raise _too_large(most)
            return part
        parts.append(part)
        size += len(part)
        if size > most:
            raise _too_large(most)
        if not message["more_body"]:
            return b"".join(parts)


def worth_stopping(headers: dict[bytes, bytes]) -> bool:
    """Tell whether so much body may still come that a refusal should close the connection."""
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > SMALL_BYTES_MOST


async def linger(receive: Receive, send: Send) -> None:
    """Throw away what a refused client still sends, for a moment, then end the response and so the connection."""
    size = 0
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while size < LINGER_BYTES_MOST:
                message = await receive()
                if message["type"] != "http.request" or not message["more_body"]:
                    break
                size += len(message["body"])
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_large(most: int) -> Refusal:
    return Refusal(f"The request body is larger than {most} bytes.", code="request_too_large")
