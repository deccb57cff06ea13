"""What must reach a store some time while its sender does not wait: owned, merged by id, bounded, retried.

Used for witnesses and releases. `put` never blocks and never fails; one task, alive only while there is something to
send, sends batches and keeps what a store that is down could not take.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from shared import log, metrics
from shared.errors import InferbaseError

ItemT = TypeVar("ItemT")

logger = log.get_logger("outbox")


class Outbox(Generic[ItemT]):
    """Keeps items by id until `send` took them. Beyond `most` the oldest is dropped and counted.

    `send` raises an InferbaseError where the store is down; then the same items are sent again `retry_seconds` later.
    """

    # Invariant: an item is in `_items` until a `send` that had it returns, and `_task` is alive while there are items.

    def __init__(
        self,
        send: Callable[[Sequence[ItemT]], Awaitable[None]],
        *,
        merge: Callable[[ItemT, ItemT], ItemT],
        most: int,
        batch_most: int,
        retry_seconds: float,
        delay_seconds: float = 0.0,
    ) -> None:
        self._send = send
        self._merge = merge
        self._most = most
        self._batch_most = batch_most
        self._retry_seconds = retry_seconds
        self._delay_seconds = delay_seconds
        self._items: dict[str, ItemT] = {}
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    def put(self, item_id: str, item: ItemT) -> None:
        """Take an item; where one of this id waits, they are merged (older, newer)."""
        older = self._items.get(item_id)
        if older is not None:
            item = self._merge(older, item)
        elif len(self._items) >= self._most:
            self._items.pop(next(iter(self._items)))
            metrics.OUTBOX_DROPPED.inc()
        self._items[item_id] = item
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    @property
    def waiting(self) -> int:
        """How many items are not yet written."""
        return len(self._items)

    async def flush(self, timeout_seconds: float) -> bool:
        """Send without delay; True once everything is written, False if `timeout_seconds` were not enough."""
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._task is not None:
                    await asyncio.shield(self._task)
        except TimeoutError:
            if self._task is not None:
                self._task.cancel()
            return False
        finally:
            self._hurry.clear()
        return True

    async def _drain(self) -> None:
        try:
            while self._items:
                await self._pause(self._delay_seconds)
                if not await self._send_batches():
                    await asyncio.sleep(self._retry_seconds)
        finally:
            self._task = None

    async def _send_batches(self) -> bool:
        # Only what waits now: what comes meanwhile gathers for the delay of the next round.
        waiting = list(self._items.items())
        for start in range(0, len(waiting), self._batch_most):
            batch = waiting[start : start + self._batch_most]
            try:
                await self._send([item for _, item in batch])
            except InferbaseError as error:
                logger.warning("outbox_waits", waiting=len(self._items), error=error.message)
                return False
            for item_id, item in batch:
                if self._items.get(item_id) is item:  # else it was merged meanwhile: send that too
                    del self._items[item_id]
        return True

    async def _pause(self, seconds: float) -> None:
        if seconds and not self._hurry.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._hurry.wait()
            except TimeoutError:
                pass
