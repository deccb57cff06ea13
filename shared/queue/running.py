"""The claims that run in this process: their tasks, when their leases were renewed, and which of them are suspects."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from shared import log, metrics
from shared.queue.claims import FENCE_LOST, Claim
from shared.queue.room import Load

logger = log.get_logger("queue")


class Running:
    """One claim and its task. Not a Struct: one is made per job."""

    __slots__ = ("claim", "reader", "renewed_at", "stopped", "task")

    def __init__(self, claim: Claim, renewed_at: float) -> None:
        self.claim = claim
        self.reader = claim.job.reader  # as the last beat told
        self.renewed_at = renewed_at  # loop seconds at which the lease was last known to be renewed
        self.task: asyncio.Task[None] | None = None
        self.stopped = False

    @property
    def needs_reader(self) -> bool:
        """Whether the run is pointless once nobody reads it."""
        job = self.claim.job
        return not job.resumable and job.lane == "interactive" and self.claim.close is None

    def stop(self, code: str) -> None:
        """Tell the run why, then cancel its task; once, so that its cleanup is not cut as well."""
        if self.stopped:
            return
        self.stopped = True
        if code == FENCE_LOST:
            metrics.LEASES_LOST.inc()
        self.claim.cancel.set(code)
        if self.task is not None:
            self.task.cancel()


class RunningClaims:
    """Starts a task per claim and forgets it at its end."""

    # Invariant: `_by_id[id]` is the newest attempt here; `tasks` holds every task that has not ended, by (id, attempt).

    def __init__(self, run_job: Callable[[str, int], Awaitable[None]], tasks: "dict[str, asyncio.Task[None]]") -> None:
        self.tasks: Final = tasks
        self.suspects: Final[set[str]] = set()  # held ones that are not cleared
        self.freed: Final = asyncio.Event()  # set whenever a task ends
        self.failed = 0
        self.completed = 0
        self._run_job = run_job
        self._by_id: dict[str, Running] = {}
        self._loads: defaultdict[str, Load] = defaultdict(Load)  # by model

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._by_id

    def get(self, request_id: str) -> Running | None:
        """Return the newest attempt of a request here."""
        return self._by_id.get(request_id)

    def load(self, model: str) -> Load:
        """Return how much of a model runs."""
        return self._loads[model]

    def all(self) -> list[Running]:
        """Return every running claim."""
        return list(self._by_id.values())

    def ids(self) -> set[str]:
        """Return the ids of the running requests."""
        return set(self._by_id)

    def start(self, claims: Iterable[Claim], *, lost: str) -> None:
        """Start a task per claim; an older attempt of the same request is stopped by the code `lost`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for claim in claims:
            request_id = claim.job.request_id
            older = self._by_id.get(request_id)
            if older is not None:
                older.stop(lost)
            running = self._by_id[request_id] = Running(claim, now)
            if claim.deaths and claim.close is None:
                self.suspects.add(request_id)
            task = running.task = loop.create_task(self._guarded(running))
            self.tasks[f"{request_id}:{claim.attempt}"] = task
            self._count(claim, 1)
            task.add_done_callback(partial(self._end, running))

    async def _guarded(self, running: Running) -> None:
        try:
            await self._run_job(running.claim.job.request_id, running.claim.attempt)
            self.completed += 1
        except Exception:  # the worker loop: one failed run must not end the others; its lease runs out, as a death
            self.failed += 1
            logger.exception("run_failed", request_id=running.claim.job.request_id, attempt=running.claim.attempt)

    def _count(self, claim: Claim, change: int) -> None:
        load = self._loads[claim.job.model]
        if claim.job.lane == "batch":
            load.batch += change
        else:
            load.interactive += change

    def _end(self, running: Running, _: "asyncio.Task[None]") -> None:
        request_id = running.claim.job.request_id
        running.claim.cancel.forget()
        self._count(running.claim, -1)
        self.tasks.pop(f"{request_id}:{running.claim.attempt}", None)
        if self._by_id.get(request_id) is running:
            del self._by_id[request_id]
            self.suspects.discard(request_id)
        self.freed.set()
