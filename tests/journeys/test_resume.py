"""A stream that a client takes up again, on any node: no token lost or doubled, and nobody else's."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from tests.cluster import Cluster

QUESTION = {"model": "sim/plain", "messages": [{"role": "user", "content": "tell me a story"}], "max_tokens": 40}


class Reader:
    """A client that reads events with ids and remembers the last one."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.request_id = ""
        self.last = 0
        self.lines: list[str] = []  # of data
        self.ids: list[int] = []

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=30, headers={"Authorization": f"Bearer {self.key}"})

    async def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.request(method, url, **options)

    async def read(self, method: str, url: str, *, most: int = 10**6, **options: Any) -> int:
        """Read at most so many events; return the status."""
        async with self.client() as client, client.stream(method, url, **options) as answer:
            self.request_id = answer.headers.get("x-request-id", "")
            if answer.status_code != 200:
                await answer.aread()
                return answer.status_code
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    self.last = int(line[4:])
                    self.ids.append(self.last)
                elif line.startswith("data: "):
                    self.lines.append(line[6:])
                    most -= 1
                    if most == 0:
                        break
        return 200

    async def ask(self, base: str, *, most: int = 10**6, **fields: Any) -> int:
        body = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}, **fields}
        return await self.read(
            "POST", base + "/chat/completions", most=most, json=body, headers={"Inferbase-Resume": "1"}
        )

    async def resume(self, base: str, **options: Any) -> int:
        return await self.read(
            "GET", f"{base}/chat/completions/{self.request_id}/stream", params={"after": self.last}, **options
        )


@pytest.fixture
async def pair(cluster: Cluster) -> Cluster:
    """Two nodes before one worker that makes a token each ten milliseconds."""
    await cluster.add_model("sim/plain", step_ms=10, tokens=200)
    for name in ("api0", "api1"):
        cluster.start(name, "api")
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    await cluster.wait_ready()
    await cluster.wait_ready(node="api1")
    return cluster


async def test_a_stream_is_taken_up_on_another_node_without_loss_or_doubling(pair: Cluster) -> None:
    _, key = await pair.add_account()
    whole = Reader(key)
    await whole.ask(pair.base_url("api0"), n=2)

    broken = Reader(key)
    await broken.ask(pair.base_url("api0"), n=2, most=15)
    request_id = broken.request_id
    pair.processes["api0"].kill()
    status = await broken.resume(pair.base_url("api1"))

    assert status == 200
    assert broken.request_id == request_id
    assert broken.ids == sorted(set(broken.ids)) and set(broken.ids) == set(whole.ids)
    texts = [_texts(reader.lines) for reader in (whole, broken)]
    assert texts[0] == texts[1]
    assert broken.lines[-1] == "[DONE]" and broken.lines[-2] == _usage_line(broken.lines)
    again = Reader(key)
    again.request_id, again.last = request_id, broken.last
    assert await again.resume(pair.base_url("api1")) == 200
    assert again.lines == broken.lines[-2:]


def _texts(lines: list[str]) -> dict[int, str]:
    said: dict[int, str] = {}
    for line in lines:
        if line != "[DONE]":
            for choice in msgspec.json.decode(line)["choices"]:
                said[choice["index"]] = said.get(choice["index"], "") + choice["delta"].get("content", "")
    return said


def _usage_line(lines: list[str]) -> str:
    (line,) = [line for line in lines if '"choices":[],"usage":{' in line]
    return line


async def test_only_its_owner_finds_an_answer(pair: Cluster) -> None:
    _, key = await pair.add_account()
    _, stranger_key = await pair.add_account()
    base = pair.base_url()
    owner, stranger = Reader(key), Reader(stranger_key)
    await owner.ask(base)

    async def statuses(reader: Reader, request_id: str) -> list[tuple[int, str]]:
        url = f"{base}/chat/completions/{request_id}"
        answers = [
            await reader.send("GET", url),
            await reader.send("GET", url + "/stream"),
            await reader.send("POST", url + "/cancel"),
        ]
        return [(answer.status_code, answer.text) for answer in answers]

    nobodys = owner.request_id[:-3] + "zzz"
    assert [status for status, _ in await statuses(owner, owner.request_id)] == [200, 200, 200]
    strange = await statuses(stranger, owner.request_id)
    assert [status for status, _ in strange] == [404, 404, 404]
    assert strange == await statuses(stranger, nobodys)


async def test_the_finished_answer_is_what_the_stream_said(pair: Cluster) -> None:
    _, key = await pair.add_account()
    reader = Reader(key)
    await reader.ask(pair.base_url())

    found = (await reader.send("GET", f"{pair.base_url('api1')}/chat/completions/{reader.request_id}")).json()

    assert found["choices"][0]["message"]["content"] == _texts(reader.lines)[0]
    assert found["usage"]["completion_tokens"] == 40


async def test_a_running_answer_is_cancelled_by_its_owner(pair: Cluster) -> None:
    _, key = await pair.add_account()
    reader = Reader(key)
    await reader.ask(pair.base_url(), most=3, max_tokens=2000)
    url = f"{pair.base_url('api1')}/chat/completions/{reader.request_id}"

    assert (await reader.send("GET", url)).status_code == 409
    assert (await reader.send("POST", url + "/cancel")).json()["cancelled"] is True

    async with asyncio.timeout(5):
        while (usage := await reader.send("GET", f"{pair.base_url()}/usage/{reader.request_id}")).status_code == 404:
            await asyncio.sleep(0.01)
    assert usage.json()["status"] == "cancelled"
    assert (await reader.send("POST", url + "/cancel")).json()["cancelled"] is False


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "99999999999"])
async def test_a_bad_position_is_refused(pair: Cluster, after: str) -> None:
    _, key = await pair.add_account()
    reader = Reader(key)
    await reader.ask(pair.base_url())
    url = f"{pair.base_url()}/chat/completions/{reader.request_id}/stream"

    assert (await reader.send("GET", url, params={"after": after})).status_code == 400
    assert (await reader.send("GET", url, params={"after": reader.last + 5})).status_code == 400
    assert (await reader.send("GET", url, headers={"Last-Event-ID": after})).status_code == 400
