"""The load client: HTTP/1.1 over keep-alive connections, one callback per read, no task per token.

Its own CPU is not counted, but it shares the machine with what it measures, so it does little: it counts the time
stamps that the simulator and the floor put into each token (`@S` + 16 hex digits, before the first one `@R` + 16 more).
"""

import asyncio
import re
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Final, cast

import httptools

STAMP: Final = re.compile(rb"@S([0-9a-f]{16})")
RECEIVED: Final = re.compile(rb"@R([0-9a-f]{16})")
TAIL_BYTES: Final = 17  # of a read: may be the start of a stamp that ends in the next one
LONGEST_SECONDS: Final = 120.0  # a request that takes longer is lost


class Exchange:
    """One request and what came back. Times are CLOCK_MONOTONIC nanoseconds, the engine's own clock."""

    def __init__(self, *, detailed: bool) -> None:
        self.sent_ns = 0
        self.first_ns = 0  # when the first token was read
        self.ended_ns = 0
        self.status = 0
        self.tokens = 0
        self.error = b""  # what the server said instead of an answer
        self.engine_received_ns = 0
        self.stamps: array[int] | None = array("q") if detailed else None  # when the engine made each token
        self.reads: array[int] | None = array("q") if detailed else None  # when we read it
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tail = b""

    @property
    def good(self) -> bool:
        return self.status == 200 and not self.error

    def take(self, body: bytes, now: int) -> None:
        """Count the stamps of one read."""
        data = self._tail + body if self._tail else body
        if self.status != 200 or b'"error"' in data:
            self.error = (self.error + data)[:500]
        end = 0
        for match in STAMP.finditer(data):
            end = match.end()
            if self.stamps is not None and self.reads is not None:
                self.stamps.append(int(match[1], 16))
                self.reads.append(now)
            self.tokens += 1
        if end and not self.first_ns:
            self._start(data, now)
        self._tail = data[max(end, len(data) - TAIL_BYTES) :] if self.first_ns else data[-200:]

    def end(self) -> None:
        """Nothing more will come."""
        self.ended_ns = time.monotonic_ns()
        for future in (self.started, self.ended):
            if not future.done():
                future.set_result(None)

    def _start(self, data: bytes, now: int) -> None:
        self.first_ns = now
        received = RECEIVED.search(data)
        if received is not None:
            self.engine_received_ns = int(received[1], 16)
        if not self.started.done():
            self.started.set_result(None)


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time; answers without reuse close it."""

    def __init__(self, released: Callable[["Connection"], None]) -> None:
        self._released = released
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._bodies: list[bytes] = []
        self._whole = False

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def start(self, exchange: Exchange, request: bytes) -> None:
        assert self._transport is not None
        assert self._exchange is None
        self._exchange = exchange
        exchange.sent_ns = time.monotonic_ns()
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._parser.feed_data(data)
        exchange = self._exchange
        if exchange is None:
            return
        if self._bodies:
            exchange.take(b"".join(self._bodies), now)
            self._bodies.clear()
        if self._whole:
            self._whole = False
            self._exchange = None
            self._released(self)
            exchange.end()

    def connection_lost(self, error: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.error = exchange.error or b"the connection was lost"
            exchange.end()

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._bodies.append(body)

    def on_message_complete(self) -> None:
        self._whole = True


class Client:
    """All connections to one server. Keeps the tally of everything it received."""

    def __init__(self, port: int, path: str, *, key: str = "") -> None:
        self._port = port
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {key}\r\nAccept: application/json\r\nContent-Length: "
        ).encode()
        self._idle: list[Connection] = []
        self.tokens = 0
        self.requests = 0
        self.failed: list[Exchange] = []

    async def send(self, body: bytes, *, detailed: bool = False) -> Exchange:
        """Send a request and return its exchange, which is running."""
        exchange = Exchange(detailed=detailed)
        connection = await self._connection()
        exchange.ended.add_done_callback(lambda _: self._count(exchange))
        connection.start(exchange, b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        return exchange

    async def run(self, body: bytes, *, detailed: bool = False) -> Exchange:
        """Send a request and return its exchange once it has ended."""
        exchange = await self.send(body, detailed=detailed)
        await asyncio.wait_for(exchange.ended, LONGEST_SECONDS)
        return exchange

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: Connection(self._idle.append), "127.0.0.1", self._port)
        return made

    def _count(self, exchange: Exchange) -> None:
        self.requests += 1
        self.tokens += exchange.tokens
        if not exchange.good:
            self.failed.append(exchange)


async def closed_loop(
    client: Client, body: bytes, *, in_flight: int, requests: int, seconds: float, detailed: bool = False
) -> list[Exchange]:
    """Keep `in_flight` requests running until `requests` were made or `seconds` have passed; return them."""
    done: list[Exchange] = []
    stop_at = time.monotonic() + seconds
    left = requests

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0 and time.monotonic() < stop_at:
            left -= 1
            done.append(await client.run(body, detailed=detailed))

    await _together([one_after_the_other] * min(in_flight, requests))
    return done


async def open_loop(client: Client, body: bytes, *, per_second: float, requests: int) -> list[Exchange]:
    """Start requests at a fixed rate, however long they take; return them once all have ended."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    exchanges: list[Exchange] = []
    for number in range(requests):
        await asyncio.sleep(max(0.0, start + number / per_second - loop.time()))
        exchanges.append(await client.send(body, detailed=True))
    await wait_ended(exchanges)
    return exchanges


async def start_streams(client: Client, body: bytes, count: int) -> list[Exchange]:
    """Open `count` streams and return once each has its first token (or has ended)."""
    exchanges = [await client.send(body) for _ in range(count)]
    await asyncio.wait_for(asyncio.gather(*(exchange.started for exchange in exchanges)), LONGEST_SECONDS)
    return exchanges


async def wait_ended(exchanges: list[Exchange]) -> None:
    """Return once all have ended."""
    await asyncio.wait_for(asyncio.gather(*(exchange.ended for exchange in exchanges)), LONGEST_SECONDS)


async def _together(works: list[Callable[[], Awaitable[None]]]) -> None:
    await asyncio.gather(*(work() for work in works))
