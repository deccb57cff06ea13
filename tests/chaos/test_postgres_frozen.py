"""Postgres is frozen: it accepts and never answers, which is worse than to be dead."""

import asyncio
import signal
import time

import httpx
import psutil

from tests.chaos.conftest import MortalPostgres
from tests.cluster import Cluster


async def test_a_frozen_postgres_holds_up_no_list_of_models(
    mortal_ledger: Cluster, mortal_postgres: MortalPostgres
) -> None:
    cluster = mortal_ledger
    await cluster.add_model("sim/plain")
    for name, role in (("api0", "api"), ("janitor0", "janitor")):
        cluster.start(name, role, catalogue_cache_seconds=0.1)
    cluster.start("worker0", "worker", engine="simulator")
    await cluster.wait_ready("sim/plain")
    postgres = psutil.Process(mortal_postgres.pid)
    family = [postgres, *postgres.children(recursive=True)]
    waited_seconds = []

    async with httpx.AsyncClient(base_url=cluster.base_url()) as client:
        for process in family:
            process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(10):
                await asyncio.sleep(0.2)  # the copy is stale by then
                began = time.monotonic()
                response = await client.get("/models")
                waited_seconds.append(time.monotonic() - began)
                assert [model["id"] for model in response.json()["data"]] == ["sim/plain"]
        finally:
            for process in family:
                process.send_signal(signal.SIGCONT)

    assert max(waited_seconds) < 1.0  # a statement is given up after five
