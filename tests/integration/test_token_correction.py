"""Tokens that a request took of a limit come back when it is closed: by settlement, by a release, once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from shared import keys
from shared.admission import Admission
from shared.catalogue import Model
from shared.connections import Database, Redis
from shared.crash_points import CrashPoints
from shared.database.models import add_model
from shared.database.requests import Reserve, reserve_many
from shared.database.session import Session
from shared.database.settlements import settle_many
from shared.limits import Limit, Limiter, open_limiter
from shared.queue.settlements import SettlementQueue
from shared.settings import QueueSettings, Settings
from shared.wire import Finish, Seal, TokenHold, Usage, encode
from tests.integration.ledger_factories import MODEL, PRICES, Customer, make_customer, make_finish, make_reserve
from workers.settlement.settle import Settler
from workers.settlement.worker import SettlementWorker, charged_tokens

LIMITS = [Limit("key_1", tokens=1000)]


@pytest.fixture
async def limiter(redis: Redis) -> AsyncIterator[Limiter]:
    async with open_limiter(redis, QueueSettings()) as node:
        yield node


@pytest.fixture
async def customer(database: Database) -> Customer:
    await add_model(database, Model(id=MODEL, engine="simulator", context=100, prices=PRICES))
    return await make_customer(database, credits=10_000)


@asynccontextmanager
async def settling(settings: Settings, database: Database, redis: Redis) -> AsyncIterator[None]:
    """A settlement worker of this process; at the end its queue is empty and what it gave back is told."""
    queue, session, stopping = SettlementQueue(redis, settings.settlement), Session(database), asyncio.Event()
    seal = Seal(settings.secrets.wire_key.encode())
    settler = Settler(queue, session, seal, CrashPoints(), tries_most=5)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(session.close)
        limiter = await stack.enter_async_context(open_limiter(redis, settings.queue))
        worker = SettlementWorker(settings.settlement, queue=queue, settler=settler, session=session, limiter=limiter)
        task = asyncio.create_task(worker.run(stopping))
        try:
            yield
        finally:
            stopping.set()
            await task


async def write(redis: Redis, settings: Settings, *finishes: Finish) -> None:
    for finish in finishes:
        sealed = Seal(settings.secrets.wire_key.encode()).close(encode(finish))
        await redis.xadd(keys.settlement(finish.model), {"f": sealed})


async def take(limiter: Limiter, tokens: int) -> TokenHold:
    grant = await limiter.acquire("request", LIMITS, tokens=tokens)
    assert grant.hold is not None
    return grant.hold


async def left(limiter: Limiter) -> int:
    """Return how many tokens may be taken now, up to what drains while the test runs."""
    grant = await limiter.acquire("probe", LIMITS, tokens=1)
    assert grant.quotas is not None and grant.quotas.tokens is not None and grant.hold is not None
    limiter.give_back(grant.hold, 0)
    return grant.quotas.tokens.remaining + 1


@pytest.mark.parametrize(
    ("status", "prefill_began", "used"),
    [("completed", True, 5), ("cancelled", True, 5), ("cancelled", False, 0), ("failed", True, 0)],
)
def test_what_counts_is_what_is_paid_for(status: str, prefill_began: bool, used: int) -> None:
    row = make_reserve(Customer("acct_1", "key_1"))
    finish = make_finish(row, status=status, prefill_began=prefill_began, usage=Usage(3, 1, 2))

    assert charged_tokens(finish) == used


async def test_settlement_gives_back_what_a_request_did_not_use_once_however_often_its_record_comes(
    settings: Settings, database: Database, redis: Redis, customer: Customer, limiter: Limiter
) -> None:
    row = make_reserve(customer)
    await reserve_many(database, [row])
    await take(limiter, 300)
    finish = make_finish(row, prompt=2, completion=1, token_hold=await take(limiter, 400))

    async with settling(settings, database, redis):
        await write(redis, settings, finish, finish)

    assert 1000 - 303 <= await left(limiter) < 1000 - 303 + 50


async def test_a_request_that_somebody_else_closed_gives_nothing_back(
    settings: Settings, database: Database, redis: Redis, customer: Customer, limiter: Limiter
) -> None:
    row = make_reserve(customer)
    await reserve_many(database, [row])
    finish = make_finish(row, token_hold=await take(limiter, 400))
    await settle_many(database, [finish])

    async with settling(settings, database, redis):
        await write(redis, settings, finish)

    assert 600 <= await left(limiter) < 650


async def test_a_request_without_a_limit_costs_settlement_no_call(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    row = make_reserve(customer)
    await reserve_many(database, [row])
    await redis.config_resetstat()

    async with settling(settings, database, redis):
        await write(redis, settings, make_finish(row))

    assert "cmdstat_evalsha" not in await redis.info("commandstats")


@pytest.mark.parametrize("closed_before", [False, True])
async def test_a_release_tells_only_where_it_closed_the_request(
    database: Database, customer: Customer, closed_before: bool
) -> None:
    admission, told = Admission(database, CrashPoints()), list[str]()
    row: Reserve = make_reserve(customer)
    await reserve_many(database, [row])
    if closed_before:
        await settle_many(database, [make_finish(row)])

    admission.release(row.request_id, then=lambda: told.append(row.request_id))
    await admission.flush()

    assert told == ([] if closed_before else [row.request_id])
