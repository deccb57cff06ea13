"""The models that this worker holds: opened from the catalogue, announced by presence, closed at the end.

`Models.follow` loads what the catalogue lists for this worker's engine, all of it or on demand where not all of it fits
(`holding.py` decides), and frees what it no longer lists: a model added while the worker runs is picked up in seconds.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from shared import log, metrics
from shared.catalogue import Catalogue, Model
from shared.clock import Clock
from shared.errors import InferbaseError
from shared.presence import Demand, ModelPresence
from shared.settings import WorkerSettings
from workers.engines import blocks_while_loading, open_engine
from workers.engines.base import Engine, EngineOptions
from workers.inference.holding import Decision, Listed, decide
from workers.inference.prompt import PromptBuilder

RETRY_SECONDS: Final = 10.0  # a model that failed to load is tried again after this, then after twice as long, …
RETRY_SECONDS_MOST: Final = 320.0
PROGRESS_MOST: Final = 0.99  # of a load that takes longer than the last one

logger = log.get_logger("models")


class LoadedModel:
    """One open engine and what stands above it."""

    def __init__(self, engine: Engine, load_seconds: float) -> None:
        self.engine: Final = engine
        self.prompt: Final = PromptBuilder(engine)
        self.load_seconds: Final = load_seconds
        self.loaded_at = 0.0  # monotonic seconds
        self.used_at = 0.0  # when it last had work, likewise
        self.running = 0  # choices
        self.last_step_ms = 0

    @property
    def free_slots(self) -> int:
        """How many more choices the engine can run at once."""
        return max(0, self.engine.slots - self.running)


class Models:
    """What is loaded, what is loading, and what failed. Opened by `open_models`, which closes every engine."""

    # Invariant: a model id is in at most one of `_loaded`, `_loading`; in `_since_ms` while it is being loaded, and not
    # while it is being closed. `_listed` is what the catalogue last said that this worker may hold.

    def __init__(self, settings: WorkerSettings, clock: Clock) -> None:
        self.loads = 0
        self.evictions = 0  # closed in favour of another model
        self._settings = settings
        self._clock = clock
        self._listed: dict[str, Model] = {}
        self._loaded: dict[str, LoadedModel] = {}
        self._stacks: dict[str, AsyncExitStack] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._since_ms: dict[str, int] = {}
        self._failed_at: dict[str, float] = {}
        self._failures: Counter[str] = Counter()  # in a row
        self._waiting_since: dict[str, float] = {}  # of jobs whose model is not here
        self._load_seconds: dict[str, float] = {}  # as last measured here
        self._decision = Decision()

    def get(self, model: str) -> LoadedModel | None:
        """Return a loaded model."""
        return self._loaded.get(model)

    def claimable(self) -> list[str]:
        """Return the ids of the loaded models whose jobs may be claimed."""
        if self._decision.pause:
            return []
        return [model for model in self._loaded if model not in self._decision.retire]

    def absent(self) -> list[str]:
        """Return the ids of the models that this worker may hold and does not: whose demand decides."""
        return [model for model in self._listed if model not in self._loaded]

    def loaded(self) -> list[LoadedModel]:
        """Return every loaded model."""
        return list(self._loaded.values())

    def follow(self, catalogue: Catalogue, demands: Mapping[str, Demand] | None = None) -> None:
        """Load what is wanted and not here, as far as there is room; free what is idle, or no longer listed.

        `demands` are those of `absent`; None: nobody knows, so only what fits beside each other is loaded.
        """
        self._listed = {model.id: model for model in self._wanted(catalogue.models)}
        now = self._clock.monotonic()
        listed = [self._known(model, (demands or {}).get(model.id), now) for model in self._listed.values()]
        self._decision = decide(
            listed,
            most=self._settings.models_most,
            now=now,
            idle_seconds=self._settings.idle_unload_seconds,
            turn_seconds=self._settings.model_turn_seconds,
        )
        for model_id in self._decision.load:
            self._start(self._listed[model_id])
        for model_id in self._decision.close:
            self.evictions += 1
            metrics.EVICTIONS.labels(model_id).inc()
            self._stop(model_id)
        for model_id, loaded in list(self._loaded.items()):
            if model_id not in self._listed and loaded.running == 0:
                self._stop(model_id)

    def presence(self, *, draining: bool) -> dict[str, ModelPresence]:
        """Return what to announce of every model held, loading, or possible here."""
        said: dict[str, ModelPresence] = {}
        if not draining:  # else it will serve nobody
            for model_id in self._listed:
                if model_id not in self._loaded and self._may_try(model_id):
                    said[model_id] = self._absent_presence(model_id)
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

    def _absent_presence(self, model_id: str) -> ModelPresence:
        since_ms, expected = self._since_ms.get(model_id), self._load_seconds.get(model_id)
        if since_ms is None:
            return ModelPresence(state="cold")
        progress = None
        if expected:
            progress = min(PROGRESS_MOST, (self._clock.unix_ms() - since_ms) / 1000 / expected)
        return ModelPresence(state="loading", loading_since_ms=since_ms, load_progress=progress)

    def _known(self, model: Model, demand: Demand | None, now: float) -> Listed:
        loaded = self._loaded.get(model.id)
        if loaded is not None:
            self._waiting_since.pop(model.id, None)
            if loaded.running:
                loaded.used_at = now
            return Listed(
                model.id,
                held=True,
                running=loaded.running,
                used_at=loaded.used_at,
                loaded_at=loaded.loaded_at,
                asked=demand is not None and demand.asked,
            )
        queued = demand is not None and demand.queued > 0 and self._may_try(model.id)
        if not queued:
            self._waiting_since.pop(model.id, None)
        return Listed(
            model.id,
            loading=model.id in self._loading,
            waiting_since=self._waiting_since.setdefault(model.id, now) if queued else None,
            asked=demand is not None and demand.asked and self._may_try(model.id),
            fresh=model.id not in self._load_seconds and self._may_try(model.id),
            blocks=blocks_while_loading(model.engine, self._options(model)),
        )

    def _start(self, model: Model) -> None:
        self._since_ms[model.id] = self._clock.unix_ms()
        task = asyncio.get_running_loop().create_task(self._load(model))
        self._loading[model.id] = task
        task.add_done_callback(partial(self._settled, model.id))

    def _stop(self, model_id: str) -> None:
        del self._loaded[model_id]
        for gauge in (metrics.SLOTS, metrics.SLOTS_FREE):
            gauge.remove(model_id)
        task = asyncio.get_running_loop().create_task(self._stacks.pop(model_id).aclose())
        self._loading[model_id] = task
        task.add_done_callback(partial(self._settled, model_id))
        logger.info("model_closed", model=model_id)

    async def close(self) -> None:
        """Close every engine."""
        for model_id, task in list(self._loading.items()):
            if model_id in self._since_ms:  # else it is being closed: a cut would leave its engine half open
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
            self._note_failure(model_id)
            logger.error("model_failed", model=model_id, error=repr(error))

    def _may_try(self, model_id: str) -> bool:
        failed_at = self._failed_at.get(model_id)
        if failed_at is None:
            return True
        pause_seconds = RETRY_SECONDS * float(1 << min(max(0, self._failures[model_id] - 1), 10))
        return self._clock.monotonic() - failed_at >= min(RETRY_SECONDS_MOST, pause_seconds)

    def _note_failure(self, model_id: str) -> None:
        self._failed_at[model_id] = self._clock.monotonic()
        self._failures[model_id] += 1

    def _options(self, model: Model) -> EngineOptions:
        return EngineOptions(
            model=model.id,
            context=model.context,
            path=self._settings.model_path or model.options.get("path", ""),
            slots=self._settings.slots,
            options=model.options,
        )

    async def _load(self, model: Model) -> None:
        started = self._clock.monotonic()
        stack = AsyncExitStack()
        try:
            engine = await stack.enter_async_context(open_engine(model.engine, self._options(model)))
            loaded = LoadedModel(engine, self._clock.monotonic() - started)
            await engine.warm_up()
            loaded.last_step_ms = self._clock.unix_ms()
        except InferbaseError as error:
            self._note_failure(model.id)
            metrics.LOADS.labels(model.id, "failed").inc()
            logger.error("model_load_failed", model=model.id, error=error.message)
            await stack.aclose()
            return
        except BaseException:
            await stack.aclose()
            raise
        self._stacks[model.id] = stack
        self._loaded[model.id] = loaded
        self._load_seconds[model.id] = loaded.load_seconds
        self._failures.pop(model.id, None)
        loaded.loaded_at = loaded.used_at = self._clock.monotonic()
        self.loads += 1
        metrics.LOADS.labels(model.id, "loaded").inc()
        metrics.LOAD_SECONDS.labels(model.id).observe(loaded.load_seconds)
        metrics.SLOTS.labels(model.id).set(engine.slots)
        metrics.SLOTS_FREE.labels(model.id).set_function(lambda: loaded.free_slots)
        logger.info("model_loaded", model=model.id, seconds=round(loaded.load_seconds, 3))


@asynccontextmanager
async def open_models(settings: WorkerSettings, clock: Clock) -> AsyncIterator[Models]:
    """Yield an empty set of models and close what it came to hold."""
    models = Models(settings, clock)
    try:
        yield models
    finally:
        await models.close()
