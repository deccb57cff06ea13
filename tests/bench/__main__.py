"""`python -m tests.bench`: every budget of DESIGN section 12, measured on this machine beside the floor.

Exit status: 0 when the ledger is clean and delivered = charged; 1 when not; with `--strict` also 1 for a missed budget.
"""

import argparse
import asyncio
import functools
import json
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import uvloop

from tests.bench import chaos, money, rows
from tests.bench.floor import Floor, open_floor
from tests.bench.product import FAST, IDLE, PACED, STEP_MS, Product, open_product
from tests.bench.report import Row, table
from tests.bench.rows import Side, Sizes

ROWS: Final = ("up", "ttft", "short", "stream", "memory", "growth", "kill", "money")
IN_FLIGHT: Final = 64
LEASE_SECONDS: Final = 6.0
PAIRS_LEAST: Final = 10_000
GROWTH_BYTES_MOST: Final = 48.0  # per request: less than one kept object of any kind
GROWTH_REQUESTS_LEAST: Final = 50_000  # below, the allocator's blocks hide what grows

T = TypeVar("T")


class Bench:
    """One run: what was chosen, and what was found."""

    def __init__(self, chosen: set[str], sizes: Sizes) -> None:
        self._chosen = chosen
        self.sizes = sizes
        self.rows: list[Row] = []

    async def measure(self, product: Product, floor: Floor | None) -> None:
        """Run the chosen rows that need a running product; the floor's figure of each comes right after."""
        side = Side.of_product(product)
        other = Side.of_floor(floor) if floor is not None else None
        self.side: Side = side
        for each in (side, other):
            if each is not None:
                await self._tell("warming up", rows.warm_up(each))
        for name, work in (
            ("ttft", self._latency),
            ("short", self._short),
            ("stream", self._stream),
            ("memory", self._memory),
            ("growth", self._growth),
        ):
            if name in self._chosen:
                await work(side, other)
        if "kill" in self._chosen:
            pause, note = await self._tell("killing a worker", chaos.kill_worker(product, side))
            most = LEASE_SECONDS + 1
            self.rows.append(Row(name="worker kill -9 to next token", measured=pause, unit="s", most=most, note=note))

    async def _latency(self, side: Side, other: Side | None) -> None:
        found = await self._tell("added latency", rows.latency(side, self.sizes))
        floor = await rows.latency(other, self.sizes) if other else None
        for name, field, most in (
            ("added time to first token, 10 streams/s, p50", "first_token_p50", 4.0),
            ("added time to first token, 10 streams/s, p99", "first_token_p99", 15.0),
            ("added delay per token, 10 streams/s, p50", "token_p50", 0.4),
            ("added delay per token, 10 streams/s, p99", "token_p99", None),
        ):
            bare = getattr(floor, field) if floor is not None else None
            self.rows.append(Row(name=name, measured=getattr(found, field), unit="ms", most=most, floor=bare))

    async def _short(self, side: Side, other: Side | None) -> None:
        for in_flight, requests, most in (
            (IN_FLIGHT, self.sizes.short_requests, 500.0),
            (1, self.sizes.alone_requests, None),
        ):
            measured = functools.partial(rows.short_requests, in_flight=in_flight, seconds=self.sizes.phase_seconds)
            found = await self._tell(f"short requests, {in_flight} in flight", measured(side, requests=requests))
            floor = await measured(other, requests=requests // 4) if other else None
            self._add_cost(f"CPU per short request, {in_flight} in flight", "us", most, found, floor)
        idle = await self._tell("idle", rows.idle_share(side, self.sizes))
        self._add_cost("CPU without any request, per second", "us", None, idle, None)

    async def _stream(self, side: Side, other: Side | None) -> None:
        sizes = self.sizes
        for model, in_flight, requests, tokens, most, pace in (
            (PACED, IN_FLIGHT, sizes.streams, rows.STREAM_TOKENS, 25.0, "20 ms steps"),
            (FAST, IN_FLIGHT, sizes.streams, rows.STREAM_TOKENS, 25.0, "no pause"),
            (PACED, 1, 1, sizes.tokens_alone, None, "20 ms steps"),
        ):
            paced = model == PACED and in_flight == IN_FLIGHT

            measured = functools.partial(
                rows.streams,
                model=model,
                in_flight=in_flight,
                requests=requests,
                tokens=tokens,
                seconds=sizes.phase_seconds,
            )
            found = await self._tell(f"streams, {in_flight} in flight, {pace}", measured(side))
            floor = await measured(other) if other else None
            self._add_cost(f"CPU per streamed token, {in_flight} in flight, {pace}", "us", most, found, floor)
            if paced:
                self._add_share(found, floor)

    def _add_share(self, found: rows.Cost, floor: rows.Cost | None) -> None:
        shares = [
            rows.delivered_share(cost.exchanges, running=IN_FLIGHT, step_ms=STEP_MS[PACED]) if cost else None
            for cost in (found, floor)
        ]
        measured, bare = shares
        assert measured is not None
        name = f"delivered tokens/s over the engine's, {IN_FLIGHT} streams"
        self.rows.append(Row(name=name, measured=measured, unit="", least=0.97, floor=bare))

    async def _memory(self, side: Side, other: Side | None) -> None:
        found = await self._tell("idle streams", rows.idle_memory(side, self.sizes))
        floor = await rows.idle_memory(other, self.sizes) if other else None
        name = "memory per idle open stream on an API node"
        self.rows.append(Row(name=name, measured=found, unit="KiB", most=40, floor=floor))

    async def _growth(self, side: Side, _other: Side | None) -> None:
        count = self.sizes.growth_requests
        found = await self._tell(f"growth over {count:,} requests", rows.growth(side, self.sizes))
        ours = {role: value for role, value in found.items() if role in ("api", "worker", "settlement", "janitor")}
        assert ours, "the growth of our own processes is what counts"
        self.rows.append(
            Row(
                name=f"memory growth per request over {count:,} requests, worst process",
                measured=max(ours.values()),
                unit="bytes",
                most=GROWTH_BYTES_MOST if count >= GROWTH_REQUESTS_LEAST else None,
                by_role=found,
                note="of the second half; Valkey keeps logs for 15 minutes, Postgres fills its buffers: told only",
            )
        )

    def _add_cost(self, name: str, unit: str, most: float | None, found: rows.Cost, floor: rows.Cost | None) -> None:
        self.rows.append(
            Row(
                name=name,
                measured=found.total,
                unit=unit,
                most=most,
                floor=floor.total if floor else None,
                by_role=found.by_role,
                floor_by_role=floor.by_role if floor else {},
                note=f"{found.units:,} units at {found.per_second:,.0f}/s"
                + (f"; floor {floor.per_second:,.0f}/s" if floor else ""),
            )
        )

    async def _tell(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        started = time.monotonic()
        print(f"{what} …", end="", flush=True)
        result = await work
        print(f" {time.monotonic() - started:.1f} s", flush=True)
        return result


def main() -> int:
    """Run the bench; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", help=f"comma-separated, of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="smaller counts: within 90 s instead of 6 minutes")
    parser.add_argument("--no-floor", action="store_true", help="leave the floor out")
    parser.add_argument("--strict", action="store_true", help="a missed budget fails")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    usual = set(ROWS) - {"growth"} if options.quick else set(ROWS)
    chosen = set(options.rows.split(",")) if options.rows else usual
    if not chosen <= set(ROWS):
        parser.error(f"unknown rows: {', '.join(sorted(chosen - set(ROWS)))}")
    started = time.monotonic()
    bench = Bench(chosen, rows.QUICK if options.quick else rows.FULL)
    honest = _run(bench, chosen, with_floor=not options.no_floor)
    print(f"\n{table(bench.rows)}\n\n{time.monotonic() - started:.0f} s in all")
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(bench.rows)))
    missed = [row.name for row in bench.rows if row.verdict == "MISSED"]
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return 0 if honest and not (options.strict and missed) else 1


def _run(bench: Bench, chosen: set[str], *, with_floor: bool) -> bool:
    if "money" in chosen:
        bench.rows.append(_money(bench.sizes))
    if chosen == {"money"}:
        return True
    with open_product(workers=1) as (product, ready_seconds):
        if "up" in chosen:
            seconds = ready_seconds + uvloop.run(_first_answer(product))
            row = Row(name="`inferbase up` to first answer", measured=seconds, unit="s", most=10)
            bench.rows.append(row)
        for model in (FAST, PACED, IDLE):
            product.add_model(model)
        for model in (FAST, PACED, IDLE):
            product.wait_for_model(model)
        if with_floor:
            with open_floor() as floor:
                uvloop.run(bench.measure(product, floor))
        else:
            uvloop.run(bench.measure(product, None))
        return _honest(bench, product)


async def _first_answer(product: Product) -> float:
    started = time.monotonic()
    body = product.body(product.ready["model"], tokens=1, stream=False)
    exchange = await product.client().run(body)
    assert exchange.good, exchange.error
    return time.monotonic() - started


def _honest(bench: Bench, product: Product) -> bool:
    """Print whether the ledger is clean and says the same as the client."""
    client = bench.side.client
    charged = asyncio.run(product.charged(requests=client.requests))
    audit = product.command("audit", "--json")
    equal = client.tokens == charged.tokens
    print(f"\ndelivered {client.tokens:,} tokens, charged {charged.tokens:,}: {'equal' if equal else 'NOT EQUAL'}")
    print(f"sent {client.requests:,} requests, {len(client.failed)} failed; {charged}")
    for exchange in client.failed[:5]:
        print(f"  failed: {exchange.status} {exchange.error[:200]!r}")
    print(f"audit: exit {audit.returncode} {_violations(audit.stdout)}{audit.stderr[:500]}")
    for line in product.log_errors()[:10]:
        print(f"  {line}")
    return equal and audit.returncode == 0


def _violations(output: str) -> str:
    try:
        found = json.loads(output)
    except ValueError:
        return output[:500]
    return "clean" if found["clean"] else json.dumps(found["violations"][:5])


def _money(sizes: Sizes) -> Row:
    alone, together = money.pairs_on_one_account((1, IN_FLIGHT), sizes.pair_seconds)
    return Row(
        name=f"reserve + settle on ONE hot account, {IN_FLIGHT} in flight",
        measured=together.per_second,
        unit="pairs/s",
        least=PAIRS_LEAST,
        note=f"p50 {together.p50_ms:.1f} ms; {alone.per_second:,.0f}/s, {alone.p50_ms:.1f} ms at 1 in flight",
    )


if __name__ == "__main__":
    sys.exit(main())
