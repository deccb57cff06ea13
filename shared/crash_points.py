"""Named points at which a test may kill this process, as a power cut would.

A point is armed by `INFERBASE_CRASH_POINT=name` (settings); where none is armed, `reach` compares two strings.
The process dies by SIGKILL, so no handler, `finally` or buffer gets a chance to tidy up.
"""

import os
import signal
from typing import Final

POINTS: Final = frozenset(
    {
        "before_reserve_commit",
        "after_reserve_commit",
        "after_enqueue",
        "after_claim",
        "before_append",
        "after_append",
        "before_finish",
        "after_finish",
        "before_settle_commit",
        "after_settle_commit",
        "before_ack",
        "janitor_after_fence",
    }
)


class CrashPoints:
    """The armed point of this process; empty in production."""

    def __init__(self, armed: str = "") -> None:
        assert not armed or armed in POINTS, f"unknown crash point {armed!r}"
        self._armed = armed

    def reach(self, point: str) -> None:
        """Kill this process if `point` is the armed one."""
        if point == self._armed:
            os.kill(os.getpid(), signal.SIGKILL)
