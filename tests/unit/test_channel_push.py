"""Chunks that are pushed to who waits: the same order and the same completeness as those that `next` returns."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.channel.subscription import Subscription
from shared.errors import BackendFailed
from shared.wire import Chunk, End, Usage
from tests.unit.test_channel_subscription import SETTINGS, STEPS, FakeReader, World, chunk, subscribe


class Pushed:
    """Takes what is pushed, as long as it may."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.takes = True

    def __call__(self, chunks: list[Chunk]) -> bool:
        if self.takes:
            self.chunks += chunks
        return self.takes


async def waiting_with(pushed: Pushed) -> tuple[FakeReader, Subscription, "asyncio.Task[list[Chunk] | None]"]:
    reader = FakeReader()
    subscription = subscribe(reader)
    waiting = asyncio.create_task(subscription.next(30, pushed))
    await asyncio.sleep(0)
    return reader, subscription, waiting


async def test_what_arrives_during_a_wait_is_pushed_at_once_and_the_end_is_returned() -> None:
    pushed = Pushed()
    reader, subscription, waiting = await waiting_with(pushed)

    subscription.offer(chunk(1))
    subscription.offer(chunk(2))
    assert reader.pushes == [subscription], "one push for all that arrived at once"
    reader.push()
    assert [one.seq for one in pushed.chunks] == [1, 2]
    subscription.offer(chunk(3))
    subscription.offer(chunk(4, end=End("completed", Usage())))
    reader.push()

    assert [one.seq for one in await waiting or []] == [3, 4]
    assert len(pushed.chunks) == 2


async def test_what_cannot_be_pushed_is_returned() -> None:
    pushed = Pushed()
    reader, subscription, waiting = await waiting_with(pushed)
    subscription.offer(chunk(1))
    reader.push()
    pushed.takes = False
    subscription.offer(chunk(2))
    reader.push()
    subscription.offer(chunk(3))
    reader.push()

    assert [one.seq for one in await waiting or []] == [2, 3]


async def test_what_arrives_between_two_waits_is_returned_before_anything_is_pushed() -> None:
    pushed = Pushed()
    subscription = subscribe()
    subscription.offer(chunk(1))

    assert await subscription.next(0.01, pushed) == [chunk(1)]
    assert await subscription.next(0.01, pushed) is None
    assert pushed.chunks == []


@pytest.mark.parametrize("push", [False, True])
async def test_a_cancelled_wait_pushes_nothing_more(push: bool) -> None:
    pushed = Pushed()
    reader, subscription, waiting = await waiting_with(pushed)
    if push:
        subscription.offer(chunk(1))
    waiting.cancel()
    if not push:
        subscription.offer(chunk(1))
    reader.push()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert pushed.chunks == []
    assert await subscription.next(0.01, pushed) == [chunk(1)]


async def test_a_push_begins_the_wait_anew() -> None:
    pushed = Pushed()
    reader = FakeReader()
    subscription = subscribe(reader)
    waiting = asyncio.create_task(subscription.next(0.1, pushed))
    await asyncio.sleep(0.012)
    subscription.offer(chunk(1))
    reader.push()
    pushed_at = asyncio.get_running_loop().time()

    assert await waiting is None
    assert asyncio.get_running_loop().time() - pushed_at >= 0.098


async def test_an_error_of_a_push_is_raised_to_who_waits() -> None:
    def push(chunks: list[Chunk]) -> bool:
        raise ZeroDivisionError

    reader = FakeReader()
    subscription = subscribe(reader)
    waiting = asyncio.create_task(subscription.next(30, push))
    await asyncio.sleep(0)
    subscription.offer(chunk(1))

    reader.push()

    with pytest.raises(ZeroDivisionError):
        await waiting


async def test_a_failure_is_told_after_what_arrived_before_it() -> None:
    pushed = Pushed()
    reader, subscription, waiting = await waiting_with(pushed)
    subscription.offer(chunk(1))
    subscription.fail("lost")
    reader.push()

    assert await waiting == [chunk(1)]
    with pytest.raises(BackendFailed):
        await subscription.next(0.01, pushed)


async def test_more_at_once_than_the_buffer_takes_is_read_from_the_log() -> None:
    pushed = Pushed()
    reader, subscription, waiting = await waiting_with(pushed)
    for seq in range(1, SETTINGS.reader_chunks_most + 2):
        subscription.offer(chunk(seq))

    reader.push()

    assert reader.wants_fill and pushed.chunks == [] and not waiting.done()
    assert subscription.apply_state(b"claimed", 6)
    subscription.apply_log([chunk(seq) for seq in range(1, 6)], whole=False)
    reader.wants_fill = False
    reader.push()
    assert reader.wants_fill, "the log has more"
    subscription.apply_log([chunk(5), chunk(6)], whole=True)
    reader.push()
    assert [one.seq for one in pushed.chunks] == [1, 2, 3, 4, 5, 6]
    waiting.cancel()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from((*STEPS, "pushed", "taken or not")), max_size=60))
def test_whatever_happens_pushed_and_returned_chunks_are_the_log_in_order(steps: list[str]) -> None:
    async def run() -> None:
        world, pushed = World(), Pushed()
        delivered = pushed.chunks

        async def consume() -> None:
            while True:
                delivered.extend(await world.subscription.next(30, pushed) or [])

        consumer = asyncio.create_task(consume())
        for step in steps:
            match step:
                case "consumed":
                    await asyncio.sleep(0)
                case "pushed":
                    world.reader.push()
                case "taken or not":
                    pushed.takes = not pushed.takes
                case _:
                    world.steps[step]()
        world.apply_page()
        for _ in range(len(world.log) + 2):
            world.reader.push()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            world.read_state()
            world.apply_page()
        world.reader.push()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert delivered == world.log
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)
        assert world.subscription._failure is None

    asyncio.run(run())
