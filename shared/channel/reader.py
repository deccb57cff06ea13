"""The API node's end: all its requests on one pub/sub connection, with the log behind it.

Called by the dispatcher for each answer. Promises: a subscription gets every chunk once and in order, whatever the
channel loses; memory is bounded per request; a restart of Redis is survived, and where Redis stays away for
UNREACHABLE_SECONDS every subscription ends with an honest error.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from shared import keys
from shared.batcher import Batcher
from shared.channel.push_connection import GONE, PushConnection
from shared.channel.refill import SUBSCRIPTIONS_MOST, refill
from shared.channel.subscription import TICK_SECONDS, Subscription
from shared.connections import Redis
from shared.log import get_logger
from shared.settings import QueueSettings
from shared.wire import decode_chunk

UNREACHABLE_SECONDS: Final = 5.0
PING_TICKS: Final = 2  # of silence: ask whether Redis is there
SUBSCRIPTIONS_WAITING_MOST: Final = 1_000_000  # each waits once at most
NAMES_MOST: Final = 512  # in one SUBSCRIBE
UNSUBSCRIBE_AT: Final = 64  # channels; fewer wait for the next tick, since nothing hurries
BACKOFF_SECONDS: Final = 0.02
BACKOFF_SECONDS_MOST: Final = 0.5

logger = get_logger("log_reader")


@asynccontextmanager
async def open_log_reader(redis: Redis, settings: QueueSettings) -> AsyncIterator["LogReader"]:
    """Yield a started reader and close it."""
    reader = LogReader(redis, settings)
    await reader.start()
    try:
        yield reader
    finally:
        await reader.close()


class LogReader:
    """The reader of one API node."""

    # Invariant: `_routes` holds every open subscription under its channel. `_wanted` are channels of it whose SUBSCRIBE
    # was not sent on this connection; `_unwanted` are channels without a route whose UNSUBSCRIBE was not.

    def __init__(self, redis: Redis, settings: QueueSettings) -> None:
        self.dropped = 0  # messages that were not ours to read
        self.reconnects = 0
        self.refills = 0  # log reads
        self._redis = redis
        self._settings = settings
        self._routes: dict[bytes, list[Subscription]] = {}
        self._wanted: dict[bytes, None] = {}
        self._unwanted: dict[bytes, None] = {}
        self._pushes: list[Subscription] = []
        self._connection: PushConnection | None = None
        self._flushing = False
        self._heard = True
        self._silent_ticks = 0
        self._fills: Batcher[Subscription, None] = Batcher(
            self._refill, most=SUBSCRIPTIONS_MOST, waiting_most=SUBSCRIPTIONS_WAITING_MOST
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def open(self) -> int:
        """How many channels are read."""
        return len(self._routes)

    async def start(self) -> None:
        """Begin to connect; subscriptions may be made at once, also while Redis is away."""
        assert not self._tasks, "the reader runs already"
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._listen()), loop.create_task(self._upkeep())]
        for task in self._tasks:
            task.add_done_callback(_log_death)

    async def close(self) -> None:
        """Close every subscription and the connection."""
        for route in list(self._routes.values()):
            for subscription in list(route):
                subscription.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._fills.flush()

    def subscribe(self, model: str, request_id: str, *, after: int = 0) -> Subscription:
        """Read a request's chunks behind seq `after`. SUBSCRIBE goes out at the end of this turn of the event loop.

        Call `Subscription.enqueued()` when the ENQUEUE is sent, or at once where the request runs already.
        """
        channel = keys.channel(model, request_id).encode()
        subscription = Subscription(self, model, request_id, channel, after=after, settings=self._settings)
        self._routes.setdefault(channel, []).append(subscription)
        self._unwanted.pop(channel, None)
        self._wanted[channel] = None
        self._flush_soon()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription; called by its `close`."""
        channel = subscription.channel
        route = self._routes[channel]
        route.remove(subscription)
        if route:
            return
        del self._routes[channel]
        if channel in self._wanted:
            del self._wanted[channel]
            return
        self._unwanted[channel] = None
        if len(self._unwanted) >= UNSUBSCRIBE_AT:
            self._flush_soon()

    def fill(self, subscription: Subscription) -> None:
        """Read the log of a subscription; said again meanwhile, once more after that."""
        if subscription.filling:
            subscription.again = True
        elif subscription.room > 0:
            subscription.filling = True
            self._fills.submit(subscription)
        else:
            subscription.behind = True

    def push_soon(self, subscription: Subscription) -> None:
        """Call its `push` after the replies, or the logs, that are being taken."""
        self._pushes.append(subscription)

    async def _refill(self, subscriptions: Sequence[Subscription]) -> list[None]:
        self.refills += len(subscriptions)
        answered = await refill(self._redis, subscriptions)
        self._heard |= answered
        self._push()
        for subscription in subscriptions:
            subscription.filling = False
            if subscription.again:
                subscription.again = False
                if answered:
                    self.fill(subscription)
        return [None] * len(subscriptions)

    async def _listen(self) -> None:
        backoff = BACKOFF_SECONDS
        while True:
            try:
                connection = await PushConnection.open(self._redis)
            except GONE as error:
                if backoff == BACKOFF_SECONDS:
                    logger.warning("subscriber_not_connected", error=type(error).__name__)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, BACKOFF_SECONDS_MOST)
                continue
            backoff = BACKOFF_SECONDS
            try:
                self._resubscribe(connection)
                while True:
                    self._route(await connection.read())
            except GONE as error:
                logger.warning("subscriber_disconnected", error=type(error).__name__)
            finally:
                self._connection = None
                await connection.close()
            self.reconnects += 1
            await asyncio.sleep(backoff)

    def _resubscribe(self, connection: PushConnection) -> None:
        self._connection = connection
        self._unwanted.clear()
        self._wanted = dict.fromkeys(self._routes)
        if self.reconnects:
            for route in self._routes.values():
                for subscription in route:
                    subscription.reconnected()
        self._flush()

    def _route(self, replies: list[Any]) -> None:
        self._heard = True
        routes = self._routes
        for reply in replies:
            if len(reply) != 3:
                continue  # PONG
            kind, channel, payload = reply
            route = routes.get(channel)
            if route is None:
                continue  # closed meanwhile
            if kind == b"message":
                self._deliver(route, payload)
            elif kind == b"subscribe":
                for subscription in route:
                    if subscription.read_on_confirm:
                        self.fill(subscription)
        self._push()

    def _push(self) -> None:
        pushes, self._pushes = self._pushes, []
        for subscription in pushes:
            subscription.push()

    def _deliver(self, route: list[Subscription], payload: bytes) -> None:
        try:
            chunk = decode_chunk(payload)
        except msgspec.DecodeError:
            self.dropped += 1
            return
        for subscription in route:
            if chunk.request_id != subscription.request_id:
                self.dropped += 1
            elif subscription.offer(chunk) and (subscription.filling or not subscription.behind):
                self.fill(subscription)

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._flush()
            for route in self._routes.values():
                for subscription in route:
                    if subscription.tick():
                        self.fill(subscription)
            self._watch()

    def _watch(self) -> None:
        """Notice a Redis that is away or says nothing. Counted in ticks: a frozen process must not blame Redis."""
        if self._heard or not self._routes:
            self._heard = False
            self._silent_ticks = 0
            return
        self._silent_ticks += 1
        if self._silent_ticks * TICK_SECONDS >= UNREACHABLE_SECONDS:
            for route in list(self._routes.values()):
                for subscription in route:
                    subscription.fail("The queue was unreachable.")
            if self._connection is not None:
                self._connection.abort()
            self._silent_ticks = 0
        elif self._connection is not None and self._silent_ticks % PING_TICKS == 0:
            self._connection.send("PING")

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._connection is None:
            return
        wanted, self._wanted = list(self._wanted), {}
        unwanted, self._unwanted = list(self._unwanted), {}
        for start in range(0, len(wanted), NAMES_MOST):
            self._connection.send("SUBSCRIBE", *wanted[start : start + NAMES_MOST])
        for start in range(0, len(unwanted), NAMES_MOST):
            self._connection.send("UNSUBSCRIBE", *unwanted[start : start + NAMES_MOST])


def _log_death(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("log_reader_died", error=repr(error))  # only a bug can; streams go on by reading the log
