"""Ctrl-C and SIGTERM for `up`: the first asks for an orderly stop, a second one ends everything at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType
from typing import Final, Generic, TypeVar

TICK_SECONDS: Final = 0.1

T = TypeVar("T")


class StopRequested(Exception):
    """The person or the system asked us to stop."""


class Stopping:
    """Whether a stop was asked for. Waiting goes through here, so that it ends when a stop comes."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.requested = False
        self._tick = tick
        self._at_once: Callable[[], None] | None = None

    def check(self) -> None:
        """Do what must be done every moment; raise StopRequested if a stop was asked for."""
        if self.requested:
            raise StopRequested
        self._tick()

    def pause(self, seconds: float = TICK_SECONDS) -> None:
        """Sleep, ticking; raises StopRequested."""
        until = time.monotonic() + seconds
        while True:
            self.check()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(TICK_SECONDS, left))

    def run(self, work: Callable[[], T], *, still: Callable[[], None] = lambda: None) -> T:
        """Run `work` on another thread while this one ticks; return or raise what it did."""
        outcome: _Outcome[T] = _Outcome()
        thread = Thread(target=outcome.take, args=(work,), daemon=True)
        thread.start()
        while thread.is_alive():
            self.check()
            still()
            thread.join(TICK_SECONDS)
        return outcome.give()

    def stop_now_by(self, action: Callable[[], None]) -> None:
        """From now on another request runs `action` and ends this process."""
        self._at_once = action

    def request(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.requested and self._at_once is not None:
            self._at_once()
            os._exit(130)
        self.requested = True


@contextmanager
def stop_signals(stopping: Stopping) -> Iterator[None]:
    """Route SIGINT and SIGTERM to `stopping`; a hang-up of the terminal counts as SIGTERM."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stopping.request) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Outcome(Generic[T]):
    """The result of a function on its way between threads."""

    def __init__(self) -> None:
        self._result: list[T] = []
        self._error: BaseException | None = None

    def take(self, work: Callable[[], T]) -> None:
        try:
            self._result.append(work())
        except BaseException as error:  # raised again by `give`, on the thread that waits
            self._error = error

    def give(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]
