"""A model that sleeps is no model that is missing: streams wait and are told, others are asked to come again."""

import asyncio
import re
import subprocess
import sys
import time

import httpx
import openai
import pytest

from shared import keys
from tests.cluster import ROOT, Cluster


@pytest.fixture
async def sleepy(cluster: Cluster) -> Cluster:
    """One worker with one place for two models; the second one takes two seconds to load."""
    await cluster.add_model("sim/plain")
    await cluster.add_model("sim/slow", load_seconds=2)
    cluster.start("api0", "api", ping_seconds=0.3, status_hold_seconds=0.3)
    cluster.start("worker0", "worker", engine="simulator", models_most=1, model_turn_seconds=0.2)
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    await cluster.redis.hset(keys.LOAD_TIMES, "sim/slow", 2)  # as an earlier worker measured
    await cluster.wait_ready()
    return cluster


async def test_a_stream_waits_for_a_sleeping_model_and_is_told_its_place(sleepy: Cluster) -> None:
    _, key = await sleepy.add_account()
    body = {"model": "sim/slow", "stream": True, "messages": [{"role": "user", "content": "Say exactly: awake"}]}
    headers = {"Authorization": f"Bearer {key}"}

    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("POST", sleepy.base_url() + "/chat/completions", json=body, headers=headers) as answer,
    ):
        text = "".join([part async for part in answer.aiter_text()])

    assert answer.status_code == 200
    assert re.search(r"^: queued position=1 eta_s=\d+ model=loading$", text, re.MULTILINE)
    assert "".join(re.findall(r'"content":"(.*?)"', text)) == "awake"
    assert text.endswith("data: [DONE]\n\n")


async def test_who_does_not_stream_is_told_when_to_come_again(sleepy: Cluster) -> None:
    _, key = await sleepy.add_account()
    client = openai.AsyncOpenAI(base_url=sleepy.base_url(), api_key=key, max_retries=4)
    seen: list[int] = []

    async def note(response: httpx.Response) -> None:
        seen.append(response.status_code)
        if response.status_code == 502:
            assert 1 <= int(response.headers["retry-after"]) <= 120

    client._client.event_hooks = {"request": [], "response": [note]}
    started = time.monotonic()
    answer = await client.chat.completions.create(
        model="sim/slow",
        messages=[{"role": "user", "content": "Say exactly: awake"}],
        extra_headers={"Inferbase-Wait": "2"},
    )

    assert answer.choices[0].message.content == "awake"
    assert seen[0] == 502 and seen[-1] == 200
    assert time.monotonic() - started < 40
    await client.close()


async def test_a_worker_is_listed_and_sent_away(sleepy: Cluster) -> None:
    def command(*arguments: str) -> str:
        environment = sleepy.processes["api0"].environment
        done = subprocess.run(
            [sys.executable, "-m", "compose.cli", "workers", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    listed = await asyncio.to_thread(command, "list", "--json")
    owner = re.search(r"own_\w+", listed)
    assert owner is not None and '"cold"' in listed and '"ready"' in listed

    await asyncio.to_thread(command, "drain", owner[0])

    assert sleepy.processes["worker0"].wait(10) == 0
    assert owner[0] not in await asyncio.to_thread(command, "list", "--json")
