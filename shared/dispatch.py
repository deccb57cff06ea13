"""From an admitted submission to the stream of its answer, on the API's side of the queue.

    submit: slots -> RESERVE ║ SUBSCRIBE -> ENQUEUE -> Answer      Answer.next … -> close: CANCEL?, WITNESS, slots

The dispatcher owns everything that must outlive a request handler: a handler may be cut at any await, and a generator
that never started runs no `finally`. So `Answer.close` is synchronous, idempotent, and only hands work to owned tasks.
"""

import asyncio
import unicodedata
from collections.abc import Coroutine, Iterable
from typing import Any, Final, Literal

import msgspec

from shared import ids, log, pricing
from shared.admission import Admission
from shared.catalogue import Model
from shared.channel import LogReader, Push, Subscription
from shared.clock import Clock
from shared.crash_points import CrashPoints
from shared.database.requests import Reserve, ReserveVerdict, Witness
from shared.errors import (
    BackendFailed,
    InferbaseError,
    InsufficientCredits,
    InvalidRequest,
    PermissionDenied,
    RateLimited,
    Refusal,
)
from shared.limits import ConcurrencySlots
from shared.queue.client import CancelTarget, QueueClient
from shared.settings import Settings
from shared.wire import VERSION, Chunk, End, Job, Lane, Message, Sampling

COMPLETION_TOKENS_MOST: Final = 4096  # where the client names none
NORMALIZED_CHARACTERS: Final = 64  # at once

Holders = list[tuple[str, int]]  # whose concurrency a request counts against, and their bounds

logger = log.get_logger("dispatch")


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded and authenticated request. Concurrency bounds: 0 = none."""

    account_id: str
    key_id: str
    model: Model
    messages: tuple[Message, ...]
    sampling: Sampling
    stream: bool
    patience_seconds: float
    key_concurrency: int
    account_concurrency: int
    lane: Lane = "interactive"
    resumable: bool = False


class Answer:
    """The running answer of one request, read by one handler."""

    # Invariant: once `_closed`, the dispatcher no longer knows this answer and nothing is delivered any more.

    def __init__(self, dispatcher: "Dispatcher", job: Job, subscription: Subscription, holders: "Holders") -> None:
        self.job: Final = job
        self.holders: Final = holders
        self.request_id: Final = job.request_id
        self.model: Final = job.model
        self.created: Final = job.reserved_ms // 1000  # Unix seconds
        self.end: End | None = None
        self._dispatcher = dispatcher
        self._subscription = subscription
        self._prompt_tokens: int | None = None
        self._delivered_seq = 0
        self._delivered_tokens = 0
        self._begun = False
        self._closed = False

    async def next(self, timeout_seconds: float, push: Push | None = None) -> list[Chunk] | None:
        """Return the next chunks in order, at least one, or None after `timeout_seconds` without any.

        The first chunk and the last, which carries `end`, are always returned; what comes in between goes to `push`
        where it takes it, see Subscription.next. Raises BackendFailed (`worker_lost`) where the log was lost.
        """
        assert self.end is None, "an ended answer has no next chunk"
        chunks = await self._subscription.next(timeout_seconds, push if self._begun else None)
        if chunks is None:
            self._dispatcher.check_deadline(self.job)
            return None
        if not self._begun:
            self._begun = True
            self._prompt_tokens = chunks[0].prompt_tokens
        self.end = chunks[-1].end
        return chunks

    def delivered(self, seq: int, tokens: int) -> None:
        """Note the totals that were handed to the client's socket so far."""
        self._delivered_seq = seq
        self._delivered_tokens = tokens

    def close(self) -> None:
        """Let go of the answer: cancel what still runs, witness what was relayed, free the slots."""
        if self._closed:
            return
        self._closed = True
        self._subscription.close()
        self._dispatcher.forget(self, self._witness())

    def _witness(self) -> Witness:
        return Witness(
            request_id=self.request_id,
            delivered_tokens=self._delivered_tokens,
            delivered_seq=self._delivered_seq,
            prompt_tokens=self._prompt_tokens,
            ended=_witnessed(self.end),
        )


