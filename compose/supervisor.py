"""Keeps processes running: starts them, starts a dead one again, stops them in order.

Everything happens on the main thread, in `tick`: the kernel ties the parent-death signal to the thread that forked.
A process that dies is started again after a delay that doubles from BACKOFF_SECONDS to BACKOFF_SECONDS_MOST and is
forgotten once the process has lived for STEADY_SECONDS.
"""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from compose.child import Child
from compose.errors import StartFailed

BACKOFF_SECONDS: Final = 0.2
BACKOFF_SECONDS_MOST: Final = 10.0
STEADY_SECONDS: Final = 30.0
LOG_BYTES_MOST: Final = 64 * 1024 * 1024
LOG_CHECK_SECONDS: Final = 5.0


class Server(Protocol):
    """What can be supervised: Postgres, Valkey, and each process of ours."""

    @property
    def pid(self) -> int: ...

    @property
    def running(self) -> bool: ...

    @property
    def exit_code(self) -> int | None: ...

    def start(self) -> None:
        """Start it; StartFailed if it cannot."""

    def stop(self) -> bool:
        """Stop it and wait; tell whether it stopped by itself."""


class OurProcess:
    """One process of ours, stopped by SIGTERM within `stop_seconds`."""

    def __init__(self, child: Child, *, stop_seconds: float) -> None:
        self._child = child
        self._stop_seconds = stop_seconds
        self._asked_pid = 0  # to stop; asking twice would mean: at once

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.running

    @property
    def exit_code(self) -> int | None:
        return self._child.exit_code

    def start(self) -> None:
        self._child.start()

    def ask_to_stop(self) -> None:
        """Send SIGTERM without waiting, once."""
        if self._asked_pid != self._child.pid:
            self._asked_pid = self._child.pid
            self._child.send(signal.SIGTERM)

    def stop(self) -> bool:
        self.ask_to_stop()
        return self._child.end_within(self._stop_seconds)

    def last_words(self) -> str:
        """Return the end of its log."""
        return self._child.last_words()


class Supervised:
    """One server under supervision. A port of 0: it has none."""

    def __init__(
        self, role: str, index: int, server: Server, *, log: Path, port: int = 0, metrics_port: int = 0
    ) -> None:
        self.role: Final = role
        self.index: Final = index
        self.server: Final = server
        self.log: Final = log
        self.port: Final = port
        self.metrics_port: Final = metrics_port
        self.deaths = 0  # since it last lived for STEADY_SECONDS
        self.exit_code: int | None = None  # of the last death
        self.started_at = 0.0
        self.start_again_at: float | None = None  # None: it runs

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"


class Supervisor:
    """All servers, in the order in which they were added and started."""

    def __init__(self, *, changed: Callable[[], None], say: Callable[[str], None]) -> None:
        """`changed` is called when a process id changed, `say` with a line for the person at the terminal."""
        self._changed = changed
        self._say = say
        self._all: list[Supervised] = []
        self._logs_checked_at = 0.0

    @property
    def all(self) -> Sequence[Supervised]:
        return self._all

    def of(self, role: str) -> list[Supervised]:
        """Return the servers of one role."""
        return [supervised for supervised in self._all if supervised.role == role]

    def start(self, supervised: Supervised) -> None:
        """Start a server and keep it running from now on. Raises StartFailed if the first start fails."""
        supervised.log.parent.mkdir(parents=True, exist_ok=True)
        supervised.log.write_bytes(b"")
        supervised.server.start()
        supervised.started_at = time.monotonic()
        self._all.append(supervised)

    def tick(self) -> None:
        """Notice deaths, start again what is due, keep the logs bounded. Call it several times a second."""
        now = time.monotonic()
        for supervised in self._all:
            if supervised.start_again_at is None:
                self._notice(supervised, now)
            elif now >= supervised.start_again_at:
                self._start_again(supervised, now)
        if now - self._logs_checked_at >= LOG_CHECK_SECONDS:
            self._logs_checked_at = now
            for supervised in self._all:
                _bound_log(supervised.log)

    def stop(self, role: str) -> None:
        """Stop every server of a role, all at once, and wait."""
        leaving = self.of(role)
        self._all = [supervised for supervised in self._all if supervised.role != role]
        for supervised in leaving:
            if isinstance(supervised.server, OurProcess):
                supervised.server.ask_to_stop()
        for supervised in leaving:
            if not supervised.server.stop():
                self._say(f"{supervised.name} did not stop in time and was killed")

    def _notice(self, supervised: Supervised, now: float) -> None:
        if supervised.server.running:
            if supervised.deaths and now - supervised.started_at >= STEADY_SECONDS:
                supervised.deaths = 0
            return
        supervised.exit_code = supervised.server.exit_code
        supervised.deaths += 1
        delay = min(BACKOFF_SECONDS * 2 ** (supervised.deaths - 1), BACKOFF_SECONDS_MOST)
        supervised.start_again_at = now + delay
        self._say(f"{supervised.name} {_ending(supervised.exit_code)}; starting it again (log: {supervised.log})")

    def _start_again(self, supervised: Supervised, now: float) -> None:
        try:
            supervised.server.start()
        except StartFailed as error:
            supervised.deaths += 1
            supervised.start_again_at = now + min(BACKOFF_SECONDS * 2**supervised.deaths, BACKOFF_SECONDS_MOST)
            self._say(f"{supervised.name}: {error.message}")
            return
        supervised.started_at = now
        supervised.start_again_at = None
        self._changed()


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"exited with {exit_code}"


def _bound_log(log: Path) -> None:
    """Keep one older file beside a log; its writers append, so that it may be cut under them."""
    try:
        if log.stat().st_size > LOG_BYTES_MOST:
            log.with_suffix(".1.log").write_bytes(log.read_bytes())
            with log.open("r+b") as file:
                file.truncate(0)
    except OSError:
        return
