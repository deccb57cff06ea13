"""What a principal may do: a scope for each group of routes, and for completions the key's models.

Source: DESIGN section 10 (403 scope_missing, model_not_allowed). Scopes: `completions` for everything that runs a
model, `keys` for API keys, `credits` for reading balances, transactions and usage.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from shared.database.api_keys import Principal, Scope
from shared.errors import PermissionDenied

Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]


def require_scope(scope: Scope) -> Guard:
    """Return the guard of a route that asks for `scope`; it stands behind the guard that finds out who asks."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        check_scope(connection.scope["auth"], scope)

    return guard


def check_scope(principal: Principal, scope: Scope) -> None:
    """Raise PermissionDenied unless the principal has this scope."""
    if scope not in principal.scopes:
        raise PermissionDenied(
            f"This API key lacks the scope '{scope}': use one that has it, or make one.", code="scope_missing"
        )


def check_model(principal: Principal, model: str) -> None:
    """Raise PermissionDenied unless the principal may run `model`, a model of the catalogue."""
    check_scope(principal, "completions")
    if principal.allowed_models and model not in principal.allowed_models:
        raise PermissionDenied(
            f"This API key may not use the model '{model}'.", code="model_not_allowed", param="model"
        )
