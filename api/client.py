"""The client's end of one request: what is written to its socket, and how its leaving is noticed at once.

Used by the completions route only, which speaks ASGI itself; every other route leaves this to the framework.
"""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, cast

from litestar.types import Receive, Scope, Send

ABORT_EXTENSION: Final = "inferbase.abort"  # offered by api/protocol.py: drops the connection with all that is buffered

Headers = Iterable[tuple[bytes, bytes]]


class Client:
    """One request's socket. Inside `with client:` the running task is cut when the client leaves or stops reading.

    The cut ends the block silently and sets `gone`; what must be tidied belongs into `finally`.
    """

    # Invariants: `gone` is set before the task is cancelled for it; after `_complete` nobody is cut any more, unless
    # the last write is stuck; `_task` is None outside of the block.

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, slow_reader_seconds: float) -> None:
        self.started = False
        self.gone = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._slow_reader_seconds = slow_reader_seconds
        self._complete = False
        self._loop = asyncio.get_running_loop()
        self._sending_since: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._watcher = self._loop.create_task(self._watch())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        task, watcher, timer = self._task, self._watcher, self._timer
        assert task is not None and watcher is not None
        self._task = self._watcher = self._timer = None  # no cycles: garbage of every request would cost collections
        if not self._complete:  # else it is about to end by itself
            watcher.cancel()
        if timer is not None:
            timer.cancel()
        if not self.gone or kind is not asyncio.CancelledError:
            return False
        return task.uncancel() == 0  # else somebody else cancelled the task too

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status and the headers."""
        self.started = True
        if self._task is not None:
            self._timer = self._loop.call_later(self._slow_reader_seconds / 2, self._check_reader)
        self._sending_since = self._loop.time()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Hand `data` to the socket; waits while the client reads too slowly."""
        if not more:
            self._complete = True
        self._sending_since = self._loop.time()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending_since = None

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response."""
        await self.start(status, headers)
        await self.write(body, more=False)

    async def _watch(self) -> None:
        # The body was read before: the next message can only be the disconnect, or the end of our own response.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cut()

    def _check_reader(self) -> None:
        since = self._sending_since
        if since is not None and self._loop.time() - since >= self._slow_reader_seconds:
            extensions = cast(dict[str, Any], self._scope.get("extensions") or {})
            if ABORT_EXTENSION in extensions:
                extensions[ABORT_EXTENSION]["abort"]()
            self._complete = False  # the last write may be the one that is stuck
            self._cut()
            return
        self._timer = self._loop.call_later(self._slow_reader_seconds / 4, self._check_reader)

    def _cut(self) -> None:
        if self._complete or self.gone or self._task is None:
            return
        self.gone = True
        self._task.cancel()
