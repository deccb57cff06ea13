"""`inferbase up`: the whole product on one machine, under one supervisor.

Stores first (embedded, or those of DATABASE_URL and REDIS_URL), then migrations, the account, key and model, then the
processes; ready means that every node and the model itself say so. Stopping goes the other way round: API nodes finish
their streams, workers theirs, settlement empties its queue, then janitor, Valkey and Postgres.
"""

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from compose import readiness, self_check
from compose.child import Child
from compose.chosen_model import choose_model
from compose.data_folder import Credentials, DataFolder, ProcessEntry, Ready, write_private
from compose.embedded import open_embedded
from compose.errors import StartFailed
from compose.ports import is_free, quiet_port
from compose.provision import Provisioned, provision
from compose.stopping import Stopping, StopRequested, stop_signals
from compose.supervisor import OurProcess, Supervised, Supervisor
from compose.terminal import complain, say, say_from_signal, step
from shared.catalogue import Model
from shared.settings import Settings, environment_of, inherited_environment, load_settings

INFERENCE_PATH: Final = "/api/v1/inference"
STOP_ORDER: Final = ("api", "worker", "settlement", "janitor")
STOP_GRACE_SECONDS: Final = 10.0  # beyond a process's own drain time
API_NODES_MOST: Final = 64
WORKERS_MOST: Final = 64

