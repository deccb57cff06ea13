"""Time, as the rest of the product sees it; an interface so that tests can stand still.

Deadlines that cross processes are wall-clock milliseconds (`unix_ms`); delays inside one process are monotonic seconds.
Ages inside Redis are decided by Redis TIME in the scripts, never by a process's clock.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """What reads the time."""

    def unix_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""


class SystemClock:
    """The machine's own clock."""

    def unix_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()
