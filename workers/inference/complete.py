"""THE job: one claimed request from its messages to its end marker. Called by LeasedWorker for each claim."""

from collections.abc import Callable
from typing import Final

from shared.channel import LogWriter
from shared.clock import Clock
from shared.connections import Redis
from shared.queue.worker import Claim
from shared.settings import QueueSettings
from shared.tracing import NO_TRACER, Tracer
from workers.inference.choice import choices_of
from workers.inference.models import LoadedModel
from workers.inference.run import Backing, Run


class Completer:
    """Runs claims; one per worker process."""

    def __init__(
        self,
        models: Callable[[str], LoadedModel | None],
        *,
        writer: LogWriter,
        redis: Redis,
        clock: Clock,
        settings: QueueSettings,
        on_dead: Callable[[str], None],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`on_dead` ends the process: an engine that died serves nobody, and the leases run out by themselves."""
        self.models: Final = models
        self._backing = Backing(
            writer=writer, redis=redis, clock=clock, settings=settings, on_dead=on_dead, tracer=tracer
        )
        self._running: set[Run] = set()  # two of one request where an attempt that lost its fence still ends

    @property
    def running(self) -> int:
        """How many claims are running."""
        return len(self._running)

    async def __call__(self, claim: Claim) -> None:
        """Run `claim` to its end; returns without one only where the fence was lost or the claim is handed over."""
        run = Run(self._backing, claim)
        loaded = self.models(claim.job.model)
        slots = choices_of(claim.job)
        self._running.add(run)
        if loaded is not None:
            loaded.running += slots
        try:
            await run.run(loaded)
        finally:
            self._running.discard(run)
            if loaded is not None:
                loaded.running -= slots
            run.measures.close()
            if not run.finished:  # nothing more is written under this fence
                self._backing.writer.forget(run.fence)

    def expire(self) -> None:
        """End every run that is past one of its deadlines; called each second."""
        now_ms, now = self._backing.clock.unix_ms(), self._backing.clock.monotonic()
        for run in list(self._running):
            run.expire(now_ms, now)
