"""Reserve + settle pairs on ONE hot account, through the same batchers as in production, on a Postgres with fsync.

The API's Admission reserves; settlement's statement closes, gathered as it comes. Redis has no part in it.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from compose.stores import free_port, open_postgres
from shared import ids
from shared.admission import Admission
from shared.batcher import Batcher
from shared.connections import open_database
from shared.crash_points import CrashPoints
from shared.database import accounts, api_keys, audit, migrate, settlements, transfers
from shared.database.requests import Reserve
from shared.database.session import Session
from shared.pricing import Prices
from shared.settings import StoreSettings
from shared.wire import VERSION, Finish, Usage

PRICES: Final = Prices(prompt=100, cached=50, completion=400)
PROMPT_TOKENS: Final = 20
COMPLETION_TOKENS: Final = 8
HOLD: Final = PRICES.prompt * PROMPT_TOKENS + PRICES.completion * COMPLETION_TOKENS
HOUR_MS: Final = 3_600_000
SETTLE_MOST: Final = 512  # as settlement's default


def pairs_per_second(*, in_flight: int, pairs: int) -> float:
    """Return the rate on a new server; the ledger is audited afterwards."""
    with tempfile.TemporaryDirectory(prefix="inferbase-pairs-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with open_postgres(folder / "postgres", free_port()) as server:
            return uvloop.run(_measure(server.url, in_flight, pairs))


async def _measure(url: str, in_flight: int, pairs: int) -> float:
    await migrate.migrate(url)
    async with open_database(StoreSettings(database_url=url), role="bench") as database:
        async with database.acquire() as connection:
            account = await accounts.create_account(connection, email="hot@example.com", concurrency=0)
            await transfers.deposit(
                connection,
                transfer_id=ids.new_transfer_id(),
                account_id=account.id,
                amount=HOLD * pairs * 10,
                description="bench",
            )
            key = await api_keys.create_key(
                connection,
                account_id=account.id,
                name="bench",
                digest=b"d" * 32,
                prefix="inf_bench",
                rpm=0,
                tpm=0,
                concurrency=0,
            )
        admission, session = Admission(database, CrashPoints("")), Session(database)

        async def settle(finishes: Sequence[Finish]) -> Sequence[str]:
            return await session.run(lambda connection: settlements.settle_many(connection, finishes))

        batcher: Batcher[Finish, str] = Batcher(settle, most=SETTLE_MOST)
        left = pairs

        async def one_after_the_other() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                row = _reserve(account.id, key.id)
                verdict = await admission.reserve(row)
                assert verdict.verdict == "reserved", verdict
                settled = await batcher.submit(_finish(row))
                assert settled == "settled", settled

        started = time.monotonic()
        await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
        seconds = time.monotonic() - started
        await admission.flush()
        await session.close()
        async with database.acquire() as connection:
            violations = await audit.audit(connection, quiesced=True)
        assert not violations, violations
        return pairs / seconds


def _reserve(account_id: str, key_id: str) -> Reserve:
    now = time.time_ns() // 1_000_000
    return Reserve(
        request_id=ids.new_chat_id(),
        account_id=account_id,
        key_id=key_id,
        model="bench/pairs",
        stream=False,
        lane="interactive",
        resumable=False,
        prices=PRICES,
        prompt_bound=PROMPT_TOKENS,
        max_tokens=COMPLETION_TOKENS,
        hold_full=HOLD,
        hold_least=HOLD,
        reserved_ms=now,
        queue_deadline_ms=now + HOUR_MS,
        deadline_ms=now + 2 * HOUR_MS,
    )


def _finish(row: Reserve) -> Finish:
    return Finish(
        version=VERSION,
        request_id=row.request_id,
        account_id=row.account_id,
        key_id=row.key_id,
        model=row.model,
        status="completed",
        code=None,
        finish_reason="stop",
        usage=Usage(PROMPT_TOKENS, 0, COMPLETION_TOKENS),
        prefill_began=True,
        attempts=1,
        queue_ms=1,
        ttft_ms=2,
        latency_ms=3,
        finished_ms=row.reserved_ms + 3,
    )
