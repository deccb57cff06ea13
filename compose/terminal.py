"""What the person at the terminal sees: one line per step, with how long it took."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LABEL_CHARACTERS: Final = 14
PROGRESS_SECONDS: Final = 3.0


def say(text: str = "") -> None:
    """Write a line now, also into a pipe; a terminal that has gone is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return


def write(text: str) -> None:
    """Write a piece of a line now."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        return


def say_from_signal(text: str) -> None:
    """Write a line out of a signal handler, where `print` may have been interrupted in the middle of itself."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{text}\n".encode())


def complain(text: str) -> None:
    """Write one line to stderr."""
    print(f"inferbase: {text}", file=sys.stderr, flush=True)


class Step:
    """A step in progress; `detail` is what its line ends with."""

    def __init__(self, label: str) -> None:
        self.detail = ""
        self._label = label
        self._started = time.monotonic()
        self._said_at = self._started

    def still(self, what: str) -> None:
        """Say every PROGRESS_SECONDS that the step goes on, and at what."""
        now = time.monotonic()
        if now - self._said_at >= PROGRESS_SECONDS:
            self._said_at = now
            say(f"  {self._label:<{LABEL_CHARACTERS}} … {what}, {now - self._started:.0f} s")

    def done(self) -> None:
        seconds = time.monotonic() - self._started
        say(f"  {self._label:<{LABEL_CHARACTERS}} {self.detail}  ({seconds:.1f} s)")


@contextmanager
def step(label: str) -> Iterator[Step]:
    """Report a step when it is done; one that fails reports nothing of its own."""
    current = Step(label)
    yield current
    current.done()
