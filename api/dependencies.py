"""What ordinary routes ask for: the node, and who is asking. A guard runs before any body is read."""

from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler

from api.node import Node
from shared.database.api_keys import Principal

KeyRequest = Request[Principal, Any, Any]  # of a caller whom the guard let through


def provide_node(state: State) -> Node:
    """Return the running node."""
    node: Node = state.node
    return node


def provide_principal(request: KeyRequest) -> Principal:
    """Return who is asking, as the guard found out."""
    principal: Principal = request.scope["auth"]
    return principal


async def require_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let through only who has a valid API key; Litestar guard."""
    node: Node = connection.app.state.node
    headers = dict(connection.scope["headers"])
    connection.scope["auth"] = await node.authenticator.authenticate(headers.get(b"authorization"))
