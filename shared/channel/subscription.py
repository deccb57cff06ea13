"""One request as an API node reads it: chunks in order, from the channel where it keeps up and from the log where not.

Everything here is pure bookkeeping but `next`: the reader tells what arrived (`offer`, `apply_state`, `apply_log`,
`tick`) and each answer says whether the log must be read. So every interleaving of lost and late messages can be tested
without Redis.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from shared.errors import BackendFailed
from shared.settings import QueueSettings
from shared.wire import Chunk

TICK_SECONDS = 0.5  # how often the reader looks at all subscriptions
SILENCE_TICKS = 4  # without a chunk: read the state, and the log where it is ahead
QUEUED_TICKS = 10  # the same while the request waits for a worker
LOST_SECONDS = 2.0  # a log shorter than what was seen has this long to be filled again
MISSING_SECONDS = 3.0  # beyond the retries of ENQUEUE: a request without a state was lost

Push = Callable[[list[Chunk]], bool]  # takes chunks as they arrive, or says that it cannot now


class Reading(Protocol):
    """What a subscription needs of its reader."""

    def fill(self, subscription: "Subscription") -> None:
        """Read the log soon."""

    def push_soon(self, subscription: "Subscription") -> None:
        """Call its `push` once all that has arrived with this chunk is taken."""

    def unsubscribe(self, subscription: "Subscription") -> None:
        """Send nothing more to it."""


class Subscription:
    """The chunks of one request behind seq `after`, for one consumer."""

    # Invariant: `_ready` holds chunks of consecutive seqs that end at `tail`; `_last` is the chunk of `tail`, None
    # before the first. While `behind` or `verify`, channel chunks are not taken: the log is read first. Chunks leave
    # `_ready` in one of two ways: `next` returns them, or `push` gives them away while `next` waits undisturbed.

    __slots__ = (
        "__weakref__",
        "_closed",
        "_deadline",
        "_delivered",
        "_due",
        "_enqueued_at",
        "_failure",
        "_idle_ticks",
        "_known",
        "_last",
        "_loop",
        "_missing",
        "_patience_seconds",
        "_push",
        "_queued",
        "_reader",
        "_ready",
        "_settings",
        "_shrunk_at",
        "_timer",
        "_timer_at",
        "_waiter",
        "again",
        "behind",
        "channel",
        "filling",
        "model",
        "read_on_confirm",
        "request_id",
        "tail",
        "verify",
    )

    def __init__(
        self, reader: Reading, model: str, request_id: str, channel: bytes, *, after: int, settings: QueueSettings
    ) -> None:
        self.model = model
        self.request_id = request_id
        self.channel = channel
        self.tail = after  # seq of the last chunk taken
        self.behind = False  # the buffer was full: the log has more
        self.verify = False  # Redis was away: the log must still hold what was seen
        self.filling = False  # the log is being read
        self.again = False  # and must be read once more after that
        self.read_on_confirm = after > 0
        self._reader = reader
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._ready: list[Chunk] = []
        self._last: Chunk | None = None
        self._delivered: tuple[int, Chunk | None] = (after, None)
        self._failure: BackendFailed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._push: Push | None = None
        self._due = False  # the reader will call `push`
        self._patience_seconds = 0.0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._idle_ticks = 0
        self._known = False  # its state was seen in Redis
        self._missing = False  # and is there no more
        self._queued = False
        self._enqueued_at: float | None = None
        self._shrunk_at: float | None = None
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether the last chunk was taken."""
        return self._last is not None and self._last.end is not None

    @property
    def room(self) -> int:
        """How many more chunks may be buffered."""
        return self._settings.reader_chunks_most - len(self._ready)

    def enqueued(self) -> None:
        """Tell that the ENQUEUE is being sent, or that the request runs already: a later confirmation reads the log."""
        self.read_on_confirm = True
        self._enqueued_at = self._loop.time()

    async def next(self, timeout_seconds: float, push: Push | None = None) -> list[Chunk] | None:
        """Return all chunks that are there, at least one, in order; None after `timeout_seconds` without any.

        What arrives during the wait goes to `push` where there is one, with no task woken, and the wait begins anew;
        the last chunk, and what `push` cannot take, are returned. `push` must not wait; what it raises is raised here.

        Raises BackendFailed (`worker_lost`) where the log or the state was lost, or Redis stayed away. One caller at a
        time.
        """
        if not self._ready:
            if self._failure is not None:
                raise self._failure
            await self._wait(timeout_seconds, push)
            if not self._ready:
                if self._failure is not None:
                    raise self._failure
                return None
        chunks, self._ready = self._ready, []
        self._delivered = (self.tail, self._last)
        return chunks

    def push(self) -> None:
        """Give what has arrived to who waits; called by the reader after `push_soon`."""
        self._due = False
        waiter, push = self._waiter, self._push
        if push is None or waiter is None or waiter.done():
            return  # the waiter is on its way and finds everything
        if self._ready:
            try:
                taken = push(self._ready)
            except Exception as error:  # who waits shall have it; the reader goes on for all others
                waiter.set_exception(error)
                return
            if not taken:
                waiter.set_result(None)
                return
            self._ready = []
            self._delivered = (self.tail, self._last)
            self._deadline = self._loop.time() + self._patience_seconds
        if self.behind:
            self._reader.fill(self)

    def close(self) -> None:
        """Stop reading."""
        if self._closed:
            return
        self._closed = True
        self._reader.unsubscribe(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def offer(self, chunk: Chunk) -> bool:
        """Take a chunk from the channel. Tells whether the log must be read."""
        if chunk.seq == self.tail + 1 and not self.behind and not self.verify:
            if len(self._ready) >= self._settings.reader_chunks_most:
                self._drop_buffer()
                return False
            self._take(chunk)
            return False
        if chunk.seq > self.tail or self.verify:
            return True
        last = self._last
        if last is not None and (chunk.attempt > last.attempt or (chunk.seq == self.tail and chunk != last)):
            self.fail("The log was written anew below what was sent.")
        return False

    def apply_state(self, status: bytes | None, seq: int) -> bool:
        """Take what Redis says of the request. Tells whether the log must be read."""
        self._missing = status is None and self._known
        if status is None:
            self._miss_unseen()
            return self._missing and self.room > 0  # its end may stand in the log still
        self._known = True
        self._queued = status == b"queued"
        if seq < self.tail and self._last is not None:
            now = self._loop.time()
            if self._shrunk_at is None:
                self._shrunk_at = now
            elif now - self._shrunk_at >= LOST_SECONDS:
                self.fail("The log lost what was sent already.")
            return False
        self._shrunk_at = None
        if seq <= self.tail and not self.verify:
            return False
        self.behind |= self.room <= 0
        return self.room > 0

    def apply_log(self, chunks: Sequence[Chunk], *, whole: bool) -> None:
        """Take log entries from `tail` (inclusive) on; `whole`: there were no more at the time of reading."""
        for chunk in chunks:
            if chunk.seq == self.tail:
                if self._last is not None and chunk != self._last:
                    self.fail("The log was written anew below what was sent.")
                    return
            elif chunk.seq == self.tail + 1:
                if self.room <= 0:
                    whole = False
                    break
                self._take(chunk)
        self.verify = False
        self.behind = not whole
        if self._missing and whole:
            self.fail("The state of the request was lost.")

    def reconnected(self) -> None:
        """Redis was away: what it kept must be compared with what was seen."""
        self.read_on_confirm = True
        self.verify = self._last is not None

    def tick(self) -> bool:
        """Count a moment of silence. Tells whether the state must be read."""
        if self._failure is not None or self.ended:
            return False
        self._idle_ticks += 1
        if self._shrunk_at is not None:
            return True
        if self._idle_ticks < (QUEUED_TICKS if self._queued else SILENCE_TICKS):
            return False
        self._idle_ticks = 0
        return not self.behind or self._waiter is not None

    def fail(self, message: str, code: str = "worker_lost") -> None:
        """End with an error once the buffered chunks are read; not after the last chunk."""
        if self._failure is None and not self.ended:
            self._failure = BackendFailed(
                message,
                code=code,
                retry_after_seconds=1,
                request_id=self.request_id,
            )
            self._wake()

    def _take(self, chunk: Chunk) -> None:
        if self._failure is not None:
            return
        self._ready.append(chunk)
        self._last = chunk
        self.tail = chunk.seq
        self._idle_ticks = 0
        self._known = True
        self._queued = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._push is None or chunk.end is not None:
            waiter.set_result(None)
        elif not self._due:
            self._due = True
            self._reader.push_soon(self)

    def _drop_buffer(self) -> None:
        """The consumer is too slow: keep nothing, and read the log when it asks again."""
        self._ready.clear()
        self.tail, self._last = self._delivered
        self.behind = True

    def _miss_unseen(self) -> None:
        if not self._known and self._enqueued_at is not None:
            missing_seconds = self._loop.time() - self._enqueued_at
            if missing_seconds > self._settings.enqueue_retry_seconds + MISSING_SECONDS:
                self.fail("The request never reached the queue, or was lost there.")

    async def _wait(self, timeout_seconds: float, push: Push | None) -> None:
        assert self._waiter is None, "one consumer at a time"
        if self._closed:
            return
        if self.behind:
            self._reader.fill(self)
        self._waiter = self._loop.create_future()
        self._push = push
        self._patience_seconds = timeout_seconds
        self._deadline = self._loop.time() + timeout_seconds
        if self._timer is None or self._timer_at > self._deadline:
            self._set_timer()
        try:
            await self._waiter
        finally:
            self._waiter = self._push = None

    def _set_timer(self) -> None:
        # One timer serves many waits: it is moved when it fires, not at each chunk.
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() + 0.001 >= self._deadline:
            self._wake()
        else:
            self._set_timer()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
