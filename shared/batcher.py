"""Natural batching: gather what arrives while the previous batch is in flight, and send it as one.

Used for reservations, witnesses, Redis writes and subscriptions. An idle batcher sends in the same turn of the event
loop, a busy one in larger batches. The batcher owns an item from `submit` to its result: where the waiter has gone by
then, `on_orphan` is told.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from shared.errors import DependencyUnavailable

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Batcher(Generic[ItemT, ResultT]):
    """Sends items in batches of at most `most`, one batch in flight, at most `waiting_most` waiting.

    Where a batch costs much more than an item, `gather_seconds` is the least time from a batch of several to the next
    one, unless `gather_most` items wait: who comes alone is not delayed.

    `send` answers one result per item, in order; what it raises reaches every waiter of the batch. Retries and the
    halving of a failing batch belong to `send`, which knows the errors of its store.
    """

    # Invariant: `_task` is alive while `_waiting` holds anything, and runs on `_loop`.

    def __init__(
        self,
        send: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT]]],
        *,
        most: int = 256,
        waiting_most: int = 20_000,
        gather_seconds: float = 0.0,
        gather_most: int = 16,
        on_orphan: Callable[[ItemT, ResultT], None] | None = None,
    ) -> None:
        self._send = send
        self._most = most
        self._waiting_most = waiting_most
        self._gather_seconds = gather_seconds
        self._gather_most = gather_most
        self._on_orphan = on_orphan
        self._waiting: deque[tuple[ItemT, asyncio.Future[ResultT]]] = deque()
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None
        self._send_at = 0.0  # loop time before which the next batch gathers
        self._gathered: asyncio.Future[None] | None = None

    def submit(self, item: ItemT) -> "asyncio.Future[ResultT]":
        """Take `item` and return the future of its result; DependencyUnavailable where too many wait already."""
        if len(self._waiting) >= self._waiting_most:
            raise DependencyUnavailable
        if self._task is None:
            self._loop = asyncio.get_running_loop()  # not for each item: it asks the kernel for the process id
            self._task = self._loop.create_task(self._drain())
        future: asyncio.Future[ResultT] = self._loop.create_future()
        self._waiting.append((item, future))
        if self._gathered is not None and len(self._waiting) >= self._gather_most:
            _wake(self._gathered)
        return future

    @property
    def waiting(self) -> int:
        """How many items are not yet sent."""
        return len(self._waiting)

    async def flush(self) -> None:
        """Return once everything submitted so far is sent and answered."""
        while self._task is not None:
            await asyncio.shield(self._task)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                if self._gather_seconds:
                    await self._gather()
                size = min(self._most, len(self._waiting))
                if size > 1:
                    self._send_at = asyncio.get_running_loop().time() + self._gather_seconds
                batch = [self._waiting.popleft() for _ in range(size)]
                await self._send_batch(batch)
        finally:
            self._task = None

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._send_at and len(self._waiting) < self._gather_most:
            self._gathered = loop.create_future()
            timer = loop.call_at(self._send_at, _wake, self._gathered)
            try:
                await self._gathered
            finally:
                timer.cancel()
                self._gathered = None

    async def _send_batch(self, batch: list[tuple[ItemT, "asyncio.Future[ResultT]"]]) -> None:
        try:
            results = await self._send([item for item, _ in batch])
            assert len(results) == len(batch)
        except Exception as error:  # reaches the waiters; an unretrieved one is logged by the loop
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (item, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
            elif self._on_orphan is not None:
                self._on_orphan(item, result)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
