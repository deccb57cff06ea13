"""A whole product on loopback for tests: real processes of ours over the session's Postgres and Valkey.

`Cluster` starts and kills processes by name; `client` speaks HTTP to a node. Used by journeys, chaos and bench.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx

from shared import ids, pricing, secrets
from shared.catalogue import Model
from shared.connections import Database, Redis
from shared.database import accounts, api_keys, models, transfers
from shared.presence import write_catalogue
from shared.pricing import Prices

ROOT: Final = Path(__file__).resolve().parents[1]
PEPPER: Final = "p" * 32
WIRE_KEY: Final = "w" * 32
READY_SECONDS: Final = 30.0
LISTENING_PORTS: Final = (10_000, 32_000)
PRICES: Final = Prices(prompt=100, cached=50, completion=300)


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on.

    Below the range from which Linux takes ports of outgoing connections: one of those could be gone by the time that a
    process listens.
    """
    while True:
        port = random.randrange(*LISTENING_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Process:
    """One started process of ours."""

    def __init__(self, role: str, environment: dict[str, str], log_path: Path) -> None:
        self.role = role
        self.environment = environment
        self.log_path = log_path
        self._popen: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        with self.log_path.open("ab") as log_file:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "compose.cli", self.role],
                cwd=ROOT,
                env=self.environment,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        assert self._popen is not None
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(10)

    def stop(self, seconds: float = 20) -> int:
        self.send(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        assert self._popen is not None
        return self._popen.wait(seconds)

    def alive(self) -> bool:
        assert self._popen is not None
        return self._popen.poll() is None


class Cluster:
    """Processes of ours by name, and the accounts and models they serve."""

    def __init__(self, *, database_url: str, redis_url: str, database: Database, redis: Redis, folder: Path) -> None:
        self.database = database
        self.redis = redis
        self.folder = folder
        self.processes: dict[str, Process] = {}
        self.ports: dict[str, int] = {}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INFERBASE_")},
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "INFERBASE_KEY_PEPPER": PEPPER,
            "INFERBASE_WIRE_KEY": WIRE_KEY,
            "INFERBASE_DATABASE_CONNECTIONS_MOST": "4",
        }

    def start(self, name: str, role: str, **settings: object) -> Process:
        """Start a process of `role`; settings are field names of shared/settings.py."""
        environment = dict(self._environment)
        if role == "api":
            self.ports[name] = free_port()
            environment |= {"INFERBASE_PORT": str(self.ports[name]), "INFERBASE_NODE_ID": name}
        environment |= {f"INFERBASE_{field.upper()}": str(value) for field, value in settings.items()}
        process = Process(role, environment, self.folder / f"{name}.log")
        self.processes[name] = process
        return process

    def base_url(self, name: str = "api0") -> str:
        return f"http://127.0.0.1:{self.ports[name]}/api/v1/inference"

    async def add_account(self, credits: str = "1000", *, concurrency: int = 0, **key_options: Any) -> tuple[str, str]:
        """Make an account with a key; return (account id, raw key)."""
        raw = secrets.make_key()
        async with self.database.acquire() as connection:
            account = await accounts.create_account(
                connection, email=f"{ids.new_id('t')}@example.com", concurrency=concurrency
            )
            if pricing.parse_credits(credits):
                await transfers.deposit(
                    connection,
                    transfer_id=ids.new_transfer_id(),
                    account_id=account.id,
                    amount=pricing.parse_credits(credits),
                    description="test",
                )
            await api_keys.create_key(
                connection,
                account_id=account.id,
                name="test",
                digest=secrets.digest(raw, PEPPER),
                prefix=secrets.prefix(raw),
                concurrency=concurrency,
                **key_options,
            )
        return account.id, raw

    async def add_model(self, model_id: str = "sim/plain", *, engine: str = "simulator", **options: object) -> None:
        """Add a simulator model with the given script, or one of another engine with its options."""
        model = Model(
            id=model_id,
            engine=engine,
            context=int(str(options.pop("context", 8192))),
            prices=PRICES,
            options={name: str(value) for name, value in options.items()},
            created_at=int(time.time()),
        )
        async with self.database.acquire() as connection:
            await models.add_model(connection, model)
            await write_catalogue(self.redis, await models.read_catalogue(connection))

    async def wait_ready(self, model_id: str = "sim/plain", *, node: str = "api0") -> None:
        """Return once `node` says that the model is ready."""
        deadline = time.monotonic() + READY_SECONDS
        async with httpx.AsyncClient() as client:
            while time.monotonic() < deadline:
                try:
                    answer = await client.get(f"{self.base_url(node)}/models/{model_id}/health")
                    if answer.status_code == 200 and answer.json()["status"] == "ready":
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)
        raise TimeoutError(f"{model_id} is not ready on {node}: see {self.folder}")

    def stop(self) -> None:
        """End every process that still runs."""
        for process in self.processes.values():
            process.send(signal.SIGCONT)
            process.kill()


@asynccontextmanager
async def open_cluster(
    *, database_url: str, redis_url: str, database: Database, redis: Redis, folder: Path
) -> AsyncIterator[Cluster]:
    """Yield a cluster without processes and end all that were started."""
    cluster = Cluster(database_url=database_url, redis_url=redis_url, database=database, redis=redis, folder=folder)
    try:
        yield cluster
    finally:
        cluster.stop()
