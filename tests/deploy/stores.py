"""The stores as they ship: Valkey with infra/redis, its users made by compose/make_secrets.sh; roles of Postgres."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import redis as redis_client

from compose.ports import free_port
from compose.valkey import Valkey
from tests.cluster import ROOT

PROCESSES: Final = ("api", "worker", "settlement", "janitor")
CONFIGURATION: Final = ROOT / "infra" / "redis" / "redis.conf"
ROLES: Final = ROOT / "infra" / "postgres" / "roles.sql"
DATABASE_PROCESSES: Final = ("api", "settlement", "janitor")


class GuardedValkey(Valkey):
    """Valkey with the shipped configuration and the shipped users."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, free_port(), password="")
        self._secrets = folder / "secrets"
        subprocess.run(
            [ROOT / "compose" / "make_secrets.sh", self._secrets, f"127.0.0.1:{self.port}", "127.0.0.1:1"], check=True
        )

    def secret(self, name: str) -> str:
        return (self._secrets / name).read_text()

    def url_as(self, user: str) -> str:
        """Return the address for one of the shipped users."""
        return self.secret(f"redis_url_{user}")

    def denied(self) -> list[str]:
        """Return what was refused since the last call: user, command, and what of it."""
        with redis_client.Redis.from_url(self.url_as("operator"), decode_responses=True) as client:
            return [
                f"{row['username']}: {row['reason']} {row['object']} ({row['context']})" for row in client.acl_log()
            ]

    def _configuration(self) -> str:
        shipped = CONFIGURATION.read_text().replace("port 6379", f"port {self.port}")
        return f"{shipped}dir .\naclfile {self._secrets / 'users.acl'}\n"


@contextmanager
def open_guarded_valkey(folder: Path) -> Iterator[GuardedValkey]:
    """Yield a started Valkey and stop it."""
    server = GuardedValkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def url_as(database_url: str, role: str) -> str:
    """Return the address of the same database for one of the shipped roles, whose password tests set to its name."""
    parts = urlsplit(database_url)
    return parts._replace(netloc=f"inferbase_{role}:{role}@{parts.hostname}:{parts.port}").geturl()
