"""The models this node may serve: read from Postgres at most every few seconds, kept while Postgres is away."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from shared.catalogue import Model
from shared.clock import Clock
from shared.errors import DependencyUnavailable, NotFound

NAMES_MOST: Final = 20  # in the message of a 404

ListModels = Callable[[], Awaitable[Sequence[Model]]]


class CatalogueView:
    """A node's copy of the catalogue."""

    def __init__(self, list_models: ListModels, *, fresh_seconds: float, clock: Clock) -> None:
        self._list_models = list_models
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._models: dict[str, Model] | None = None
        self._until = float("-inf")
        self._refreshing = asyncio.Lock()

    async def find(self, model_id: str) -> Model:
        """Return a model; NotFound (`model_not_found`) names those that exist."""
        models = await self._fresh()
        model = models.get(model_id)
        if model is None:
            raise _unknown(model_id, models)
        return model

    async def all(self) -> list[Model]:
        """Return every model, the newest first."""
        return sorted((await self._fresh()).values(), key=lambda model: (-model.created_at, model.id))

    async def _fresh(self) -> dict[str, Model]:
        if self._models is not None and self._clock.monotonic() < self._until:
            return self._models
        async with self._refreshing:
            if self._models is None or self._clock.monotonic() >= self._until:
                try:
                    self._models = {model.id: model for model in await self._list_models()}
                except DependencyUnavailable:
                    if self._models is None:
                        raise
                self._until = self._clock.monotonic() + self._fresh_seconds
        return self._models


def _unknown(model_id: str, models: dict[str, Model]) -> NotFound:
    names = ", ".join(f"`{name}`" for name in sorted(models)[:NAMES_MOST])
    more = f" and {len(models) - NAMES_MOST} more" if len(models) > NAMES_MOST else ""
    exist = f"Available models: {names}{more}." if names else "There is no model yet."
    return NotFound(f"The model `{model_id}` does not exist. {exist}", code="model_not_found", param="model")
