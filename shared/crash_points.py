"""Named points at which a test may kill this process, as a power cut would.

A point is armed by `INFERBASE_CRASH_POINT=name` (settings), or `name:20` to die when it is reached for the 20th time;
where none is armed, `reach` compares two strings.
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
    """The armed point of this process; empty in production. Times are counted by each part that holds one of these."""

    def __init__(self, armed: str = "") -> None:
        self._armed, _, times = armed.partition(":")
        self._times_left = int(times or 1)
        assert not armed or self._armed in POINTS, f"unknown crash point {armed!r}"

    def reach(self, point: str) -> None:
        """Kill this process if `point` is the armed one, and was reached often enough."""
        if point == self._armed:
            self._times_left -= 1
            if self._times_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
