"""What money costs: pairs of reserve and settle per second, their p50, and CPU per pair of Python and of Postgres.

    python -m tests.bench.money [--seconds 3] [--flights 1,8,64,256] [--customers 1]

Loopback, a Postgres of its own with fsync on, everything of one run on one or few hot accounts; the ledger is audited
at the end. First table: through Admission and a settling batcher, closed loop, each request witnessed too. Second one:
each verb alone in batches of one size, with the CPU of its own backend: what a commit costs and what a row adds.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvloop

from compose.stores import Postgres, free_port, open_postgres
from shared.admission import Admission
from shared.batcher import Batcher
from shared.connections import Connection, Database, open_database
from shared.crash_points import CrashPoints
from shared.database.audit import audit
from shared.database.migrate import migrate
from shared.database.requests import Reserve, Witness, reserve_many, witness_many
from shared.database.session import Session
from shared.database.settlements import Settled, settle_many
from shared.settings import StoreSettings
from shared.wire import Finish
from tests.bench.measure import cpu_seconds
from tests.integration.ledger_factories import Customer, make_customer, make_finish, make_reserve

CREDITS = 10**15
BATCH_SIZES = (1, 4, 16, 64, 256)
ROWS_PER_SIZE = 2_000
ROWS_OF_SINGLES = 400


class Pairs(msgspec.Struct, frozen=True):
    """What pairs of reserve and settle cost at one number in flight; CPU per pair."""

    per_second: float
    p50_ms: float
    python_us: float
    postgres_us: float


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--flights", default="1,8,64,256")
    parser.add_argument("--customers", type=int, default=1)
    options = parser.parse_args()
    with _open_server() as server:
        flights = [int(flight) for flight in options.flights.split(",")]
        uvloop.run(bench(server, flights, options.seconds, options.customers))


def pairs_on_one_account(flights: Sequence[int], seconds: float) -> list[Pairs]:
    """Measure each number of requests in flight on one hot account of a new server, and audit its ledger."""
    with _open_server() as server:
        return uvloop.run(_hot_account(server, flights, seconds))


async def _hot_account(server: Postgres, flights: Sequence[int], seconds: float) -> list[Pairs]:
    await migrate(server.url)
    async with open_database(StoreSettings(database_url=server.url), role="bench") as database:
        hot = [await make_customer(database, credits=CREDITS)]
        found = [await measure_pairs(server, database, hot, flight, seconds) for flight in flights]
        async with database.acquire() as connection:
            assert await audit(connection, quiesced=True) == []
    return found


async def bench(server: Postgres, flights: Sequence[int], seconds: float, customers: int) -> None:
    """Measure on `server`; the fixed order keeps the table's growth the same in every run."""
    await migrate(server.url)
    async with open_database(StoreSettings(database_url=server.url), role="bench") as database:
        hot = [await make_customer(database, credits=CREDITS) for _ in range(customers)]
        for flight in flights:
            found = await measure_pairs(server, database, hot, flight, seconds)
            print(
                f"{flight:4d} in flight: {found.per_second:8,.0f} pairs/s   p50 {found.p50_ms:6.2f} ms   "
                f"CPU per pair: python {found.python_us:6.1f} us, postgres {found.postgres_us:6.1f} us",
                flush=True,
            )
        for size in BATCH_SIZES:
            print(await measure_rows(database, hot[0], size), flush=True)
        async with database.acquire() as connection:
            print(f"audit: {len(await audit(connection, quiesced=True))} violations")


async def measure_pairs(
    server: Postgres, database: Database, customers: Sequence[Customer], flight: int, seconds: float
) -> Pairs:
    """Keep `flight` requests between reservation and settlement, and witness each."""
    admission = Admission(database, CrashPoints())
    session = Session(database)
    settling: Batcher[Finish, Settled] = Batcher(
        lambda finishes: session.run(lambda connection: settle_many(connection, finishes))
    )
    latencies: list[float] = []

    async def client(number: int) -> None:
        customer = customers[number % len(customers)]
        while time.perf_counter() < end:
            started = time.perf_counter()
            row = make_reserve(customer)
            assert (await admission.reserve(row)).verdict == "reserved"
            assert await settling.submit(make_finish(row)) == "settled"
            latencies.append(time.perf_counter() - started)
            admission.witness(_witness(row))

    roles = {"python": [os.getpid()], "postgres": [server.pid]}
    before, started = cpu_seconds(roles), time.perf_counter()
    end = started + seconds
    await asyncio.gather(*(client(number) for number in range(flight)))
    spent = time.perf_counter() - started
    await admission.flush()
    await session.close()
    after = cpu_seconds(roles)
    python_us, postgres_us = (1e6 * (after[role] - before[role]) / len(latencies) for role in ("python", "postgres"))
    return Pairs(
        per_second=len(latencies) / spent,
        p50_ms=1e3 * statistics.median(latencies),
        python_us=python_us,
        postgres_us=postgres_us,
    )


async def measure_rows(database: Database, customer: Customer, size: int) -> str:
    """Return the CPU per row of each verb in batches of `size`, of its backend alone."""
    count = ROWS_OF_SINGLES if size == 1 else max(4, ROWS_PER_SIZE // size)
    batches = [[make_reserve(customer) for _ in range(size)] for _ in range(count)]
    async with database.acquire() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        verbs: dict[str, Callable[[Connection, Sequence[Reserve]], Awaitable[object]]] = {
            "reserve": reserve_many,
            "settle": lambda connection, rows: settle_many(connection, [make_finish(row) for row in rows]),
            "witness": lambda connection, rows: witness_many(connection, [_witness(row) for row in rows]),
        }
        found = []
        for name, verb in verbs.items():
            before = _backend_seconds(pid)
            for batch in batches:
                await verb(connection, batch)
            found.append(f"{name} {1e6 * (_backend_seconds(pid) - before) / count / size:6.1f}")
    return f"{size:4d} in a batch, postgres us/row: " + "   ".join(found)


@contextmanager
def _open_server() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="inferbase-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with open_postgres(folder / "postgres", free_port()) as server:
            yield server


def _backend_seconds(pid: int) -> float:
    """CPU of one process. Source: proc(5), `schedstat`: nanoseconds on a CPU come first."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _witness(row: Reserve) -> Witness:
    return Witness(request_id=row.request_id, delivered_tokens=1, delivered_seq=1, prompt_tokens=2, ended="finished")


if __name__ == "__main__":
    main()
