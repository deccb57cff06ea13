"""One answer on its way from a run to a client: read by one handler, let go of once, whatever happens.

Made by the dispatcher, which owns what an answer leaves behind: `close` is synchronous and idempotent, since a handler
may be cut at any await.
"""

from typing import Final, Literal, Protocol

from shared.channel import Push, Subscription
from shared.database.requests import PastRun, Witness
from shared.errors import BackendFailed
from shared.limits import Limits
from shared.quota import Quotas
from shared.wire import Chunk, End, Job


class Owner(Protocol):
    """What an answer needs of the dispatcher."""

    def check_deadline(self, job: Job | PastRun) -> None:
        """Raise BackendFailed where nobody will answer any more."""

    def forget(self, answer: "Answer", subscription: Subscription, witness: Witness) -> None:
        """Take over what the answer leaves behind."""


class Answer:
    """The running answer of one request, read by one handler."""

    # Invariants: once `_closed`, the dispatcher no longer knows this answer and nothing is delivered any more; `broken`
    # is set only where the answer did not end and it is not the client who left: nothing is charged for it.

    def __init__(
        self,
        dispatcher: Owner,
        job: Job | PastRun,
        subscription: Subscription,
        *,
        limits: Limits = (),
        quotas: Quotas | None = None,
    ) -> None:
        self.job: Final = job
        self.limits: Final = limits  # whose slots it holds
        self.quotas: Final = quotas
        self.request_id: Final = job.request_id
        self.model: Final = job.model
        self.created: Final = job.reserved_ms // 1000  # Unix seconds
        self.end: End | None = None
        self.broken: str | None = None  # the code by which this side broke it off
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
        try:
            chunks = await self._subscription.next(timeout_seconds, push if self._begun else None)
            if chunks is None:
                self._dispatcher.check_deadline(self.job)
                return None
        except BackendFailed as error:
            self.fail(error.code)
            raise
        if not self._begun:
            self._begun = True
            self._prompt_tokens = chunks[0].prompt_tokens
        self.end = chunks[-1].end
        return chunks

    def delivered(self, seq: int, tokens: int) -> None:
        """Note the totals that were handed to the client's socket so far."""
        self._delivered_seq = seq
        self._delivered_tokens = tokens

    def fail(self, code: str) -> None:
        """Note that this side breaks the answer off; the first code counts, and none after the end."""
        if self.end is None and self.broken is None:
            self.broken = code

    def cut(self) -> None:
        """End what is read of a run that is not ours to cancel: the key that reads it was revoked."""
        self._subscription.fail("The API key of this request was revoked.", "key_revoked")

    def close(self) -> None:
        """Let go of the answer: cancel what still runs, witness what was relayed, free the slots."""
        if self._closed:
            return
        self._closed = True
        self._dispatcher.forget(self, self._subscription, self._witness())

    def _witness(self) -> Witness:
        return Witness(
            request_id=self.request_id,
            delivered_tokens=self._delivered_tokens,
            delivered_seq=self._delivered_seq,
            prompt_tokens=self._prompt_tokens,
            ended=self._ended(),
        )

    def _ended(self) -> Literal["finished", "client_left", "failed", "lost"]:
        if self.end is None:
            if self.job.resumable:
                return "lost"  # to this reader; the run goes on
            return "client_left" if self.broken is None else "failed"
        return "finished" if self.end.status == "completed" else "failed"
