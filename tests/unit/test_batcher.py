"""Natural batching: nothing waits without need, nothing is lost, and who stops waiting is noticed."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.batcher import Batcher
from shared.errors import DependencyUnavailable


class Store:
    """Doubles numbers; keeps the batches, and holds each back until `open` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.open.wait()
        if -1 in items:
            raise ValueError("a bad batch")
        return [item * 2 for item in items]


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_an_idle_batcher_sends_in_the_same_turn() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.send)

    batcher.submit(1)
    await turn()

    assert store.batches == [[1]]
    store.open.set()
    await batcher.flush()


async def test_what_comes_meanwhile_goes_out_as_one_batch_in_order() -> None:
    store = Store()
    batcher = Batcher(store.send, most=3)
    store.open.clear()
    first = batcher.submit(1)
    await turn()

    rest = [batcher.submit(number) for number in (2, 3, 4, 5)]
    store.open.set()

    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10]
    assert store.batches == [[1], [2, 3, 4], [5]]


async def test_an_error_reaches_every_waiter_of_its_batch_and_no_other() -> None:
    store = Store()
    batcher = Batcher(store.send, most=2)

    answers = await asyncio.gather(*(batcher.submit(number) for number in (1, -1, 3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [ValueError, ValueError, int]


async def test_a_waiter_that_has_gone_leaves_an_orphan() -> None:
    store = Store()
    orphans: list[tuple[int, int]] = []
    batcher = Batcher(store.send, on_orphan=lambda item, result: orphans.append((item, result)))
    store.open.clear()
    gone, stays = batcher.submit(1), batcher.submit(2)
    await turn()

    gone.cancel()
    store.open.set()

    assert await stays == 4
    assert orphans == [(1, 2)]


async def test_a_full_batcher_refuses_and_goes_on() -> None:
    store = Store()
    store.open.clear()
    batcher = Batcher(store.send, waiting_most=2)
    kept = [batcher.submit(1), batcher.submit(2)]

    with pytest.raises(DependencyUnavailable):
        batcher.submit(3)

    store.open.set()
    assert await asyncio.gather(*kept) == [2, 4]
    assert await batcher.submit(4) == 8


async def test_flush_returns_once_everything_is_answered() -> None:
    batcher = Batcher(Store().send)
    futures = [batcher.submit(number) for number in range(5)]

    await batcher.flush()

    assert all(future.done() for future in futures)


async def test_who_comes_alone_is_never_held_back_by_gathering() -> None:
    store = Store()
    batcher = Batcher(store.send, gather_seconds=30.0)

    async with asyncio.timeout(5):
        for number in range(5):
            await batcher.submit(number)

    assert store.batches == [[0], [1], [2], [3], [4]]


async def test_after_a_batch_of_several_the_next_ones_gather() -> None:
    store = Store()
    batcher = Batcher(store.send, gather_seconds=0.01)
    started = asyncio.get_running_loop().time()
    await asyncio.gather(batcher.submit(1), batcher.submit(2))

    third = batcher.submit(3)
    await turn()
    fourth = batcher.submit(4)
    await asyncio.gather(third, fourth)

    assert store.batches == [[1, 2], [3, 4]]
    assert asyncio.get_running_loop().time() - started >= 0.01


async def test_a_gathering_batcher_does_not_wait_where_enough_is_there() -> None:
    store = Store()
    batcher = Batcher(store.send, gather_seconds=30.0, gather_most=3)
    await asyncio.gather(batcher.submit(0), batcher.submit(1))

    futures = [batcher.submit(2)]
    await turn()
    futures += [batcher.submit(3), batcher.submit(4)]

    async with asyncio.timeout(5):
        assert await asyncio.gather(*futures) == [4, 6, 8]
    assert store.batches == [[0, 1], [2, 3, 4]]
