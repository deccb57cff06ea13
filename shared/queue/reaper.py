"""Finds jobs that nobody holds any more: expired leases go back to the queue, what may not run again is to be closed.

Called by every worker for its models and by the janitor for all. Who reaps holds the fence of what it must close.
"""

import asyncio
from collections.abc import Callable

from shared import keys, metrics
from shared.connections import Redis
from shared.queue.claims import Claim, ClaimReader
from shared.queue.scripts import Script, milliseconds, script_keys
from shared.settings import QueueSettings
from shared.wire import Seal

_REAP = Script("reap", "take", "requeue")


class Reaper:
    """One per owner. `overdue_code` tells by what code a job of a model ends that no worker took in time."""

    def __init__(
        self,
        redis: Redis,
        seal: Seal,
        settings: QueueSettings,
        owner: str,
        *,
        overdue_code: Callable[[str], str] = lambda _: "model_unavailable",
        reader: ClaimReader | None = None,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._owner = owner
        self._overdue_code = overdue_code
        self._reader = reader or ClaimReader(redis, seal, settings, owner)
        self.requeued = 0  # jobs given back to the queue after a death

    async def reap(self, model: str) -> list[Claim]:
        """Requeue the dead of `model`; return claims, all with `close` set, that the caller must finish.

        They have leases as any claim: what the caller does not finish is reaped again. Errors of Redis pass.
        """
        settings = self._settings
        arguments = (
            keys.job_id(model, ""),
            self._owner,
            settings.reap_most,
            milliseconds(settings.lease_seconds),
            milliseconds(settings.run_seconds_most),
            milliseconds(settings.next_token_seconds),
            self._overdue_code(model),
        )
        async with asyncio.timeout(settings.lease_seconds / 2):
            requeued, rows = await _REAP.run(self._redis, script_keys(model), arguments)
            self.requeued += requeued
            metrics.LEASES_EXPIRED.inc(requeued)
            return await self._reader.read(model, rows) if rows else []
