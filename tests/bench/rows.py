"""The rows of DESIGN section 12, each measured on a `Side`: the product or the floor, by the same code."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from tests.bench import load, measure
from tests.bench.floor import Floor
from tests.bench.load import Client, Exchange
from tests.bench.measure import Roles
from tests.bench.product import FAST, IDLE, PACED, STEP_MS, Product

MILLISECOND_NS: Final = 1_000_000
SHORT_TOKENS: Final = 8
ARRIVALS_PER_SECOND: Final = 10
ARRIVAL_TOKENS: Final = 32
STREAM_TOKENS: Final = 256
SETTLE_SECONDS: Final = 0.5  # settlement of the last requests belongs to their cost
IDLE_TOKENS: Final = 4
AFTER_FIRST_SECONDS: Final = 0.5


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much each row does. Requests, streams and tokens are counts."""

    arrivals: int
    short_requests: int
    growth_requests: int
    alone_requests: int
    streams: int  # at 64 in flight
    tokens_alone: int  # of the one stream of the row at 1 in flight
    idle_streams: int  # opened twice
    idle_seconds: float
    pair_seconds: float  # of pairs of reserve + settle
    phase_seconds: float  # a row stops after this, wherever it is


FULL: Final = Sizes(
    arrivals=200,
    short_requests=12_000,
    growth_requests=50_000,
    alone_requests=800,
    streams=128,
    tokens_alone=256,
    idle_streams=500,
    idle_seconds=5,
    pair_seconds=4.0,
    phase_seconds=45,
)
QUICK: Final = Sizes(
    arrivals=50,
    short_requests=3_000,
    growth_requests=6_000,
    alone_requests=400,
    streams=64,
    tokens_alone=100,
    idle_streams=150,
    idle_seconds=2,
    pair_seconds=2.0,
    phase_seconds=15,
)


