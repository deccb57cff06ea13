"""The documentation at /docs and /openapi.json: a plugin of Litestar with its own page, under a strict policy.

The page holds no script of its own and loads nothing but our own files; the policy makes browsers hold it to that.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, Response, Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.params import FromPath

from api.openapi.assets import ASSETS_PATH, BUNDLE, START, STYLE, Asset, read_assets
from api.openapi.document import TITLE, complete_document, openapi_config
from shared.errors import NotFound
from shared.settings import Settings

DOCS_PATH: Final = "/docs"
DOCUMENT_PATH: Final = "/openapi.json"
# Swagger UI keeps to it; its own small pictures are data.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
ASSET_HEADERS: Final = {
    "cache-control": "public, max-age=31536000, immutable",
    "x-content-type-options": "nosniff",
}

_PAGE: Final = """\
<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>{title} API</title>
    <link rel="icon" href="data:,">
    <link rel="stylesheet" href="{style}">
  </head>
  <body>
    <div id="page" data-document="{document}"><noscript>This page needs JavaScript.</noscript></div>
    <script src="{bundle}"></script>
    <script src="{start}"></script>
  </body>
</html>
"""


class DocumentPlugin(JsonRenderPlugin):
    """Renders the framework's document, completed by what only we know; once, when it is first asked for."""

    def __init__(self, origin: str) -> None:
        super().__init__(path=DOCUMENT_PATH)
        self._origin = origin
        self._rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return self.document(request.app)

    def document(self, app: Litestar) -> bytes:
        """Return the whole document."""
        if self._rendered is None:
            found = app.openapi_schema.to_schema()
            self._rendered = msgspec.json.encode(complete_document(app, found, origin=self._origin))
        return self._rendered


class PagePlugin(SwaggerRenderPlugin):
    """Renders the page; its files are `assets`."""

    def __init__(self, assets: dict[str, Asset]) -> None:
        super().__init__(path="/", js_url=assets[BUNDLE].url, css_url=assets[STYLE].url)
        self._page = _PAGE.format(
            title=TITLE, style=self.css_url, bundle=self.js_url, start=assets[START].url, document=DOCUMENT_PATH
        ).encode()

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return self._page

    def receive_router(self, router: Router) -> None:
        """Add no route: Swagger UI's page for OAuth2 is of no use here."""


def documentation(settings: Settings) -> tuple[OpenAPIConfig, Sequence[Any]]:
    """Return how the framework documents our routes, and the handlers of the document and of the page's files."""
    assets = read_assets()
    origin = settings.sessions.public_origin or f"http://{settings.api.host}:{settings.api.port}"
    plugin = DocumentPlugin(origin)
    by_url = {asset.url: asset for asset in assets.values()}

    @get(DOCUMENT_PATH, include_in_schema=False, sync_to_thread=True)
    def get_document(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return the OpenAPI document."""
        whole = plugin.document(request.app)
        return Response(whole, media_type="application/json", headers={"cache-control": "no-cache"})

    @get(f"{ASSETS_PATH}/{{digest:str}}/{{name:str}}", include_in_schema=False, sync_to_thread=False)
    def get_asset(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
        """Return a file of the page."""
        asset = by_url.get(f"{ASSETS_PATH}/{digest}/{name}")
        if asset is None:
            raise NotFound
        return Response(asset.content, media_type=asset.media_type, headers=ASSET_HEADERS)

    router = Router(
        DOCS_PATH, route_handlers=[], include_in_schema=False, before_request=_prepare, after_request=_as_page
    )
    return openapi_config(render_plugins=[PagePlugin(assets), plugin], openapi_router=router), (
        get_document,
        get_asset,
    )


async def _prepare(request: Request[Any, Any, Any]) -> None:
    """Let the framework describe our routes outside of the event loop: it takes 0.1 s, once, and streams go on."""
    await asyncio.to_thread(lambda: request.app.openapi_schema)


def _as_page(response: Response[Any]) -> Response[Any]:
    """Give the page its policy; what the framework says of an unknown page is said in our shape."""
    if response.status_code == 404:
        raise NotFound
    response.headers.update(PAGE_HEADERS)
    return response
