"""The models that this worker holds: opened from the catalogue, announced by presence, closed at the end.

`Models.follow` loads what the catalogue lists for this worker's engine and frees what it no longer lists, so that a
model added while the worker runs is picked up within seconds.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from shared import log
from shared.catalogue import Catalogue, Model
from shared.clock import Clock
from shared.errors import InferbaseError
from shared.presence import ModelPresence
from shared.settings import WorkerSettings
from workers.engines import open_engine
from workers.engines.base import Engine, EngineOptions
from workers.inference.prompt import PromptBuilder

RETRY_SECONDS: Final = 10.0  # a model that failed to load is tried again after this

logger = log.get_logger("models")


class LoadedModel:
    """One open engine and what stands above it."""

    def __init__(self, engine: Engine, load_seconds: float) -> None:
        self.engine: Final = engine
        self.prompt: Final = PromptBuilder(engine)
        self.load_seconds: Final = load_seconds
        self.running = 0
        self.last_step_ms = 0

    @property
    def free_slots(self) -> int:
        """How many more requests the engine can run at once."""
        return max(0, self.engine.slots - self.running)


class Models:
    """What is loaded, what is loading, and what failed. Opened by `open_models`, which closes every engine."""

    # Invariant: a model id is in at most one of `_loaded`, `_loading`; in `_since_ms` while it is being loaded, and not
    # while it is being closed.

    def __init__(self, settings: WorkerSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._loaded: dict[str, LoadedModel] = {}
        self._stacks: dict[str, AsyncExitStack] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._since_ms: dict[str, int] = {}
        self._failed_at: dict[str, float] = {}

    def get(self, model: str) -> LoadedModel | None:
        """Return a loaded model."""
        return self._loaded.get(model)

    def ids(self) -> list[str]:
        """Return the ids of the loaded models."""
        return list(self._loaded)

    def loaded(self) -> list[LoadedModel]:
        """Return every loaded model."""
        return list(self._loaded.values())

    def follow(self, catalogue: Catalogue) -> None:
        """Start loading what is wanted and not here; free what is here, idle and no longer wanted."""
        wanted = {model.id: model for model in self._wanted(catalogue.models)}
        for model in wanted.values():
            if model.id in self._loaded or model.id in self._loading or not self._may_try(model.id):
                continue
            self._since_ms[model.id] = self._clock.unix_ms()
            task = asyncio.get_running_loop().create_task(self._load(model))
            self._loading[model.id] = task
            task.add_done_callback(partial(self._settled, model.id))
        for model_id, loaded in list(self._loaded.items()):
            if model_id not in wanted and loaded.running == 0:
                del self._loaded[model_id]
                task = asyncio.get_running_loop().create_task(self._stacks.pop(model_id).aclose())
                self._loading[model_id] = task
                task.add_done_callback(partial(self._settled, model_id))

    def presence(self, *, draining: bool) -> dict[str, ModelPresence]:
        """Return what to announce of every model held or loading."""
        said: dict[str, ModelPresence] = {}
        if not draining:  # else it will serve nobody
            for model_id, since_ms in self._since_ms.items():
                said[model_id] = ModelPresence(state="loading", loading_since_ms=since_ms)
        for model_id, loaded in self._loaded.items():
            said[model_id] = ModelPresence(
                state="draining" if draining else "ready",
                slots=loaded.engine.slots,
                slots_free=loaded.free_slots,
                context=loaded.engine.context,
                template_tokens=loaded.prompt.template_tokens,
                message_tokens=loaded.prompt.message_tokens,
                last_step_ms=loaded.last_step_ms,
                load_seconds=loaded.load_seconds,
            )
        return said

    async def close(self) -> None:
        """Close every engine."""
        for task in list(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        self._loaded.clear()
        for stack in self._stacks.values():
            await stack.aclose()

    def _wanted(self, models: Sequence[Model]) -> list[Model]:
        named = {name for name in self._settings.models.split(",") if name}
        return [model for model in models if model.engine == self._settings.engine and (not named or model.id in named)]

    def _settled(self, model_id: str, task: "asyncio.Task[None]") -> None:
        del self._loading[model_id]
        self._since_ms.pop(model_id, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed_at[model_id] = self._clock.monotonic()
            logger.error("model_failed", model=model_id, error=repr(error))

    def _may_try(self, model_id: str) -> bool:
        failed_at = self._failed_at.get(model_id)
        return failed_at is None or self._clock.monotonic() - failed_at >= RETRY_SECONDS

    async def _load(self, model: Model) -> None:
        started = self._clock.monotonic()
        options = EngineOptions(
            model=model.id,
            context=model.context,
            path=self._settings.model_path or model.options.get("path", ""),
            slots=self._settings.slots,
            options=model.options,
        )
        stack = AsyncExitStack()
        try:
            engine = await stack.enter_async_context(open_engine(model.engine, options))
            loaded = LoadedModel(engine, self._clock.monotonic() - started)
            await engine.warm_up()
            loaded.last_step_ms = self._clock.unix_ms()
        except InferbaseError as error:
            self._failed_at[model.id] = self._clock.monotonic()
            logger.error("model_load_failed", model=model.id, error=error.message)
            await stack.aclose()
            return
        except BaseException:
            await stack.aclose()
            raise
        self._stacks[model.id] = stack
        self._loaded[model.id] = loaded
        logger.info("model_loaded", model=model.id, seconds=round(loaded.load_seconds, 3))


@asynccontextmanager
async def open_models(settings: WorkerSettings, clock: Clock) -> AsyncIterator[Models]:
    """Yield an empty set of models and close what it came to hold."""
    models = Models(settings, clock)
    try:
        yield models
    finally:
        await models.close()
