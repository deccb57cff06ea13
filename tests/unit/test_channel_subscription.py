"""What a subscription delivers, whatever the channel does: no Redis, every interleaving."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.channel.subscription import LOST_SECONDS, MISSING_SECONDS, QUEUED_TICKS, SILENCE_TICKS, Subscription
from shared.errors import BackendFailed
from shared.settings import QueueSettings
from shared.wire import VERSION, Chunk, End, Usage

REQUEST = "chatcmpl-test"
SETTINGS = QueueSettings(reader_chunks_most=5)


class FakeReader:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.wants_fill = False
        self.pushes: list[Subscription] = []
        self.closed = 0

    def fill(self, subscription: Subscription) -> None:
        self.wants_fill = True

    def push_soon(self, subscription: Subscription) -> None:
        self.pushes.append(subscription)

    def push(self) -> None:
        pushes, self.pushes = self.pushes, []
        for subscription in pushes:
            subscription.push()

    def unsubscribe(self, subscription: Subscription) -> None:
        self.closed += 1


def chunk(seq: int, *, attempt: int = 1, text: str = "", end: End | None = None) -> Chunk:
    return Chunk(VERSION, REQUEST, attempt, seq, 0, text or f" {seq}", (seq,), end=end)


def subscribe(reader: FakeReader | None = None, *, after: int = 0) -> Subscription:
    return Subscription(reader or FakeReader(), "m", REQUEST, b"channel", after=after, settings=SETTINGS)


class World:
    """One request's log and channel, driven step by step against a subscription."""

    def __init__(self) -> None:
        self.reader = FakeReader()
        self.subscription = subscribe(self.reader)
        self.log: list[Chunk] = []
        self.late: list[Chunk] = []
        self.delivered: list[Chunk] = []
        self.page: tuple[list[Chunk], bool] | None = None
        self.steps: dict[str, Callable[[], None]] = {
            "said": self._say,
            "lost": self._append,
            "delayed": self._delay,
            "late": self._say_late,
            "repeated": self._repeat,
            "state": self.read_state,
            "log": self.apply_page,
            "consumed": self.consume,
            "reconnected": self._reconnect,
        }

    def settle(self) -> None:
        """Let the channel fall silent: what is missing must come from the log."""
        self.apply_page()
        for _ in range(len(self.log) + 2):
            self.consume()
            self.read_state()
            self.apply_page()
        self.consume()

    def consume(self) -> None:
        subscription = self.subscription
        self.delivered += subscription._ready
        if subscription._ready:
            subscription._ready = []
            subscription._delivered = (subscription.tail, subscription._last)

    def _append(self) -> Chunk:
        self.log.append(chunk(len(self.log) + 1))
        return self.log[-1]

    def _say(self) -> None:
        self.subscription.offer(self._append())

    def _delay(self) -> None:
        self.late.append(self._append())

    def _say_late(self) -> None:
        if self.late:
            self.subscription.offer(self.late.pop(0))

    def _repeat(self) -> None:
        if self.log:
            self.subscription.offer(self.log[-1])

    def read_state(self) -> None:
        if self.page is None and self.log and self.subscription.apply_state(b"claimed", len(self.log)):
            start, count = max(0, self.subscription.tail - 1), self.subscription.room + 1
            found = self.log[start : start + count]
            self.page = (found, len(found) < count)

    def apply_page(self) -> None:
        if self.page is not None:
            found, whole = self.page
            self.page = None
            self.subscription.apply_log(found, whole=whole)

    def _reconnect(self) -> None:
        self.subscription.reconnected()


STEPS = ("said", "lost", "delayed", "late", "repeated", "state", "log", "consumed", "reconnected")


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=60))
def test_whatever_the_channel_loses_or_delays_the_log_is_what_is_delivered(steps: list[str]) -> None:
    async def run() -> None:
        world = World()

        for step in steps:
            world.steps[step]()
            assert len(world.subscription._ready) <= SETTINGS.reader_chunks_most
        world.settle()

        assert world.delivered == world.log
        assert world.subscription._failure is None

    asyncio.run(run())


async def test_chunks_in_order_need_no_log() -> None:
    subscription = subscribe()

    wanted = [subscription.offer(chunk(seq)) for seq in (1, 2, 3)]

    assert not any(wanted)
    assert [one.seq for one in await subscription.next(0.01) or []] == [1, 2, 3]


async def test_a_gap_asks_for_the_log_and_delivers_nothing_yet() -> None:
    subscription = subscribe()
    subscription.offer(chunk(1))

    assert subscription.offer(chunk(3))
    assert [one.seq for one in await subscription.next(0.01) or []] == [1]


async def test_next_returns_none_after_its_timeout() -> None:
    started = asyncio.get_running_loop().time()

    assert await subscribe().next(0.015) is None
    assert asyncio.get_running_loop().time() - started >= 0.014


async def test_a_short_wait_after_a_long_one_keeps_its_own_timeout() -> None:
    subscription = subscribe()
    first = asyncio.create_task(subscription.next(30))
    await asyncio.sleep(0)
    subscription.offer(chunk(1))
    await first

    async with asyncio.timeout(5):
        assert await subscription.next(0.01) is None


