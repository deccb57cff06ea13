"""GET /livez and /readyz, for whoever runs this process."""

from litestar import Response, get
from litestar.di import NamedDependency

from api.node import Node


@get("/livez")
async def get_live() -> dict[str, str]:
    """Say that the event loop turns."""
    return {"status": "ok"}


@get("/readyz")
async def get_ready(node: NamedDependency[Node]) -> Response[dict[str, str]]:
    """Say whether new requests should come here: not before the stores were reached, not while stopping."""
    if node.ready:
        return Response({"status": "ready"})
    return Response({"status": "stopping"}, status_code=503)
