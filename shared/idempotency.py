"""Which run a request with an `Idempotency-Key` belongs to: an earlier one, on whatever node it began, or a new one.

Called by the dispatcher before it starts a run, and again where the ledger says that somebody was faster. The row of
the reservation holds the key (`reserve_many` keeps it unique in an account for a day); the answer is in the log of the
run, as long as that is kept. A run that ended free of charge does not count: the next use of its key starts a new one.
"""

import asyncio
from typing import Final, Literal

from shared import keys
from shared.admission import Admission
from shared.connections import Redis, redis_errors
from shared.database.requests import PastRun
from shared.errors import Conflict
from shared.submission import Submission
from shared.wire import decode_chunk

UNSEEN_SECONDS: Final = 2.0  # a run that is reserved shows in Redis by then, and one that ended is settled
POLL_SECONDS: Final = 0.05

Seen = Literal["there", "failed", "gone"]


class PastRuns:
    """Finds the earlier runs of a node's requests."""

    def __init__(self, admission: Admission, redis: Redis) -> None:
        self._admission = admission
        self._redis = redis

    async def find(self, submission: Submission) -> PastRun | None:
        """Return the run whose answer is this request's, too; None where there is none.

        Raises Conflict where the key stands for another body, where the answer is no longer kept, and where a run is
        reserved but shows nowhere (`idempotency_in_progress`); DependencyUnavailable.
        """
        idempotency = submission.idempotency
        assert idempotency is not None
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + UNSEEN_SECONDS
        while True:
            run = await self._admission.find_run(submission.account_id, idempotency.key)
            if run is None:
                return None
            if run.body_hash != idempotency.body_hash:
                raise Conflict(
                    f"This Idempotency-Key was used for another request, {run.request_id}: use a new key.",
                    code="idempotency_key_reused",
                )
            seen = await self._see(run)
            if seen == "there":
                return run
            if seen == "gone" and run.closed:
                raise Conflict(
                    f"This Idempotency-Key was used for the request {run.request_id}, whose answer is no longer kept.",
                    code="idempotency_key_reused",
                )
            if clock() >= give_up_at:
                if seen == "failed":
                    return run
                raise Conflict(
                    f"The request {run.request_id} with this Idempotency-Key is just being made.",
                    code="idempotency_in_progress",
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _see(self, run: PastRun) -> Seen:
        """Tell what Redis has of a run. `failed`: it ended free of charge, and is about to be closed as such."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hget(keys.state(run.model, run.request_id), "status")
                pipeline.xrevrange(keys.log(run.model, run.request_id), count=1)
                status, tail = await pipeline.execute()
        if status is None or (status == b"ended" and not tail):
            return "gone"
        end = decode_chunk(tail[0][1][b"c"]).end if tail else None
        return "failed" if end is not None and end.status == "failed" else "there"
