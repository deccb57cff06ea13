"""A real `inferbase up` for tests: started as a person would, known by its ready-file, stopped by Ctrl-C's signal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from compose.ports import free_port, is_free

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
ROOT = Path(__file__).parent.parent.parent


class LocalProduct:
    """One `up`; `ready` is its ready-file."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.ready_file = folder / "ready.json"
        self.port = _free_range(4)
        self.output = folder / "output.txt"
        self.errors = folder / "errors.txt"
        options = ["--data-dir", str(self.data), "--port", str(self.port), "--ready-file", str(self.ready_file)]
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*COMMAND, "up", *options, *arguments],
                cwd=folder,
                env=quiet_environment() | (environment or {}),
                stdout=output,
                stderr=errors,
            )
        self.ready: dict[str, Any] = {}

    def wait(self, *, self_check: bool = True) -> "LocalProduct":
        """Return once it is ready, and with its self-check also answered."""
        give_up = time.monotonic() + READY_SECONDS
        while not (self.ready_file.exists() and (not self_check or "Serving." in self.said())):
            assert self.process.poll() is None, self.said() + self.errors.read_text()
            assert time.monotonic() < give_up, self.said() + self.errors.read_text()
            time.sleep(0.02)
        self.ready = json.loads(self.ready_file.read_bytes())
        return self

    def said(self) -> str:
        return self.output.read_text()

    def pids(self) -> list[int]:
        return [process["pid"] for process in json.loads(self.ready_file.read_bytes())["processes"]]

    def cli(self, *arguments: str) -> Any:
        """Run another `inferbase` command on this product and return its JSON."""
        return cli(self.data, *arguments)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask for the stop and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


COMMAND = [sys.executable, "-P", "-m", "compose.cli"]


def cli(data: Path, *arguments: str) -> Any:
    """Run an `inferbase` command on the data folder and return its JSON."""
    done = run_cli(data, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_cli(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments, "--data-dir", str(data)],
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def quiet_environment() -> dict[str, str]:
    """This process's environment without anything that steers the product."""
    hidden = ("INFERBASE_", "DATABASE_URL", "REDIS_URL", "OPENAI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _free_range(count: int) -> int:
    while True:
        first = free_port()
        if first + count < 65536 and all(is_free(first + offset) for offset in range(count)):
            return first
