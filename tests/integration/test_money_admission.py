"""Admission on a real Postgres: whatever its clients and its database do, nothing stays held by mistake."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import admission as admission_module
from shared import metrics
from shared.admission import Admission
from shared.connections import Database
from shared.crash_points import CrashPoints
from shared.database.requests import Reserve, ReserveVerdict, Witness, reserve_many
from shared.database.settlements import settle_many
from shared.database.usage import find_usage
from shared.errors import DependencyUnavailable
from shared.settings import AdmissionSettings, Settings
from tests.integration.ledger_factories import (
    Customer,
    assert_clean,
    balance_of,
    make_customer,
    make_finish,
    make_reserve,
)

SETTINGS = AdmissionSettings(
    reserve_retry_seconds=1.0, outbox_retry_seconds=0.02, witness_delay_seconds=0.01, flush_seconds=5.0
)
ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 10.0


@pytest.fixture
async def admission(database: Database) -> AsyncIterator[Admission]:
    admission = Admission(database, CrashPoints(), SETTINGS)
    yield admission
    await admission.flush()


class Connection:
    """Stands between admission and `reserve_many`: fails before or after the commit, as often as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, before: int = 0, after: int = 0) -> None:
        self.before = before
        self.after = after
        self.batches: list[list[str]] = []
        monkeypatch.setattr(admission_module, "reserve_many", self.reserve_many)

    async def reserve_many(self, connection: Any, rows: Sequence[Reserve]) -> list[ReserveVerdict]:
        self.batches.append([row.request_id for row in rows])
        if self.before:
            self.before -= 1
            raise ConnectionResetError
        verdicts = await reserve_many(connection, rows)
        if self.after:
            self.after -= 1
            raise ConnectionResetError
        return verdicts


def make_witness(row: Reserve, tokens: int, *, ended: Any = "finished") -> Witness:
    return Witness(
        request_id=row.request_id, delivered_tokens=tokens, delivered_seq=tokens, prompt_tokens=2, ended=ended
    )


async def code_of(database: Database, row: Reserve) -> str | None:
    usage = await find_usage(database, row.request_id)
    return None if usage is None else usage.code


async def test_many_at_once_get_what_the_balance_allows(database: Database, admission: Admission) -> None:
    customer = await make_customer(database, credits=1_000)

    verdicts = await asyncio.gather(*(admission.reserve(make_reserve(customer, hold=100)) for _ in range(200)))

    found = [verdict.verdict for verdict in verdicts]
    assert (found.count("reserved"), found.count("insufficient")) == (10, 190)
    assert await balance_of(database, customer) == (1_000, 1_000)


