"""Which API nodes still read: a request whose reader has gone is not worth its engine slot."""

from collections.abc import Collection
from typing import Final

from shared import keys
from shared.clock import Clock
from shared.connections import Redis
from shared.settings import QueueSettings

_NO_KEY: Final = -2


class ReaderWatch:
    """Knows when each reader was last alive, from what is left of the life of its key."""

    def __init__(self, redis: Redis, settings: QueueSettings, clock: Clock) -> None:
        self._redis = redis
        self._settings = settings
        self._clock = clock
        self._alive_at: dict[str, float] = {}  # reader -> monotonic seconds of its last sign of life

    async def look(self, readers: Collection[str]) -> set[str]:
        """Return those of `readers` without a sign of life for `no_reader_seconds`; others are forgotten.

        A reader that was never seen alive counts from the first look: its key may be gone because Redis was away, and
        then a living node needs its pause between two beats and a beat that times out to show itself again.
        """
        self._alive_at = {reader: at for reader, at in self._alive_at.items() if reader in readers}
        if not readers:
            return set()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for reader in readers:
                pipeline.pttl(keys.node(reader))
            left_ms = await pipeline.execute()
        now, lease = self._clock.monotonic(), self._settings.node_lease_seconds
        for reader, left in zip(readers, left_ms, strict=True):
            if left == _NO_KEY:
                self._alive_at.setdefault(reader, now)
            else:
                self._alive_at[reader] = now - max(0.0, lease - left / 1000) if left >= 0 else now
        limit = now - self._settings.no_reader_seconds
        return {reader for reader in readers if self._alive_at[reader] <= limit}

    def forget(self) -> None:
        """Start anew: while Redis was away no reader could give a sign of life."""
        self._alive_at.clear()

    def seconds_to_limit(self) -> float:
        """Return how long until the first reader could be given up; infinite without readers."""
        if not self._alive_at:
            return float("inf")
        first = min(self._alive_at.values()) + self._settings.no_reader_seconds
        return max(0.0, first - self._clock.monotonic())