# What a process has no use for: cookies and payments are the API's business, and a worker reaches Redis only.
OF_THE_API: Final = ("INFERBASE_JWT_KEY", "INFERBASE_STRIPE_WEBHOOK_SECRET")
UNKNOWN_TO: Final = {
    "worker": (*OF_THE_API, "INFERBASE_DATABASE_URL", "INFERBASE_KEY_PEPPER"),
    "settlement": OF_THE_API,
    "janitor": OF_THE_API,
}


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for on the command line."""

    port: int
    data_dir: Path
    model: str | None
    engine: str
    workers: int
    api_nodes: int
    ready_file: Path | None
    self_check: bool


def up(options: UpOptions) -> int:
    """Run everything until a stop is asked for; return the exit status of the command."""
    try:
        local = Local(options)
        with stop_signals(local.stopping):
            local.run()
    except StartFailed as error:
        complain(error.message)
        return 1
    except StopRequested:
        return 0
    return 0


class Local:
    """One run of `up`."""

    def __init__(self, options: UpOptions) -> None:
        self._options = options
        self._settings = load_settings()
        self._folder = DataFolder(options.data_dir)
        self._supervisor = Supervisor(changed=self._write_ready, say=say)
        self.stopping: Final = Stopping(self._supervisor.tick)
        self._provisioned: Provisioned | None = None
        self._metrics_port = self._settings.monitoring.metrics_port  # of the next process; 0: any free one
        self._announced = False  # whether the ready-files stand

    def run(self) -> None:
        """Start, serve until StopRequested, stop. Raises StartFailed."""
        model = choose_model(self._options.model, engine=self._options.engine)
        self._check_ports()
        self._check_ready_file()
        self._folder.make()
        with ExitStack() as stack:
            stack.enter_context(self._folder.locked())
            self.stopping.stop_now_by(self._end_at_once)
            say(f"Inferbase, data in {self._folder.path}")
            self._settings = self._with_secrets()
            self._settings = stack.enter_context(open_embedded(self._settings, self._folder, self._supervisor))
            self._provisioned = self._provision(model)
            stack.enter_context(self._processes())
            self._wait_until_ready()
            stack.enter_context(self._ready_files())
            if self._options.self_check:
                self_check.run(
                    self.stopping, port=self._options.port, base_url=self._base_urls()[0], known=self._provisioned
                )
            self._invite()
            while True:
                self.stopping.pause()

    def _check_ports(self) -> None:
        for index in range(self._options.api_nodes):
            port = self._options.port + index
            if port > 65535:
                raise StartFailed(f"port {port} does not exist: choose a lower --port")
            if not is_free(port, self._settings.api.host):
                raise StartFailed(f"port {port} is taken: stop what listens there, or choose another with --port")

    def _check_ready_file(self) -> None:
        given = self._options.ready_file
        if given is not None and (given.is_dir() or not os.access(given.absolute().parent, os.W_OK)):
            raise StartFailed(f"the ready-file {given} cannot be written: choose another with --ready-file")

    def _with_secrets(self) -> Settings:
        given, kept = self._settings.secrets, self._folder.secrets()
        chosen = msgspec.structs.replace(
            given,
            key_pepper=given.key_pepper or kept.key_pepper,
            wire_key=given.wire_key or kept.wire_key,
            jwt_key=given.jwt_key or kept.jwt_key,
        )
        return msgspec.structs.replace(self._settings, secrets=chosen)

    def _provision(self, model: Model | None) -> Provisioned:
        with step("database") as current:
            known = self.stopping.run(
                lambda: asyncio.run(provision(self._settings, self._folder, model, wanted=self._options.model)),
                still=lambda: current.still("migrating"),
            )
            current.detail = f"schema up to date, account {known.credentials.account_id}"
        return known

    @contextmanager
    def _processes(self) -> Iterator[None]:
        try:
            for supervised in self._plan():
                self._supervisor.start(supervised)
            yield
        finally:
            self._stop_processes()

    def _plan(self) -> Iterator[Supervised]:
        options, api = self._options, self._settings.api
        drain = self._settings.worker.drain_seconds
        for index in range(options.workers):
            yield self._process("worker", index, {"INFERBASE_ENGINE": options.engine}, stop_seconds=drain)
        for index in range(options.api_nodes):
            port = options.port + index
            yield self._process(
                "api", index, {"INFERBASE_PORT": str(port)}, stop_seconds=api.shutdown_seconds, port=port
            )
        yield self._process("settlement", 0, {}, stop_seconds=STOP_GRACE_SECONDS)
        yield self._process("janitor", 0, {}, stop_seconds=STOP_GRACE_SECONDS)

    def _process(
        self, role: str, index: int, variables: dict[str, str], *, stop_seconds: float, port: int = 0
    ) -> Supervised:
        metrics_port = self._next_metrics_port()
        variables = variables | {"INFERBASE_METRICS_PORT": str(metrics_port)}
        environment = inherited_environment() | environment_of(self._settings) | variables
        for name in UNKNOWN_TO.get(role, ()):
            environment.pop(name)
        log = self._folder.logs / f"{role}-{index}.log"
        child = Child(
            f"{role}-{index}", [sys.executable, "-P", "-m", "compose.cli", role], log=log, environment=environment
        )
        server = OurProcess(child, stop_seconds=stop_seconds + STOP_GRACE_SECONDS)
        return Supervised(role, index, server, log=log, port=port, metrics_port=metrics_port)

    def _next_metrics_port(self) -> int:
        if not self._metrics_port:
            return quiet_port()
        self._metrics_port += 1
        return self._metrics_port - 1

    def _wait_until_ready(self) -> None:
        assert self._provisioned is not None
        ports = [supervised.port for supervised in self._supervisor.of("api")]
        with step("processes") as current:
            readiness.wait_for_nodes(self.stopping, self._supervisor, ports, current)
            current.detail = f"{self._options.api_nodes} api, {self._options.workers} worker, settlement, janitor"
        with step("model") as current:
            model = self._provisioned.model
            readiness.wait_for_model(self.stopping, self._supervisor, ports, model, current)
            current.detail = f"{model} ready on {self._options.engine}"

    @contextmanager
    def _ready_files(self) -> Iterator[None]:
        self._announced = True
        try:
            self._write_ready()
            yield
        finally:
            self._announced = False
            self._remove_ready()

    def _ready_paths(self) -> list[Path]:
        given = self._options.ready_file
        return [self._folder.ready_file, *([given.absolute()] if given else [])]

    def _write_ready(self) -> None:
        if not self._announced:
            return
        assert self._provisioned is not None
        urls = self._base_urls()
        ready = Ready(
            base_url=urls[0],
            base_urls=tuple(urls),
            api_key=self._provisioned.credentials.api_key,
            model=self._provisioned.model,
            redis_url=self._settings.stores.redis_url,
            database_url=self._settings.stores.database_url,
            processes=tuple(
                ProcessEntry(
                    role=one.role, index=one.index, pid=one.server.pid, port=one.port, metrics_port=one.metrics_port
                )
                for one in self._supervisor.all
            ),
        )
        for file in self._ready_paths():
            write_private(file, msgspec.json.format(msgspec.json.encode(ready), indent=2) + b"\n")

    def _base_urls(self) -> list[str]:
        ports = range(self._options.port, self._options.port + self._options.api_nodes)
        return [f"http://127.0.0.1:{port}{INFERENCE_PATH}" for port in ports]

    def _invite(self) -> None:
        assert self._provisioned is not None
        credentials, base_url = self._provisioned.credentials, self._base_urls()[0]
        say(f"\n  Base URL  {base_url}\n  API key   {credentials.api_key}\n  Model     {self._provisioned.model}\n")
        say("Paste this into another terminal:\n")
        say(_curl(base_url, credentials, self._provisioned.model))
        say("\nServing. Ctrl-C stops everything and keeps the data.")

    def _stop_processes(self) -> None:
        say("\nStopping: running streams may finish; Ctrl-C again ends them now.")
        for role in STOP_ORDER:
            with step(role) as current:
                self._supervisor.stop(role)
                current.detail = "stopped"

    def _end_at_once(self) -> None:
        """Leave nothing that says we run; the parent-death signal ends every child with us."""
        say_from_signal(
            "\nEnding at once: running streams are cut. The books are safe: the next start closes what is open."
        )
        self._remove_ready()

    def _remove_ready(self) -> None:
        for file in self._ready_paths():
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def _curl(base_url: str, credentials: Credentials, model: str) -> str:
    body = msgspec.json.encode(
        {"model": model, "messages": [{"role": "user", "content": "What is Inferbase?"}], "stream": True}
    ).decode()
    return (
        f"curl -N {base_url}/chat/completions \\\n"
        f'  -H "Authorization: Bearer {credentials.api_key}" \\\n'
        f'  -H "Content-Type: application/json" \\\n'
        f"  -d {shlex.quote(body)}"
    )
