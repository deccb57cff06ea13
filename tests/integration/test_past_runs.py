"""Which run an idempotency key stands for, as the ledger and Redis tell it together."""

import asyncio
import time

import pytest

from shared import keys
from shared.admission import Admission
from shared.connections import Database, Redis
from shared.crash_points import CrashPoints
from shared.database.requests import Reserve, reserve_many
from shared.database.settlements import settle_many
from shared.errors import Conflict
from shared.idempotency import PastRuns
from shared.submission import Idempotency, Submission
from shared.wire import VERSION, Chunk, End, Usage, encode
from tests.integration.ledger_factories import MODEL, Customer, make_customer, make_finish, make_reserve
from tests.unit.submissions import make_submission

HASH = b"h" * 32


@pytest.fixture
async def customer(database: Database) -> Customer:
    return await make_customer(database, credits=10_000)


@pytest.fixture
def past_runs(database: Database, redis: Redis) -> PastRuns:
    return PastRuns(Admission(database, CrashPoints()), redis)


def repeated(customer: Customer, *, key: str = "order 7", body_hash: bytes = HASH) -> Submission:
    return make_submission(account_id=customer.id, idempotency=Idempotency(key, body_hash))


async def reserved(database: Database, customer: Customer, **changes: object) -> Reserve:
    row = make_reserve(customer, idempotency_key="order 7", body_hash=HASH, resumable=True, **changes)
    assert [verdict.verdict for verdict in await reserve_many(database, [row])] == ["reserved"]
    return row


async def show(redis: Redis, row: Reserve, status: str, *, end: End | None = None) -> None:
    """Let Redis know the run: its state, and its last chunk where it has one."""
    await redis.hset(keys.state(MODEL, row.request_id), "status", status)
    if end is not None:
        chunk = Chunk(VERSION, row.request_id, 1, 1, 0, "", (), end=end)
        await redis.xadd(keys.log(MODEL, row.request_id), {"c": encode(chunk)}, id="1-0")


async def test_an_unused_key_stands_for_nothing(customer: Customer, past_runs: PastRuns) -> None:
    assert await past_runs.find(repeated(customer)) is None


async def test_a_running_request_is_found_by_its_account_alone(
    database: Database, redis: Redis, customer: Customer, past_runs: PastRuns
) -> None:
    row = await reserved(database, customer)
    await show(redis, row, "queued")

    found = await past_runs.find(repeated(customer))

    assert found is not None and found.request_id == row.request_id and not found.closed
    assert await past_runs.find(repeated(await make_customer(database))) is None


async def test_a_finished_answer_is_found_while_it_is_kept(
    database: Database, redis: Redis, customer: Customer, past_runs: PastRuns
) -> None:
    row = await reserved(database, customer)
    await settle_many(database, [make_finish(row)])
    await show(redis, row, "ended", end=End("completed", Usage(2, 0, 1)))

    found = await past_runs.find(repeated(customer))
    await redis.delete(keys.state(MODEL, row.request_id), keys.log(MODEL, row.request_id))
    with pytest.raises(Conflict, match=f"{row.request_id}, whose answer is no longer kept") as caught:
        await past_runs.find(repeated(customer))

    assert found is not None and found.closed
    assert caught.value.code == "idempotency_key_reused"


async def test_another_body_is_refused_whatever_became_of_the_run(
    database: Database, customer: Customer, past_runs: PastRuns
) -> None:
    row = await reserved(database, customer)

    with pytest.raises(Conflict, match=row.request_id) as caught:
        await past_runs.find(repeated(customer, body_hash=b"x" * 32))

    assert caught.value.code == "idempotency_key_reused"


async def test_a_run_that_shows_nowhere_is_in_progress_after_a_while_and_not_before(
    database: Database, customer: Customer, past_runs: PastRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.idempotency.UNSEEN_SECONDS", 0.2)
    await reserved(database, customer)
    started = time.monotonic()

    with pytest.raises(Conflict) as caught:
        await past_runs.find(repeated(customer))

    assert caught.value.code == "idempotency_in_progress"
    assert time.monotonic() - started >= 0.2


async def test_a_run_that_shows_meanwhile_is_found(
    database: Database, redis: Redis, customer: Customer, past_runs: PastRuns
) -> None:
    row = await reserved(database, customer)
    finding = asyncio.create_task(past_runs.find(repeated(customer)))
    await asyncio.sleep(0.02)

    await show(redis, row, "queued")

    found = await finding
    assert found is not None and found.request_id == row.request_id


async def test_a_run_that_failed_is_waited_for_until_it_is_closed_free_of_charge(
    database: Database, redis: Redis, customer: Customer, past_runs: PastRuns
) -> None:
    row = await reserved(database, customer)
    await show(redis, row, "ended", end=End("failed", Usage(), "engine_error"))
    finding = asyncio.create_task(past_runs.find(repeated(customer)))
    await asyncio.sleep(0.02)

    await settle_many(database, [make_finish(row, status="failed", code="engine_error")])

    assert await finding is None
    await reserved(database, customer)


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"status": "failed"}, True),
        ({"status": "cancelled", "prefill_began": False}, True),
        ({"status": "cancelled"}, False),
        ({"status": "completed"}, False),
    ],
)
async def test_the_ledger_frees_a_key_exactly_where_a_look_finds_none(
    database: Database, redis: Redis, customer: Customer, past_runs: PastRuns, changes: dict[str, object], free: bool
) -> None:
    row = await reserved(database, customer)
    await settle_many(database, [make_finish(row, **changes)])
    await show(redis, row, "ended", end=End("completed", Usage(2, 0, 1)))

    found = await past_runs.find(repeated(customer))
    again = make_reserve(customer, idempotency_key="order 7", body_hash=HASH)
    (verdict,) = await reserve_many(database, [again])

    assert (found is None) == free
    assert verdict.verdict == ("reserved" if free else "duplicate")


async def test_a_key_is_kept_for_a_day(database: Database, customer: Customer, past_runs: PastRuns) -> None:
    row = await reserved(database, customer, age_seconds=86_400 + 5)
    await settle_many(database, [make_finish(row)])

    assert await past_runs.find(repeated(customer)) is None
    await reserved(database, customer)
