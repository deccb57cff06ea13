"""A served node on real stores and customers of it, for tests of accounts over HTTP; `product` is the fixture."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.node import Node, open_node
from shared import ids, secrets
from shared.catalogue import Model
from shared.clock import SystemClock
from shared.connections import Database
from shared.database import accounts, api_keys, models, transfers
from shared.pricing import Prices, parse_credits
from shared.settings import Settings
from tests.integration.api_edge import serve_app


class Product:
    """A served node, and customers."""

    def __init__(self, port: int, database: Database, settings: Settings) -> None:
        self.nodes: list[Node] = []
        self.port = port
        self.database = database
        self.pepper = settings.secrets.key_pepper
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1", timeout=10)

    async def add_model(self, model: str) -> None:
        """Add a model to the catalogue, which the node reads anew at its next question for it."""
        async with self.database.acquire() as connection:
            await models.add_model(
                connection, Model(id=model, engine="simulator", context=4096, prices=Prices(100, 50, 300))
            )

    def clock_ahead(self, *, seconds: float) -> None:
        """Let time go on for those who check keys."""
        for node in self.nodes:
            node.authenticator._clock = _Ahead(seconds)

    async def customer(self, deposit: str = "10", **limits: Any) -> tuple[str, dict[str, str]]:
        """Return a new account's id and the headers of its first key."""
        key = secrets.make_key()
        async with self.database.acquire() as connection:
            account = await accounts.create_account(connection, email=f"{ids.new_id('t')}@example.com")
            await transfers.deposit(
                connection,
                transfer_id=ids.new_transfer_id(),
                account_id=account.id,
                amount=parse_credits(deposit),
                description="first",
            )
            await api_keys.create_key(
                connection,
                account_id=account.id,
                name="first",
                digest=secrets.digest(key, self.pepper),
                prefix=secrets.prefix(key),
                **limits,
            )
        return account.id, {"authorization": f"Bearer {key}"}


@pytest.fixture
async def product(settings: Settings, database: Database) -> AsyncIterator[Product]:
    async with open_node(settings) as node, serve_app(settings, lambda _: _Held(node)) as served:
        product = Product(served.port, database, settings)
        product.nodes.append(node)
        await product.add_model("Org/m")
        async with product.client:
            yield product


class _Ahead(SystemClock):
    """A clock some seconds ahead."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def unix_ms(self) -> int:
        return super().unix_ms() + int(self._seconds * 1000)


class _Held:
    """A node that somebody else closes."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def __aenter__(self) -> Node:
        return self.node

    async def __aexit__(self, *_: object) -> None:
        pass