class Dispatcher:
    """Starts answers and cleans up after them; one per API node."""

    def __init__(
        self,
        settings: Settings,
        *,
        admission: Admission,
        queue: QueueClient,
        reader: LogReader,
        slots: ConcurrencySlots,
        clock: Clock,
        node_id: str,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._queue = queue
        self._reader = reader
        self._slots = slots
        self._clock = clock
        self._node_id = node_id
        self._crash = CrashPoints(settings.crash_point)
        self._live: dict[str, Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> int:
        """How many answers are running on this node."""
        return len(self._live)

    def live_keys(self) -> set[str]:
        """Return the ids of the keys whose answers run on this node."""
        return {answer.job.key_id for answer in self._live.values()}

    def cancel_keys(self, key_ids: Iterable[str]) -> None:
        """Cancel every running answer of these keys (`key_revoked`)."""
        dead = set(key_ids)
        for answer in list(self._live.values()):
            if answer.job.key_id in dead:
                self._own(self._cancel(answer.job, "key_revoked"))

    async def submit(self, submission: Submission) -> Answer:
        """Reserve, subscribe and enqueue; return the running answer.

        Raises InvalidRequest (context), RateLimited (slots), InsufficientCredits, PermissionDenied, BackendFailed
        (`queue_full`) and DependencyUnavailable; then nothing is held and nothing runs.
        """
        api = self._settings.api
        if api.node_concurrency and len(self._live) >= api.node_concurrency:
            raise RateLimited("This node serves too many streams.", code="concurrency_limit_exceeded")
        job, reserve = self._prepare(submission)
        holders = _holders(submission)
        if holders and not await self._slots.acquire(job.request_id, holders):
            raise RateLimited(
                "Too many concurrent requests for this API key or account.",
                code="concurrency_limit_exceeded",
                retry_after_seconds=1,
            )
        subscription = self._reader.subscribe(job.model, job.request_id)
        try:
            job = _admit(job, await self._admission.reserve(reserve))
        except BaseException:
            subscription.close()
            if holders:
                self._slots.release(job.request_id, holders)
            raise
        answer = Answer(self, job, subscription, holders)
        self._live[job.request_id] = answer
        try:
            await self._enqueue(job, subscription)
        except BaseException:
            self._live.pop(job.request_id, None)
            subscription.close()
            self._own(self._abandon(answer))
            raise
        return answer

    def check_deadline(self, job: Job) -> None:
        """Raise BackendFailed where a request is past its last deadline: its worker and every janitor are silent."""
        if self._clock.unix_ms() > job.deadline_ms:
            raise BackendFailed("The request ran out of time.", code="stream_timeout")

    def forget(self, answer: Answer, witness: Witness) -> None:
        """Take over what `Answer.close` leaves behind."""
        self._live.pop(answer.request_id, None)
        self._admission.witness(witness)
        if answer.end is None and not answer.job.resumable:
            self._own(self._cancel(answer.job, "request_cancelled"))
        if answer.holders:
            self._slots.release(answer.request_id, answer.holders)

    async def close(self) -> None:
        """Finish the owned tasks; the caller has stopped taking requests and closed every answer."""
        for answer in list(self._live.values()):
            answer.close()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _prepare(self, submission: Submission) -> tuple[Job, Reserve]:
        model, sampling = submission.model, submission.sampling
        max_tokens = sampling.max_tokens
        if max_tokens is not None and max_tokens >= model.context:
            raise InvalidRequest(
                f"This model's maximum context length is {model.context} tokens. However, you requested "
                f"{max_tokens} tokens for the completion. Please reduce max_tokens.",
                code="context_length_exceeded",
                param="max_tokens",
            )
        bound = prompt_bound(model, submission.messages)
        most = max_tokens or min(model.default_max_tokens, COMPLETION_TOKENS_MOST, model.context)
        hold_full = _hold(submission, bound, most)
        now = self._clock.unix_ms()
        queue = self._settings.queue
        queue_deadline = now + int(submission.patience_seconds * 1000)
        deadline = queue_deadline + int((queue.run_seconds_most + queue.deadline_grace_seconds) * 1000)
        job = Job(
            version=VERSION,
            request_id=ids.new_chat_id(),
            account_id=submission.account_id,
            key_id=submission.key_id,
            model=model.id,
            messages=submission.messages,
            sampling=sampling,
            prices=model.prices,
            hold=hold_full,
            default_max_tokens=min(model.default_max_tokens, COMPLETION_TOKENS_MOST),
            reader=self._node_id,
            resumable=submission.resumable,
            lane=submission.lane,
            weight=1,
            cost_tokens=bound + most,
            reserved_ms=now,
            queue_deadline_ms=queue_deadline,
            deadline_ms=deadline,
        )
        reserve = Reserve(
            request_id=job.request_id,
            account_id=job.account_id,
            key_id=job.key_id,
            model=job.model,
            stream=submission.stream,
            lane=job.lane,
            resumable=job.resumable,
            prices=job.prices,
            prompt_bound=bound,
            max_tokens=max_tokens,
            hold_full=hold_full,
            hold_least=hold_full if max_tokens is not None else _hold(submission, bound, 1),
            reserved_ms=now,
            queue_deadline_ms=queue_deadline,
            deadline_ms=deadline,
            idempotency_key=None,
            body_hash=None,
        )
        return job, reserve

    async def _enqueue(self, job: Job, subscription: Subscription) -> None:
        subscription.enqueued()
        verdict = await self._queue.enqueue(job)
        self._crash.reach("after_enqueue")
        if verdict == "queue_full":
            raise BackendFailed(
                f"The queue of {job.model} is full: retry later.", code="queue_full", retry_after_seconds=5
            )
        if verdict == "tombstoned":
            raise BackendFailed("The request was cancelled before it was queued.", code="request_cancelled")

    async def _abandon(self, answer: Answer) -> None:
        """Undo a reservation whose job may or may not have reached the queue."""
        self._admission.release(answer.request_id)
        if answer.holders:
            self._slots.release(answer.request_id, answer.holders)
        await self._cancel(answer.job, "request_cancelled")

    async def _cancel(self, job: Job, code: str) -> None:
        target = CancelTarget(
            request_id=job.request_id,
            account_id=job.account_id,
            key_id=job.key_id,
            model=job.model,
            reserved_ms=job.reserved_ms,
        )
        try:
            await self._queue.cancel(target, code=code, reader=self._node_id)
        except InferbaseError as error:  # the worker notices a missing reader; the janitor closes the rest
            logger.warning("cancel_failed", request_id=job.request_id, error=error.message)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def prompt_bound(model: Model, messages: Iterable[Message]) -> int:
    """Return a number of tokens that the rendered prompt never exceeds: a token covers at least one byte of text."""
    total = model.template_tokens
    for message in messages:
        text = message.content if message.name is None else message.content + message.name
        total += model.message_tokens + _bytes_most(text)
    return total


def _bytes_most(text: str) -> int:
    """Return the most bytes of `text`, as it is or in NFC, in time linear in its length.

    Slice by slice: normalising sorts a run of combining marks in quadratic time, 3 s for 80,000 of them. The sum is
    still a bound, since no composition across a seam has more bytes than its parts.
    """
    if text.isascii():
        return len(text)
    total = 0
    for start in range(0, len(text), NORMALIZED_CHARACTERS):
        part = text[start : start + NORMALIZED_CHARACTERS]
        total += max(len(part.encode()), len(unicodedata.normalize("NFC", part).encode()))
    return total


def _witnessed(end: End | None) -> Literal["finished", "client_left", "failed"]:
    if end is None:
        return "client_left"
    return "finished" if end.status == "completed" else "failed"


def _hold(submission: Submission, bound: int, max_tokens: int) -> int:
    return pricing.hold_for(
        submission.model.prices,
        prompt_bound=bound,
        max_tokens=max_tokens,
        choices=submission.sampling.choices,
        context=submission.model.context,
    )


def _holders(submission: Submission) -> Holders:
    bounds = ((submission.key_id, submission.key_concurrency), (submission.account_id, submission.account_concurrency))
    return [(holder, most) for holder, most in bounds if most]


def _admit(job: Job, verdict: ReserveVerdict) -> Job:
    """Return the job with the hold it got, or raise the refusal of its verdict."""
    if verdict.verdict == "reserved":
        return job if verdict.hold == job.hold else msgspec.structs.replace(job, hold=verdict.hold)
    raise _refusal(verdict)


def _refusal(verdict: ReserveVerdict) -> Refusal:
    match verdict.verdict:
        case "insufficient":
            available = pricing.format_credits(verdict.available)
            return InsufficientCredits(f"Insufficient credits: {available} available. Top up your account.")
        case "account_inactive":
            return PermissionDenied("This account is deactivated.", code="account_deactivated")
        case "key_revoked":
            return PermissionDenied()
        case "budget_exceeded":
            return InsufficientCredits("Insufficient credits: the budget of this API key is used up.")
        case _:
            return InvalidRequest(f"The request could not be reserved: {verdict.verdict}.")
