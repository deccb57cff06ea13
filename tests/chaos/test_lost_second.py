"""C26: Redis loses its last second, as after a power cut: killed, then its file cut back to a time stamp."""

import asyncio
import re
import time

from tests.chaos.conftest import MortalValkey
from tests.chaos.scenes import BRISK, assert_serves, begin, counted, start
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream

TOKENS = 300
SHORT_TOKENS = 16
TIME_STAMP = re.compile(rb"^#TS:(\d+)\r\n", re.MULTILINE)


async def test_c26_what_redis_forgot_is_charged_once_where_it_was_seen_to_its_end_and_free_where_it_broke(
    mortal_cluster: Cluster, mortal_valkey: MortalValkey
) -> None:
    cluster = mortal_cluster
    await cluster.redis.config_set("aof-timestamp-enabled", "yes")
    await cluster.add_model("sim/slow", step_ms=20, tokens=TOKENS)
    await cluster.add_model("sim/quick", tokens=TOKENS)  # says the same
    await cluster.add_model("sim/plain", tokens=SHORT_TOKENS)
    await start(cluster, stateless_seconds=3, sweep_seconds=1, **BRISK)
    await cluster.wait_ready("sim/slow")
    await cluster.wait_ready("sim/plain")
    account_id, key = await cluster.add_account()
    expected = (await stream(cluster.base_url(), key, model="sim/quick", content="story")).text
    short_text = (await stream(cluster.base_url(), key, model="sim/plain", content="story")).text
    running, running_task = await begin(cluster, key, 6)

    cluster.processes["settlement0"].kill()  # what ends from now on is known to Redis and to its readers only
    cut_at = int(time.time()) + 1
    while time.time() < cut_at:
        await asyncio.sleep(0.01)
    seen = await asyncio.gather(
        *(stream(cluster.base_url(), key, model="sim/plain", content="story") for _ in range(6))
    )
    late, late_task = await begin(cluster, key, 3)
    mortal_valkey.kill()
    kept = cut(mortal_valkey, cut_at)
    mortal_valkey.start()
    cluster.processes["settlement0"].start()
    await asyncio.gather(running_task, late_task)

    assert all(each.request_id.encode() in kept for each in running)
    assert not any(each.request_id.encode() in kept for each in (*seen, *late))
    assert all(each.complete and each.text == short_text for each in seen)
    for each in seen:
        row = await settled_usage(cluster.database, each.request_id, seconds=30)
        assert (row.status, row.completion_tokens) == ("completed", SHORT_TOKENS)
        assert row.cost == row.prompt_tokens * PRICES.prompt + SHORT_TOKENS * PRICES.completion
    for each in (*running, *late):
        await assert_honest(cluster, each, expected)
    assert all(each.error for each in late), "of these Redis knows nothing more"
    assert await counted(cluster, "worker0", "inferbase_log_refills_total") == len(running)
    assert await counted(cluster, "worker0", "inferbase_refused_appends_total", verdict="gone") == len(late)
    closed = await counted(cluster, "janitor0", "inferbase_janitor_closed_requests_total", evidence="witness")
    assert closed == len(seen) + len(late)
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)
    account = await cluster.database.fetchrow("SELECT balance, held FROM accounts WHERE id = $1", account_id)
    assert account is not None and account["balance"] > 0 == account["held"]


def cut(valkey: MortalValkey, unix_seconds: int) -> bytes:
    """Take away what was written from that second on; return what is left."""
    (file,) = valkey.folder.glob("appendonlydir/*.incr.aof")
    content = file.read_bytes()
    end = next((found.start() for found in TIME_STAMP.finditer(content) if int(found[1]) >= unix_seconds), len(content))
    with file.open("r+b") as opened:
        opened.truncate(end)
    return content[:end]


async def assert_honest(cluster: Cluster, got: Received, expected: str) -> None:
    """Assert that a stream is whole and charged once, or broken off, without a splice, and free."""
    row = await settled_usage(cluster.database, got.request_id, seconds=30)
    if got.complete:
        assert got.text == expected
        assert (row.status, row.completion_tokens) == ("completed", TOKENS)
        assert row.cost == row.prompt_tokens * PRICES.prompt + TOKENS * PRICES.completion
    else:
        assert got.error is not None and got.error["code"] == "worker_lost", got.error
        assert expected.startswith(got.text)
        assert (row.status, row.cost) == ("failed", 0)
