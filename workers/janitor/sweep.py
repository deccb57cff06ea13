"""Closes what nobody closed: requests past their deadline, and requests that Redis knows nothing about.

    candidates (Postgres) -> fence, so that nobody else can end them -> records older than the fence settled?
    -> evidence (evidence.py) -> closed through settle_many, as any other

It closes nothing while Redis cannot be reached, and nothing of a model with a settlement record that is older than the
fence: such a record may be the candidate's own, and it is the better evidence. Called every few seconds by `worker.py`.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from shared import keys, log, metrics
from shared.channel import read_log
from shared.clock import Clock
from shared.connections import Redis, redis_errors
from shared.crash_points import CrashPoints
from shared.database.requests import OpenRequest, list_open
from shared.database.session import Session, halve
from shared.database.settlements import Settled, settle_many
from shared.errors import StatementFailed
from shared.queue.client import FenceResult, QueueClient
from shared.queue.settlements import SettlementQueue
from shared.settings import SettlementSettings
from shared.wire import Finish, Usage
from workers.janitor.evidence import Evidence, judge, make_finish

BACKLOG_POLL_SECONDS: Final = 0.05

logger = log.get_logger("sweep")


class Sweeper:
    """One per janitor. Several janitors may sweep at once: the first to settle a request wins."""

    def __init__(
        self,
        settings: SettlementSettings,
        *,
        session: Session,
        redis: Redis,
        queue: QueueClient,
        settlements: SettlementQueue,
        crash: CrashPoints,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._session = session
        self._redis = redis
        self._queue = queue
        self._settlements = settlements
        self._crash = crash
        self._clock = clock

    async def sweep(self) -> int:
        """Close what is due and return how many requests that were. Raises DependencyUnavailable."""
        closed = 0
        before_ms = self._clock.unix_ms() - int(self._settings.stateless_seconds * 1000)
        after = (0, "")
        while page := await self._page(before_ms, after):
            closed += await self._close_due(page)
            after = (page[-1].reserved_ms, page[-1].request_id)
        return closed

    async def _page(self, before_ms: int, after: tuple[int, str]) -> list[OpenRequest]:
        most = self._settings.sweep_page_most
        return await self._session.run(
            lambda connection: list_open(connection, before_ms=before_ms, after=after, limit=most)
        )

    async def _close_due(self, page: Sequence[OpenRequest]) -> int:
        due = await self._due(page)
        if not due:
            return 0
        fences = [await self._queue.fence(request.model, request.request_id) for request in due]
        fenced_at = time.monotonic()
        self._crash.reach("janitor_after_fence")
        waiting = await self._unsettled(fenced_at, {request.model for request in due})
        if waiting:
            metrics.JANITOR_SKIPPED.labels("backlog").inc()
            logger.warning("sweep_waits_for_settlement", due=len(due), models=sorted(waiting))
        found = [
            await self._judge(request, fence)
            for request, fence in zip(due, fences, strict=True)
            if request.model not in waiting
        ]
        return await self._close(found)

    async def _due(self, page: Sequence[OpenRequest]) -> list[OpenRequest]:
        now_ms = self._clock.unix_ms()
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for request in page:
                    pipeline.exists(keys.state(request.model, request.request_id))
                has_state = await pipeline.execute()
        return [
            request for request, state in zip(page, has_state, strict=True) if not state or request.deadline_ms < now_ms
        ]

    async def _unsettled(self, fenced_at: float, models: Collection[str]) -> set[str]:
        """Wait until no record made before the fences is left; return the models where that takes too long."""
        give_up_at = fenced_at + self._settings.backlog_patience_seconds
        waiting = set(models)
        while True:
            for model in sorted(waiting):
                # Taken before Redis is asked: a record as old as this, or older, may be from before the fences.
                fenced_seconds = time.monotonic() - fenced_at
                if await self._settlements.lag_seconds([model]) < fenced_seconds:
                    waiting.remove(model)
            if not waiting or time.monotonic() > give_up_at:
                return waiting
            await asyncio.sleep(BACKLOG_POLL_SECONDS)

    async def _judge(self, request: OpenRequest, fence: FenceResult) -> tuple[Finish, Evidence]:
        chunks = await read_log(self._redis, request.model, request.request_id)
        judgement = judge(request, chunks)
        finish = make_finish(request, judgement, attempts=fence.attempt, now_ms=self._clock.unix_ms())
        return finish, judgement.evidence

    async def _close(self, found: Sequence[tuple[Finish, Evidence]]) -> int:
        finishes = [finish for finish, _ in found]
        verdicts = await halve(finishes, self._settle, _refuse)
        worthless = [finish for finish, verdict in zip(finishes, verdicts, strict=True) if verdict in _IMPOSSIBLE]
        if worthless:  # evidence that cannot be charged must not hold the customer's credits for ever
            verdicts += await halve([_free(finish) for finish in worthless], self._settle, _refuse)
        for (finish, evidence), verdict in zip(found, verdicts, strict=False):
            if verdict == "settled":
                metrics.JANITOR_CLOSED.labels(evidence).inc()
            logger.warning(
                "closed_by_janitor",
                request_id=finish.request_id,
                model=finish.model,
                status=finish.status,
                code=finish.code,
                evidence=evidence,
                verdict=verdict,
            )
        metrics.JANITOR_CLOSED.labels("impossible").inc(verdicts[len(found) :].count("settled"))
        return verdicts.count("settled")

    async def _settle(self, finishes: Sequence[Finish]) -> list[Settled | None]:
        return [*await self._session.run(lambda connection: settle_many(connection, finishes))]


_IMPOSSIBLE: Final = frozenset({"too_costly", None})


def _free(finish: Finish) -> Finish:
    return msgspec.structs.replace(finish, status="failed", code="evidence_impossible", usage=Usage())


def _refuse(finish: Finish, error: StatementFailed) -> Settled | None:
    logger.error("evidence_impossible", request_id=finish.request_id, error=error.message)
    return None
