"""How long an event loop stood still through our own fault: the lesser of the time and the CPU seconds of this process.

A busy machine delays every tick, and an engine's threads work beside the loop; neither is a loop that stands still.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LAG_MOST = 0.1  # twice the bound of FAULTS section 2: other tests share the machine


class Lag:
    """What was measured so far."""

    def __init__(self) -> None:
        self.most = 0.0
        self.cpu_seconds = 0.0


@asynccontextmanager
async def measured_lag() -> AsyncIterator[Lag]:
    """Yield what is measured until the end of the block."""
    lag, began = Lag(), time.process_time()

    async def tick() -> None:
        while True:
            began, used = time.monotonic(), time.process_time()
            await asyncio.sleep(0.001)
            lag.most = max(lag.most, min(time.monotonic() - began, time.process_time() - used))

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        yield lag
    finally:
        lag.cpu_seconds = time.process_time() - began
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
