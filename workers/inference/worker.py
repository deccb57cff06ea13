"""The inference worker: `inferbase worker`. Reaches Redis only, has no inbound port.

    catalogue -> models loaded -> presence announced -> claims run by `Completer` under `LeasedWorker`

Stops on SIGTERM: no new claims, what runs gets `drain_seconds`, the rest is handed over, exit 0. An engine that makes
no step for `step_silence_seconds` while it has work ends the process by EXIT_ENGINE_DEAD: a supervisor replaces it.
"""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from shared import ids, log
from shared.channel import LogWriter
from shared.clock import Clock, SystemClock
from shared.connections import Redis, open_redis, redis_errors
from shared.crash_points import CrashPoints
from shared.errors import DependencyUnavailable
from shared.presence import Presence, announce, leave, read_catalogue
from shared.queue.worker import LeasedWorker
from shared.settings import Settings, require_secrets
from shared.wire import Seal
from workers.engines import check_engine
from workers.inference.complete import Completer
from workers.inference.models import LoadedModel, Models, open_models

EXIT_ENGINE_DEAD: Final = 70
UPKEEP_SECONDS: Final = 1.0
IDLE_STEP_MS: Final = 30_000  # an idle engine proves every 30 s that it can make a token

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
        redis = await stack.enter_async_context(open_redis(settings.stores, role="worker"))
        models = await stack.enter_async_context(open_models(settings.worker, clock))
        crash = CrashPoints(settings.crash_point)
        writer = LogWriter(redis, seal, settings.queue, crash=crash)
        completer = Completer(
            models.get, writer=writer, redis=redis, clock=clock, settings=settings.queue, on_dead=_die
        )
        worker = LeasedWorker(
            redis=redis,
            seal=seal,
            settings=settings.queue,
            owner=owner,
            models=models.ids,
            run=completer,
            free_slots=lambda model: loaded.free_slots if (loaded := models.get(model)) else 0,
            crash=crash,
        )
        upkeep = Upkeep(settings, redis=redis, models=models, completer=completer, clock=clock, owner=owner)
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
        self, settings: Settings, *, redis: Redis, models: Models, completer: Completer, clock: Clock, owner: str
    ) -> None:
        self.draining = False
        self._settings = settings
        self._redis = redis
        self._models = models
        self._completer = completer
        self._clock = clock
        self._owner = owner
        self._warming: dict[str, asyncio.Task[None]] = {}
        self._pulse: dict[str, tuple[int, float]] = {}  # model -> (steps, monotonic seconds of the last change)

    async def keep(self) -> None:
        """Run until cancelled; Redis may come and go."""
        while True:
            try:
                with redis_errors():
                    await self._announce()
            except DependencyUnavailable:
                logger.warning("redis_unavailable")
            self._completer.expire()
            for model_id in self._models.ids():
                loaded = self._models.get(model_id)
                assert loaded is not None
                self._watch(model_id, loaded)
            await asyncio.sleep(UPKEEP_SECONDS)

    async def leave(self) -> None:
        """Take the presence back, so that nobody waits for a worker that has gone."""
        try:
            with redis_errors():
                await leave(self._redis, self._owner)
        except DependencyUnavailable:
            logger.warning("redis_unavailable")

    async def _announce(self) -> None:
        catalogue = await read_catalogue(self._redis)
        if catalogue is not None and catalogue.models and not self.draining:
            self._models.follow(catalogue)
        said = Presence(
            owner=self._owner,
            engine=self._settings.worker.engine,
            models=self._models.presence(draining=self.draining),
        )
        await announce(self._redis, said)

    def _watch(self, model_id: str, loaded: LoadedModel) -> None:
        steps, now = loaded.engine.steps(), self._clock.monotonic()
        before, changed_at = self._pulse.get(model_id, (-1, now))
        if steps != before or loaded.running == 0:
            self._pulse[model_id] = (steps, now)
            if steps != before:
                loaded.last_step_ms = self._clock.unix_ms()
        elif now - changed_at > self._settings.worker.step_silence_seconds:
            _die(f"{model_id} made no step for {now - changed_at:.0f} s")
        idle_ms = self._clock.unix_ms() - loaded.last_step_ms
        if loaded.running == 0 and idle_ms > IDLE_STEP_MS and model_id not in self._warming:
            task = asyncio.get_running_loop().create_task(loaded.engine.warm_up())
            self._warming[model_id] = task
            task.add_done_callback(partial(self._warmed, model_id))

    def _warmed(self, model_id: str, task: "asyncio.Task[None]") -> None:
        del self._warming[model_id]
        if not task.cancelled() and task.exception() is not None:
            logger.error("warm_up_failed", model=model_id, error=str(task.exception()))


def _die(reason: str) -> None:
    """End the process at once: threads of a dead engine may never return, and a half-alive worker holds requests."""
    logger.error("engine_dead", reason=reason)
    os._exit(EXIT_ENGINE_DEAD)
