"""Requests that nobody closed, and the sweeper that finds them: for tests of the janitor."""

from typing import Any, Final

from shared import keys
from shared.catalogue import Model
from shared.clock import SystemClock
from shared.connections import Database, Redis
from shared.crash_points import CrashPoints
from shared.database.models import add_model
from shared.database.requests import Reserve, reserve_many
from shared.database.session import Session
from shared.database.usage import find_usage
from shared.queue.client import QueueClient
from shared.queue.settlements import SettlementQueue
from shared.settings import Settings, SettlementSettings
from shared.wire import VERSION, Job, Message, Sampling, Seal
from tests.integration.ledger_factories import (
    MODEL,
    PRICES,
    Customer,
    make_customer,
    make_reserve,
)
from workers.janitor.sweep import Sweeper

OLD_SECONDS: Final = 31
WAIT_SECONDS: Final = 15.0


async def add_customer(database: Database) -> Customer:
    """Return a customer of a catalogue that holds MODEL."""
    await add_model(database, Model(id=MODEL, engine="simulator", context=100, prices=PRICES))
    return await make_customer(database, credits=1_000)


def make_sweeper(settings: Settings, session: Session, redis: Redis) -> Sweeper:
    """Return a sweeper that does not wait long for a settlement worker."""
    settlement = SettlementSettings(backlog_patience_seconds=0.2)
    return Sweeper(
        settlement,
        session=session,
        redis=redis,
        queue=QueueClient(redis, make_seal(settings), settings.queue),
        settlements=SettlementQueue(redis, settlement),
        crash=CrashPoints(),
        clock=SystemClock(),
    )


def make_seal(settings: Settings) -> Seal:
    """Return the seal of the wire."""
    return Seal(settings.secrets.wire_key.encode())


async def reserve(
    database: Database, customer: Customer, *, age_seconds: float = OLD_SECONDS, **changes: Any
) -> Reserve:
    """Reserve as a request did that came `age_seconds` ago."""
    row = make_reserve(customer, hold=200, age_seconds=age_seconds, **changes)
    await reserve_many(database, [row])
    return row


def make_job(row: Reserve) -> Job:
    """Return the job of a reservation."""
    return Job(
        version=VERSION,
        request_id=row.request_id,
        account_id=row.account_id,
        key_id=row.key_id,
        model=row.model,
        messages=(Message("user", "hello"),),
        sampling=Sampling(),
        prices=row.prices,
        hold=row.hold_full,
        default_max_tokens=4,
        reader="node_1",
        resumable=False,
        lane="interactive",
        weight=1,
        cost_tokens=12,
        reserved_ms=row.reserved_ms,
        queue_deadline_ms=row.queue_deadline_ms,
        deadline_ms=row.deadline_ms,
    )


async def write_state(redis: Redis, row: Reserve, *, status: str = "claimed") -> None:
    """Write the state of a request that a worker holds."""
    state = {"status": status, "attempt": "1", "owner": "own_1", "deaths": "0"}
    await redis.hset(keys.state(row.model, row.request_id), mapping=state)  # type: ignore[arg-type,misc]


async def ending(database: Database, row: Reserve) -> tuple[str, str | None, int] | None:
    """Return usage status, code and cost of a closed request; None while it is open."""
    usage = await find_usage(database, row.request_id)
    return None if usage is None else (usage.status, usage.code, usage.cost)
