"""The product under test: `inferbase up --engine simulator` as a user starts it, with the bench's models added."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import httpx
import msgspec

from compose.data_folder import DataFolder
from compose.stores import free_port
from shared.settings import inherited_environment
from tests.bench.load import Client
from tests.bench.measure import Roles

ROOT: Final = Path(__file__).resolve().parents[2]
PROMPT: Final = "Tell me a short story about the old lighthouse keeper"  # ten words, near enough
START_SECONDS: Final = 90.0
STOP_SECONDS: Final = 60.0
SETTLED_SECONDS: Final = 30.0
MODEL_SECONDS: Final = 20.0
COMMAND_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.05

FAST: Final = "bench/fast"  # no time per step: what we cost is all there is
PACED: Final = "bench/paced"  # a step each 20 ms: an engine that sets the pace
IDLE: Final = "bench/idle"  # a step each 2.5 s: streams that wait
STEP_MS: Final = {FAST: 0, PACED: 20, IDLE: 2500}
SLOTS: Final = {FAST: 128, PACED: 128, IDLE: 2048}


class Charged(msgspec.Struct, frozen=True):
    """What the ledger says of the bench's models."""

    requests: int
    tokens: int
    free_requests: int  # closed without a charge
    open_requests: int


class Product:
    """A running `up`."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready_file: Path, data_dir: Path) -> None:
        self._process = process
        self._ready_file = ready_file
        self._data_dir = data_dir

    @property
    def ready(self) -> dict[str, Any]:
        """The ready-file as it is now: process ids change when one is started again."""
        found: dict[str, Any] = json.loads(self._ready_file.read_bytes())
        return found

    @property
    def roles(self) -> Roles:
        """Every process by role; `up` itself among them."""
        roles: dict[str, list[int]] = {}
        for process in self.ready["processes"]:
            roles.setdefault(process["role"], []).append(process["pid"])
        roles["up"] = [self._process.pid]
        return roles

    @property
    def base_url(self) -> str:
        url: str = self.ready["base_url"]
        return url

    def client(self) -> Client:
        ready = self.ready
        url = urlsplit(ready["base_url"])
        assert url.port is not None
        return Client(url.port, f"{url.path}/chat/completions", key=ready["api_key"])

    def body(self, model: str, *, tokens: int, stream: bool) -> bytes:
        content = {"role": "user", "content": PROMPT}
        return msgspec.json.encode({"model": model, "messages": [content], "max_tokens": tokens, "stream": stream})

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `inferbase …` on this product."""
        return subprocess.run(
            [sys.executable, "-m", "compose.cli", *arguments, "--data-dir", str(self._data_dir)],
            cwd=ROOT,
            env=inherited_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )

    def add_model(self, model: str) -> None:
        options = {"step_ms": STEP_MS[model], "slots": SLOTS[model], "tokens": 100_000, "stamp_tokens": 1}
        pairs = [part for name, value in options.items() for part in ("--option", f"{name}={value}")]
        done = self.command("model", "add", model, "--engine", "simulator", "--context", "8192", *pairs)
        assert done.returncode == 0, done.stdout + done.stderr

    def wait_for_model(self, model: str) -> None:
        give_up = time.monotonic() + MODEL_SECONDS
        while httpx.get(f"{self.base_url}/models/{model}/health").json()["status"] != "ready":
            assert time.monotonic() < give_up, f"{model} was not loaded"
            time.sleep(POLL_SECONDS)

    async def charged(self, *, requests: int) -> Charged:
        """Return what was charged once `requests` are closed, or what is there after SETTLED_SECONDS."""
        connection = await asyncpg.connect(self.ready["database_url"])
        try:
            give_up = time.monotonic() + SETTLED_SECONDS
            while True:
                row = await connection.fetchrow(_CHARGED)
                assert row is not None
                found = Charged(*row)
                if (found.requests + found.free_requests >= requests and not found.open_requests) or (
                    time.monotonic() > give_up
                ):
                    return found
                time.sleep(POLL_SECONDS)
        finally:
            await connection.close()

    @contextmanager
    def another_worker(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a worker that nobody starts again, and end it."""
        secrets = DataFolder(self._data_dir).kept_secrets()
        assert secrets is not None
        environment = inherited_environment() | {
            "INFERBASE_REDIS_URL": self.ready["redis_url"],
            "INFERBASE_WIRE_KEY": secrets.wire_key,
            "INFERBASE_ENGINE": "simulator",
        }
        with (self._data_dir / "logs" / "worker-another.log").open("wb") as log:
            command = [sys.executable, "-m", "compose.cli", "worker"]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def workers_of(self, model: str) -> int:
        """Return how many workers hold the model."""
        count: int = httpx.get(f"{self.base_url}/models/{model}/health").json()["workers"]
        return count

    def log_errors(self) -> list[str]:
        """Return the lines of our processes' logs that speak of an error."""
        found = []
        for log in sorted((self._data_dir / "logs").glob("*.log")):
            if log.stem not in ("postgres", "valkey"):
                lines = log.read_text(errors="replace").splitlines()
                found += [f"{log.stem}: {line[:300]}" for line in lines if _tells_error(line)]
        return found


_CHARGED: Final = """
    SELECT count(*) FILTER (WHERE cost > 0),
           coalesce(sum(completion_tokens) FILTER (WHERE cost > 0), 0)::BIGINT,
           count(*) FILTER (WHERE cost = 0),
           (SELECT count(*) FROM open_requests)
    FROM usage
    WHERE model LIKE 'bench/%'
"""


@contextmanager
def open_product(*, workers: int) -> Iterator[tuple[Product, float]]:
    """Start `up` in a new data folder; yield it with the seconds that passed until its ready-file was there."""
    with tempfile.TemporaryDirectory(prefix="inferbase-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        data_dir, ready_file, output = folder / "data", folder / "ready.json", folder / "up.log"
        command = [sys.executable, "-m", "compose.cli", "up", "--engine", "simulator", "--workers", str(workers)]
        command += ["--port", str(free_port()), "--data-dir", str(data_dir), "--ready-file", str(ready_file)]
        started = time.monotonic()
        with output.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=inherited_environment(), stdout=log, stderr=log, start_new_session=True
            )
        try:
            while not ready_file.exists():
                assert process.poll() is None, output.read_text()
                assert time.monotonic() - started < START_SECONDS, output.read_text()
                time.sleep(POLL_SECONDS)
            yield Product(process, ready_file, data_dir), time.monotonic() - started
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tells_error(line: str) -> bool:
    return '"error"' in line or '"critical"' in line or "Traceback" in line
