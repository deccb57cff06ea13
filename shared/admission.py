"""Admission: the API node's way to hold credits before any work, and to say afterwards what it relayed.

Reservations are gathered while the previous transaction is in flight and sent as one (shared/batcher.py). The batcher
owns a row, not its waiter: whoever stops waiting leaves a reservation that is released here. A commit whose outcome is
unknown is retried with the same ids and reads back its own rows.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from shared import log, metrics
from shared.batcher import Batcher
from shared.clock import Clock, SystemClock
from shared.connections import Connection, Database
from shared.crash_points import CrashPoints
from shared.database.requests import (
    PastRun,
    Reserve,
    ReserveVerdict,
    Witness,
    find_run,
    release_many,
    reserve_many,
    witness_many,
)
from shared.database.session import Session, halve
from shared.errors import DependencyUnavailable, StatementFailed
from shared.outbox import Outbox
from shared.settings import AdmissionSettings

RETRY_PAUSE_SECONDS: Final = 0.05  # doubled at each retry
CLIENT_LEFT: Final = "request_cancelled"  # the one code by which a released request is cancelled, and not failed

logger = log.get_logger("admission")


class Release(msgspec.Struct, frozen=True):
    """Give a reservation back; `code` says why on its usage row, `then` is called if this is what closed it."""

    request_id: str
    code: str
    then: Callable[[], None] | None = None


WrittenT = TypeVar("WrittenT", Release, Witness)


class Admission:
    """One per API node. `flush` at shutdown, after the last request was answered."""

    def __init__(
        self,
        database: Database,
        crash: CrashPoints,
        settings: AdmissionSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings or AdmissionSettings()
        self._crash = crash
        self._clock = clock or SystemClock()
        self._database = database
        self._reserving = Session(database)
        self._writing = Session(database)
        self._writing_turn = asyncio.Lock()
        self._reached = True  # whether the last batch found the database: if not, the next one does not wait for it
        self._reservations = Batcher(
            self._reserve_batch,
            most=self._settings.reserve_most,
            gather_seconds=self._settings.reserve_gather_ms / 1000,
            on_orphan=self._release_orphan,
        )
        self._releases: Outbox[Release] = self._outbox(self._send_releases, lambda older, _: older)
        self._witnesses: Outbox[Witness] = self._outbox(
            self._send_witnesses, merge_witnesses, delay_seconds=self._settings.witness_delay_seconds
        )

    async def reserve(self, row: Reserve) -> ReserveVerdict:
        """Return the verdict of one reservation. Raises DependencyUnavailable; then nothing stays held."""
        decision = self._reservations.submit(row)
        try:
            return await decision
        except asyncio.CancelledError:
            # Decided, but cut before it could be used. If undecided, the future is cancelled now: an orphan to be.
            if decision.done() and not decision.cancelled() and decision.exception() is None:
                self._release_orphan(row, decision.result())
            raise

    async def find_run(self, account_id: str, idempotency_key: str) -> PastRun | None:
        """Return the earlier request that a key stands for, if any. Raises DependencyUnavailable."""
        session = Session(self._database)
        now_ms = self._clock.unix_ms()
        try:
            return await session.run(lambda one: find_run(one, account_id, idempotency_key, now_ms=now_ms))
        finally:
            await session.close()

    def release(self, request_id: str, code: str = "not_queued", *, then: Callable[[], None] | None = None) -> None:
        """Give a reservation back, unless it was closed meanwhile; owned and retried here, not awaited."""
        metrics.RELEASED.labels(code).inc()
        self._releases.put(request_id, Release(request_id, code, then))

    def witness(self, witness: Witness) -> None:
        """Note what was relayed of one request; bounded, merged by request, retried while the database is down."""
        self._witnesses.put(witness.request_id, witness)

    async def flush(self) -> None:
        """Write everything that waits, within a bounded time, and give the connections back."""
        await self._reservations.flush()
        seconds = self._settings.flush_seconds
        done = await asyncio.gather(self._releases.flush(seconds), self._witnesses.flush(seconds))
        if not all(done):
            waiting = self._releases.waiting + self._witnesses.waiting
            logger.warning("admission_left_rows_unwritten", rows=waiting)  # the janitor closes what was not released
        await self._reserving.close()
        await self._writing.close()

    async def _reserve_batch(self, rows: Sequence[Reserve]) -> list[ReserveVerdict]:
        give_up = time.monotonic() + (self._settings.reserve_retry_seconds if self._reached else 0.0)
        pause = RETRY_PAUSE_SECONDS
        while True:
            try:
                self._crash.reach("before_reserve_commit")
                verdicts = await halve(rows, self._reserve, _refuse)
                self._crash.reach("after_reserve_commit")
            except DependencyUnavailable:
                self._reached = False
                if time.monotonic() + pause > give_up:
                    for row in rows:  # one of these attempts may have been committed
                        self.release(row.request_id, "dependency_unavailable")
                    raise
                await asyncio.sleep(pause)
                pause *= 2
                continue
            self._reached = True
            for verdict, count in Counter(verdict.verdict for verdict in verdicts).items():
                metrics.RESERVATIONS.labels(verdict).inc(count)
            return verdicts

    async def _reserve(self, rows: Sequence[Reserve]) -> list[ReserveVerdict]:
        return await self._reserving.run(lambda connection: reserve_many(connection, rows))

    def _release_orphan(self, row: Reserve, verdict: ReserveVerdict) -> None:
        if verdict.verdict == "reserved":
            self.release(row.request_id, CLIENT_LEFT)

    async def _send_releases(self, rows: Sequence[Release]) -> None:
        released: list[Release] = []

        async def release(connection: Connection, part: Sequence[Release]) -> None:
            pairs = [(row.request_id, row.code) for row in part]
            verdicts = await release_many(connection, pairs, now_ms=self._clock.unix_ms())
            released.extend(row for row, verdict in zip(part, verdicts, strict=True) if verdict == "released")

        await self._write(rows, release)
        for row in released:
            if row.then is not None:
                row.then()

    async def _send_witnesses(self, rows: Sequence[Witness]) -> None:
        await self._write(rows, witness_many)

    async def _write(
        self, rows: Sequence[WrittenT], statement: Callable[[Connection, Sequence[WrittenT]], Awaitable[None]]
    ) -> None:
        async def send(part: Sequence[WrittenT]) -> list[None]:
            await self._writing.run(lambda connection: statement(connection, part))
            return [None] * len(part)

        async with self._writing_turn:
            await halve(rows, send, _drop)

    def _outbox(
        self,
        send: Callable[[Sequence[WrittenT]], Awaitable[None]],
        merge: Callable[[WrittenT, WrittenT], WrittenT],
        delay_seconds: float = 0.0,
    ) -> Outbox[WrittenT]:
        return Outbox(
            send,
            merge=merge,
            most=self._settings.outbox_most,
            batch_most=self._settings.outbox_batch_most,
            retry_seconds=self._settings.outbox_retry_seconds,
            delay_seconds=delay_seconds,
        )


def merge_witnesses(older: Witness, newer: Witness) -> Witness:
    """Return both in one: totals only grow, and a seen end stays seen."""
    return Witness(
        request_id=older.request_id,
        delivered_tokens=max(older.delivered_tokens, newer.delivered_tokens),
        delivered_seq=max(older.delivered_seq, newer.delivered_seq),
        prompt_tokens=older.prompt_tokens if newer.prompt_tokens is None else newer.prompt_tokens,
        ended="finished" if older.ended == "finished" else newer.ended,
    )


def _refuse(row: Reserve, error: StatementFailed) -> ReserveVerdict:
    logger.error("reservation_invalid", request_id=row.request_id, error=error.message)
    return ReserveVerdict("invalid")


def _drop(row: Release | Witness, error: StatementFailed) -> None:
    logger.error("row_invalid", kind=type(row).__name__, request_id=row.request_id, error=error.message)
