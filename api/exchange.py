"""One request and its response on a client's connection, below ASGI: what the completions route needs and ASGI lacks.

`api/protocol.py` offers it in the scope. It reaches into uvicorn's cycle for speed, never around its flow control; the
attributes it relies on are pinned by a test.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol, cast

from litestar.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXTENSION: Final = "inferbase.exchange"

Headers = Iterable[tuple[bytes, bytes]]
Lost = Callable[[], None]


class Connection(Protocol):
    """What an exchange needs of its connection, which serves one exchange after the other."""

    lost: bool
    on_lost: Lost | None


class Exchange:
    """The lower half of one request."""

    # Invariant: at most one exchange of a connection is running, so `on_lost` is the running one's.

    __slots__ = ("_connection", "_cycle", "status")

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self.status = 0  # of a response that `respond` wrote
        self._connection = connection
        self._cycle = cycle

    @property
    def writable(self) -> bool:
        """Whether `write` is allowed: the client is there and has not let too much wait for it."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or self._connection.lost or cycle.transport.is_closing())

    def take_body(self) -> bytes | None:
        """Return the body where all of it has arrived; None where it must be received."""
        cycle = self._cycle
        if cycle.more_body or self._connection.lost:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def write(self, data: bytes) -> None:
        """Write a part of a chunked response that has been started, at once; only while `writable`, never the last."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Write a whole response in one piece, at once; only while `writable`. `headers`: ours, with the length."""
        cycle = self._cycle
        assert not cycle.response_started
        self.status = status
        lines = [b"%b: %b\r\n" % header for header in headers]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    async def drain(self) -> None:
        """Wait while the client lets too much wait for it; a lost client does not."""
        await self._cycle.flow.drain()

    def watch(self, on_lost: Lost) -> None:
        """Call `on_lost` when the connection is lost, at once where it is; the body was read."""
        self._cycle.flow.resume_reading()  # paused by a large body: nothing would be noticed
        if self._connection.lost:
            on_lost()
        else:
            self._connection.on_lost = on_lost

    def unwatch(self) -> None:
        """Call nobody any more."""
        self._connection.on_lost = None

    def abort(self) -> None:
        """Drop the connection with all that waits for the client."""
        self._cycle.transport.abort()


def exchange_of(scope: Scope) -> Exchange:
    """Take the exchange of a request on our own server out of its scope, where it would close a cycle of references."""
    return cast("dict[str, Exchange]", scope["extensions"]).pop(EXTENSION)
