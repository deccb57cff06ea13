"""The janitor's look at everything, each second: what waits for which model, who serves it, what is not yet settled.

Apart from the ticks that janitors share: every janitor looks by itself, so that each one's gauges are true. Read only.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from prometheus_client import Gauge

from shared import ids, keys, log, metrics
from shared.catalogue import Catalogue
from shared.clock import Clock
from shared.connections import Redis, redis_errors
from shared.errors import DependencyUnavailable
from shared.monitor import Pulse
from shared.presence import Presence, read_all, read_catalogue
from shared.queue.settlements import SettlementQueue

LOOK_SECONDS: Final = 1.0
LOOK_SECONDS_MOST: Final = 5.0
OLDEST_MOST: Final = 1_000  # waiting requests of a lane, the next ones first, among which the oldest is looked for
LANES: Final = (*keys.LANES, keys.SUSPECTS)
STATES: Final = ("ready", "loading", "cold", "draining")

_BY_LANE: Final = (metrics.QUEUE_DEPTH, metrics.QUEUE_OLDEST)
_BY_MODEL: Final = (metrics.CLAIMED, metrics.DEAD_LETTERS_KEPT)

logger = log.get_logger("observer")


class Observer:
    """One per janitor."""

    # Invariant: `_known` are the models that have gauges.

    def __init__(self, redis: Redis, settlements: SettlementQueue, clock: Clock, *, unserved_seconds: float) -> None:
        self.pulse: Final = Pulse()
        self._redis = redis
        self._settlements = settlements
        self._clock = clock
        self._unserved_seconds = unserved_seconds
        self._known: set[str] = set()
        self._unserved_since: dict[str, float] = {}  # monotonic seconds
        self._warned: set[str] = set()

    async def run(self) -> None:
        """Look until cancelled; Redis may come and go."""
        while True:
            started = time.monotonic()
            try:
                with redis_errors():
                    async with asyncio.timeout(LOOK_SECONDS_MOST):
                        await self.look()
                self.pulse.beat()
            except DependencyUnavailable as error:
                logger.warning("look_failed", error=error.message)
            await asyncio.sleep(max(0.0, started + LOOK_SECONDS - time.monotonic()))

    async def look(self) -> None:
        """Look once. Raises DependencyUnavailable."""
        catalogue = await read_catalogue(self._redis) or Catalogue(version=0, models=())
        models = [model.id for model in catalogue.models]
        said = await read_all(self._redis)
        for model in self._known - set(models):
            _forget(model)
        self._known = set(models)
        self._tell_workers(models, said)
        for model in models:
            await self._tell_queue(model)
        metrics.SETTLEMENT_BACKLOG.set(await self._settlements.backlog(models))
        metrics.SETTLEMENT_LAG.set(await self._settlements.lag_seconds(models))

    async def _tell_queue(self, model: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for lane in LANES:
                pipeline.zcard(keys.queue(model, lane))
                pipeline.zrange(keys.queue(model, lane), 0, OLDEST_MOST - 1)
            pipeline.zcard(keys.leases(model))
            pipeline.xlen(keys.dead_letters(model))
            *lanes, claimed, dead = await pipeline.execute()
        for lane, depth, members in zip(LANES, lanes[::2], lanes[1::2], strict=True):
            metrics.QUEUE_DEPTH.labels(model, lane).set(depth)
            metrics.QUEUE_OLDEST.labels(model, lane).set(self._oldest_seconds(members))
        metrics.CLAIMED.labels(model).set(claimed)
        metrics.DEAD_LETTERS_KEPT.labels(model).set(dead)

    def _oldest_seconds(self, members: Sequence[Any]) -> float:
        """Return the age of the oldest of `members`: their ids sort by the time at which they were made."""
        if not members:
            return 0.0
        oldest = min(member.decode()[-ids.SUFFIX_CHARACTERS :] for member in members)
        try:
            return max(0.0, (self._clock.unix_ms() - ids.made_ms(oldest)) / 1000)
        except ValueError:  # not an id of ours
            return 0.0

    def _tell_workers(self, models: Sequence[str], said: Sequence[Presence]) -> None:
        counts = Counter((model, one.state) for presence in said for model, one in presence.models.items())
        for model in models:
            for state in STATES:
                metrics.MODEL_WORKERS.labels(model, state).set(counts[model, state])
        unserved = {model for model in models if not any(counts[model, state] for state in STATES[:-1])}
        metrics.MODELS_UNSERVED.set(len(unserved))
        self._warn(unserved)

    def _warn(self, unserved: set[str]) -> None:
        """Say once that a model is served by nobody, after a while: a new one is picked up within seconds."""
        now = self._clock.monotonic()
        self._unserved_since = {model: self._unserved_since.get(model, now) for model in unserved}
        for model in sorted(self._warned - unserved):
            self._warned.discard(model)
            if model in self._known:
                logger.info("model_served_again", model=model)
        for model, since in self._unserved_since.items():
            if now - since >= self._unserved_seconds and model not in self._warned:
                self._warned.add(model)
                logger.warning("model_unserved", model=model, hint="no live worker lists this model")


def _forget(model: str) -> None:
    """Drop the gauges of a model that left the catalogue."""
    for gauge in _BY_LANE:
        _remove(gauge, model, LANES)
    _remove(metrics.MODEL_WORKERS, model, STATES)
    for gauge in _BY_MODEL:
        gauge.remove(model)


def _remove(gauge: Gauge, model: str, others: Sequence[str]) -> None:
    for other in others:
        gauge.remove(model, other)
