"""The folder in which `inferbase up` keeps what must last between runs, readable by its owner alone.

secrets.json      pepper of the keys, keys of the inner wire and of session cookies, made at the first run
credentials.json  the account and API key that `up` made, so that a later run prints the same ones
ready.json        where a running `up` can be reached; removed when it stops
lock              held while `up` runs
logs/             one file per process, emptied at each start
postgres/ valkey/ the embedded stores
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from compose.errors import StartFailed
from shared.settings import SecretSettings

DEFAULT: Final = Path(".data")

T = TypeVar("T")


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` gives to the person who started it."""

    account_id: str
    key_id: str
    api_key: str


class ProcessEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a running `up`; `role` is the subcommand, or `postgres`, `valkey`. A port of 0: it has none."""

    role: str
    index: int
    pid: int
    port: int
    metrics_port: int = 0  # of /metrics, /livez and /readyz


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What the ready-file says. Base URLs have no trailing slash."""

    base_url: str
    base_urls: tuple[str, ...]
    api_key: str
    model: str
    redis_url: str
    database_url: str
    processes: tuple[ProcessEntry, ...]


class DataFolder:
    """The folder itself. Opened by `open_data_folder`, or looked into by commands with `DataFolder(path)`."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path.absolute()
        self.logs: Final = self.path / "logs"
        self.ready_file: Final = self.path / "ready.json"

    def make(self) -> None:
        """Make the folder; StartFailed names what is in the way."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch(mode=0o600)
            probe.unlink()
        except OSError as error:
            raise StartFailed(
                f"the data folder {self.path} cannot be written: {error.strerror}; choose another with --data-dir"
            ) from error

    @property
    def has_cluster(self) -> bool:
        """Whether an embedded Postgres was ever made here."""
        return (self.path / "postgres" / "cluster" / "PG_VERSION").exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second `up`; StartFailed if one runs."""
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise StartFailed(f"another inferbase (process {owner}) is using {self.path}") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def secrets(self) -> SecretSettings:
        """Return the secrets of this folder, made at the first call."""
        kept = self._read("secrets.json", SecretSettings)
        if kept is None:
            kept = SecretSettings(key_pepper=secrets.token_urlsafe(48), wire_key=secrets.token_urlsafe(48))
        if not kept.jwt_key:  # new, or made before there were sessions
            kept = msgspec.structs.replace(kept, jwt_key=secrets.token_urlsafe(48))
            write_private(self.path / "secrets.json", msgspec.json.encode(kept))
        return kept

    def kept_secrets(self) -> SecretSettings | None:
        """Return the secrets of this folder, if there are any."""
        return self._read("secrets.json", SecretSettings)

    def credentials(self) -> Credentials | None:
        """Return the account and key of an earlier run."""
        return self._read("credentials.json", Credentials)

    def keep_credentials(self, credentials: Credentials) -> None:
        """Keep the account and key for the next run."""
        write_private(self.path / "credentials.json", msgspec.json.encode(credentials))

    def ready(self) -> Ready | None:
        """Return where a running `up` is; None if none runs."""
        try:
            return self._read("ready.json", Ready)
        except StartFailed:
            return None

    def _read(self, name: str, kind: type[T]) -> T | None:
        file = self.path / name
        try:
            return msgspec.json.decode(file.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except OSError as error:
            raise StartFailed(f"{file} cannot be read: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise StartFailed(f"{file} is damaged ({error}); restore it, or use another --data-dir") from error


def write_private(file: Path, content: bytes) -> None:
    """Write a file in one step, readable by its owner alone: readers see the old content or the new one."""
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            output.write(content)
        unfinished.replace(file)
    except OSError as error:
        raise StartFailed(f"{file} cannot be written: {error.strerror}") from error
