"""HTTP/1.1 on a socket: uvicorn's protocol with our error shape, bounded heads, and a lower way to the client."""

import asyncio
import re
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.errors import http_error
from api.exchange import EXTENSION, Exchange, Lost
from shared.errors import InvalidRequest

HEAD_BYTES_MOST: Final = 64 * 1024  # request line and headers together
UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
STOPPING_SECONDS: Final = 0.3  # a stopping server waits so long for a request that is on its way
HEAD_SECONDS_MOST: Final = 30.0  # from the connection, or the first byte, to the last header


class HeadTooLarge(Exception):
    """The headers are too large; the parser turns this into its own error."""


class EdgeProtocol(HttpToolsProtocol):
    """One client connection."""

    # Invariant: `_head_timer` runs while a head is awaited and not complete.

    lost = False
    on_lost: Lost | None = None
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.lost = True
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        if b"pgrade:" in data and (self.cycle is None or self.cycle.response_complete):
            data = _without_upgrade(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()
        self.scope["extensions"] = {EXTENSION: Exchange(self, self.cycle)}  # type: ignore[dict-item]

    def shutdown(self) -> None:
        """Let what runs end; close an idle connection after a moment, since its next request may be on its way."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(STOPPING_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        answer = http_error(InvalidRequest(msg))
        headers = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{headers}connection: close\r\n\r\n".encode() + answer.body)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MOST:
            raise HeadTooLarge

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS_MOST, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _without_upgrade(data: bytes) -> bytes:
    """Return `data`, which starts with a head, without an offer to speak another protocol.

    Java's client offers `h2c` with every request over plain HTTP; the parser would take what follows for that protocol
    and lose the body. We may ignore the offer (RFC 9110, section 7.8).
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return UPGRADE.sub(b"", head) + end + rest


def protocol_options() -> dict[str, Any]:
    """Return how uvicorn must be told to speak: fast, silent, nothing trusted from a client's headers."""
    return {
        "interface": "asgi3",
        "http": EdgeProtocol,
        "ws": "none",
        "loop": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 75,  # longer than clients keep a connection, so that they close it and not we
    }
