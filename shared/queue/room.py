"""How much a worker may claim at once: what is free, and what of it batch jobs must leave to interactive ones. No I/O.

Called by the worker's claim loop. A batch job runs for minutes; with a slot kept free an interactive request finds it
at once, instead of waiting for the end of one.
"""

from typing import Final

import msgspec

from shared.settings import QueueSettings

HALF_LIFE_SECONDS: Final = 10.0
RESERVED_PART: Final = 8  # one slot of so many is kept free of batch jobs, at least one


class Room(msgspec.Struct, frozen=True):
    """How many jobs of a model a worker can take at once, and how many batch jobs its free slots have room for."""

    most: int
    spare_slots: int


class Load:
    """What runs of one model here, by lane, and how much of it was interactive at once lately.

    Without the latter, batch jobs take at every lull what the next second's requests need, and keep it for minutes.
    """

    __slots__ = ("_at", "_peak", "batch", "interactive")

    def __init__(self) -> None:
        self.batch = 0
        self.interactive = 0
        self._peak = 0.0
        self._at = 0.0

    def peak(self, now: float) -> int:
        """Return the most interactive jobs at once, those of HALF_LIFE_SECONDS ago counted half; `now`: seconds."""
        self._peak = max(self.interactive, self._peak * 0.5 ** ((now - self._at) / HALF_LIFE_SECONDS))
        self._at = now
        return int(self._peak)


def room_of(free_slots: int, slots: int, settings: QueueSettings, *, peak: int = 0, batch: int = 0) -> Room:
    """Return the room of a worker with `free_slots` of `slots` (0: nobody knows, then nothing is reserved).

    `peak`: interactive jobs at once lately; `batch`: batch jobs that run, of which one always may.
    Small claims share a burst among workers; but one call per four jobs costs a large worker half of its CPU per job.
    """
    most = max(0, min(free_slots, max(settings.claim_most, free_slots // 4)))
    if not slots:
        return Room(most, max(0, free_slots))
    reserved = reserved_slots(slots, settings.batch_reserve_slots)
    allowed = max(1, slots - reserved - peak) - batch
    return Room(most, max(0, min(free_slots - reserved, allowed)))


def reserved_slots(slots: int, reserve: int) -> int:
    """Return how many of `slots` batch jobs leave free: never all of them, or a worker with one would run none."""
    if reserve < 0:
        reserve = max(1, slots // RESERVED_PART)
    return max(0, min(reserve, slots - 1))
