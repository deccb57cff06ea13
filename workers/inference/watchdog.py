"""Watches the engines of one worker: one that owes a step and makes none is dead, and the process must be replaced.

Called each second by `worker.py`. An engine owes a step while it has work; an idle one while it is due to prove that it
still can make a token. So a dead engine is noticed without waiting for the request that would suffer from it. Only time
in which this process itself could run counts: it may have been frozen, or stood still while another model was loaded.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import msgspec

from shared import log
from shared.clock import Clock
from shared.errors import EngineDead
from workers.inference.models import LoadedModel

IDLE_SECONDS: Final = 30.0  # then an idle engine makes one token; half of what health believes
LOOK_SECONDS_MOST: Final = 5.0  # between two looks, as far as it counts

logger = log.get_logger("watchdog")


class _Pulse(msgspec.Struct):
    steps: int = -1
    owed_seconds: float = 0.0  # how long a step has been owed
    warm_up: asyncio.Task[None] | None = None


class Watchdog:
    """One per worker process. `on_dead` ends it: threads of a dead engine may never return."""

    def __init__(
        self,
        clock: Clock,
        *,
        silence_seconds: float,
        on_dead: Callable[[str], None],
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._clock = clock
        self._silence_seconds = silence_seconds
        self._on_dead = on_dead
        self._idle_seconds = idle_seconds
        self._pulses: dict[LoadedModel, _Pulse] = {}  # of what was loaded at the last look
        self._looked_at = clock.monotonic()

    def look(self, models: Iterable[LoadedModel]) -> None:
        """Look at every loaded model; those that are not among `models` any more are forgotten."""
        now = self._clock.monotonic()
        elapsed_seconds, self._looked_at = min(now - self._looked_at, LOOK_SECONDS_MOST), now
        self._pulses = {loaded: self._pulses.get(loaded) or _Pulse() for loaded in models}
        for loaded, pulse in self._pulses.items():
            self._look_at(loaded, pulse, elapsed_seconds)

    def close(self) -> None:
        """Stop proving that idle engines live."""
        for pulse in self._pulses.values():
            if pulse.warm_up is not None:
                pulse.warm_up.cancel()
        self._pulses.clear()

    def _look_at(self, loaded: LoadedModel, pulse: _Pulse, elapsed_seconds: float) -> None:
        steps, now_ms = loaded.engine.steps(), self._clock.unix_ms()
        if steps != pulse.steps:
            pulse.steps, pulse.owed_seconds, loaded.last_step_ms = steps, 0.0, now_ms
            return
        due = now_ms - loaded.last_step_ms >= self._idle_seconds * 1000
        if loaded.running == 0 and not due:
            pulse.owed_seconds = 0.0
            return
        pulse.owed_seconds += elapsed_seconds
        if pulse.owed_seconds > self._silence_seconds:
            self._on_dead(f"{loaded.engine.model} made no step for {pulse.owed_seconds:.0f} s")
        elif loaded.running == 0 and pulse.warm_up is None:
            pulse.warm_up = asyncio.get_running_loop().create_task(loaded.engine.warm_up())
            pulse.warm_up.add_done_callback(partial(self._warmed_up, loaded, pulse))

    def _warmed_up(self, loaded: LoadedModel, pulse: _Pulse, task: "asyncio.Task[None]") -> None:
        pulse.warm_up = None
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        logger.error("warm_up_failed", model=loaded.engine.model, error=repr(error))
        if isinstance(error, EngineDead) and loaded in self._pulses:  # else it was closed meanwhile
            self._on_dead(error.message)
