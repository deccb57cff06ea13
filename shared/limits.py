"""What a key and its account may do: requests and tokens per minute, and requests at once; exact over all API nodes.

Called by the dispatcher; settlement gives tokens back. All limits of a request are decided by one script, many requests
in one call, and a request without limits costs nothing.

A slot is a lease in Redis that its node renews while the request runs: what a dead node held is free again when the
lease ends. Acquire, renew and release go through one batch after another, so that a renewal can never bring back a slot
that was released. Tokens are taken for the longest answer that the request allows; what it did not use comes back when
it is settled, and where that is lost the bucket drains anyway.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from shared import ids, keys
from shared.batcher import Batcher
from shared.channel.scripts import Call, ScriptPipeline
from shared.connections import Redis
from shared.errors import DependencyUnavailable, RateLimited
from shared.log import get_logger
from shared.quota import Quota, Quotas
from shared.settings import QueueSettings
from shared.wire import TokenHold, encode

OPERATIONS_MOST: Final = 128  # in one script call
UNUSED_SECONDS: Final = 60.0

_ACQUIRE: Final = 1
_RENEW: Final = 2
_RELEASE: Final = 3
_GIVE_BACK: Final = 4

_GRANTED: Final = 1
_NO_SLOT: Final = 0
_REQUESTS: Final = -1
_TOKENS: Final = -2

logger = get_logger("limits")


class Limit(NamedTuple):
    """What one key or account may do; 0 = no limit."""

    holder: str
    requests: int = 0  # per minute
    tokens: int = 0  # per minute
    concurrency: int = 0  # requests at once


Limits = Sequence[Limit]


class Grant(NamedTuple):
    """What an admitted request got: what is left beside it, and the tokens that were taken for it."""

    quotas: Quotas | None = None
    hold: TokenHold | None = None


UNLIMITED: Final = Grant()


class _Operation(NamedTuple):
    what: int
    request_id: str
    tokens: int
    rows: Limits  # of a give-back: with the mark instead of the concurrency
    counts: bool = False  # doing it twice is not the same as doing it once


@asynccontextmanager
async def open_limiter(redis: Redis, settings: QueueSettings) -> AsyncIterator["Limiter"]:
    """Yield a limiter whose slots are renewed, and release them all."""
    limiter = Limiter(redis, settings)
    await limiter.start()
    try:
        yield limiter
    finally:
        await limiter.close()


class Limiter:
    """One per process; it knows the slots that this node holds."""

    # Invariant: what is in `_held` is renewed; a release takes it out before it is sent.

    def __init__(self, redis: Redis, settings: QueueSettings) -> None:
        self._settings = settings
        self._pipeline = ScriptPipeline(
            redis, ("limits",), folder=Path(__file__).parent, retry_seconds=settings.enqueue_retry_seconds
        )
        self._batcher: Batcher[_Operation, Sequence[int]] = Batcher(
            self._send, most=OPERATIONS_MOST, on_orphan=self._undo
        )
        self._held: dict[str, Limits] = {}
        self._task: asyncio.Task[None] | None = None
        self._last_call = keys.limits_call(ids.new_owner_id())
        self._calls = 0

    @property
    def held(self) -> int:
        """How many requests of this node hold slots."""
        return len(self._held)

    async def start(self) -> None:
        """Begin to renew; a process that only gives back need not."""
        assert self._task is None, "slots are renewed already"
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Release what is still held, as far as Redis answers, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for request_id, limits in list(self._held.items()):
            self.release(request_id, limits)
        await self._batcher.flush()
        await self._pipeline.close()

    async def acquire(self, request_id: str, limits: Limits, *, tokens: int = 0) -> Grant:
        """Take one request, `tokens` tokens and a slot of every holder, or nothing at all.

        Raises RateLimited where a holder has too little left, and DependencyUnavailable: a limit that cannot be checked
        lets nobody through.
        """
        bounded = [limit for limit in limits if limit.requests > 0 or limit.tokens > 0 or limit.concurrency > 0]
        if not bounded:
            return UNLIMITED
        counts = any(limit.requests or limit.tokens for limit in bounded)
        operation = _Operation(_ACQUIRE, request_id, tokens, bounded, counts)
        decision = self._batcher.submit(operation)
        try:
            answer = await decision
        except asyncio.CancelledError:
            # Granted, but cut before it could be used. If undecided, the future is cancelled now: an orphan to be.
            if decision.done() and not decision.cancelled() and decision.exception() is None:
                self._undo(operation, decision.result())
            raise
        if answer[0] != _GRANTED:
            raise _refusal(answer, tokens)
        return Grant(_quotas(answer), _hold(operation, answer)) if len(answer) > 1 else UNLIMITED

    def release(self, request_id: str, limits: Limits) -> None:
        """Give slots back; sent soon, and idempotent. Where Redis is away the lease ends them."""
        self._held.pop(request_id, None)
        slots = _slots(limits)
        if slots:
            self._submit(_Operation(_RELEASE, request_id, 0, slots))

    def give_back(self, hold: TokenHold, used: int) -> None:
        """Give back what a request did not use of its tokens; once, by whoever closed the request. Sent soon."""
        unused = hold.tokens - used
        if unused > 0:
            rows = [Limit(holder, 0, limit, mark) for holder, limit, mark in hold.holders]
            self._submit(_Operation(_GIVE_BACK, "", unused, rows, counts=True))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.node_beat_seconds)
            for request_id, limits in list(self._held.items()):
                self._submit(_Operation(_RENEW, request_id, 0, limits))
            await self._batcher.flush()

    async def _send(self, operations: Sequence[_Operation]) -> list[Sequence[int]]:
        answers = await self._call([self._still_needed(operation) for operation in operations])
        for operation, answer in zip(operations, answers, strict=True):
            if operation.what == _ACQUIRE and answer[0] == _GRANTED and (slots := _slots(operation.rows)):
                self._held[operation.request_id] = slots
        return answers

    def _still_needed(self, operation: _Operation) -> _Operation:
        """Return `operation`, or one that does nothing where it would renew what was released meanwhile."""
        if operation.what == _RENEW and operation.request_id not in self._held:
            return operation._replace(rows=())
        return operation

    async def _call(self, operations: Sequence[_Operation]) -> list[Sequence[int]]:
        number = ""
        if any(operation.counts for operation in operations):
            self._calls += 1
            number = str(self._calls)
        call = Call(
            script="limits",
            keys=(keys.slots(""), keys.minute_requests(""), keys.minute_tokens(""), self._last_call),
            arguments=(
                str(int(self._settings.node_lease_seconds * 1000)),
                str(int(UNUSED_SECONDS * 1000)),
                number,
                encode([_row(operation) for operation in operations]),
            ),
        )
        (answers,) = await self._pipeline.run([call])
        return [(answer,) if isinstance(answer, int) else answer for answer in answers]

    def _submit(self, operation: _Operation) -> None:
        """Send without a waiter; where it fails, the lease, or time, does the rest."""
        try:
            self._batcher.submit(operation).add_done_callback(_log_failure)
        except DependencyUnavailable as error:
            logger.warning("limits_not_told", error=error.message)

    def _undo(self, operation: _Operation, answer: Sequence[int]) -> None:
        """Nobody waits any more for this acquire."""
        if operation.what != _ACQUIRE or answer[0] != _GRANTED:
            return
        self.release(operation.request_id, operation.rows)
        hold = _hold(operation, answer)
        if hold is not None:
            self.give_back(hold, 0)


def _slots(limits: Limits) -> Limits:
    return [limit for limit in limits if limit.concurrency > 0]  # the script looks at nothing else of them


def _row(operation: _Operation) -> list[str | int]:
    row: list[str | int] = [operation.what, operation.request_id, operation.tokens]
    for limit in operation.rows:
        row += limit
    return row


def _quotas(answer: Sequence[int]) -> Quotas | None:
    """Return what the script tells of the limits: see limits.lua."""
    if len(answer) == 1:
        return None
    requests, tokens = answer[2:5], answer[5:8]
    return Quotas(Quota(*requests) if requests[0] else None, Quota(*tokens) if tokens[0] else None)


def _hold(operation: _Operation, answer: Sequence[int]) -> TokenHold | None:
    limited = [limit for limit in operation.rows if limit.tokens > 0]
    if not limited or not operation.tokens:
        return None
    marks = answer[8:]
    holders = tuple((limit.holder, limit.tokens, mark) for limit, mark in zip(limited, marks, strict=True))
    return TokenHold(operation.tokens, holders)


def _refusal(answer: Sequence[int], tokens: int) -> RateLimited:
    """Return what a client is told; OpenAI's wording, which litellm matches on."""
    verdict, quotas = answer[0], _quotas(answer)
    if verdict == _NO_SLOT:
        refusal = RateLimited(
            "Too many concurrent requests for this API key or account.",
            code="concurrency_limit_exceeded",
            retry_after_seconds=1,
        )
        refusal.quotas = quotas
        return refusal
    assert quotas is not None
    seconds = max(1, -(-answer[1] // 1000))
    if verdict == _REQUESTS:
        assert quotas.requests is not None
        refusal = RateLimited(
            f"Rate limit reached for requests per min: limit {quotas.requests.limit}. "
            f"Please try again in {seconds} seconds.",
            retry_after_seconds=seconds,
        )
    elif verdict == _TOKENS:
        assert quotas.tokens is not None
        refusal = RateLimited(
            f"Rate limit reached for tokens per min: limit {quotas.tokens.limit}, requested {tokens}. "
            f"Please try again in {seconds} seconds.",
            retry_after_seconds=seconds,
        )
    else:
        assert quotas.tokens is not None
        refusal = RateLimited(
            f"Rate limit reached for tokens per min: this request alone asks for {tokens} tokens (its prompt and "
            f"max_tokens for every choice), and the limit is {quotas.tokens.limit}. Retrying cannot help: shorten the "
            f"prompt or lower max_tokens.",
            retryable=False,
        )
    refusal.quotas = quotas
    return refusal


def _log_failure(future: "asyncio.Future[Sequence[int]]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.warning("limits_not_told", error=str(error))
