"""The models this node may serve: read from Postgres every few seconds, told from memory where Postgres is slow.

Who asks waits for a read only briefly: a Postgres that hangs must hold up neither `GET /models` nor a completion's
look-up of its model. A memory that is too old to be true is no answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from shared import log
from shared.catalogue import Model
from shared.clock import Clock
from shared.errors import DependencyUnavailable, NotFound

NAMES_MOST: Final = 20  # in the message of a 404
READ_PATIENCE_SECONDS: Final = 0.1  # a read takes a few ms: while Postgres is well nobody is told what was
STALE_SECONDS_MOST: Final = 900.0  # without Postgres: by then models and prices may be others, and 503 is the truth

ListModels = Callable[[], Awaitable[Sequence[Model]]]

logger = log.get_logger("catalogue")


class CatalogueView:
    """A node's copy of the catalogue; close it."""

    # Invariant: at most one read is in flight, `_reading`, begun at `_reading_since`; nobody who waits for it cuts it.

    def __init__(
        self,
        list_models: ListModels,
        *,
        fresh_seconds: float,
        clock: Clock,
        patience_seconds: float = READ_PATIENCE_SECONDS,
    ) -> None:
        self._list_models = list_models
        self._fresh_seconds = fresh_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._models: dict[str, Model] = {}
        self._read_at = float("-inf")
        self._fresh_until = float("-inf")
        self._reading: asyncio.Task[DependencyUnavailable | None] | None = None
        self._reading_since = 0.0

    async def find(self, model_id: str) -> Model:
        """Return a model; NotFound (`model_not_found`) names those that exist."""
        models = await self._current()
        model = models.get(model_id)
        if model is None:
            raise _unknown(model_id, models)
        return model

    async def all(self) -> list[Model]:
        """Return every model, the newest first."""
        return sorted((await self._current()).values(), key=lambda model: (-model.created_at, model.id))

    async def close(self) -> None:
        """Stop a read that is in flight."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _current(self) -> dict[str, Model]:
        now = self._clock.monotonic()
        usable = now - self._read_at < STALE_SECONDS_MOST
        if usable and now < self._fresh_until:
            return self._models
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read())
            self._reading_since = now
        reading = self._reading
        patience_seconds = self._reading_since + self._patience_seconds - now if usable else None
        if patience_seconds is None or patience_seconds > 0:
            await asyncio.wait({reading}, timeout=patience_seconds)
        error = reading.result() if reading.done() else None
        if error is not None and not usable:
            raise DependencyUnavailable from error
        return self._models

    async def _read(self) -> DependencyUnavailable | None:
        """Read the catalogue; where that fails the next try waits as long as a fresh one does."""
        try:
            models = await self._list_models()
        except DependencyUnavailable as error:
            logger.warning("catalogue_unread", error=error.message)
            return error
        else:
            self._models = {model.id: model for model in models}
            self._read_at = self._clock.monotonic()
        finally:
            self._fresh_until = self._clock.monotonic() + self._fresh_seconds
        return None


def _unknown(model_id: str, models: dict[str, Model]) -> NotFound:
    names = ", ".join(f"`{name}`" for name in sorted(models)[:NAMES_MOST])
    more = f" and {len(models) - NAMES_MOST} more" if len(models) > NAMES_MOST else ""
    exist = f"Available models: {names}{more}." if names else "There is no model yet."
    return NotFound(f"The model `{model_id}` does not exist. {exist}", code="model_not_found", param="model")
