"""What the janitor does each second: mirror the catalogue to the workers, keep their measures, reap the dead.

It reaps for every model, also for those that no live worker lists, or that left the catalogue with requests open: their
queued requests end here when patience is over.
"""

from shared import log
from shared.catalogue import Catalogue
from shared.clock import Clock
from shared.connections import Connection, Redis
from shared.database.models import list_model_ids, read_catalogue, remember_measures
from shared.database.session import Session
from shared.errors import DependencyUnavailable
from shared.presence import ModelPresence, judge, read_all, write_catalogue
from shared.presence import read_catalogue as read_mirror
from shared.queue.reaper import Reaper
from workers.inference.complete import Completer

logger = log.get_logger("upkeep")


class Upkeep:
    """One per janitor. `close` ends a claim that must not run; `overdue_code` is the reaper's."""

    def __init__(self, *, session: Session, redis: Redis, close: Completer, clock: Clock) -> None:
        self._session = session
        self._redis = redis
        self._close = close
        self._clock = clock
        self._models: list[str] = []  # that may have requests; the last ones known while Postgres is away
        self._said: dict[str, list[ModelPresence]] = {}

    def overdue_code(self, model: str) -> str:
        """Return by which code a request of `model` ends that no worker took within its patience."""
        health = judge(model, self._said.get(model, []), queue_depth=0, load_seconds=1.0, now_ms=self._clock.unix_ms())
        return "model_loading" if health.status == "loading" else "model_unavailable"

    async def tick(self, reaper: Reaper) -> None:
        """Do it all once. Raises DependencyUnavailable where Redis is down; Postgres may be."""
        await self._listen()
        try:
            await self._mirror()
        except DependencyUnavailable as error:
            logger.warning("catalogue_unread", error=error.message)
        for model in self._models:
            for claim in await reaper.reap(model):
                await self._close(claim)

    async def _listen(self) -> None:
        said: dict[str, list[ModelPresence]] = {}
        for presence in await read_all(self._redis):
            for model, one in presence.models.items():
                said.setdefault(model, []).append(one)
        self._said = said

    async def _mirror(self) -> None:
        catalogue = await self._session.run(self._remember)
        self._models = await self._session.run(list_model_ids)
        if await read_mirror(self._redis) != catalogue:  # the version alone does not tell that a model was removed
            await write_catalogue(self._redis, catalogue)

    async def _remember(self, connection: Connection) -> Catalogue:
        catalogue = await read_catalogue(connection)
        changed = False
        for model in catalogue.models:
            measured = [one for one in self._said.get(model.id, []) if one.template_tokens or one.message_tokens]
            if not measured:
                continue
            # The largest of what workers say: the prompt bound must hold on each of them.
            template_tokens = max(one.template_tokens for one in measured)
            message_tokens = max(one.message_tokens for one in measured)
            if (model.template_tokens, model.message_tokens) != (template_tokens, message_tokens):
                changed |= await remember_measures(
                    connection, model.id, template_tokens=template_tokens, message_tokens=message_tokens
                )
        return await read_catalogue(connection) if changed else catalogue
