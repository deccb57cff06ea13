"""The row that kills: a worker ends by SIGKILL in mid-stream, and another one goes on where it stopped."""

import asyncio
import itertools
import time
from typing import Final

from tests.bench.load import Exchange, wait_ended
from tests.bench.product import PACED, Product
from tests.bench.rows import Side

STREAMS: Final = 16
TOKENS: Final = 150  # 3 s of its own
WORKERS_SECONDS: Final = 20.0
POLLED_SECONDS: Final = 1.0  # until the new worker waits for this model too
BETWEEN_SECONDS: Final = 0.02  # arrivals, so that both workers get some
BEFORE_KILL_SECONDS: Final = 0.5
NOTICED_NS: Final = 1_000_000_000  # a shorter pause is not the killed worker's


async def kill_worker(product: Product, side: Side) -> tuple[float, str]:
    """Return the longest pause in seconds of any stream, and what became of the streams."""
    with product.another_worker() as worker:
        give_up = time.monotonic() + WORKERS_SECONDS
        while product.workers_of(PACED) < 2:
            assert time.monotonic() < give_up, "the second worker did not come"
            await asyncio.sleep(0.05)
        await asyncio.sleep(POLLED_SECONDS)
        body = side.body(PACED, TOKENS, True)
        exchanges = []
        for _ in range(STREAMS):
            exchanges.append(await side.client.send(body, detailed=True))
            await asyncio.sleep(BETWEEN_SECONDS)
        await asyncio.gather(*(exchange.started for exchange in exchanges))
        await asyncio.sleep(BEFORE_KILL_SECONDS)
        worker.kill()
        await wait_ended(exchanges)
    pauses = [_longest_pause_ns(exchange) for exchange in exchanges]
    moved = sum(pause > NOTICED_NS for pause in pauses)
    whole = sum(exchange.good and exchange.tokens == TOKENS and _in_order(exchange) for exchange in exchanges)
    note = f"{moved} of {STREAMS} streams moved; {whole} of {STREAMS} came whole and in order"
    return (max(pauses) / 1e9 if moved else float("nan")), note


def _longest_pause_ns(exchange: Exchange) -> int:
    reads = list(exchange.reads or ())
    return max((later - earlier for earlier, later in itertools.pairwise(reads)), default=0)


def _in_order(exchange: Exchange) -> bool:
    stamps = list(exchange.stamps or ())
    return all(earlier < later for earlier, later in itertools.pairwise(stamps))
