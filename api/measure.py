"""What every response leaves behind: a count by route and status, and the request's span where requests are traced.

Stands around the whole application (`api/serve.py`), so that no route has to think of it.
"""

from functools import lru_cache
from typing import Final

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Counter

from api.exchange import EXTENSION, Exchange
from shared import metrics
from shared.tracing import HEADER, Tracer

ERROR_STATUS: Final = 500  # from here on a span says that its step failed
COMPLETIONS: Final = ("/chat/completions", "/completions", "/embeddings")  # of any base; everything else is `other`


class Measured:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count it once its status is known."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        exchange: Exchange | None = (scope.get("extensions") or {}).get(EXTENSION)  # type: ignore[assignment]
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route = route_of(scope["path"])
        span = None
        if self._tracer.on and route != "other":
            span = self._tracer.begin_request(
                f"POST {route}", dict(scope["headers"]).get(HEADER, b"").decode("latin-1")
            )
            span.carry()
        try:
            await self._app(scope, receive, noting)
        finally:
            status = status or (0 if exchange is None else exchange.status)
            _responses(route, status).inc()
            if span is not None:
                span.set({"http.request.method": "POST", "http.route": route, "http.response.status_code": status})
                span.end(error=str(status) if status >= ERROR_STATUS else None)


def route_of(path: str) -> str:
    """Return the label of a path: one of COMPLETIONS, or `other`."""
    for route in COMPLETIONS:
        if path.endswith(route):
            return route
    return "other"


@lru_cache(maxsize=1024)
def _responses(route: str, status: int) -> Counter:
    """Return the counter; status 0: the client left before there was one."""
    return metrics.RESPONSES.labels(route, str(status))
