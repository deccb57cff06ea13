"""What the embedded Postgres and Valkey have in common: a folder, a port, one child process, and the wait for it."""

import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from compose.child import Child
from compose.data_folder import write_private
from compose.errors import StartFailed

START_SECONDS: Final = 60.0  # crash recovery, or reading a long append-only file, included
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.02

ServerT = TypeVar("ServerT", bound="EmbeddedServer")


class EmbeddedServer:
    """A server with its data in `folder`; see `Server` of the supervisor."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, folder: Path, port: int, *, log: Path | None) -> None:
        self.port: Final = port
        self._folder = folder.absolute()
        self._log = log or self._folder / f"{self.name.lower()}.log"
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        return 0 if self._child is None else self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.exit_code

    def start(self) -> None:
        """Start the server and return when it answers; StartFailed with the server's own words."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._child = self._prepared()
        self._child.start()
        self._wait_until_ready(self._child)

    def stop(self) -> bool:
        """Stop it with everything kept that it confirmed. Tells whether it stopped by itself."""
        return self._child is None or self._child.stop(self.stop_signal, seconds=STOP_SECONDS)

    def _prepared(self) -> Child:
        """Make what the server needs in its folder, and the process that is to be started."""
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _complaint(self, log: str) -> str:
        """Return the line of `log` that says why the server ended."""
        raise NotImplementedError

    def _wait_until_ready(self, child: Child) -> None:
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            if not child.running:
                raise StartFailed(f"{self.name} did not start: {self._complaint(child.last_words())}")
            if self._is_ready():
                return
            time.sleep(POLL_SECONDS)
        self.stop()
        raise StartFailed(f"{self.name} was not ready after {START_SECONDS:.0f} s; see {self._log}")


@contextmanager
def started(server: ServerT) -> Iterator[ServerT]:
    """Yield the server, started, and stop it."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def kept_password(file: Path) -> str:
    """Return the password that lasts with the folder of `file`, made at the first call, readable by its owner alone."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(32).encode())
    return file.read_text().strip()
