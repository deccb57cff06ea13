"""C13 on a real engine: the demo model's worker is killed in the middle of greedy answers, another one goes on."""

import asyncio
import signal

from compose.chosen_model import DEMO_CONTEXT_TOKENS, DEMO_FILE
from tests.chaos.scenes import BRISK, counted, start, start_told
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage
from tests.streams import Received, stream

MODEL = "inferbase/demo"
QUESTIONS = ("Count from 1 to 20", "What is Inferbase?", "Tell me a short story about a dog.")
WRITES = 2  # of tokens, then the worker dies: a fast engine ends in a few


async def test_c13_greedy_answers_of_a_real_engine_go_on_word_for_word_in_another_process(cluster: Cluster) -> None:
    await cluster.add_model(MODEL, engine="llamacpp", context=DEMO_CONTEXT_TOKENS, path=DEMO_FILE)
    await start(cluster, workers=0, **BRISK)
    start_told(cluster, "worker0", "worker", engine="llamacpp", crash_point=f"after_append:{WRITES}", **BRISK)
    await cluster.wait_ready(MODEL)
    _, key = await cluster.add_account()
    results = [Received() for _ in QUESTIONS]

    async def ask(question: str, received: Received | None = None) -> Received:
        return await stream(
            cluster.base_url(), key, model=MODEL, content=question, temperature=0, max_tokens=200, received=received
        )

    asked = [asyncio.create_task(ask(*each)) for each in zip(QUESTIONS, results, strict=True)]
    assert await asyncio.to_thread(cluster.processes["worker0"].wait, 30) == -signal.SIGKILL
    start_told(cluster, "worker1", "worker", engine="llamacpp", **BRISK)
    await asyncio.gather(*asked)
    whole = [await ask(question) for question in QUESTIONS]

    assert all(each.complete for each in results), [each.error for each in results]
    assert [each.text for each in results] == [each.text for each in whole]
    for each, reference in zip(results, whole, strict=True):
        row = await settled_usage(cluster.database, each.request_id)
        assert reference.usage is not None
        assert (row.status, row.completion_tokens) == ("completed", reference.usage["completion_tokens"])
        fresh = row.prompt_tokens - row.cached_tokens
        assert row.cost == (
            fresh * PRICES.prompt + row.cached_tokens * PRICES.cached + row.completion_tokens * PRICES.completion
        )
    assert await counted(cluster, "worker1", "inferbase_resumed_requests_total") >= 1
    await assert_clean(cluster.database, cluster.redis)
