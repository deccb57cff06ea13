"""The hand-over from an engine to the one who reads its answer: tokens in at any time, one delta out per wake-up."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from shared.errors import EngineFailed, InvalidRequest
from shared.wire import TokenLogprob
from workers.engines.base import Delta

FinishReason = Literal["stop", "length"]
Take = Callable[[Delta], bool]


class DeltaQueue:
    """The deltas of one request; see Deltas. All methods are called on the event loop.

    Invariant: `_waiter` is set only while nothing is made and the queue is open; `on_close` is called exactly once, and
    forgotten before: it usually holds the run, which holds the queue. A delta leaves in one of two ways: `__anext__`
    returns it, or `_take` takes it while `__anext__` waits on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_close: Callable[[], None]) -> None:
        self.closed = False
        self._loop = loop
        self._on_close: Callable[[], None] | None = on_close
        self._made: list[int] = []
        self._texts: list[bytes] = []
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self._cached_tokens: int | None = None
        self._finish: FinishReason | None = None
        self._error: EngineFailed | InvalidRequest | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._take: Take | None = None

    def __aiter__(self) -> "DeltaQueue":
        return self

    async def __anext__(self) -> Delta:
        while not self._made and self._finish is None:
            if self._error is not None:
                raise self._error
            if self.closed:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            await self._waiter
        delta = self._delta()
        self._clear()
        return delta

    def push_to(self, take: Take) -> None:
        """Offer deltas to `take`; see Deltas."""
        self._take = take

    async def aclose(self) -> None:
        """Abort the request; see Deltas."""
        self.close()

    def put(self, token_id: int, text: bytes | None = None) -> None:
        """Add a token; with a `text` where it is not the token's own, for all tokens or none. Call `wake` after."""
        self._made.append(token_id)
        if text is not None:
            self._texts.append(text)

    def put_all(self, token_ids: Sequence[int], logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        """Add tokens, each with its logprob where they were asked for. Call `wake` after."""
        self._made += token_ids
        self._logprobs += logprobs

    def tell_cached(self, cached_tokens: int) -> None:
        """Put `cached_tokens` on the next delta."""
        self._cached_tokens = cached_tokens

    def finish(self, reason: FinishReason) -> None:
        """End well, behind what is made."""
        if not self.closed:
            self._finish = reason
            self.close()

    def close(self, error: EngineFailed | InvalidRequest | None = None) -> None:
        """End without a reason, or with an `error`, behind what is made; nothing where it has ended."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            self.closed = True
            self._error = error
            on_close()
            self.wake()

    def wake(self) -> None:
        """Let the reader run, or take what is made, if it waits."""
        waiter = self._waiter
        if waiter is None:
            return
        if self._take is not None and self._made and not self.closed and not waiter.done():
            try:
                if self._take(self._delta()):
                    self._clear()
                    return
            except Exception as error:  # the reader shall have it; the engine goes on for all others
                waiter.set_exception(error)
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)

    def _delta(self) -> Delta:
        text = b"".join(self._texts) if self._texts else None
        return Delta(0, tuple(self._made), self._finish, text, self._cached_tokens, self._logprobs)

    def _clear(self) -> None:
        self._made.clear()
        self._texts.clear()
        self._logprobs = ()
        self._finish = self._cached_tokens = None
