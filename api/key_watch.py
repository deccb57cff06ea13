"""The loop that ends running answers whose key was revoked, or whose account was deactivated, on any node.

Every few seconds it asks for all keys with running answers at once. It is what makes promise 5 hold for streams; the
auth cache does so for new requests and the claim's revoked mark for queued ones. It also notes which keys were used.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from api.auth import Authenticator
from shared import log, metrics
from shared.dispatch import Dispatcher
from shared.errors import InferbaseError

logger = log.get_logger("key_watch")


class KeyWatch:
    """Checks the keys of one node. `find_dead` returns those that may not go on, `touch` notes their use."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        authenticator: Authenticator,
        *,
        find_dead: Callable[[Collection[str]], Awaitable[set[str]]],
        touch: Callable[[Collection[str]], Awaitable[None]],
    ) -> None:
        self._dispatcher = dispatcher
        self._authenticator = authenticator
        self._find_dead = find_dead
        self._touch = touch

    async def run(self, every_seconds: float) -> None:
        """Check for ever; cancelled by its owner."""
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.check()
            except InferbaseError as error:  # the store is down: answers go on, the next round asks again
                logger.warning("key_check_failed", error=error.message)

    async def check(self) -> None:
        """Cancel the running answers of dead keys, and note the keys in use."""
        live = self._dispatcher.live_keys()
        if live:
            dead = await self._find_dead(live)
            self._dispatcher.cancel_keys(dead)
            metrics.REVOKED_KEYS.labels("watch").inc(len(dead))
        used = self._authenticator.take_used()
        if used:
            await self._touch(used)
