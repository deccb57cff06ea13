"""What ordinary routes ask for: the node, and who is asking. A guard runs before any body is read.

`identify` is the one place that decides between an API key and a session's cookie; completions call it themselves.
"""

from collections.abc import Mapping
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler

from api.node import Node
from shared.database.api_keys import Principal
from shared.errors import AuthenticationFailed, NotFound

KeyRequest = Request[Principal, Any, Any]  # of a caller whom the guard let through


async def identify(node: Node, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Principal:
    """Return who sends a request: an API key wins over a cookie, and only a cookie is asked for its CSRF token.

    Raises AuthenticationFailed, PermissionDenied and DependencyUnavailable.
    """
    authorization = headers.get(b"authorization")
    if authorization or node.sessions is None or b"cookie" not in headers:
        return await node.authenticator.authenticate(authorization)
    return await node.sessions.authenticate(scope, headers)


def provide_node(state: State) -> Node:
    """Return the running node."""
    node: Node = state.node
    return node


def provide_principal(request: KeyRequest) -> Principal:
    """Return who is asking, as the guard found out."""
    principal: Principal = request.scope["auth"]
    return principal


async def require_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let through only who has a valid API key or session; Litestar guard."""
    scope = connection.scope
    scope["auth"] = await identify(connection.app.state.node, scope, dict(scope["headers"]))


async def require_session(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let through only who has a session, whatever key they send besides; Litestar guard."""
    node: Node = connection.app.state.node
    if node.sessions is None:
        raise sessions_are_off()
    scope = connection.scope
    scope["auth"] = await node.sessions.authenticate(scope, dict(scope["headers"]))


async def require_admin(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let through only operators; to everybody else with a valid key or session there is nothing. Litestar guard."""
    await require_key(connection, handler)
    principal: Principal = connection.scope["auth"]
    if not principal.admin:
        raise NotFound(f"Unknown URL: {ascii(connection.scope['path'])[1:-1][:200]}.")


def sessions_are_off() -> NotFound:
    """Return the refusal of a server that was given no key to sign sessions with."""
    return NotFound("There are no sessions here: this server has no INFERBASE_JWT_KEY. Use an API key.")


def not_logged_in() -> AuthenticationFailed:
    """Return the refusal of a login, the same whatever was wrong with it."""
    return AuthenticationFailed("The e-mail address or the password is wrong.", code="invalid_credentials")