class Side:
    """What a row is measured on."""

    def __init__(self, roles: Callable[[], Roles], client: Client, body: Callable[[str, int, bool], bytes]) -> None:
        self._roles = roles
        self.client: Final = client
        self.body: Final = body  # (model, tokens, stream)

    @property
    def roles(self) -> Roles:
        return self._roles()

    @classmethod
    def of_product(cls, product: Product) -> "Side":
        return cls(
            lambda: product.roles,
            product.client(),
            lambda model, tokens, stream: product.body(model, tokens=tokens, stream=stream),
        )

    @classmethod
    def of_floor(cls, floor: Floor) -> "Side":
        return cls(
            lambda: floor.roles,
            floor.client(),
            lambda model, tokens, stream: floor.body(tokens=tokens, step_ms=STEP_MS[model], stream=stream),
        )


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds that are ours and not the engine's."""

    first_token_p50: float
    first_token_p99: float
    token_p50: float
    token_p99: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU microseconds per unit (request or token), of all processes and by role."""

    total: float
    by_role: Mapping[str, float]
    units: int
    per_second: float  # units
    exchanges: list[Exchange]


async def warm_up(side: Side) -> None:
    """Let caches, pools and compiled scripts fill."""
    await load.closed_loop(side.client, side.body(FAST, SHORT_TOKENS, False), in_flight=16, requests=300, seconds=20)
    await load.closed_loop(side.client, side.body(PACED, 16, True), in_flight=16, requests=32, seconds=20)


async def latency(side: Side, sizes: Sizes) -> Latency:
    """Streams arriving at a fixed rate, on an engine that sets the pace."""
    body = side.body(PACED, ARRIVAL_TOKENS, True)
    done = await load.open_loop(side.client, body, per_second=ARRIVALS_PER_SECOND, requests=sizes.arrivals)
    good = [exchange for exchange in done if exchange.good and exchange.stamps]
    first = [_added_first_ms(exchange) for exchange in good]
    tokens = [delay for exchange in good for delay in _token_delays_ms(exchange)]
    return Latency(
        first_token_p50=measure.percentile(first, 50),
        first_token_p99=measure.percentile(first, 99),
        token_p50=measure.percentile(tokens, 50),
        token_p99=measure.percentile(tokens, 99),
    )


async def short_requests(side: Side, *, in_flight: int, requests: int, seconds: float) -> Cost:
    """Requests of a few tokens, not streamed, as fast as they are answered."""
    body = side.body(FAST, SHORT_TOKENS, False)
    return await _cost(
        side,
        lambda: load.closed_loop(side.client, body, in_flight=in_flight, requests=requests, seconds=seconds),
        units=len,
    )


async def streams(
    side: Side, model: str, *, in_flight: int, requests: int, seconds: float, tokens: int = STREAM_TOKENS
) -> Cost:
    """Long streams; the unit is a delivered token, so what a request costs is in it by 1/`tokens`."""
    body = side.body(model, tokens, True)
    return await _cost(
        side,
        lambda: load.closed_loop(
            side.client, body, in_flight=in_flight, requests=requests, seconds=seconds, detailed=True
        ),
        units=lambda done: sum(exchange.tokens for exchange in done),
    )


def delivered_share(done: Sequence[Exchange], *, running: int, step_ms: float) -> float:
    """Return delivered tokens/s over the engine's own, while exactly `running` streams run.

    The engine's own rate is one token of each stream per step. Measured over the first wave, from the moment that its
    last stream has begun to the moment that its first one ends.
    """
    wave = sorted(done, key=lambda exchange: exchange.sent_ns)[:running]
    starts = [exchange.reads[0] for exchange in wave if exchange.reads]
    ends = [exchange.reads[-1] for exchange in wave if exchange.reads]
    if len(starts) < running or max(starts) >= min(ends):
        return float("nan")
    begin, end = max(starts), min(ends)
    tokens = sum(begin < read <= end for exchange in wave for read in exchange.reads or ())
    return tokens / ((end - begin) / 1e9) / (running / step_ms * 1000)


async def idle_memory(side: Side, sizes: Sizes) -> float:
    """Return the KiB that an API node needs per open stream that waits: the slope between two numbers of streams."""
    body = side.body(IDLE, IDLE_TOKENS, True)
    first = await load.start_streams(side.client, body, sizes.idle_streams)
    await asyncio.sleep(AFTER_FIRST_SECONDS)
    before = measure.pss_kib(side.roles)["api"]
    second = await load.start_streams(side.client, body, sizes.idle_streams)
    await asyncio.sleep(AFTER_FIRST_SECONDS)
    after = measure.pss_kib(side.roles)["api"]
    running = [exchange for exchange in (*first, *second) if not exchange.ended.done()]
    await load.wait_ended([*first, *second])
    return (after - before) / sizes.idle_streams if len(running) == 2 * sizes.idle_streams else float("nan")


async def growth(side: Side, sizes: Sizes) -> dict[str, float]:
    """Return bytes of growth per request of each role, over the second half of many requests."""
    body = side.body(FAST, SHORT_TOKENS, False)
    half = sizes.growth_requests // 2
    readings = []
    for _ in range(2):
        done = await load.closed_loop(side.client, body, in_flight=64, requests=half, seconds=sizes.phase_seconds)
        await asyncio.sleep(SETTLE_SECONDS)
        readings.append(measure.pss_kib(side.roles))
    return {role: (readings[1][role] - readings[0][role]) * 1024 / max(1, len(done)) for role in readings[1]}


async def idle_share(side: Side, sizes: Sizes) -> Cost:
    """What runs without any request: CPU microseconds per second."""

    async def rest() -> list[Exchange]:
        await asyncio.sleep(sizes.idle_seconds)
        return []

    return await _cost(side, rest, units=lambda _: round(sizes.idle_seconds), settle_seconds=0.0)


async def _cost(
    side: Side,
    work: Callable[[], "asyncio.Future[list[Exchange]] | object"],
    *,
    units: Callable[[list[Exchange]], int],
    settle_seconds: float = SETTLE_SECONDS,
) -> Cost:
    roles = side.roles
    before = measure.cpu_seconds(roles)
    started = time.monotonic()
    done: list[Exchange] = await work()  # type: ignore[misc]
    seconds = time.monotonic() - started
    await asyncio.sleep(settle_seconds)
    used = measure.cpu_between(before, measure.cpu_seconds(roles))
    count = units(done)
    by_role = {role: value / max(1, count) * 1e6 for role, value in used.items()}
    return Cost(total=sum(by_role.values()), by_role=by_role, units=count, per_second=count / seconds, exchanges=done)


def _added_first_ms(exchange: Exchange) -> float:
    assert exchange.stamps is not None
    engine_ns = exchange.stamps[0] - exchange.engine_received_ns
    return (exchange.first_ns - exchange.sent_ns - engine_ns) / MILLISECOND_NS


def _token_delays_ms(exchange: Exchange) -> list[float]:
    assert exchange.stamps is not None
    assert exchange.reads is not None
    pairs = zip(exchange.stamps, exchange.reads, strict=True)
    return [(read - stamp) / MILLISECOND_NS for stamp, read in pairs]