async def test_three_nodes_never_overspend_an_account(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    nodes = [Admission(database, CrashPoints(), SETTINGS) for _ in range(3)]

    verdicts = await asyncio.gather(*(nodes[n % 3].reserve(make_reserve(customer, hold=100)) for n in range(200)))
    await asyncio.gather(*(node.flush() for node in nodes))

    assert [verdict.verdict for verdict in verdicts].count("reserved") == 10
    assert await balance_of(database, customer) == (1_000, 1_000)


async def test_an_unknown_commit_is_retried_with_the_same_rows(
    database: Database, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = await make_customer(database, credits=1_000)
    connection = Connection(monkeypatch, before=1, after=2)

    verdict = await admission.reserve(make_reserve(customer, hold=600))

    assert verdict == ReserveVerdict("reserved", 600)
    assert len(connection.batches) == 4
    assert await balance_of(database, customer) == (1_000, 600)


async def test_where_the_commit_stays_unknown_the_client_is_told_and_the_hold_given_back(
    database: Database, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = await make_customer(database, credits=1_000)
    Connection(monkeypatch, after=1_000)
    row = make_reserve(customer, hold=600)

    with pytest.raises(DependencyUnavailable):
        await admission.reserve(row)
    await admission.flush()

    assert await balance_of(database, customer) == (1_000, 0)
    assert await code_of(database, row) == "dependency_unavailable"
    await assert_clean(database, quiesced=True)


async def test_after_a_failure_the_next_clients_do_not_wait_for_the_database(
    database: Database, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = await make_customer(database, credits=1_000)
    connection = Connection(monkeypatch, before=1_000)
    with pytest.raises(DependencyUnavailable):
        await admission.reserve(make_reserve(customer))
    tried = len(connection.batches)

    with pytest.raises(DependencyUnavailable):
        await admission.reserve(make_reserve(customer))

    assert len(connection.batches) == tried + 1
    connection.before = 0
    assert (await admission.reserve(make_reserve(customer))).verdict == "reserved"


async def test_a_bad_row_stands_alone(database: Database, admission: Admission) -> None:
    customer = await make_customer(database, credits=1_000)
    rows = [make_reserve(customer) for _ in range(6)]
    rows[2] = make_reserve(customer, lane="no such lane")
    rows[3] = make_reserve(customer, prompt_bound=2**40)

    verdicts = await asyncio.gather(*(admission.reserve(row) for row in rows))

    assert [verdict.verdict for verdict in verdicts] == [
        "reserved",
        "reserved",
        "invalid",
        "invalid",
        "reserved",
        "reserved",
    ]
    assert await balance_of(database, customer) == (1_000, 400)


@pytest.mark.parametrize("turns", range(12))
async def test_a_client_that_stops_waiting_at_any_moment_leaves_nothing_held(
    database: Database, admission: Admission, turns: int
) -> None:
    customer = await make_customer(database, credits=1_000)
    waiting = asyncio.create_task(admission.reserve(make_reserve(customer)))
    decided = admission._reservations
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns % 2:  # cut exactly between the verdict and its use
        await decided.flush()

    waiting.cancel()
    outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
    await admission.flush()

    held = 100 if isinstance(outcome, ReserveVerdict) else 0
    assert await balance_of(database, customer) == (1_000, held)


async def test_a_release_that_cannot_be_written_is_written_later(
    database: Database, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = await make_customer(database, credits=1_000)
    row = make_reserve(customer)
    await admission.reserve(row)
    failing, real = 3, admission_module.release_many

    async def release_many(*arguments: Any, **keywords: Any) -> Any:
        nonlocal failing
        failing -= 1
        if failing >= 0:
            raise ConnectionResetError
        return await real(*arguments, **keywords)

    monkeypatch.setattr(admission_module, "release_many", release_many)
    admission.release(row.request_id, "queue_full")
    await admission.flush()

    assert await code_of(database, row) == "queue_full"
    assert await balance_of(database, customer) == (1_000, 0)


async def test_a_release_of_a_settled_request_changes_nothing(database: Database, admission: Admission) -> None:
    customer = await make_customer(database, credits=1_000)
    row = make_reserve(customer)
    await admission.reserve(row)
    await settle_many(database, [make_finish(row)])

    admission.release(row.request_id)
    await admission.flush()

    assert await balance_of(database, customer) == (960, 0)
    await assert_clean(database, quiesced=True)


async def test_witnesses_of_one_request_are_merged_and_written_before_the_end(
    database: Database, admission: Admission
) -> None:
    row = make_reserve(await make_customer(database))
    await admission.reserve(row)

    admission.witness(make_witness(row, 5))
    admission.witness(make_witness(row, 3, ended="client_left"))
    await admission.flush()

    found = await database.fetchrow("SELECT delivered_tokens, ended FROM v_request WHERE id = $1", row.request_id)
    assert tuple(found or ()) == (5, "finished")


async def test_a_witness_that_cannot_be_written_does_not_hold_up_the_others(
    database: Database, admission: Admission
) -> None:
    customer = await make_customer(database)
    rows = [make_reserve(customer) for _ in range(3)]
    await reserve_many(database, rows)

    for row, tokens in zip(rows, (1, 2**40, 3), strict=True):
        admission.witness(make_witness(row, tokens))
    await admission.flush()

    found = await database.fetch("SELECT delivered_tokens FROM v_request ORDER BY id")
    assert [row["delivered_tokens"] for row in found] == [1, 0, 3]


async def test_what_the_outbox_cannot_hold_is_dropped_and_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def witness_many(*_: Any) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(admission_module, "witness_many", witness_many)
    settings = AdmissionSettings(outbox_most=2, witness_delay_seconds=0.0, flush_seconds=0.05)
    admission = Admission(database, CrashPoints(), settings)
    customer = Customer("acct_1", "key_1")
    before = metrics.OUTBOX_DROPPED._value.get()

    for _ in range(5):
        admission.witness(make_witness(make_reserve(customer), 1))
    await admission.flush()

    assert metrics.OUTBOX_DROPPED._value.get() - before == 3
    assert admission._witnesses.waiting == 2


CRASHER = """
import asyncio, msgspec, sys
from shared.admission import Admission
from shared.connections import open_database
from shared.crash_points import CrashPoints
from shared.database.requests import Reserve
from shared.settings import load_settings
async def main():
    settings = load_settings()
    row = msgspec.json.decode(sys.argv[1], type=Reserve)
    async with open_database(settings.stores, role="test") as database:
        await Admission(database, CrashPoints(settings.crash_point)).reserve(row)
asyncio.run(main())
"""


@pytest.mark.parametrize(("point", "held"), [("before_reserve_commit", 0), ("after_reserve_commit", 100)])
async def test_a_node_killed_around_its_commit_leaves_a_clean_ledger(
    settings: Settings, database: Database, point: str, held: int
) -> None:
    customer = await make_customer(database, credits=1_000)
    row = make_reserve(customer, hold=100)
    environment = os.environ | {"DATABASE_URL": settings.stores.database_url, "INFERBASE_CRASH_POINT": point}

    node = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CRASHER, msgspec.json.encode(row).decode()],
        cwd=ROOT,
        env=environment,
        timeout=WAIT_SECONDS * 3,
    )

    assert node.returncode == -signal.SIGKILL
    assert await balance_of(database, customer) == (1_000, held)
    await assert_clean(database)
