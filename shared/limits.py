"""How many requests of a key and of an account may run at once, exact over all API nodes.

Called by the dispatcher. A slot is a lease in Redis that its node renews while the request runs: what a dead node held
is free again when the lease ends. Acquire, renew and release go through one batch after another, so that a renewal can
never bring back a slot that was released.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from shared import keys
from shared.batcher import Batcher
from shared.channel.scripts import Call, ScriptPipeline
from shared.connections import Redis
from shared.errors import DependencyUnavailable
from shared.log import get_logger
from shared.settings import QueueSettings
from shared.wire import encode

OPERATIONS_MOST: Final = 128  # in one script call
UNUSED_SECONDS: Final = 60.0

_ACQUIRE: Final = 1
_RENEW: Final = 2
_RELEASE: Final = 3

Holders = Sequence[tuple[str, int]]  # whose slots a request takes, and how many each has

logger = get_logger("limits")


class _Operation(NamedTuple):
    what: int
    request_id: str
    holders: Holders


@asynccontextmanager
async def open_slots(redis: Redis, settings: QueueSettings) -> AsyncIterator["ConcurrencySlots"]:
    """Yield slots that are renewed, and release them all."""
    slots = ConcurrencySlots(redis, settings)
    await slots.start()
    try:
        yield slots
    finally:
        await slots.close()


class ConcurrencySlots:
    """The slots that this node holds."""

    # Invariant: what is in `_held` is renewed; a release takes it out before it is sent.

    def __init__(self, redis: Redis, settings: QueueSettings) -> None:
        self._settings = settings
        self._pipeline = ScriptPipeline(
            redis, ("limits",), folder=Path(__file__).parent, retry_seconds=settings.enqueue_retry_seconds
        )
        self._batcher: Batcher[_Operation, bool] = Batcher(
            self._send, most=OPERATIONS_MOST, on_orphan=self._give_back_orphan
        )
        self._held: dict[str, Holders] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """How many requests of this node hold slots."""
        return len(self._held)

    async def start(self) -> None:
        """Begin to renew."""
        assert self._task is None, "slots are renewed already"
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Release what is still held, as far as Redis answers, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for request_id, holders in list(self._held.items()):
            self.release(request_id, holders)
        await self._batcher.flush()
        await self._pipeline.close()

    async def acquire(self, request_id: str, holders: Holders) -> bool:
        """Take one slot of every holder, or none; a bound of 0 is none. False where a holder has no slot left.

        Raises DependencyUnavailable: a limit that cannot be checked lets nobody through.
        """
        bounded = _bounded(holders)
        if not bounded:
            return True
        decision = self._batcher.submit(_Operation(_ACQUIRE, request_id, bounded))
        try:
            return await decision
        except asyncio.CancelledError:
            # Granted, but cut before it could be used. If undecided, the future is cancelled now: an orphan to be.
            if decision.done() and not decision.cancelled() and decision.exception() is None and decision.result():
                self.release(request_id, bounded)
            raise

    def release(self, request_id: str, holders: Holders) -> None:
        """Give slots back; sent soon, and idempotent. Where Redis is away the lease ends them."""
        self._held.pop(request_id, None)
        bounded = _bounded(holders)
        if bounded:
            self._submit(_Operation(_RELEASE, request_id, bounded))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.node_beat_seconds)
            for request_id, holders in list(self._held.items()):
                self._submit(_Operation(_RENEW, request_id, holders))
            await self._batcher.flush()

    async def _send(self, operations: Sequence[_Operation]) -> list[bool]:
        granted = await self._call([self._still_needed(operation) for operation in operations])
        for operation, took in zip(operations, granted, strict=True):
            if operation.what == _ACQUIRE and took:
                self._held[operation.request_id] = operation.holders
        return granted

    def _still_needed(self, operation: _Operation) -> _Operation:
        """Return `operation`, or one that does nothing where it would renew what was released meanwhile."""
        if operation.what == _RENEW and operation.request_id not in self._held:
            return operation._replace(holders=())
        return operation

    async def _call(self, operations: Sequence[_Operation]) -> list[bool]:
        rows = [[operation.what, operation.request_id, *_flat(operation.holders)] for operation in operations]
        call = Call(
            script="limits",
            keys=(keys.slots(""),),
            arguments=(
                str(int(self._settings.node_lease_seconds * 1000)),
                str(int(UNUSED_SECONDS * 1000)),
                encode(rows),
            ),
        )
        (answers,) = await self._pipeline.run([call])
        return [answer == 1 for answer in answers]

    def _submit(self, operation: _Operation) -> None:
        """Send without a waiter; where it fails, the lease does the rest."""
        try:
            self._batcher.submit(operation).add_done_callback(_log_failure)
        except DependencyUnavailable as error:
            logger.warning("slots_not_told", error=error.message)

    def _give_back_orphan(self, operation: _Operation, granted: bool) -> None:
        """Nobody waits any more for this acquire."""
        if operation.what == _ACQUIRE and granted:
            self.release(operation.request_id, operation.holders)


def _bounded(holders: Holders) -> Holders:
    return [(holder, most) for holder, most in holders if most > 0]


def _flat(holders: Holders) -> Iterable[str | int]:
    for holder, most in holders:
        yield holder
        yield most


def _log_failure(future: "asyncio.Future[bool]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.warning("slots_not_told", error=str(error))
