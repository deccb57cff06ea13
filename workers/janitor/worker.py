"""The janitor: `inferbase janitor`. Looks after what every other process may drop, on the ticks of arq's own cron.

    each second        catalogue mirror, measures, reaping of dead workers' requests (upkeep.py)
    each sweep_seconds requests that nobody closed (sweep.py)

arq's worker gives up when Redis blinks, so it is started again here. Several janitors share their ticks through Redis.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC
from typing import Any, Final, cast

import msgspec
from arq import Worker, cron
from arq.connections import ArqRedis
from arq.typing import WorkerCoroutine
from redis.asyncio import ConnectionPool

from shared import ids, keys, log, metrics
from shared.channel import LogWriter
from shared.clock import SystemClock
from shared.connections import open_database, open_redis, redis_errors
from shared.crash_points import CrashPoints
from shared.database.session import Session
from shared.errors import InferbaseError
from shared.monitor import open_monitor
from shared.queue.client import QueueClient
from shared.queue.reaper import Reaper
from shared.queue.settlements import SettlementQueue
from shared.settings import Settings, require_secrets
from shared.wire import Seal
from workers.inference.complete import Completer
from workers.janitor.observer import Observer
from workers.janitor.sweep import Sweeper
from workers.janitor.upkeep import Upkeep

RESTART_SECONDS: Final = 0.5
TICK_SECONDS_MOST: Final = 60.0
TICK_LIFE_MS: Final = 10_000  # a tick that nobody took by then is forgotten

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode

logger = log.get_logger("janitor")


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; a tick that runs is cut, and done again by the next janitor."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with (
        open_janitor(settings) as janitor,
        open_monitor(settings.monitoring, role="janitor", ready=lambda: janitor.ready),
    ):
        await janitor.run(settings.stores.redis_url, stopping)


@asynccontextmanager
async def open_janitor(settings: Settings) -> AsyncIterator["Janitor"]:
    """Yield a janitor with connections of its own, and close them."""
    secrets = require_secrets(settings)
    seal = Seal(secrets.wire_key.encode(), secrets.wire_key_previous.encode() or None)
    clock, crash = SystemClock(), CrashPoints(settings.crash_point)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.stores, role="janitor"))
        redis = await stack.enter_async_context(open_redis(settings.stores, role="janitor"))
        writer = LogWriter(redis, seal, settings.queue, crash=crash)
        stack.push_async_callback(writer.close)
        sessions = [Session(database, timeout_seconds=settings.stores.store_timeout_seconds) for _ in range(2)]
        for session in sessions:
            stack.push_async_callback(session.close)
        close = Completer(
            lambda _: None, writer=writer, redis=redis, clock=clock, settings=settings.queue, on_dead=_report_dead
        )
        upkeep = Upkeep(session=sessions[0], redis=redis, close=close, clock=clock)
        reaper = Reaper(redis, seal, settings.queue, ids.new_owner_id(), overdue_code=upkeep.overdue_code)
        queue = QueueClient(redis, seal, settings.queue, clock)
        stack.push_async_callback(queue.close)
        settlements = SettlementQueue(redis, settings.settlement)
        sweeper = Sweeper(
            settings.settlement,
            session=sessions[1],
            redis=redis,
            queue=queue,
            settlements=settlements,
            crash=crash,
            clock=clock,
        )
        observer = Observer(redis, settlements, clock, unserved_seconds=settings.monitoring.unserved_seconds)
        yield Janitor(upkeep, reaper, sweeper, observer, sweep_seconds=settings.settlement.sweep_seconds)


class Janitor:
    """Both duties, each at most once at a time in this process, and a look at everything beside them."""

    def __init__(
        self, upkeep: Upkeep, reaper: Reaper, sweeper: Sweeper, observer: Observer, *, sweep_seconds: float
    ) -> None:
        self._upkeep = upkeep
        self._reaper = reaper
        self._sweeper = sweeper
        self._observer = observer
        self._failing: set[str] = set()  # duties whose last round here failed
        self._sweep_seconds = sweep_seconds
        self._busy: set[str] = set()

    @property
    def ready(self) -> bool:
        """Whether Redis answers and no duty failed at its last round here: janitors share their rounds."""
        return self._observer.pulse.recent and not self._failing

    async def keep_up(self, context: dict[Any, Any]) -> None:
        """One tick of upkeep."""
        await self._once("upkeep", lambda: self._upkeep.tick(self._reaper))

    async def sweep(self, context: dict[Any, Any]) -> None:
        """One sweep."""
        await self._once("sweep", self._sweeper.sweep)

    async def run(self, redis_url: str, stopping: asyncio.Event) -> None:
        """Tick until `stopping`, however often Redis goes away."""
        looking = asyncio.get_running_loop().create_task(self._observer.run())
        try:
            await self._tick_until(redis_url, stopping)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _tick_until(self, redis_url: str, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            pool = ArqRedis(
                ConnectionPool.from_url(redis_url),
                job_serializer=_encode,
                job_deserializer=_decode,
                default_queue_name=keys.JANITOR_QUEUE,
                expires_extra_ms=TICK_LIFE_MS,
            )
            try:
                await self._run_once(self._make_worker(pool), stopping)
            finally:
                await pool.aclose(close_connection_pool=True)
        logger.info("janitor_stopped")

    async def _run_once(self, worker: Worker, stopping: asyncio.Event) -> None:
        stopped = asyncio.ensure_future(stopping.wait())
        running = asyncio.ensure_future(worker.async_run())
        await asyncio.wait((stopped, running), return_when=asyncio.FIRST_COMPLETED)
        tasks = [stopped, running, *worker.tasks.values()]
        for task in tasks:
            task.cancel()
        _, failure, *_ = await asyncio.gather(*tasks, return_exceptions=True)
        if not stopping.is_set():  # Redis blinked, or arq stumbled: the next worker goes on
            logger.warning("janitor_restarts", error=repr(failure))
            await asyncio.sleep(RESTART_SECONDS)

    async def _once(self, duty: str, work: Callable[[], Awaitable[object]]) -> None:
        if duty in self._busy:
            metrics.JANITOR_SKIPPED.labels("busy").inc()
            return
        self._busy.add(duty)
        try:
            with redis_errors():
                await work()
            self._failing.discard(duty)
        except InferbaseError as error:
            self._failing.add(duty)
            metrics.JANITOR_SKIPPED.labels("unavailable").inc()
            logger.warning("janitor_skipped", duty=duty, error=error.message)
        finally:
            self._busy.discard(duty)

    def _make_worker(self, pool: ArqRedis) -> Worker:
        every = max(1, int(self._sweep_seconds))
        return Worker(
            queue_name=keys.JANITOR_QUEUE,
            cron_jobs=[
                cron(
                    cast(WorkerCoroutine, self.keep_up), name="upkeep", second=set(range(60)), timeout=TICK_SECONDS_MOST
                ),
                cron(
                    cast(WorkerCoroutine, self.sweep),
                    name="sweep",
                    second=set(range(0, 60, every)),
                    timeout=TICK_SECONDS_MOST,
                ),
            ],
            redis_pool=pool,
            handle_signals=False,
            keep_result=0,
            max_tries=1,
            job_serializer=_encode,
            job_deserializer=_decode,
            expires_extra_ms=TICK_LIFE_MS,
            timezone=UTC,
            log_results=False,
        )


def _report_dead(reason: str) -> None:
    logger.error("engine_dead", reason=reason)  # not reached: the janitor opens no engine
