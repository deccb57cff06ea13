"""The settlement worker: `inferbase settlement`. Turns settlement records of all models into charges.

    settlement queues (Redis) -> read, blocking -> one transaction (Postgres) -> acknowledge

An idle worker settles a record at once; a busy one gathers, since a transaction costs much more than a row. Several may
run: each record is charged once, whoever reads it. On SIGTERM it empties the queue, within bounded time, and returns.
"""

import asyncio
import signal
import time
from contextlib import AsyncExitStack, suppress
from typing import Final

from shared import ids, log, metrics
from shared.connections import open_database, open_redis, redis_errors
from shared.crash_points import CrashPoints
from shared.database.models import list_model_ids
from shared.database.session import Session
from shared.errors import DependencyUnavailable
from shared.limits import Limiter
from shared.monitor import Pulse, open_monitor
from shared.queue.settlements import Record, SettlementQueue
from shared.settings import Settings, SettlementSettings, require_secrets
from shared.tracing import open_tracer
from shared.wire import Finish, Seal
from workers.settlement.settle import Settler

READ_GRACE_SECONDS: Final = 5.0  # beyond the blocking time, for Redis to answer
DRAIN_BLOCK_MS: Final = 1
BUSY_RECORDS: Final = 16  # in one batch: from here on a transaction is worth gathering for

logger = log.get_logger("settlement")


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; then settle what waits and return."""
    secrets = require_secrets(settings)
    seal = Seal(secrets.wire_key.encode(), secrets.wire_key_previous.encode() or None)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(open_tracer(settings.monitoring, role="settlement"))
        database = await stack.enter_async_context(open_database(settings.stores, role="settlement"))
        redis = await stack.enter_async_context(open_redis(settings.stores, role="settlement"))
        session = Session(database, timeout_seconds=settings.stores.store_timeout_seconds)
        stack.push_async_callback(session.close)
        queue = SettlementQueue(redis, settings.settlement)
        limiter = Limiter(redis, settings.queue)
        stack.push_async_callback(limiter.close)
        crash = CrashPoints(settings.crash_point)
        tries_most = settings.settlement.settle_tries_most
        settler = Settler(queue, session, seal, crash, tries_most=tries_most, tracer=tracer)
        worker = SettlementWorker(settings.settlement, queue=queue, settler=settler, session=session, limiter=limiter)
        await stack.enter_async_context(
            open_monitor(settings.monitoring, role="settlement", ready=lambda: worker.pulse.recent)
        )
        await worker.run(stopping)


class SettlementWorker:
    """The loop, apart from its connections."""

    # Invariant: what `read` returned is settled, or left pending for a later consumer, before the next `read`.

    def __init__(
        self,
        settings: SettlementSettings,
        *,
        queue: SettlementQueue,
        settler: Settler,
        session: Session,
        limiter: Limiter | None = None,
    ) -> None:
        self.pulse: Final = Pulse()  # of rounds that both stores allowed
        self._settings = settings
        self._queue = queue
        self._settler = settler
        self._session = session
        self._limiter = limiter
        self._consumer = ids.new_owner_id()
        self._models: list[str] = []
        self._look_at = 0.0  # monotonic: when to look at the catalogue again

    async def run(self, stopping: asyncio.Event) -> None:
        """Settle until `stopping`, then what is left, for at most `settle_drain_seconds`."""
        while not stopping.is_set():
            started = time.monotonic()
            try:
                await self._look(started)
                records = await self._read(self._settings.settle_block_ms) if self._models else []
            except DependencyUnavailable as error:
                logger.warning("store_unavailable", error=error.message)
                await _wait(stopping, self._settings.settle_retry_seconds)
                continue
            if records:
                await self._settle(records, stopping)
                await _wait(stopping, started + gather_seconds(self._settings, len(records)) - time.monotonic())
            elif not self._models:
                await _wait(stopping, self._settings.catalogue_seconds)
            self.pulse.beat()
        with suppress(TimeoutError, DependencyUnavailable):
            async with asyncio.timeout(self._settings.settle_drain_seconds):
                while records := await self._read(DRAIN_BLOCK_MS):
                    self._give_back(await self._settler.settle(records))
        logger.info("settlement_stopped")

    async def _read(self, block_ms: int) -> list[Record]:
        with redis_errors():
            async with asyncio.timeout(block_ms / 1000 + READ_GRACE_SECONDS):
                return await self._queue.read(
                    self._models, self._consumer, most=self._settings.settle_most, block_ms=block_ms
                )

    async def _settle(self, records: list[Record], stopping: asyncio.Event) -> None:
        """Settle a batch however long a store is down; where told to stop meanwhile, the records stay pending."""
        while True:
            try:
                self._give_back(await self._settler.settle(records))
            except DependencyUnavailable as error:
                logger.warning("settlement_waits", records=len(records), error=error.message)
                await _wait(stopping, self._settings.settle_retry_seconds)
                if stopping.is_set():
                    return
            else:
                return

    def _give_back(self, closed: list[Finish]) -> None:
        """Let the tokens per minute of `closed` requests be what they used; of those that were free, nothing."""
        if self._limiter is None:
            return
        for finish in closed:
            if finish.token_hold is not None:
                self._limiter.give_back(finish.token_hold, charged_tokens(finish))

    async def _look(self, now: float) -> None:
        """Follow the catalogue and measure the backlog, once in a while."""
        if now < self._look_at:
            return
        self._models = await self._session.run(list_model_ids)
        metrics.SETTLEMENT_BACKLOG.set(await self._queue.backlog(self._models))
        metrics.SETTLEMENT_LAG.set(await self._queue.lag_seconds(self._models))
        self._look_at = now + self._settings.catalogue_seconds


def charged_tokens(finish: Finish) -> int:
    """Return the tokens that are paid for, as `cost_of` in migration 0003 decides."""
    paid = finish.status == "completed" or (finish.status == "cancelled" and finish.prefill_began)
    return finish.usage.prompt_tokens + finish.usage.completion_tokens if paid else 0


def gather_seconds(settings: SettlementSettings, records: int) -> float:
    """Return the least time from the read that brought `records` to the next one."""
    if records >= settings.settle_most:
        return 0.0  # more wait already
    return (settings.settle_gather_busy_ms if records >= BUSY_RECORDS else settings.settle_gather_ms) / 1000


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    """Sleep, but not beyond the stop."""
    if seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stopping.wait()