async def test_a_cancelled_wait_loses_nothing() -> None:
    subscription = subscribe()
    waiting = asyncio.create_task(subscription.next(30))
    await asyncio.sleep(0)
    subscription.offer(chunk(1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await subscription.next(0.01) == [chunk(1)]


async def test_closing_wakes_the_waiter_and_is_said_once() -> None:
    reader = FakeReader()
    subscription = subscribe(reader)
    waiting = asyncio.create_task(subscription.next(30))
    await asyncio.sleep(0)

    subscription.close()
    subscription.close()

    assert await waiting is None
    assert reader.closed == 1


async def test_a_consumer_that_stops_keeps_a_bounded_buffer() -> None:
    reader = FakeReader()
    subscription = subscribe(reader)
    for seq in range(1, 100):
        subscription.offer(chunk(seq))
    assert len(subscription._ready) <= SETTINGS.reader_chunks_most

    assert await subscription.next(0.01) is None

    assert reader.wants_fill
    assert subscription.behind and subscription.tail == 0


async def test_a_log_written_anew_below_what_was_sent_is_never_spliced() -> None:
    subscription = subscribe()
    for seq in (1, 2, 3):
        subscription.offer(chunk(seq))

    subscription.offer(chunk(3, attempt=2, text=" other"))

    assert len(await subscription.next(0.01) or []) == 3
    with pytest.raises(BackendFailed) as lost:
        await subscription.next(0.01)
    assert lost.value.code == "worker_lost"


async def test_after_a_reconnect_nothing_is_taken_before_the_log_was_compared() -> None:
    subscription = subscribe()
    for seq in (1, 2, 3):
        subscription.offer(chunk(seq))
    subscription.reconnected()

    assert subscription.offer(chunk(4, attempt=2)), "the log has to be read first"
    assert subscription.apply_state(b"claimed", 4)
    subscription.apply_log([chunk(3, attempt=2, text=" other"), chunk(4, attempt=2)], whole=True)

    assert [one.seq for one in await subscription.next(0.01) or []] == [1, 2, 3]
    with pytest.raises(BackendFailed):
        await subscription.next(0.01)


async def test_a_shorter_log_is_given_its_time_to_be_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _stop_clock(monkeypatch)
    subscription = subscribe()
    for seq in (1, 2, 3):
        subscription.offer(chunk(seq))

    subscription.apply_state(b"claimed", 1)
    clock.append(LOST_SECONDS - 0.1)
    subscription.apply_state(b"claimed", 2)
    subscription.apply_state(b"claimed", 3)
    clock.append(LOST_SECONDS * 3)
    subscription.apply_state(b"claimed", 3)

    assert subscription._failure is None


async def test_a_log_that_stays_shorter_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _stop_clock(monkeypatch)
    subscription = subscribe()
    for seq in (1, 2, 3):
        subscription.offer(chunk(seq))
    subscription.apply_state(b"claimed", 1)
    clock.append(LOST_SECONDS + 0.1)

    subscription.apply_state(b"claimed", 2)

    assert subscription._failure is not None and subscription._failure.code == "worker_lost"


async def test_a_state_that_was_there_and_is_gone_is_lost() -> None:
    subscription = subscribe()
    subscription.apply_state(b"queued", 0)

    assert subscription.apply_state(None, 0), "its end may stand in the log still"
    subscription.apply_log([], whole=True)

    with pytest.raises(BackendFailed):
        await subscription.next(0.01)


async def test_an_end_in_the_log_counts_even_without_state() -> None:
    subscription = subscribe()
    subscription.offer(chunk(1))
    subscription.apply_state(None, 0)
    last = chunk(2, end=End("completed", Usage()))

    subscription.apply_log([chunk(1), last], whole=True)

    assert await subscription.next(0.01) == [chunk(1), last]
    assert subscription._failure is None and subscription.ended


async def test_a_state_that_never_came_is_waited_for_and_then_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _stop_clock(monkeypatch)
    subscription = subscribe()
    subscription.enqueued()
    subscription.apply_state(None, 0)
    assert subscription._failure is None
    clock.append(SETTINGS.enqueue_retry_seconds + MISSING_SECONDS + 0.1)

    subscription.apply_state(None, 0)

    assert subscription._failure is not None


async def test_silence_asks_sooner_while_running_than_while_queued() -> None:
    running, queued = subscribe(), subscribe()
    running.apply_state(b"claimed", 0)
    queued.apply_state(b"queued", 0)

    asked = [(running.tick(), queued.tick()) for _ in range(QUEUED_TICKS)]

    assert [at for at, (now, _) in enumerate(asked, 1) if now] == [SILENCE_TICKS, SILENCE_TICKS * 2]
    assert [at for at, (_, now) in enumerate(asked, 1) if now] == [QUEUED_TICKS]


async def test_nothing_is_asked_after_the_end() -> None:
    subscription = subscribe()
    subscription.offer(chunk(1, end=End("completed", Usage())))

    assert not any(subscription.tick() for _ in range(50))
    subscription.fail("too late")
    assert await subscription.next(0.01) is not None


async def test_reading_from_the_middle_starts_behind_it() -> None:
    subscription = subscribe(after=2)
    assert subscription.read_on_confirm

    assert subscription.apply_state(b"claimed", 4)
    subscription.apply_log([chunk(2), chunk(3), chunk(4)], whole=True)

    assert [one.seq for one in await subscription.next(0.01) or []] == [3, 4]


def _stop_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let subscriptions see a time that only a test moves: the last value of the list."""
    seen = [0.0]
    made = Subscription.__init__

    class StoppedLoop:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop

        def time(self) -> float:
            return seen[-1]

        def __getattr__(self, name: str) -> object:
            return getattr(self.loop, name)

    def init(self: Subscription, *arguments: object, **options: object) -> None:
        made(self, *arguments, **options)
        self._loop = StoppedLoop(self._loop)

    monkeypatch.setattr(Subscription, "__init__", init)
    return seen
