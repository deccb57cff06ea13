"""How much a worker may claim at once: what is free, and what of it batch jobs must leave to interactive ones. No I/O.

Called by the worker's claim loop. A batch job runs for minutes; with a slot kept free an interactive request finds it
at once, instead of waiting for the end of one.
"""

from typing import Final

import msgspec

from shared.settings import QueueSettings

RESERVED_PART: Final = 8  # one slot of so many is kept free of batch jobs, at least one


class Room(msgspec.Struct, frozen=True):
    """How many jobs of a model a worker can take at once, and how many batch jobs its free slots have room for."""

    most: int
    spare_slots: int


def room_of(free_slots: int, slots: int, settings: QueueSettings) -> Room:
    """Return the room of a worker with `free_slots` of `slots`.

    Small claims share a burst among workers; but one call per four jobs costs a large worker half of its CPU per job.
    """
    most = max(0, min(free_slots, max(settings.claim_most, free_slots // 4)))
    return Room(most, max(0, free_slots - reserved_slots(slots, settings.batch_reserve_slots)))


def reserved_slots(slots: int, reserve: int) -> int:
    """Return how many of `slots` batch jobs leave free: never all of them, or a worker with one would run none."""
    if reserve < 0:
        reserve = max(1, slots // RESERVED_PART)
    return max(0, min(reserve, slots - 1))
