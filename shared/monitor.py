"""What a process tells those who run it, on a port of its own: GET /metrics, /livez and /readyz.

Served by prometheus_client's server in a thread, so that a scrape never waits for the event loop, nor the loop for a
scrape. Alive is a process whose event loop turned lately; ready is one that says so itself (`ready`). Every process
opens one monitor around its work; without a port only the event loop is measured.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import msgspec
from prometheus_client import disable_created_metrics, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from shared import log, metrics
from shared.errors import InferbaseError
from shared.settings import MonitoringSettings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LAG_SECONDS: Final = 0.25  # between two looks at the event loop
LIVE_SECONDS_MOST: Final = 120.0  # an event loop that stood still for longer is stuck; some engines load on it
CLIENT_SECONDS_MOST: Final = 10.0  # for a client to say what it wants
SILENCE_SECONDS_MOST: Final = 10.0  # a duty that did not succeed for so long makes its process not ready

Ready = Callable[[], bool]

logger = log.get_logger("monitor")


class Pulse:
    """When a duty last succeeded; read by the monitor's thread."""

    def __init__(self, seconds_most: float = SILENCE_SECONDS_MOST) -> None:
        self._seconds_most: Final = seconds_most
        self._at = float("-inf")

    def beat(self) -> None:
        """Note a success."""
        self._at = time.monotonic()

    @property
    def recent(self) -> bool:
        """Whether the last success is recent."""
        return time.monotonic() - self._at <= self._seconds_most


@asynccontextmanager
async def open_monitor(settings: MonitoringSettings, *, role: str, ready: Ready) -> AsyncIterator[None]:
    """Tell of this process inside the block. `ready` is called on another thread, and must only look.

    Raises InferbaseError where the port is taken.
    """
    metrics.PROCESS.labels(role).set(1)
    turned = Pulse(LIVE_SECONDS_MOST)
    turned.beat()
    sampling = asyncio.get_running_loop().create_task(_sample_lag(turned))
    server = _open_server(settings, _application(turned, ready)) if settings.metrics_port else None
    try:
        yield
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        if server is not None:
            await asyncio.to_thread(_close_server, server)


async def _sample_lag(turned: Pulse) -> None:
    lag, clock = metrics.LOOP_LAG.labels(), asyncio.get_running_loop().time
    while True:
        due = clock() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        lag.observe(max(0.0, clock() - due))
        turned.beat()


def _application(turned: Pulse, ready: Ready) -> "Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]":
    disable_created_metrics()  # type: ignore[no-untyped-call]
    exposition = make_wsgi_app()
    checks: dict[str, tuple[Ready, str, str]] = {
        "/livez": (lambda: turned.recent, "ok", "stuck"),
        "/readyz": (ready, "ready", "not ready"),
    }

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return exposition(environ, start_response)  # type: ignore[no-any-return]
        status, body = "404 Not Found", {"status": "unknown path: /metrics, /livez and /readyz are served here"}
        if path in checks:
            check, good, bad = checks[path]
            passed = check()
            status, body = ("200 OK", {"status": good}) if passed else ("503 Service Unavailable", {"status": bad})
        payload = msgspec.json.encode(body)
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))])
        return [payload]

    return answer


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS_MOST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a scrape each few seconds is no news."""


def _open_server(
    settings: MonitoringSettings, application: "Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]"
) -> ThreadingWSGIServer:
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server: ThreadingWSGIServer = make_server(host, port, application, ThreadingWSGIServer, _Handler)
    except OSError as error:
        raise InferbaseError(f"The metrics port {host}:{port} cannot be had: {error.strerror}.") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    logger.info("metrics_served", host=host, port=port)
    return server


def _close_server(server: ThreadingWSGIServer) -> None:
    server.shutdown()
    server.server_close()
