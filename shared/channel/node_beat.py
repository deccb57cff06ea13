"""The sign of life of an API node, without which workers cancel what nobody reads."""

import asyncio
from contextlib import suppress

from shared import keys
from shared.connections import Redis, redis_errors
from shared.errors import DependencyUnavailable
from shared.settings import QueueSettings


class NodeBeat:
    """Refreshes `node:{id}` each beat; the key outlives a silent node by its lease."""

    def __init__(self, redis: Redis, node_id: str, settings: QueueSettings) -> None:
        self._redis = redis
        self._name = keys.node(node_id)
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Show life for the first time and keep doing so. Raises DependencyUnavailable."""
        assert self._task is None, "the beat runs already"
        await self._beat()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop and take the sign down: this node reads nothing any more."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        with suppress(DependencyUnavailable), redis_errors():
            async with asyncio.timeout(self._settings.node_beat_seconds):
                await self._redis.delete(self._name)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.node_beat_seconds)
            with suppress(DependencyUnavailable):  # the next beat tries again; the lease is four beats
                await self._beat()

    async def _beat(self) -> None:
        with redis_errors():
            async with asyncio.timeout(self._settings.node_beat_seconds):
                await self._redis.set(self._name, b"1", px=int(self._settings.node_lease_seconds * 1000))
