"""What this node knows of credentials, kept for some seconds: whom a key or a session speaks for, also that nobody.

One question at a time per credential, however many wait for the answer. What is unknown is kept apart, so that
strangers cannot push customers out.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import msgspec

from shared.clock import Clock
from shared.database.api_keys import Principal

CACHED_MOST: Final = 20_000  # credentials, known and unknown apart

CredentialT = TypeVar("CredentialT", bound=bytes | str)


class Known(msgspec.Struct):
    """What a look-up said, and until when (monotonic seconds) it is believed."""

    principal: Principal | None
    until: float


class Lookups(Generic[CredentialT]):
    """Look-ups by `find`, believed for `cache_seconds`."""

    # Invariant: `_asking` holds one task per credential being looked up; all who ask for the same one wait for it.

    def __init__(
        self, find: Callable[[CredentialT], Awaitable[Principal | None]], *, cache_seconds: float, clock: Clock
    ) -> None:
        self._find = find
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._known: dict[CredentialT, Known] = {}
        self._unknown: dict[CredentialT, Known] = {}
        self._asking: dict[CredentialT, asyncio.Task[Principal | None]] = {}

    def recall(self, credential: CredentialT) -> Known | None:
        """Return what is still believed; None where it must be asked for."""
        known = self._known.get(credential) or self._unknown.get(credential)
        return known if known is not None and self._clock.monotonic() < known.until else None

    async def ask(self, credential: CredentialT) -> Principal | None:
        """Look a credential up, together with all who ask now. Raises what `find` raises."""
        task = self._asking.get(credential)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._look_up(credential))
            self._asking[credential] = task
            task.add_done_callback(lambda done: self._answered(credential, done))
        return await asyncio.shield(task)

    def forget(self, key_id: str) -> None:
        """Drop what is known of a key or session, since it was just revoked."""
        for credential, known in list(self._known.items()):
            if known.principal is not None and known.principal.key_id == key_id:
                del self._known[credential]

    def _answered(self, credential: CredentialT, task: asyncio.Task[Principal | None]) -> None:
        self._asking.pop(credential, None)
        if not task.cancelled():
            task.exception()  # seen, also where everybody who asked has left

    async def _look_up(self, credential: CredentialT) -> Principal | None:
        asked = self._clock.monotonic()
        principal = await self._find(credential)
        kept, other = (self._unknown, self._known) if principal is None else (self._known, self._unknown)
        other.pop(credential, None)
        kept.pop(credential, None)
        if len(kept) >= CACHED_MOST:
            del kept[next(iter(kept))]
        kept[credential] = Known(principal, asked + self._cache_seconds)
        return principal
