"""API nodes that die before they reserve (C06), freeze (C09), or have heavy work to do (C10)."""

import asyncio
import signal

from tests.chaos.scenes import assert_serves, begin, start, start_told
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import stream

FREEZE_SECONDS = 5.0
RESUMABLE = {"Inferbase-Resume": "1"}
HASTY_NODES = {"node_lease_seconds": 1, "node_beat_seconds": 0.3, "no_reader_seconds": 1}


async def test_c06_an_api_node_killed_before_it_reserves_holds_and_charges_nothing(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", tokens=4)
    await start(cluster)
    start_told(cluster, "api1", "api", crash_point="before_reserve_commit")
    await cluster.wait_ready("sim/slow")
    await cluster.wait_ready("sim/slow", node="api1")
    account_id, key = await cluster.add_account("0.001")

    broken = await asyncio.gather(
        stream(cluster.base_url("api1"), key, model="sim/slow", max_tokens=4), return_exceptions=True
    )
    assert await asyncio.to_thread(cluster.processes["api1"].wait, 20) == -signal.SIGKILL

    assert isinstance(broken[0], Exception)
    assert await cluster.database.fetchval("SELECT count(*) FROM requests") == 0
    account = await cluster.database.fetchrow("SELECT balance, held FROM accounts WHERE id = $1", account_id)
    assert account is not None and tuple(account) == (1_000_000, 0)
    again = await stream(cluster.base_url(), key, model="sim/slow", max_tokens=4)
    assert again.complete
    await assert_clean(cluster.database, cluster.redis)


async def test_c09_a_node_frozen_for_five_seconds_goes_on_with_the_exact_text(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=200)
    await cluster.add_model("sim/quick", tokens=200)  # says the same
    await start(cluster)
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    expected = await stream(cluster.base_url(), key, model="sim/quick", content="story")
    results, running = await begin(cluster, key, 6)

    cluster.processes["api0"].send(signal.SIGSTOP)
    await asyncio.sleep(FREEZE_SECONDS)
    cluster.processes["api0"].send(signal.SIGCONT)
    await running

    assert all(each.complete and each.text == expected.text for each in results), [each.error for each in results]
    for each in results:
        row = await settled_usage(cluster.database, each.request_id)
        assert (row.status, row.completion_tokens, row.attempts) == ("completed", 200, 1)
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)


async def test_c09_a_node_frozen_for_longer_than_its_lease_ends_honestly_what_cannot_be_resumed(
    cluster: Cluster,
) -> None:
    await cluster.add_model("sim/slow", step_ms=20, tokens=250)
    await cluster.add_model("sim/quick", tokens=250)  # says the same
    await start(cluster, **HASTY_NODES)
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    expected = await stream(cluster.base_url(), key, model="sim/quick", content="story")
    results, running = await begin(cluster, key, 6, headers=(RESUMABLE, {}))
    resumable, others = results[::2], results[1::2]

    cluster.processes["api0"].send(signal.SIGSTOP)
    rows = [await settled_usage(cluster.database, each.request_id) for each in others]
    cluster.processes["api0"].send(signal.SIGCONT)
    await running

    assert all(each.complete and each.text == expected.text for each in resumable), [each.error for each in resumable]
    for each, row in zip(others, rows, strict=True):
        assert each.error is not None and not each.done
        assert each.error["code"] == "request_cancelled", each.error
        assert expected.text.startswith(each.text)
        assert (row.status, row.completion_tokens < 250) == ("cancelled", True)
        assert row.cost == row.prompt_tokens * PRICES.prompt + row.completion_tokens * PRICES.completion
    for each in resumable:
        whole = await settled_usage(cluster.database, each.request_id)
        assert (whole.status, whole.completion_tokens) == ("completed", 250)
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)
