"""What one API node holds while it runs, opened and closed in one place.

Closing goes the other way round: running answers are let go of, then reservations and witnesses are written, then the
subscription connection is closed, and the pools last.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from api.auth import Authenticator
from api.catalogue import CatalogueView
from api.key_watch import KeyWatch
from api.ledger import Ledger
from api.payments import Payments, open_payments
from api.sessions import Sessions, open_sessions
from api.waiting import WaitingRoom
from shared import ids, log, metrics, presence, revocation
from shared.admission import Admission
from shared.channel import NodeBeat, open_log_reader
from shared.clock import SystemClock
from shared.connections import Redis, open_database, open_redis, postgres_errors
from shared.crash_points import CrashPoints
from shared.dispatch import Dispatcher
from shared.errors import DependencyUnavailable
from shared.idempotency import PastRuns
from shared.limits import open_limiter
from shared.presence import Health
from shared.queue.client import QueueClient
from shared.queue.place import place_of
from shared.settings import Settings, require_secrets
from shared.wire import Seal

DECODER_THREADS: Final = 1  # for bodies too large for the event loop

logger = log.get_logger("node")


@dataclass(kw_only=True)
class Node:
    """The parts that routes use. `ready` is false from the moment the node is told to stop.

    Without the secrets that they need there are no `sessions`, or no `payments`.
    """

    settings: Settings
    authenticator: Authenticator
    catalogue: CatalogueView
    dispatcher: Dispatcher
    ledger: Ledger
    redis: Redis
    decoders: ThreadPoolExecutor
    waiting: WaitingRoom
    sessions: Sessions | None = None
    payments: Payments | None = None
    ready: bool = True

    async def health(self, model: str) -> Health:
        """Return how a model of the catalogue does. Raises DependencyUnavailable."""
        return await presence.health(self.redis, model)

    async def revoke(self, key_id: str) -> None:
        """Stop a key or session that just ended in the ledger: here at once, in the queue, elsewhere within seconds."""
        metrics.REVOKED_KEYS.labels("here").inc()
        self.authenticator.forget(key_id)
        if self.sessions is not None:
            self.sessions.forget(key_id)
        self.dispatcher.cancel_keys([key_id])
        try:
            await revocation.mark_revoked(self.redis, [model.id for model in await self.catalogue.all()], key_id)
        except DependencyUnavailable as error:  # each node's key watch closes what is queued, from the ledger
            logger.warning("revocation_not_marked", key_id=key_id, error=error.message)


OpenNode = Callable[[Settings], AbstractAsyncContextManager[Node]]


@asynccontextmanager
async def open_node(settings: Settings) -> AsyncIterator[Node]:
    """Yield a node on real stores and close it. Raises SettingsInvalid and DependencyUnavailable."""
    api, pepper = settings.api, require_secrets(settings).key_pepper
    async with AsyncExitStack() as stack:
        with postgres_errors():
            database = await stack.enter_async_context(open_database(settings.stores, role="api"))
        redis = await stack.enter_async_context(open_redis(settings.stores, role="api"))
        decoders = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="decode")
        stack.callback(decoders.shutdown, wait=False, cancel_futures=True)
        admission = Admission(database, CrashPoints(settings.crash_point), settings.admission)
        dispatcher = await stack.enter_async_context(_open_dispatcher(settings, redis, admission))
        ledger = Ledger(database, timeout_seconds=settings.stores.store_timeout_seconds)
        clock = SystemClock()
        authenticator = Authenticator(ledger.find_key, pepper=pepper, cache_seconds=api.auth_cache_seconds, clock=clock)
        watch = KeyWatch(dispatcher, authenticator, find_dead=ledger.find_dead, touch=ledger.touch_keys)
        stack.push_async_callback(_stop, asyncio.create_task(watch.run(api.key_check_seconds)))
        catalogue = CatalogueView(ledger.list_models, fresh_seconds=api.catalogue_cache_seconds, clock=clock)
        stack.push_async_callback(catalogue.close)
        sessions = stack.enter_context(open_sessions(settings, ledger, clock=clock))
        yield Node(
            settings=settings,
            authenticator=authenticator,
            catalogue=catalogue,
            dispatcher=dispatcher,
            ledger=ledger,
            redis=redis,
            decoders=decoders,
            waiting=WaitingRoom(partial(presence.health, redis), partial(place_of, redis), clock=clock),
            sessions=sessions,
            payments=open_payments(settings.secrets.stripe_webhook_secret),
        )


@asynccontextmanager
async def _open_dispatcher(settings: Settings, redis: Redis, admission: Admission) -> AsyncIterator[Dispatcher]:
    secrets, queue = require_secrets(settings), settings.queue
    # New at each start: a node that comes back does not read what it read before.
    node_id = ids.new_id(f"{settings.api.node_id or 'node'}_")
    seal = Seal(secrets.wire_key.encode(), secrets.wire_key_previous.encode() or None)
    async with open_log_reader(redis, queue) as reader, open_limiter(redis, queue) as limiter:
        client = QueueClient(redis, seal, queue)
        beat = NodeBeat(redis, node_id, queue)
        await beat.start()
        dispatcher = Dispatcher(
            settings,
            admission=admission,
            queue=client,
            reader=reader,
            limiter=limiter,
            past_runs=PastRuns(admission, redis),
            clock=SystemClock(),
            node_id=node_id,
        )
        metrics.RUNNING_STREAMS.set_function(lambda: dispatcher.live)
        logger.info("node_opened", node_id=node_id)
        try:
            yield dispatcher
        finally:
            await dispatcher.close()
            await client.close()
            await admission.flush()
            await beat.close()
            logger.info("node_closed", node_id=node_id)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
