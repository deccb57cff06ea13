"""Browsers, operators and API nodes on real stores, for tests of sessions."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import msgspec

from api.node import Node, open_node
from api.passwords import hash_password
from shared import ids, secrets
from shared.catalogue import Model
from shared.connections import Database
from shared.database import accounts, api_keys, models, transfers, users
from shared.pricing import Prices, parse_credits
from shared.settings import Settings
from tests.integration.api_edge import serve_app

JWT_KEY = "jwt-key-of-the-tests-" * 2
STRIPE_SECRET = "whsec_of_the_tests"
MODEL_ID = "Org/m"
PASSWORD = "correct horse battery"
AUTH = "/api/v1/auth"
ADMIN = "/api/v1/admin"
SESSION = "inferbase_session"
CSRF = "inferbase_csrf"


def with_sessions(settings: Settings, *, api: dict[str, Any] | None = None, **sessions: Any) -> Settings:
    """Return settings of a node that has sessions and payments; cached for a moment only."""
    kept = msgspec.structs.replace(settings.secrets, jwt_key=JWT_KEY, stripe_webhook_secret=STRIPE_SECRET)
    fast = {"auth_cache_seconds": 0.2, "key_check_seconds": 0.2, **(api or {})}
    return msgspec.structs.replace(
        settings,
        secrets=kept,
        api=msgspec.structs.replace(settings.api, **fast),
        sessions=msgspec.structs.replace(settings.sessions, **sessions),
    )


class Browser:
    """Keeps cookies, and sends what a page of the server's own would send."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.client = httpx.AsyncClient(base_url=self.origin, timeout=10)

    @property
    def headers(self) -> dict[str, str]:
        """What a script of our own page adds to a request that changes something."""
        return {
            "origin": self.origin,
            "sec-fetch-site": "same-origin",
            "x-csrf-token": self.client.cookies.get(CSRF, ""),
        }

    @property
    def token(self) -> str:
        """The session's token, which no page could read."""
        return self.client.cookies[SESSION]

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        headers = self.headers | options.pop("headers", {})
        return await self.client.post(path, headers=headers, **options)

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = self.headers | options.pop("headers", {})
        return await self.client.request(method, path, headers=headers, **options)

    async def register(self, email: str | None = None, password: str = PASSWORD) -> httpx.Response:
        return await self.post(f"{AUTH}/register", json={"email": email or new_email(), "password": password})

    async def login(self, email: str, password: str = PASSWORD) -> httpx.Response:
        return await self.post(f"{AUTH}/login", json={"email": email, "password": password})

    def as_seen_by(self, port: int) -> "Browser":
        """Return a browser with the same cookies that speaks to another node."""
        other = Browser(port)
        for name, value in self.client.cookies.items():
            other.client.cookies.set(name, value)
        return other


class Site:
    """Served nodes of one product."""

    def __init__(self, nodes: list[Node], ports: list[int], database: Database) -> None:
        self.nodes = nodes
        self.ports = ports
        self.database = database
        self._browsers: list[Browser] = []

    def browser(self, node: int = 0) -> Browser:
        browser = Browser(self.ports[node])
        self._browsers.append(browser)
        return browser

    async def user(self, deposit: str = "", **fields: Any) -> tuple[Browser, str]:
        """Return a browser in which somebody is logged in, and the id of their account."""
        email = new_email()
        async with self.database.acquire() as connection:
            user = await users.register(connection, email=email, password_hash=hash_password(PASSWORD), **fields)
            if deposit:
                await transfers.deposit(
                    connection,
                    transfer_id=ids.new_transfer_id(),
                    account_id=user.account_id,
                    amount=parse_credits(deposit),
                    description="gift",
                )
        browser = self.browser()
        assert (await browser.login(email)).status_code == 200
        return browser, user.account_id

    async def key(self, account_id: str | None = None) -> str:
        """Return the secret of a new key of an account."""
        key = secrets.make_key()
        pepper = self.nodes[0].settings.secrets.key_pepper
        async with self.database.acquire() as connection:
            if account_id is None:
                account_id = (await accounts.create_account(connection, email=new_email())).id
            await api_keys.create_key(
                connection,
                account_id=account_id,
                name="",
                digest=secrets.digest(key, pepper),
                prefix=secrets.prefix(key),
            )
        return key

    async def close(self) -> None:
        for browser in self._browsers:
            await browser.client.aclose()


@asynccontextmanager
async def open_site(settings: Settings, database: Database, *, nodes: int = 1) -> AsyncIterator[Site]:
    """Serve nodes on real stores, with one model."""
    async with database.acquire() as connection:
        await models.add_model(
            connection, Model(id=MODEL_ID, engine="simulator", context=4096, prices=Prices(100, 50, 300))
        )
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_node(settings)) for _ in range(nodes)]
        served = [await stack.enter_async_context(serve_app(settings, _holding(node))) for node in opened]
        site = Site(opened, [one.port for one in served], database)
        stack.push_async_callback(site.close)
        yield site


def new_email() -> str:
    return f"{ids.new_id('t')}@example.com"


def _holding(node: Node) -> Any:
    @asynccontextmanager
    async def hold(_: Settings) -> AsyncIterator[Node]:
        yield node

    return hold
