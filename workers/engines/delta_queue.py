"""The hand-over from an engine to the one who reads its answer: tokens in at any time, one delta out per wake-up."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from shared.errors import EngineFailed
from workers.engines.base import Delta

FinishReason = Literal["stop", "length"]


class DeltaQueue:
    """The deltas of one request; see Deltas. All methods are called on the event loop.

    Invariant: `_waiter` is set only while nothing is made and the queue is open; `on_close` is called exactly once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_close: Callable[[], None]) -> None:
        self.closed = False
        self._loop = loop
        self._on_close = on_close
        self._made: list[int] = []
        self._texts: list[bytes] = []
        self._cached_tokens: int | None = None
        self._finish: FinishReason | None = None
        self._error: EngineFailed | None = None
        self._waiter: asyncio.Future[None] | None = None

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
        text = b"".join(self._texts) if self._texts else None
        delta = Delta(0, tuple(self._made), self._finish, text, self._cached_tokens)
        self._made.clear()
        self._texts.clear()
        self._finish = self._cached_tokens = None
        return delta

    async def aclose(self) -> None:
        """Abort the request; see Deltas."""
        self.close()

    def put(self, token_id: int, text: bytes | None = None) -> None:
        """Add a token; with a `text` where it is not the token's own, for all tokens or none. Call `wake` after."""
        self._made.append(token_id)
        if text is not None:
            self._texts.append(text)

    def put_all(self, token_ids: Sequence[int]) -> None:
        """Add tokens. Call `wake` after."""
        self._made += token_ids

    def tell_cached(self, cached_tokens: int) -> None:
        """Put `cached_tokens` on the next delta."""
        self._cached_tokens = cached_tokens

    def finish(self, reason: FinishReason) -> None:
        """End well, behind what is made."""
        if not self.closed:
            self._finish = reason
            self.close()

    def close(self, error: EngineFailed | None = None) -> None:
        """End without a reason, or with an `error`, behind what is made; nothing where it has ended."""
        if not self.closed:
            self.closed = True
            self._error = error
            self._on_close()
            self.wake()

    def wake(self) -> None:
        """Let the reader run, if one waits."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
