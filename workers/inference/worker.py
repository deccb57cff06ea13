"""The inference worker: `inferbase worker`. Reaches Redis only, has no inbound port.

    catalogue -> models loaded -> presence announced -> claims run by `Completer` under `LeasedWorker`

Stops on SIGTERM, or when told to drain: no new claims, what runs gets `drain_seconds`, the rest is handed over, exit 0.
An engine that makes no step for `step_silence_seconds` although it owes one ends the process by EXIT_ENGINE_DEAD: a
supervisor replaces it.
"""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from typing import Final

from shared import ids, log
from shared.channel import LogWriter
from shared.clock import SystemClock
from shared.connections import Redis, open_redis, redis_errors
from shared.crash_points import CrashPoints
from shared.errors import DependencyUnavailable
from shared.monitor import Pulse, open_monitor
from shared.presence import Presence, announce, leave, read_catalogue, read_demands
from shared.queue.worker import LeasedWorker
from shared.settings import Settings, require_secrets
from shared.tracing import open_tracer
from shared.wire import Seal
from workers.engines import check_engine
from workers.inference.complete import Completer
from workers.inference.models import Models, open_models
from workers.inference.watchdog import Watchdog

EXIT_ENGINE_DEAD: Final = 70
UPKEEP_SECONDS: Final = 1.0

logger = log.get_logger("worker")


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; then drain, hand over and return. Raises SettingsInvalid before anything starts."""
    check_engine(settings.worker.engine)
    secrets = require_secrets(settings, "wire_key")
    previous = secrets.wire_key_previous.encode() or None
    seal, clock, owner = Seal(secrets.wire_key.encode(), previous), SystemClock(), ids.new_owner_id()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(open_tracer(settings.monitoring, role="worker"))
        redis = await stack.enter_async_context(open_redis(settings.stores, role="worker"))
        models = await stack.enter_async_context(open_models(settings.worker, clock))
        crash = CrashPoints(settings.crash_point)
        writer = LogWriter(redis, seal, settings.queue, crash=crash)
        completer = Completer(
            models.get,
            writer=writer,
            redis=redis,
            clock=clock,
            settings=settings.queue,
            on_dead=_die,
            tracer=tracer,
        )
        worker = LeasedWorker(
            redis=redis,
            seal=seal,
            settings=settings.queue,
            owner=owner,
            models=models.claimable,
            run=completer,
            free_slots=lambda model: loaded.free_slots if (loaded := models.get(model)) else 0,
            slots=lambda model: loaded.engine.slots if (loaded := models.get(model)) else 0,
            crash=crash,
            on_drain=stopping.set,
        )
        watchdog = Watchdog(clock, silence_seconds=settings.worker.step_silence_seconds, on_dead=_die)
        upkeep = Upkeep(settings, redis=redis, models=models, completer=completer, watchdog=watchdog, owner=owner)
        await stack.enter_async_context(open_monitor(settings.monitoring, role="worker", ready=lambda: upkeep.ready))
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(upkeep.keep())
            claiming = group.create_task(worker.main())
            await stopping.wait()
            upkeep.draining = True
            await worker.drain(settings.worker.drain_seconds)
            await writer.flush()
            claiming.cancel()
            keeping.cancel()
        await upkeep.leave()


class Upkeep:
    """What a worker does each second beside its claims: follow the catalogue, announce itself, watch the engines."""

    def __init__(
        self, settings: Settings, *, redis: Redis, models: Models, completer: Completer, watchdog: Watchdog, owner: str
    ) -> None:
        self.draining = False
        self._settings = settings
        self._redis = redis
        self._models = models
        self._completer = completer
        self._watchdog = watchdog
        self._owner = owner
        self._announced = Pulse()

    @property
    def ready(self) -> bool:
        """Whether requests are taken: a model is loaded, Redis answers, and nobody told us to leave."""
        return not self.draining and self._announced.recent and bool(self._models.loaded())

    async def keep(self) -> None:
        """Run until cancelled; Redis may come and go."""
        try:
            while True:
                await self._try_to_announce()
                self._completer.expire()
                self._watchdog.look(self._models.loaded())
                await asyncio.sleep(UPKEEP_SECONDS)
        finally:
            self._watchdog.close()

    async def leave(self) -> None:
        """Take the presence back, so that nobody waits for a worker that has gone."""
        try:
            with redis_errors():
                await leave(self._redis, self._owner)
        except DependencyUnavailable:
            logger.warning("redis_unavailable")

    async def _try_to_announce(self) -> None:
        try:
            with redis_errors():
                await self._announce()
            self._announced.beat()
        except DependencyUnavailable:
            logger.warning("redis_unavailable")

    async def _announce(self) -> None:
        catalogue = await read_catalogue(self._redis)
        if catalogue is not None and catalogue.models and not self.draining:
            self._models.follow(catalogue, await read_demands(self._redis, self._models.absent()))
        said = Presence(
            owner=self._owner,
            engine=self._settings.worker.engine,
            models=self._models.presence(draining=self.draining),
        )
        await announce(self._redis, said)


def _die(reason: str) -> None:
    """End the process at once: threads of a dead engine may never return, and a half-alive worker holds requests."""
    logger.error("engine_dead", reason=reason)
    os._exit(EXIT_ENGINE_DEAD)
