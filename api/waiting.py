"""What is known of the wait for a model: how long a request may take it, and what its client is told meanwhile.

Used by the completions route. Health is asked once for all requests of a model, every FRESH_SECONDS at most; where
Redis does not answer, nothing is known and nobody is kept waiting for it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from api import sse
from shared.clock import Clock
from shared.errors import DependencyUnavailable
from shared.presence import Health
from shared.settings import ApiSettings

FRESH_SECONDS: Final = 2.0
UNMEASURED_SECONDS: Final = 300.0  # patience with a load of which nobody knows how long it takes
ASK_SECONDS_MOST: Final = 1.0
KEPT_MOST: Final = 4096  # models

AskHealth = Callable[[str], Awaitable[Health]]
AskPlace = Callable[[str, str], Awaitable[int | None]]  # (model, request id) -> place in its queue from 1


class _Known(msgspec.Struct):
    health: Health
    at: float  # monotonic seconds


class WaitingRoom:
    """One per API node."""

    def __init__(self, health: AskHealth, place: AskPlace, *, clock: Clock) -> None:
        self._ask_health = health
        self._ask_place = place
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Future[None]] = {}

    async def patience_seconds(self, model: str, settings: ApiSettings) -> float:
        """Return how long a stream waits for a worker unless its client says otherwise: twice what a load takes."""
        await self.look(model)
        wait_seconds: float = 2 * (self.eta_seconds(model) or 0)
        known = self._known.get(model)
        if known is not None and known.health.status == "loading" and not known.health.measured:
            wait_seconds = max(wait_seconds, UNMEASURED_SECONDS)
        return min(settings.patience_seconds_most, max(settings.stream_patience_seconds, wait_seconds))

    def eta_seconds(self, model: str) -> int | None:
        """Return in how many seconds the model is likely to be ready; None where nobody knows."""
        known = self._known.get(model)
        if known is None or known.health.eta_seconds is None:
            return None
        passed_seconds = self._clock.monotonic() - known.at
        return max(1, round(known.health.eta_seconds - passed_seconds)) if known.health.eta_seconds else 0

    async def look(self, model: str) -> None:
        """Bring what is known of a model up to date, where Redis answers in time."""
        known = self._known.get(model)
        if known is not None and self._clock.monotonic() - known.at < FRESH_SECONDS:
            return
        asking = self._asking.get(model)
        if asking is None:
            asking = asyncio.ensure_future(self._look(model))
            self._asking[model] = asking
            asking.add_done_callback(lambda _: self._asking.pop(model, None))
        await asyncio.shield(asking)

    async def comment(self, model: str, request_id: str) -> bytes:
        """Return the comment for a stream whose first token has not come: its place in the queue, or a ping."""
        await self.look(model)
        place = None
        try:
            async with asyncio.timeout(ASK_SECONDS_MOST):
                place = await self._ask_place(model, request_id)
        except (DependencyUnavailable, TimeoutError):
            pass
        known = self._known.get(model)
        if place is None or known is None:
            return sse.PING
        eta_seconds = self.eta_seconds(model)
        eta = f" eta_s={eta_seconds}" if eta_seconds else ""
        return f": queued position={place}{eta} model={known.health.status}\n".encode()

    async def _look(self, model: str) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS_MOST):
                health = await self._ask_health(model)
        except (DependencyUnavailable, TimeoutError):
            self._known.pop(model, None)
            return
        if len(self._known) >= KEPT_MOST:
            del self._known[next(iter(self._known))]
        self._known[model] = _Known(health, self._clock.monotonic())
