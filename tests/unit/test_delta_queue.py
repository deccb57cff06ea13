"""The hand-over from an engine to its reader: every token leaves once, taken while it waits or returned to it."""

import asyncio

import pytest

from shared.errors import EngineFailed
from workers.engines.base import Delta
from workers.engines.delta_queue import DeltaQueue


class Taker:
    """Takes deltas while `open`; raises `error` where there is one."""

    def __init__(self) -> None:
        self.offered: list[tuple[int, ...]] = []
        self.open = True
        self.error: Exception | None = None

    def __call__(self, delta: Delta) -> bool:
        self.offered.append(delta.token_ids)
        if self.error is not None:
            raise self.error
        return self.open


async def reading(queue: DeltaQueue) -> "asyncio.Task[Delta]":
    """Start to wait for a delta."""
    task = asyncio.ensure_future(anext(queue))
    await asyncio.sleep(0)
    return task


def made(queue: DeltaQueue, *token_ids: int) -> None:
    queue.put_all(token_ids)
    queue.wake()


def opened() -> tuple[DeltaQueue, Taker]:
    queue, taker = DeltaQueue(asyncio.get_running_loop(), lambda: None), Taker()
    queue.push_to(taker)
    return queue, taker


async def test_what_is_taken_wakes_no_reader_and_is_not_returned() -> None:
    queue, taker = opened()
    reader = await reading(queue)

    made(queue, 1)
    made(queue, 2)
    await asyncio.sleep(0)
    waits = not reader.done()
    queue.put(3)
    queue.finish("length")

    assert waits and taker.offered == [(1,), (2,)]
    assert await reader == Delta(0, (3,), "length")


async def test_what_is_not_taken_is_returned_with_all_that_follows_meanwhile() -> None:
    queue, taker = opened()
    reader = await reading(queue)

    taker.open = False
    made(queue, 1)
    made(queue, 2)

    assert await reader == Delta(0, (1, 2))
    assert taker.offered == [(1,)]


async def test_nothing_is_offered_while_the_reader_does_not_wait() -> None:
    queue, taker = opened()

    made(queue, 1)

    assert taker.offered == []
    assert await anext(queue) == Delta(0, (1,))


async def test_nothing_is_offered_once_the_reader_was_cut() -> None:
    queue, taker = opened()
    reader = await reading(queue)

    reader.cancel()
    made(queue, 1)

    assert taker.offered == []
    assert await anext(queue) == Delta(0, (1,))


async def test_an_error_of_who_takes_reaches_the_reader_and_not_the_engine() -> None:
    queue, taker = opened()
    reader = await reading(queue)

    taker.error = ValueError("cannot take")
    made(queue, 1)

    with pytest.raises(ValueError, match="cannot take"):
        await reader


async def test_an_engine_that_fails_ends_the_reader_behind_what_was_taken() -> None:
    queue, taker = opened()
    reader = await reading(queue)

    made(queue, 1)
    queue.close(EngineFailed("broken"))

    assert taker.offered == [(1,)]
    with pytest.raises(EngineFailed):
        await reader
