"""From an admitted submission to the stream of its answer, on the API's side of the queue.

    submit: limits -> RESERVE ║ SUBSCRIBE -> ENQUEUE -> Answer      Answer.next … -> close: CANCEL?, WITNESS, slots

A request with an idempotency key may belong to a run that exists: then it only subscribes. Such a run goes on when its
client leaves; the node follows it to its end, since its slots are taken so long and its key may be revoked meanwhile.

The dispatcher owns everything that must outlive a request handler: a handler may be cut at any await, and a generator
that never started runs no `finally`. So `Answer.close` is synchronous, idempotent, and only hands work to owned tasks.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from shared import log
from shared.admission import CLIENT_LEFT, Admission
from shared.answer import Answer
from shared.channel import LogReader, Subscription
from shared.clock import Clock
from shared.crash_points import CrashPoints
from shared.database.requests import PastRun, Witness
from shared.errors import BackendFailed, Conflict, RateLimited, Refusal
from shared.idempotency import PastRuns
from shared.limits import UNLIMITED, Grant, Limit, Limiter, Limits
from shared.outbox import Outbox
from shared.queue.client import CancelTarget, QueueClient
from shared.quota import Quotas
from shared.settings import Settings
from shared.submission import Submission, admit, prepare, tokens_most
from shared.wire import Job

CANCELS_MOST: Final = 50_000  # that wait for Redis
CANCELS_AT_ONCE: Final = 64
CANCEL_RETRY_SECONDS: Final = 0.5
CANCEL_FLUSH_SECONDS: Final = 5.0  # at shutdown
FOLLOW_SECONDS: Final = 30.0  # between two looks at the deadline of a run that nobody reads here
RACES_MOST: Final = 3  # that one request may lose against others with its idempotency key

logger = log.get_logger("dispatch")


class _Cancel(NamedTuple):
    target: CancelTarget
    code: str
    reader: str | None = None  # None: this node, which is obeyed as long as it is the request's reader; "": anybody


class Dispatcher:
    """Starts answers and cleans up after them; one per API node."""

    def __init__(
        self,
        settings: Settings,
        *,
        admission: Admission,
        queue: QueueClient,
        reader: LogReader,
        limiter: Limiter,
        past_runs: PastRuns,
        clock: Clock,
        node_id: str,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._queue = queue
        self._reader = reader
        self._limiter = limiter
        self._past_runs = past_runs
        self._clock = clock
        self._node_id = node_id
        self._crash = CrashPoints(settings.crash_point)
        self._closing = False
        self._live: set[Answer] = set()
        self._followed: dict[Answer, asyncio.Task[None]] = {}  # runs that go on without a client
        # Retried: a cancel that is lost means an answer that runs to its end for nobody, and is charged.
        self._cancels: Outbox[_Cancel] = Outbox(
            self._send_cancels,
            merge=lambda older, _: older,
            most=CANCELS_MOST,
            batch_most=CANCELS_AT_ONCE,
            retry_seconds=CANCEL_RETRY_SECONDS,
        )

    @property
    def live(self) -> int:
        """How many answers are running on this node."""
        return len(self._live)

    def live_keys(self) -> set[str]:
        """Return the ids of the keys whose answers run on this node."""
        return {answer.job.key_id for answer in (*self._live, *self._followed)}

    def cancel_keys(self, key_ids: Iterable[str]) -> None:
        """Cancel every running answer of these keys (`key_revoked`)."""
        dead = set(key_ids)
        for answer in (*self._live, *self._followed):
            if answer.job.key_id not in dead:
                continue
            if isinstance(answer.job, Job):
                self._cancel(answer.job, "key_revoked")
            else:
                answer.cut()

    async def submit(self, submission: Submission) -> Answer:
        """Reserve, subscribe and enqueue; return the running answer.

        Raises InvalidRequest (context), RateLimited, InsufficientCredits, PermissionDenied, Conflict (idempotency key),
        BackendFailed (`queue_full`) and DependencyUnavailable; then nothing is held and nothing runs.
        """
        most = self._settings.api.node_concurrency
        if most and len(self._live) + len(self._followed) >= most:
            raise RateLimited("This node serves too many streams.", code="concurrency_limit_exceeded")
        if submission.idempotency is None:
            return await self._start(submission)
        for _ in range(RACES_MOST):
            run = await self._past_runs.find(submission)
            if run is not None:
                return await self._attach(submission, run)
            try:
                return await self._start(submission)
            except Conflict as error:
                refusal = error  # somebody with the same key was faster
        raise refusal

    async def _start(self, submission: Submission) -> Answer:
        job, reserve = prepare(submission, self._settings.queue, node_id=self._node_id, now_ms=self._clock.unix_ms())
        limits, grant = submission.limits, UNLIMITED
        if limits:
            grant = await self._limiter.acquire(job.request_id, limits, tokens=tokens_most(submission))
            if grant.hold is not None:
                job = msgspec.structs.replace(job, token_hold=grant.hold)
        subscription = self._reader.subscribe(job.model, job.request_id)
        try:
            job = admit(job, await self._admission.reserve(reserve))
        except BaseException as error:
            subscription.close()
            self._return(job, limits)
            _tell_quotas(error, grant)
            raise
        answer = Answer(self, job, subscription, limits=limits, quotas=grant.quotas)
        self._live.add(answer)
        try:
            await self._enqueue(job, subscription)
        except BaseException as error:
            self._live.discard(answer)
            subscription.close()
            self._abandon(job, limits, CLIENT_LEFT if isinstance(error, asyncio.CancelledError) else "not_queued")
            _tell_quotas(error, grant)
            raise
        return answer

    async def _attach(self, submission: Submission, run: PastRun) -> Answer:
        """Read the run of an earlier request. Asking counts as a request; tokens and slots are taken already."""
        limits = [Limit(limit.holder, limit.requests) for limit in submission.limits if limit.requests]
        grant = await self._limiter.acquire(run.request_id, limits)
        return self.read_again(run, key_id=submission.key_id, quotas=grant.quotas)

    def read_again(self, run: PastRun, *, key_id: str, quotas: Quotas | None = None) -> Answer:
        """Return the answer of a request that was made before, from its begin; `key_id`: who reads now."""
        subscription = self._reader.subscribe(run.model, run.request_id)
        subscription.enqueued()
        answer = Answer(self, msgspec.structs.replace(run, key_id=key_id), subscription, quotas=quotas)
        self._live.add(answer)
        return answer

    def cancel(self, run: PastRun) -> None:
        """Cancel a request wherever it is: its owner asks for it."""
        target = CancelTarget(
            request_id=run.request_id,
            account_id=run.account_id,
            key_id=run.key_id,
            model=run.model,
            reserved_ms=run.reserved_ms,
        )
        self._cancels.put(run.request_id, _Cancel(target, "request_cancelled", reader=""))

    def check_deadline(self, job: Job | PastRun) -> None:
        """Raise BackendFailed where a request is past its last deadline: its worker and every janitor are silent."""
        if self._clock.unix_ms() > job.deadline_ms:
            raise BackendFailed("The request ran out of time.", code="stream_timeout")

    def forget(self, answer: Answer, subscription: Subscription, witness: Witness) -> None:
        """Take over what `Answer.close` leaves behind."""
        self._live.discard(answer)
        self._admission.witness(witness)
        if answer.end is None and isinstance(answer.job, Job) and answer.job.resumable and not self._closing:
            self._followed[answer] = asyncio.get_running_loop().create_task(self._follow(answer, subscription))
            return
        subscription.close()
        if answer.end is None and isinstance(answer.job, Job) and not answer.job.resumable:
            self._cancel(answer.job, answer.broken or "request_cancelled")
        if answer.limits:
            self._limiter.release(answer.request_id, answer.limits)

    async def close(self) -> None:
        """Send what waits, within a bounded time; the caller has stopped taking requests and closed every answer."""
        self._closing = True
        for answer in list(self._live):
            answer.close()
        followers = list(self._followed.values())
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        if not await self._cancels.flush(CANCEL_FLUSH_SECONDS):
            # Workers notice that this node has gone; the janitor closes the rest.
            logger.warning("cancels_not_sent", cancels=self._cancels.waiting)

    async def _enqueue(self, job: Job, subscription: Subscription) -> None:
        subscription.enqueued()
        verdict = await self._queue.enqueue(job)
        self._crash.reach("after_enqueue")
        if verdict == "queue_full":
            seconds = await self._queue.seconds_until_room(job.model, job.lane)
            raise BackendFailed(
                f"The queue of {job.model} is full: retry later.", code="queue_full", retry_after_seconds=seconds
            )
        if verdict == "tombstoned":
            raise BackendFailed("The request was cancelled before it was queued.", code="request_cancelled")

    async def _follow(self, answer: Answer, subscription: Subscription) -> None:
        """Wait for the end of a run that its client left: it holds its slots, and its key may be revoked."""
        try:
            while True:
                chunks = await subscription.next(FOLLOW_SECONDS)
                if chunks is None:
                    self.check_deadline(answer.job)
                elif chunks[-1].end is not None:
                    return
        except BackendFailed as error:
            logger.info("run_lost", request_id=answer.request_id, code=error.code)
        finally:
            self._followed.pop(answer, None)
            subscription.close()
            if answer.limits:
                self._limiter.release(answer.request_id, answer.limits)

    def _abandon(self, job: Job, limits: Limits, code: str) -> None:
        """Undo a reservation whose job may or may not have reached the queue: whoever closes it gives tokens back."""
        hold = job.token_hold
        then = None if hold is None else partial(self._limiter.give_back, hold, 0)
        self._admission.release(job.request_id, code, then=then)
        if limits:
            self._limiter.release(job.request_id, limits)
        self._cancel(job, "request_cancelled")

    def _return(self, job: Job, limits: Limits) -> None:
        """Give back what a request took of its limits that was not reserved."""
        if limits:
            self._limiter.release(job.request_id, limits)
        if job.token_hold is not None:
            self._limiter.give_back(job.token_hold, 0)

    def _cancel(self, job: Job, code: str) -> None:
        target = CancelTarget(
            request_id=job.request_id,
            account_id=job.account_id,
            key_id=job.key_id,
            model=job.model,
            reserved_ms=job.reserved_ms,
            token_hold=job.token_hold,
        )
        self._cancels.put(job.request_id, _Cancel(target, code))

    def _reader_of(self, cancel: _Cancel) -> str:
        return self._node_id if cancel.reader is None else cancel.reader

    async def _send_cancels(self, cancels: Sequence[_Cancel]) -> None:
        """Send all; raise the first error of those that failed: the batch is sent again."""
        done = await asyncio.gather(
            *[self._queue.cancel(one.target, code=one.code, reader=self._reader_of(one)) for one in cancels],
            return_exceptions=True,
        )
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome


def _tell_quotas(error: BaseException, grant: Grant) -> None:
    if isinstance(error, Refusal):
        error.quotas = grant.quotas
