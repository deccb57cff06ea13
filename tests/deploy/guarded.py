"""The product under the shipped users of Redis and roles of Postgres, and what it is made to do there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from shared import keys
from shared.connections import Database, open_redis
from shared.settings import StoreSettings
from tests.cluster import Cluster, open_cluster
from tests.deploy.stores import DATABASE_PROCESSES, ROLES, GuardedValkey, open_guarded_valkey, url_as
from tests.integration.queue_rig import Rig
from tests.integration.session_rig import AUTH, JWT_KEY, Browser
from tests.streams import stream

MODEL: Final = "sim/plain"
NEW_MODEL: Final = {"engine": "simulator", "context": 1024, "prompt_price": "0.1", "completion_price": "0.4"}
FAST: Final = {"sweep_seconds": 1, "stateless_seconds": 1, "lease_seconds": 1.0, "beat_seconds": 0.3}


class Guarded(NamedTuple):
    """A running product, each process under its own user and role."""

    cluster: Cluster
    valkey: GuardedValkey


async def grant(database: Database) -> None:
    """Make the shipped roles in this database and let them log in, each with its name as password."""
    await database.execute(ROLES.read_text())
    for role in DATABASE_PROCESSES:
        await database.execute(f"ALTER ROLE inferbase_{role} LOGIN PASSWORD '{role}'")


@asynccontextmanager
async def open_guarded(database: Database, database_url: str, folder: Path) -> AsyncIterator[Guarded]:
    """Yield the product over a Valkey of its own, and end both."""
    await grant(database)
    with open_guarded_valkey(folder / "valkey") as valkey:
        operator = valkey.url_as("operator")
        async with (
            open_redis(StoreSettings(redis_url=operator), role="test") as redis,
            open_cluster(
                database_url=database_url, redis_url=operator, database=database, redis=redis, folder=folder
            ) as cluster,
        ):
            guarded = Guarded(cluster, valkey)
            await cluster.add_model(MODEL, tokens=30, step_ms=20)
            await cluster.add_model("sim/absent", load_seconds=600)
            start(guarded, "api0", "api", database_url, jwt_key=JWT_KEY, trusted_proxies="127.0.0.1")
            for name in ("worker0", "worker1"):
                start(guarded, name, "worker", database_url, engine="simulator", models=MODEL)
            for role in ("settlement", "janitor"):
                start(guarded, f"{role}0", role, database_url)
            await cluster.wait_ready(MODEL)
            yield guarded


def start(guarded: Guarded, name: str, role: str, database_url: str, **settings: Any) -> None:
    """Start a process under its own user and role; a worker gets no address of Postgres."""
    urls = {"redis_url": guarded.valkey.url_as(role), "database_url": ""}
    if role in DATABASE_PROCESSES:
        urls["database_url"] = url_as(database_url, role)
    guarded.cluster.start(name, role, **urls, **{**FAST, **settings})


async def use_everything(guarded: Guarded) -> None:
    """Make every process do all that it can do."""
    cluster = guarded.cluster
    account, key = await cluster.add_account("5", rpm=1000, tpm=1_000_000)
    async with httpx.AsyncClient(
        base_url=cluster.base_url(), headers={"Authorization": f"Bearer {key}"}, timeout=30
    ) as client:
        await _complete(cluster, client, key)
        await _manage(client)
        await _administer(cluster, client, account)
    await _log_in(cluster)
    await _forge(cluster)


async def _complete(cluster: Cluster, client: httpx.AsyncClient, key: str) -> None:
    base = cluster.base_url()
    assert (await stream(base, key)).complete
    assert not (await stream(base, key, leave_after=3)).complete
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    for _ in range(2):
        answer = await client.post("/chat/completions", json=body, headers={"idempotency-key": "once"})
        assert answer.status_code == 200, answer.text
    assert (await client.post("/chat/completions", json={**body, "service_tier": "flex"})).status_code == 200
    # Left, taken up again, read once more, cancelled.
    async with client.stream(
        "POST", "/chat/completions", json={**body, "stream": True}, headers={"inferbase-resume": "1"}
    ) as left:
        completion = left.headers["x-request-id"]
    again = await client.get(f"/chat/completions/{completion}/stream", params={"after": 0})
    assert again.text.rstrip().endswith("data: [DONE]"), again.text
    assert (await client.get(f"/chat/completions/{completion}")).status_code == 200
    assert (await client.post(f"/chat/completions/{completion}/cancel")).status_code < 500
    # Cancelled while it waits; over its patience; asked after.
    absent = {**body, "model": "sim/absent", "stream": True}
    await client.get("/models/sim/absent/health")
    refused = await client.post("/chat/completions", json={**absent, "stream": False}, headers={"inferbase-wait": "1"})
    assert refused.status_code == 502, refused.text
    with suppress(httpx.TimeoutException):
        await client.post("/chat/completions", json=absent, timeout=0.3)
    # A worker dies, another one goes on.
    running = asyncio.create_task(stream(base, key))
    await asyncio.sleep(0.02)
    cluster.processes["worker0"].kill()
    assert (await running).complete
    cluster.processes["worker0"].start()


async def _manage(client: httpx.AsyncClient) -> None:
    made = await client.post("/keys", json={"name": "part", "budget": "1", "limits": {"concurrency": 2}})
    assert made.status_code == 201, made.text
    part = {"Authorization": f"Bearer {made.json()['key']}"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert (await client.post("/chat/completions", json=body, headers=part)).status_code == 200
    for path in ("/keys", "/usage", "/usage/summary?start_time=0", "/credits", "/credits/transactions", "/models"):
        answer = await client.get(path)
        assert answer.status_code in (200, 400), (path, answer.text)
    assert (await client.delete(f"/keys/{made.json()['id']}")).status_code == 200


async def _administer(cluster: Cluster, client: httpx.AsyncClient, account: str) -> None:
    _, raw = await cluster.add_account("0")
    await cluster.database.execute(
        "UPDATE api_keys SET admin = TRUE WHERE account_id <> $1", account
    )  # as the command line does, which is the owner
    admin = httpx.AsyncClient(
        base_url=cluster.base_url().replace("inference", "admin"), headers={"Authorization": f"Bearer {raw}"}
    )
    async with admin:
        paid = await admin.post(
            f"/accounts/{account}/deposits", json={"amount": "1"}, headers={"idempotency-key": "gift"}
        )
        assert paid.status_code == 201, paid.text
        put = await admin.put("/models/sim/new", json=NEW_MODEL)
        assert put.status_code in (200, 201), put.text
        assert (await admin.delete("/models/sim/new")).status_code == 200
        assert (await admin.get("/accounts")).status_code == 200
        for verb in ("deactivate", "activate"):
            assert (await admin.post(f"/accounts/{account}/{verb}")).status_code == 200


async def _log_in(cluster: Cluster) -> None:
    browser = Browser(cluster.ports["api0"])
    async with browser.client:
        assert (await browser.register()).status_code == 201
        assert (await browser.post(f"{AUTH}/refresh")).status_code == 200
        assert (await browser.post(f"{AUTH}/logout")).status_code == 204


async def _forge(cluster: Cluster) -> None:
    """Put a record and a job into Redis that nobody sealed, and take the state of a request away."""
    await cluster.redis.xadd(keys.settlement(MODEL), {"f": b"forged"})
    rig = Rig(cluster.redis)
    await rig.enqueue(model=MODEL)
    await rig.close()
    running = asyncio.create_task(
        stream(cluster.base_url(), (await cluster.add_account("1"))[1], model="sim/absent", content="lost")
    )
    deadline = asyncio.get_running_loop().time() + 10
    while not (found := await cluster.database.fetch("SELECT request_id FROM open_requests")):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    await cluster.redis.delete(*(keys.state("sim/absent", row["request_id"]) for row in found))
    while await cluster.database.fetchval("SELECT count(*) FROM open_requests"):
        assert asyncio.get_running_loop().time() < deadline + 20
        await asyncio.sleep(0.02)
    assert await cluster.redis.xlen(keys.dead_letters(MODEL)) == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
