"""What tests ask of the ledger: a settled row, a clean audit, a quiet queue."""

import asyncio
import time
from typing import Final

from shared.connections import Database, Redis
from shared.database.audit import audit
from shared.database.usage import UsageRow, find_usage

SETTLED_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.01


async def settled_usage(database: Database, request_id: str, *, seconds: float = SETTLED_SECONDS) -> UsageRow:
    """Return the usage row of a request once it is settled."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        async with database.acquire() as connection:
            row = await find_usage(connection, request_id)
        if row is not None:
            return row
        await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError(f"{request_id} was not settled within {seconds} s")


async def quiesced(database: Database, *, seconds: float = 60.0) -> None:
    """Return once no request is open any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if await database.fetchval("SELECT count(*) FROM open_requests") == 0:
            return
        await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError(f"requests are still open after {seconds} s")


async def assert_clean(database: Database, redis: Redis, *, seconds: float = 60.0) -> None:
    """Wait until no request is open, then assert that the audit finds nothing."""
    await quiesced(database, seconds=seconds)
    async with database.acquire() as connection:
        violations = await audit(connection, quiesced=True)
    assert violations == [], violations
    assert await redis.ping()
