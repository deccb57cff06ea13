"""What the shipped proxy does with the nodes behind it: whom it asks, what it tells them, what it never does twice."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.cluster import free_port
from tests.deploy import nodes
from tests.deploy.nodes import FakeNode, open_node
from tests.deploy.proxy import Proxy, configuration, exchange, open_proxy, tool
from tests.deploy.test_proxy_corpus import CORPUS

HOST = b"Host: api.example.com\r\n"
ASK = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}"
LOOK = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture
async def passing(tmp_path: Path) -> AsyncIterator[tuple[Proxy, FakeNode]]:
    """A proxy before one node that answers everything."""
    async with open_node(nodes.answer) as node:
        with open_proxy(tmp_path, [node.port]) as proxy:
            yield proxy, node


async def test_a_post_that_reached_a_dying_node_is_never_sent_again(tmp_path: Path) -> None:
    async with open_node(nodes.die) as first, open_node(nodes.die) as second:
        with open_proxy(tmp_path, [first.port, second.port]) as proxy:
            answer = await exchange(proxy.port, ASK)

    assert answer.status == 502
    assert answer.headers["retry-after"] == "2"
    assert json.loads(answer.body)["error"] == {
        "message": "No API node could be reached: retry shortly.",
        "type": "server_error",
        "param": None,
        "code": "dependency_unavailable",
    }
    assert len(first.heads) + len(second.heads) == 1


async def test_a_get_that_met_a_dying_node_is_asked_of_another(tmp_path: Path) -> None:
    async with open_node(nodes.die) as first, open_node(nodes.answer) as second:
        with open_proxy(tmp_path, [first.port, second.port]) as proxy:
            answers = [await exchange(proxy.port, LOOK) for _ in range(4)]

    assert [answer.status for answer in answers] == [200] * 4
    assert len(second.heads) == 4


async def test_a_post_goes_on_to_another_node_where_the_first_one_takes_no_connection(tmp_path: Path) -> None:
    async with open_node(nodes.answer) as node:
        with open_proxy(tmp_path, [free_port(), node.port]) as proxy:
            answers = [await exchange(proxy.port, ASK) for _ in range(6)]

    assert [answer.status for answer in answers] == [200] * 6
    assert len(node.heads) == 6


async def test_without_a_node_the_answer_says_so(tmp_path: Path) -> None:
    with open_proxy(tmp_path, [free_port()]) as proxy:
        answer = await exchange(proxy.port, ASK)

    assert answer.status == 502
    assert json.loads(answer.body)["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"].startswith("req_")


async def test_a_nodes_own_error_passes_as_it_is_and_only_once(tmp_path: Path) -> None:
    async with open_node(nodes.refuse) as first, open_node(nodes.refuse) as second:
        with open_proxy(tmp_path, [first.port, second.port]) as proxy:
            answer = await exchange(proxy.port, ASK)

    assert answer.status == 503
    assert (answer.headers["x-request-id"], answer.headers["retry-after"]) == ("req_node", "7")
    assert len(first.heads) + len(second.heads) == 1


async def test_connections_to_a_node_are_kept(tmp_path: Path) -> None:
    async with open_node(nodes.answer) as node:
        with open_proxy(tmp_path, [node.port]) as proxy:
            for _ in range(20):
                await exchange(proxy.port, LOOK)

    assert len(node.heads) == 20
    assert node.connections < 20 // 2


async def test_a_client_cannot_say_who_it_is(tmp_path: Path) -> None:
    said = b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Host: evil.example\r\n"
    said += b"X-Real-IP: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n"
    said += b"Connection: X-Forwarded-For, upgrade\r\nUpgrade: h2c\r\nProxy: evil\r\n"
    async with open_node(nodes.answer) as node:
        with open_proxy(tmp_path, [node.port]) as proxy:
            await exchange(proxy.port, LOOK.replace(HOST, HOST + said))

    sent = node.heads[0].decode().lower().split("\r\n")
    assert sorted(line for line in sent if line.startswith(("x-", "forwarded", "connection", "upgrade", "proxy"))) == [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
    ]
    assert [line for line in sent if line.startswith("host:")] == ["host: api.example.com"]


async def test_a_balancer_that_is_trusted_says_who_the_client_is(tmp_path: Path) -> None:
    said = b"X-Forwarded-For: 9.9.9.9, 1.2.3.4\r\n"
    async with open_node(nodes.answer) as node:
        with open_proxy(tmp_path, [node.port], trusted="127.0.0.0/8") as proxy:
            await exchange(proxy.port, LOOK.replace(HOST, HOST + said))

    assert b"X-Forwarded-For: 1.2.3.4\r\n" in node.heads[0]


async def test_the_name_of_a_model_may_hold_an_escaped_slash(tmp_path: Path) -> None:
    async with open_node(nodes.answer) as node:
        with open_proxy(tmp_path, [node.port]) as proxy:
            await exchange(proxy.port, LOOK.replace(b"/models", b"/models/Org%2FName?a=b%20c"))

    assert node.heads[0].startswith(b"GET /v1/models/Org%2FName?a=b%20c HTTP/1.1\r\n")


async def test_a_body_reaches_the_node_while_it_is_sent(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def watch(node: FakeNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await node.head(reader)
        assert await reader.readexactly(1) == b"{"
        begun.set()
        await reader.readexactly(1)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with open_node(watch) as node:
        with open_proxy(tmp_path, [node.port]) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(ASK[:-1])
            async with asyncio.timeout(5):
                await begun.wait()
            writer.write(b"}")
            status = await reader.readline()
            writer.close()
            await writer.wait_closed()

    assert status.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/api/v1/inference/usage/summary",
        "/api/v1/auth/me",
        "/api/v1/admin/accounts",
        "/webhooks/stripe",
        "/docs",
        "/docs/assets/start.js",
        "/openapi.json",
        "/livez",
        "/readyz",
    ],
)
async def test_every_route_of_the_product_is_passed_on(path: str, passing: tuple[Proxy, FakeNode]) -> None:
    proxy, node = passing

    answer = await exchange(proxy.port, LOOK.replace(b"/v1/models", path.encode()))

    assert answer.status == 200
    assert node.heads[-1].startswith(b"GET " + path.encode())


async def test_nothing_that_is_refused_reaches_a_node(passing: tuple[Proxy, FakeNode]) -> None:
    proxy, node = passing

    for sent, _ in CORPUS.values():
        await exchange(proxy.port, sent)

    assert all(head.startswith((b"GET /v1/models HTTP/1.1\r\n", b"POST /v1/chat/")) for head in node.heads), node.heads
    assert len(node.heads) <= 2  # the one with bare line feeds, made whole, and the begun body with a bad chunk


async def test_health_checks_ask_a_port_of_their_own(passing: tuple[Proxy, FakeNode]) -> None:
    proxy, _ = passing
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{proxy.status_port}/healthz")).json() == {"status": "ok"}
        assert (await client.get(f"{proxy.url}/healthz")).status_code == 404


def test_nginx_finds_nothing_to_say_about_the_configuration(tmp_path: Path) -> None:
    file, *_ = configuration(tmp_path, [free_port()])

    said = subprocess.run([tool("nginx"), "-t", "-q", "-c", str(file)], capture_output=True, check=False, text=True)

    assert (said.returncode, said.stderr) == (0, "")
