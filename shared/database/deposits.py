"""Deposits that are told more than once, and happen once: by operators with a key of theirs, by a payment provider.

The transfer's id is made from what names the deposit, so the ledger itself refuses a second one.
"""

import base64
import hashlib
from typing import Final

import asyncpg

from shared.connections import Connection
from shared.database.transfers import Transaction, deposit
from shared.errors import Conflict, InvalidRequest

_SUFFIX_CHARACTERS: Final = 26  # as every id


async def deposit_by_key(
    connection: Connection, *, key: str, account_id: str, amount: int, description: str
) -> Transaction:
    """Give credits to an account, once per idempotency `key`; the same deposit again returns the first one's row.

    Raises NotFound where there is no such account, Conflict where the key named another deposit.
    """
    transfer_id = _transfer_id("operator", key)
    try:
        row = await _deposit(connection, transfer_id, account_id=account_id, amount=amount, description=description)
    except Conflict:
        raise _reused() from None
    if row.description != description:
        raise _reused()
    return row


async def deposit_payment(
    connection: Connection, *, event_id: str, reference: str, account_id: str, amount: int, description: str
) -> Transaction | None:
    """Turn an event into a deposit, once per event and once per payment `reference`; None where the event was told.

    Raises NotFound where there is no such account, Conflict where the same payment was told differently.
    """
    transfer_id = _transfer_id("payment", reference)
    async with connection.transaction():
        status = await connection.execute(
            "INSERT INTO payment_events (id, transfer_id) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING",
            event_id,
            transfer_id,
        )
        if status != "INSERT 0 1":
            return None
        return await _deposit(connection, transfer_id, account_id=account_id, amount=amount, description=description)


async def _deposit(
    connection: Connection, transfer_id: str, *, account_id: str, amount: int, description: str
) -> Transaction:
    try:
        return await deposit(
            connection, transfer_id=transfer_id, account_id=account_id, amount=amount, description=description
        )
    except asyncpg.UniqueViolationError:  # two accounts at once: each saw that the other's row was not there
        raise Conflict("This deposit was made to another account.", code="transfer_exists") from None
    except asyncpg.NumericValueOutOfRangeError:
        raise InvalidRequest("The account cannot hold so much.", param="amount") from None


def _transfer_id(source: str, name: str) -> str:
    digest = hashlib.sha256(f"{source}\0{name}".encode()).digest()
    return "txn_" + base64.b32hexencode(digest).decode().lower()[:_SUFFIX_CHARACTERS]


def _reused() -> Conflict:
    return Conflict("This Idempotency-Key was used for another deposit.")
