"""The client's end of one request: what is written to its socket, and how its leaving is noticed at once.

Used by the completions route only, which speaks ASGI itself; every other route leaves this to the framework.
"""

import asyncio
from types import TracebackType

from litestar.types import Send

from api.exchange import Exchange, Headers


class Client:
    """One request's socket. Inside `with client:` the running task is cut when the client leaves or stops reading.

    The cut ends the block silently and sets `gone`; what must be tidied belongs into `finally`.
    """

    # Invariants: `gone` is set before the task is cancelled for it; after `_complete` nobody is cut any more, unless
    # the last write is stuck; `_task` is None outside of the block.

    def __init__(self, exchange: Exchange, send: Send, *, slow_reader_seconds: float) -> None:
        self.started = False
        self.gone = False
        self._exchange = exchange
        self._send = send
        self._slow_reader_seconds = slow_reader_seconds
        self._complete = False
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._exchange.watch(self._cut)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        task, self._task = self._task, None  # no cycles: garbage of every request would cost collections
        assert task is not None
        self._exchange.unwatch()
        if not self.gone or kind is not asyncio.CancelledError:
            return False
        return task.uncancel() == 0  # else somebody else cancelled the task too

    @property
    def writable(self) -> bool:
        """Whether `push` is allowed: the client is there and reads fast enough."""
        return self._exchange.writable

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status and the headers."""
        self.started = True
        if not self._exchange.writable:
            await self._drain()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Hand `data` to the socket; waits before that while the client reads too slowly."""
        if not more:
            self._complete = True
        if not self._exchange.writable:
            await self._drain()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def push(self, data: bytes) -> None:
        """Hand a part of a stream to the socket at once; after `start`, and only while `writable`."""
        self._exchange.write(data)

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response; `headers` name its length."""
        if self._exchange.writable:
            self.started = self._complete = True
            self._exchange.respond(status, headers, body)
        else:
            await self.start(status, headers)
            await self.write(body, more=False)

    async def _drain(self) -> None:
        """Wait until the socket takes more, or cut a client that takes nothing for too long."""
        patience = asyncio.get_running_loop().call_later(self._slow_reader_seconds, self._give_up)
        try:
            await self._exchange.drain()
        finally:
            patience.cancel()

    def _give_up(self) -> None:
        self._exchange.abort()
        self._complete = False  # the last write may be the one that is stuck
        self._cut()

    def _cut(self) -> None:
        if self._complete or self.gone or self._task is None:
            return
        self.gone = True
        self._task.cancel()
