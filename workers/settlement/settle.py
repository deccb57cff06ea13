"""Settling one batch of records: open the seals, charge in one transaction, acknowledge, set aside what is no charge.

Called by `worker.py`. A record that comes again, because the acknowledgement was lost or two workers had it, is
`already` settled and only acknowledged.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from shared import log, metrics
from shared.crash_points import CrashPoints
from shared.database.session import Session, halve
from shared.database.settlements import Settled, settle_many
from shared.errors import SealInvalid, StatementFailed
from shared.queue.settlements import Record, SettlementQueue
from shared.tracing import NO_TRACER, Tracer
from shared.wire import VERSION, Finish, Seal, decode_finish

CLOSED: Final = frozenset({"settled", "already"})
SET_ASIDE: Final = (  # why a record becomes a dead letter
    *("delivered_too_often", "invalid_seal", "undecodable", "unknown_version"),
    *("unknown", "mismatch", "too_costly", "invalid"),
)

logger = log.get_logger("settle")


class Settler:
    """Settles batches for one worker. `tries_most`: deliveries after which a record is set aside untried."""

    def __init__(
        self,
        queue: SettlementQueue,
        session: Session,
        seal: Seal,
        crash: CrashPoints,
        *,
        tries_most: int,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._queue = queue
        self._session = session
        self._seal = seal
        self._crash = crash
        self._tries_most = tries_most
        self._tracer = tracer
        for reason in SET_ASIDE:  # a counter that begins with its first letter would hide that one from `increase`
            metrics.DEAD_LETTERS.labels(reason)

    async def settle(self, records: Sequence[Record]) -> list[Finish]:
        """Charge `records` once each and take them off the queue; return what this call closed.

        Raises DependencyUnavailable where a store is down; then the same records may be settled again.
        """
        started_ms = time.time_ns() // 1_000_000
        good: list[Record] = []
        finishes: list[Finish] = []
        bad: list[tuple[Record, str]] = []
        for record in records:
            finish = self._open(record)
            if isinstance(finish, str):
                bad.append((record, finish))
            else:
                good.append(record)
                finishes.append(finish)
        verdicts = await self._charge(finishes) if finishes else []
        done = [record for record, verdict in zip(good, verdicts, strict=True) if verdict in CLOSED]
        bad += [(record, verdict) for record, verdict in zip(good, verdicts, strict=True) if verdict not in CLOSED]
        self._crash.reach("before_ack")
        await self._queue.acknowledge(done)
        for record, reason in bad:
            await self._queue.dead_letter(record, reason)
            metrics.DEAD_LETTERS.labels(reason).inc()
        if self._tracer.on:
            self._trace(finishes, verdicts, started_ms)
        return [finish for finish, verdict in zip(finishes, verdicts, strict=True) if verdict == "settled"]

    def _trace(self, finishes: Sequence[Finish], verdicts: Sequence[str], started_ms: int) -> None:
        for finish, verdict in zip(finishes, verdicts, strict=True):
            span = self._tracer.begin("settle", finish.trace, kind="consumer", started_ms=started_ms)
            span.set({"gen_ai.response.id": finish.request_id, "inferbase.verdict": verdict})
            span.end(error=None if verdict in CLOSED else verdict)

    def _open(self, record: Record) -> Finish | str:
        """Return the finish of a record, or why it has none."""
        if record.deliveries > self._tries_most:
            return "delivered_too_often"
        try:
            finish = decode_finish(self._seal.open(record.payload))
        except SealInvalid:
            return "invalid_seal"
        except msgspec.MsgspecError:
            return "undecodable"
        return finish if finish.version == VERSION else "unknown_version"

    async def _charge(self, finishes: Sequence[Finish]) -> list[Settled | str]:
        self._crash.reach("before_settle_commit")
        verdicts = await halve(finishes, self._send, _refuse)
        self._crash.reach("after_settle_commit")
        for verdict, count in Counter(verdicts).items():
            metrics.SETTLED.labels(verdict).inc(count)
        return verdicts

    async def _send(self, finishes: Sequence[Finish]) -> list[Settled | str]:
        return [*await self._session.run(lambda connection: settle_many(connection, finishes))]


def _refuse(finish: Finish, error: StatementFailed) -> Settled | str:
    logger.error("record_invalid", request_id=finish.request_id, error=error.message)
    return "invalid"
