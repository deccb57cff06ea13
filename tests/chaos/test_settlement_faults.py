"""Settlement that dies, stays away, or is handed a record that it cannot read (C21, C23, C24)."""

import asyncio
import signal

from shared import keys
from shared.connections import Redis
from shared.queue.settlements import SettlementQueue
from shared.settings import SettlementSettings
from tests.chaos.scenes import assert_serves, counted, start, start_told
from tests.cluster import PRICES, WIRE_KEY, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import stream

MODEL = "sim/plain"
REQUESTS = 40
TOKENS = 16
OTHER_WIRE_KEY = "o" * 32


async def test_c21_settlement_killed_before_its_commit_settles_once_when_it_is_back(cluster: Cluster) -> None:
    await cluster.add_model(MODEL)
    await start(cluster)
    await cluster.wait_ready()
    _, key = await cluster.add_account()
    cluster.processes["settlement0"].kill()
    start_told(cluster, "settlement1", "settlement", crash_point="before_settle_commit")

    got = await stream(cluster.base_url(), key)
    assert await asyncio.to_thread(cluster.processes["settlement1"].wait, 20) == -signal.SIGKILL
    charged_before = await cluster.database.fetchval("SELECT count(*) FROM usage")
    start_told(cluster, "settlement2", "settlement", settle_idle_ms=500)
    row = await settled_usage(cluster.database, got.request_id, seconds=60)

    assert charged_before == 0
    assert (row.status, row.completion_tokens) == ("completed", TOKENS)
    assert await charges(cluster) == [row.cost]
    await drained(cluster.redis)
    assert await counted(cluster, "settlement2", "inferbase_settled_records_total", verdict="settled") == 1
    await assert_serves(cluster, key, model=MODEL)
    await assert_clean(cluster.database, cluster.redis)


async def test_c23_what_ended_while_settlement_was_away_is_charged_when_it_is_back(cluster: Cluster) -> None:
    await cluster.add_model(MODEL)
    # State and log expire at once, and the janitor looks at what has none: the records alone must be enough.
    await start(cluster, finished_keep_seconds=0.5, stateless_seconds=1, sweep_seconds=1, backlog_patience_seconds=0.2)
    await cluster.wait_ready()
    _, key = await cluster.add_account()
    cluster.processes["settlement0"].kill()

    results = await asyncio.gather(*(stream(cluster.base_url(), key) for _ in range(REQUESTS)))
    while await counted(cluster, "janitor0", "inferbase_janitor_skipped_sweeps_total", reason="backlog") < 2:
        await asyncio.sleep(0.05)
    states = await cluster.redis.keys(keys.state(MODEL, "") + "*")
    backlog = await counted(cluster, "janitor0", "inferbase_settlement_backlog_records")
    lag = await counted(cluster, "janitor0", "inferbase_settlement_lag_seconds")
    charged_before = await cluster.database.fetchval("SELECT count(*) FROM usage")
    start_told(cluster, "settlement1", "settlement")
    rows = [await settled_usage(cluster.database, each.request_id) for each in results]

    assert all(each.complete for each in results)
    assert (states, charged_before, backlog) == ([], 0, REQUESTS)
    assert lag >= 1
    cost = rows[0].prompt_tokens * PRICES.prompt + TOKENS * PRICES.completion
    assert {(row.status, row.completion_tokens, row.cost) for row in rows} == {("completed", TOKENS, cost)}
    assert await charges(cluster) == [cost] * REQUESTS
    await drained(cluster.redis)
    while await counted(cluster, "janitor0", "inferbase_settlement_backlog_records"):
        await asyncio.sleep(0.05)
    assert await counted(cluster, "janitor0", "inferbase_janitor_closed_requests_total") == 0
    await assert_serves(cluster, key, model=MODEL)
    await assert_clean(cluster.database, cluster.redis)


async def test_c24_a_record_that_cannot_be_read_is_set_aside_and_charged_once_it_is_replayed(cluster: Cluster) -> None:
    await cluster.add_model(MODEL)
    await start(cluster)
    await cluster.wait_ready()
    _, key = await cluster.add_account()
    cluster.processes["worker0"].stop()
    # A key that this worker got and settlement did not: its jobs it can open, its records nobody can.
    start_told(cluster, "worker1", "worker", engine="simulator", wire_key=OTHER_WIRE_KEY, wire_key_previous=WIRE_KEY)
    sealed = await stream(cluster.base_url(), key)
    await cluster.redis.xadd(keys.settlement(MODEL), {"f": b"no record at all"})
    queue = SettlementQueue(cluster.redis, SettlementSettings())
    while len(letters := await queue.dead_letters(MODEL)) < 2:
        await asyncio.sleep(0.01)
    cluster.processes["worker1"].stop()
    start_told(cluster, "worker2", "worker", engine="simulator")
    after = await stream(cluster.base_url(), key)
    row = await settled_usage(cluster.database, after.request_id)
    dead = await counted(cluster, "settlement0", "inferbase_dead_letters_records_total", reason="invalid_seal")
    charged_before = await charges(cluster)

    cluster.processes["settlement0"].stop()
    start_told(cluster, "settlement1", "settlement", wire_key_previous=OTHER_WIRE_KEY)
    assert await queue.replay(MODEL, [letter.entry_id for letter in letters]) == 2
    replayed = await settled_usage(cluster.database, sealed.request_id)
    while len(again := await queue.dead_letters(MODEL)) < 1:
        await asyncio.sleep(0.01)

    assert (sealed.complete, after.complete, row.status, dead) == (True, True, "completed", 2)
    assert charged_before == [row.cost]
    assert (replayed.status, replayed.cost) == ("completed", row.cost)
    assert await charges(cluster) == [row.cost] * 2
    assert [(letter.reason, letter.payload) for letter in again] == [("invalid_seal", b"no record at all")]
    await drained(cluster.redis)
    await assert_serves(cluster, key, model=MODEL)
    await assert_clean(cluster.database, cluster.redis)


async def charges(cluster: Cluster) -> list[int]:
    """Return what was charged, one number for each transfer."""
    rows = await cluster.database.fetch("SELECT amount FROM transfers WHERE request_id IS NOT NULL")
    return [row["amount"] for row in rows]


async def drained(redis: Redis) -> None:
    """Return once every settlement record is acknowledged."""
    async with asyncio.timeout(20):
        while await redis.xlen(keys.settlement(MODEL)):
            await asyncio.sleep(0.01)
