"""What lanes and fairness are worth to those who wait, measured through the whole product.

    python -m tests.bench.lanes [--batch 300] [--seconds 20]

Three rows, on a model with few slots and a step each 20 ms. Interactive wait: p50 and p95 of `queue_ms`, alone and
beside a backlog of flex requests that is there all the time. Two accounts: one sends 100 times as much as the other;
the share of the queue that the small one gets, as its waits against those of the large one.
Ends with every request closed and the ledger's audit clean.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import httpx

from tests.bench.measure import percentile
from tests.bench.product import Product, open_product

MODEL: Final = "bench/lanes"
SLOTS: Final = 16
STEP_MS: Final = 20
INTERACTIVE_TOKENS: Final = 16  # 0.3 s
BATCH_TOKENS: Final = 64  # 1.3 s
PER_SECOND: Final = 20  # interactive requests: 40 percent of the slots
CROWD: Final = 100  # requests of the large account for each one of the small
CLOSED_SECONDS: Final = 120.0
READY_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.2


class Lanes:
    """Requests of one product, by account and lane."""

    def __init__(self, product: Product, database: asyncpg.Connection) -> None:
        self._product = product
        self._database = database
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=product.base_url, limits=limits, timeout=300)

    async def ask(self, key: str, *, tokens: int, flex: bool = False) -> str:
        """Ask for a whole answer; return its id."""
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": tokens,
            "service_tier": "flex" if flex else "default",
        }
        headers = {"authorization": f"Bearer {key}", "inferbase-wait": "600"}
        answer = await self._client.post("/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def arrivals(self, key: str, seconds: float) -> list[str]:
        """Ask at a fixed rate for `seconds`; return the ids."""
        tasks = []
        begin = time.monotonic()
        for number in range(int(seconds * PER_SECOND)):
            await asyncio.sleep(max(0.0, begin + number / PER_SECOND - time.monotonic()))
            tasks.append(asyncio.create_task(self.ask(key, tokens=INTERACTIVE_TOKENS)))
        return list(await asyncio.gather(*tasks))

    async def waits_ms(self, ids: Sequence[str]) -> list[int]:
        """Return how long each of `ids` waited in the queue, once all of them are settled."""
        give_up = time.monotonic() + CLOSED_SECONDS
        while True:
            rows = await self._database.fetch("SELECT queue_ms FROM usage WHERE request_id = ANY ($1)", list(ids))
            if len(rows) == len(ids):
                return [row["queue_ms"] for row in rows]
            assert time.monotonic() < give_up, "not all were settled"
            await asyncio.sleep(POLL_SECONDS)

    def key(self, name: str) -> str:
        """Return a key of a new account with credits and without limits."""
        account = self._made("account", "create", "--email", f"{name}@example.com", "--concurrency", "0")["id"]
        self._made("credits", "grant", account, "1000")
        return str(self._made("key", "create", account, "--rpm", "0", "--concurrency", "0")["key"])

    def _made(self, *arguments: str) -> dict[str, Any]:
        done = self._product.command(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    async def close(self) -> None:
        await self._client.aclose()


async def interactive_beside_batch(lanes: Lanes, *, batch: int, seconds: float) -> None:
    """Print the waits of interactive requests, without and with a backlog of batch ones."""
    people, batches = lanes.key("people"), lanes.key("batches")
    alone = await lanes.waits_ms(await lanes.arrivals(people, seconds))
    backlog = [asyncio.create_task(lanes.ask(batches, tokens=BATCH_TOKENS, flex=True)) for _ in range(batch)]
    await asyncio.sleep(1)
    begun = time.monotonic()
    beside = await lanes.waits_ms(await lanes.arrivals(people, seconds))
    left = sum(not task.done() for task in backlog)
    served = [task.result() for task in backlog if task.done()]
    rate = len(served) / (time.monotonic() - begun)
    _print("interactive wait alone", alone)
    _print(f"interactive wait beside {batch} flex requests, {left} of them left at the end", beside)
    print(f"flex served meanwhile: {rate:.1f} requests/s")
    _print("flex wait", await lanes.waits_ms(list(await asyncio.gather(*backlog))))


async def two_accounts(lanes: Lanes) -> None:
    """Print the waits of an account beside one that sends CROWD times as much."""
    small, large = lanes.key("small"), lanes.key("large")
    rounds = 4
    crowd = [asyncio.create_task(lanes.ask(large, tokens=INTERACTIVE_TOKENS)) for _ in range(CROWD * rounds)]
    await asyncio.sleep(1)
    single = []
    for _ in range(rounds):
        single.append(await lanes.ask(small, tokens=INTERACTIVE_TOKENS))
    _print(f"wait of {rounds} requests beside {len(crowd)} of another account", await lanes.waits_ms(single))
    _print("wait of those", await lanes.waits_ms(list(await asyncio.gather(*crowd))))


def main() -> None:
    """Run the rows and print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lanes")
    parser.add_argument("--batch", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with open_product(workers=1) as (product, _):
        pairs = {"step_ms": STEP_MS, "slots": SLOTS, "tokens": 100_000}
        given = [part for name, value in pairs.items() for part in ("--option", f"{name}={value}")]
        done = product.command("model", "add", MODEL, "--engine", "simulator", *given)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for_model(product)
        asyncio.run(_run(product, options))
        audit = product.command("audit")
        print(audit.stdout.strip())


def wait_for_model(product: Product) -> None:
    """Return once the model is served; few polls, since each one counts against the limit of this address."""
    give_up = time.monotonic() + READY_SECONDS
    while httpx.get(f"{product.base_url}/models/{MODEL}/health").json().get("status") != "ready":
        assert time.monotonic() < give_up, f"{MODEL} was not loaded"
        time.sleep(1)


async def _run(product: Product, options: argparse.Namespace) -> None:
    database = await asyncpg.connect(product.ready["database_url"])
    lanes = Lanes(product, database)
    try:
        await interactive_beside_batch(lanes, batch=options.batch, seconds=options.seconds)
        await two_accounts(lanes)
    finally:
        await lanes.close()
        await database.close()


def _print(name: str, waits_ms: Sequence[int]) -> None:
    p50, p95 = percentile([float(each) for each in waits_ms], 50), percentile([float(each) for each in waits_ms], 95)
    print(f"{name}: p50 {p50:.0f} ms, p95 {p95:.0f} ms of {len(waits_ms)}")


if __name__ == "__main__":
    main()
