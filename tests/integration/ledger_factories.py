"""Rows for tests of the ledger, with keyword overrides."""

import itertools
import os
import time
from typing import Any

import msgspec

from shared import ids
from shared.connections import Connection, Database
from shared.database import accounts, api_keys, transfers
from shared.database.audit import audit
from shared.database.requests import Reserve
from shared.pricing import Prices
from shared.wire import VERSION, Finish, Usage

MODEL = "org/model"
PRICES = Prices(prompt=10, cached=5, completion=20)

_numbers = itertools.count(1)


class Customer(msgspec.Struct, frozen=True):
    """An account with one key."""

    id: str
    key_id: str


async def make_customer(
    connection: Connection | Database, *, credits: int = 1_000, budget: int | None = None
) -> Customer:
    account = await accounts.create_account(connection, email=f"customer-{next(_numbers)}@example.com")
    key_id = await make_key(connection, Customer(account.id, ""), budget=budget)
    if credits:
        await transfers.deposit(
            connection, transfer_id=ids.new_transfer_id(), account_id=account.id, amount=credits, description="gift"
        )
    return Customer(account.id, key_id)


async def make_key(connection: Connection | Database, customer: Customer, **options: Any) -> str:
    """Return the id of one more key."""
    key = await api_keys.create_key(
        connection, account_id=customer.id, name="", digest=os.urandom(32), prefix="inf_x", **options
    )
    return key.id


def make_reserve(customer: Customer, *, hold: int = 100, age_seconds: float = 0, **changes: Any) -> Reserve:
    now = int((time.time() - age_seconds) * 1000)
    values: dict[str, Any] = {
        "request_id": ids.new_chat_id(),
        "account_id": customer.id,
        "key_id": customer.key_id,
        "model": MODEL,
        "stream": True,
        "lane": "interactive",
        "resumable": False,
        "prices": PRICES,
        "prompt_bound": 8,
        "max_tokens": 4,
        "hold_full": hold,
        "hold_least": hold,
        "reserved_ms": now,
        "queue_deadline_ms": now + 60_000,
        "deadline_ms": now + 990_000,
    }
    return Reserve(**(values | changes))


def make_finish(reserve: Reserve, *, prompt: int = 2, cached: int = 0, completion: int = 1, **changes: Any) -> Finish:
    values: dict[str, Any] = {
        "version": VERSION,
        "request_id": reserve.request_id,
        "account_id": reserve.account_id,
        "key_id": reserve.key_id,
        "model": reserve.model,
        "status": "completed",
        "code": None,
        "finish_reason": "stop",
        "usage": Usage(prompt, cached, completion),
        "prefill_began": True,
        "attempts": 1,
        "queue_ms": 3,
        "ttft_ms": 5,
        "latency_ms": 9,
        "finished_ms": reserve.reserved_ms + 9,
    }
    return Finish(**(values | changes))


async def balance_of(connection: Connection | Database, customer: Customer) -> tuple[int, int]:
    """Return (balance, held)."""
    account = await accounts.get_account(connection, customer.id)
    assert account is not None
    return account.balance, account.held


async def assert_clean(database: Database, *, quiesced: bool = False) -> None:
    async with database.acquire() as connection:
        assert await audit(connection, quiesced=quiesced) == []
