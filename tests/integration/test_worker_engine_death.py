"""A worker process whose engine dies while nobody asks anything of it: it exits non-zero, so that it is replaced."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from shared.catalogue import Catalogue, Model
from shared.connections import Redis
from shared.presence import read_all, write_catalogue
from shared.pricing import Prices
from shared.settings import Settings
from workers.inference.worker import EXIT_ENGINE_DEAD

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 30.0
MODEL = Model(id="sim/mortal", engine="simulator", context=64, prices=Prices(1, 1, 1))
# The simulator outlives everything: this one's server is gone after its first token, as llama.cpp's may be.
SERVE = """
import asyncio
from shared.errors import EngineDead
from shared.settings import load_settings
from workers.engines.simulator import Simulator
from workers.inference import watchdog, worker

first_warm_up = Simulator.warm_up

async def warm_up(self):
    if self.steps():
        raise EngineDead("The engine does not answer.")
    await first_warm_up(self)

Simulator.warm_up = warm_up
watchdog.Watchdog.__init__.__kwdefaults__["idle_seconds"] = 0.5
asyncio.run(worker.serve(load_settings()))
"""


async def test_a_worker_whose_idle_engine_died_exits_for_its_supervisor(settings: Settings, redis: Redis) -> None:
    await write_catalogue(redis, Catalogue(version=1, models=(MODEL,)))
    environment = os.environ | {
        "REDIS_URL": settings.stores.redis_url,
        "INFERBASE_WIRE_KEY": settings.secrets.wire_key,
        "INFERBASE_ENGINE": "simulator",
        "INFERBASE_LOG_LEVEL": "error",
    }

    process = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", SERVE], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not any(MODEL.id in said.models for said in await read_all(redis)):
                await asyncio.sleep(0.02)
        output, _ = await asyncio.to_thread(process.communicate, timeout=WAIT_SECONDS)
    finally:
        process.kill()

    assert process.returncode == EXIT_ENGINE_DEAD
    assert b"engine_dead" in output
