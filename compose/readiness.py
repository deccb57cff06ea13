"""Waiting until what was started can serve: asked of the nodes themselves, as any client would."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from compose import http
from compose.errors import StartFailed
from compose.stopping import Stopping
from compose.supervisor import OurProcess, Supervisor
from compose.terminal import Step

DEATHS_MOST: Final = 4  # of one process before it was ever ready
WAIT_SECONDS: Final = 0.05
HEALTH_PATH: Final = "/api/v1/inference/models/{}/health"


def wait_for_nodes(stopping: Stopping, supervisor: Supervisor, ports: Sequence[int], step: Step) -> None:
    """Return when `/readyz` of every node answers 200. Raises StartFailed when a process dies again and again."""
    for port in ports:
        while not _is_ready(port):
            _give_up_on_deaths(supervisor)
            step.still(f"waiting for the API node on port {port}")
            stopping.pause(WAIT_SECONDS)


def wait_for_model(stopping: Stopping, supervisor: Supervisor, ports: Sequence[int], model: str, step: Step) -> None:
    """Return when the model's health is `ready` on every node. Raises StartFailed as above."""
    path = HEALTH_PATH.format(quote(model, safe="/"))
    for port in ports:
        while (status := _status(port, path)) != "ready":
            _give_up_on_deaths(supervisor)
            step.still(f"{model} is {status}; a model of many GB takes minutes")
            stopping.pause(WAIT_SECONDS)


def _is_ready(port: int) -> bool:
    try:
        http.get(port, "/readyz")
    except http.HttpFailed:
        return False
    return True


def _status(port: int, path: str) -> str:
    try:
        answer = http.get(port, path)
    except http.HttpFailed:
        return "unknown"
    return str(answer.get("status")) if isinstance(answer, dict) else "unknown"


def _give_up_on_deaths(supervisor: Supervisor) -> None:
    for supervised in supervisor.all:
        if supervised.deaths >= DEATHS_MOST:
            words = supervised.server.last_words() if isinstance(supervised.server, OurProcess) else ""
            last = words.splitlines()[-1] if words else "no reason given"
            raise StartFailed(f"{supervised.name} does not stay alive: {last} (log: {supervised.log})")
