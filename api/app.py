"""The wiring of the HTTP edge: which routes stand where. No logic."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Response, Router
from litestar.di import Provide
from litestar.types import Receive, Scope, Send

from api.dependencies import provide_node, provide_principal
from api.errors import handle_error
from api.node import OpenNode, open_node
from api.openapi.page import documentation
from api.routes.admin import ADMIN_BASE, activate, create_deposit, deactivate, get_account, get_accounts, put_weight
from api.routes.admin_models import delete_catalogue_model, get_catalogue, get_catalogue_model, put_catalogue_model
from api.routes.answers import PATHS, cancel_answer, get_answer, stream_again
from api.routes.chat import DECODERS, complete, completions
from api.routes.credits import get_credits, get_transactions
from api.routes.health import get_live, get_ready
from api.routes.keys import create_key, get_keys, get_one_key, revoke_key
from api.routes.models import get_model, get_models
from api.routes.sessions import AUTH_BASE, get_me, login, logout, refresh, register
from api.routes.usage import get_one_receipt, get_summary, get_usage
from api.routes.webhooks import receive_stripe_event
from shared import ids
from shared.settings import Settings

BASES = ("/api/v1/inference", "/v1")
ROUTES = (
    completions,
    get_answer,
    cancel_answer,
    get_models,
    get_model,
    get_credits,
    get_transactions,
    get_usage,
    get_summary,
    get_one_receipt,
    create_key,
    get_keys,
    get_one_key,
    revoke_key,
)
ADMIN_ROUTES = (
    get_accounts,
    get_account,
    deactivate,
    put_weight,
    activate,
    create_deposit,
    get_catalogue,
    get_catalogue_model,
    put_catalogue_model,
    delete_catalogue_model,
)

COMPLETIONS = {base + path: decode for base in BASES for path, decode in DECODERS.items()}

STREAM_AGAIN = re.compile(rf"(?:{'|'.join(BASES)})(?:{'|'.join(PATHS)})/([^/]+)/stream")


class Edge(Litestar):
    """The application. Completions go straight to their handler: the framework's router and wrappers cost 30 us more.

    Every other path, and these in any other spelling (a trailing slash), are the framework's.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        decode = COMPLETIONS.get(scope.get("path", ""))
        if decode is not None:
            await complete(self.state.node, decode, scope, receive, send)
        elif again := STREAM_AGAIN.fullmatch(scope.get("path", "")):
            await stream_again(self.state.node, again[1], scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings, *, open_node: OpenNode = open_node) -> Litestar:
    """Return the application; it opens its node when it starts and closes it when it stops."""

    @asynccontextmanager
    async def hold_node(app: Litestar) -> AsyncIterator[None]:
        async with open_node(settings) as node:
            app.state.node = node
            yield

    openapi_config, documents = documentation(settings)
    return Edge(
        route_handlers=[
            *(Router(base, route_handlers=ROUTES, include_in_schema=base == BASES[0]) for base in BASES),
            Router(AUTH_BASE, route_handlers=[register, login, refresh, get_me, logout]),
            Router(ADMIN_BASE, route_handlers=ADMIN_ROUTES),
            receive_stripe_event,
            get_live,
            get_ready,
            *documents,
        ],
        lifespan=[hold_node],
        dependencies={
            "node": Provide(provide_node, sync_to_thread=False),
            "principal": Provide(provide_principal, sync_to_thread=False),
        },
        exception_handlers={Exception: handle_error},
        after_request=_mark,
        request_max_body_size=settings.api.small_body_bytes_most,
        openapi_config=openapi_config,
        logging_config=None,
    )


def _mark(response: Response[Any]) -> Response[Any]:
    response.headers.setdefault("x-request-id", ids.new_http_id())
    return response
