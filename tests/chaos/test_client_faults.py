"""Clients that reset before the first byte (C03), or stop reading (C04)."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psutil

from shared import keys
from tests.chaos.scenes import assert_serves, start
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, quiesced, settled_usage
from tests.streams import stream

RESETS_EACH = 5
LEAK_SECONDS_MOST = 5.0  # below a node's lease, which would give a leaked slot back
MEBIBYTE = 1024 * 1024
SLOW_SECONDS = 2.0
BUFFERED_CHUNKS_MOST = 256


async def test_c03_who_resets_before_the_first_byte_leaks_nothing(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", prefill_ms=300, step_ms=5, tokens=20)
    await start(cluster)
    await cluster.wait_ready("sim/slow")
    account_id, key = await cluster.add_account(concurrency=2)
    await assert_serves(cluster, key)
    await quiesced(cluster.database)
    moments: list[Callable[[], Awaitable[object]]] = [
        lambda: asyncio.sleep(0),
        lambda: _until(lambda: cluster.database.fetchval("SELECT count(*) FROM open_requests")),
        lambda: _until(lambda: cluster.redis.zcard(keys.leases("sim/slow"))),
    ]

    for moment in moments:
        for _ in range(RESETS_EACH):
            async with _raw_request(cluster, key, max_tokens=20) as client:
                await moment()
                _reset(client)
            await _until_not(lambda: cluster.redis.zcard(keys.leases("sim/slow")))
            await _until_not(lambda: cluster.redis.zcard(keys.slots(account_id)))
            await quiesced(cluster.database)
        # The node takes requests in the order of their arrival: behind this one all of those are over.
        await _until(lambda: _served(cluster, key), seconds=LEAK_SECONDS_MOST)
        await _until_not(lambda: cluster.redis.zcard(keys.slots(account_id)))

    await _until_not(lambda: cluster.redis.pubsub_channels(keys.channel("sim/slow", "") + "*"))
    assert await cluster.redis.keys("slots:*") == []
    assert await cluster.database.fetchval("SELECT held FROM accounts WHERE id = $1", account_id) == 0
    rows = await cluster.database.fetch("SELECT status, completion_tokens FROM usage WHERE status <> 'completed'")
    assert {row["status"] for row in rows} <= {"cancelled", "failed"}
    assert sum(row["completion_tokens"] for row in rows) == 0
    assert len(rows) >= 2 * RESETS_EACH
    await assert_serves(cluster, key)
    await _until_not(lambda: _client_sockets(cluster))
    await assert_clean(cluster.database, cluster.redis)


async def test_c04_who_stops_reading_is_cut_and_costs_the_node_no_memory(cluster: Cluster) -> None:
    await cluster.add_model("sim/slow", tokens=1_000_000, context=2_000_000)
    await start(cluster, slow_reader_seconds=SLOW_SECONDS, reader_chunks_most=BUFFERED_CHUNKS_MOST)
    await cluster.wait_ready("sim/slow")
    _, key = await cluster.add_account()
    await assert_serves(cluster, key)
    node = psutil.Process(cluster.processes["api0"].pid)
    memory_before = node.memory_info().rss
    memory_most = 0

    async with _raw_request(cluster, key, max_tokens=1_000_000) as client:
        began = time.monotonic()
        while await cluster.database.fetchval("SELECT count(*) FROM usage WHERE status = 'cancelled'") == 0:
            assert time.monotonic() - began < 60
            memory_most = max(memory_most, node.memory_info().rss)
            await asyncio.sleep(0.05)
        received = await asyncio.to_thread(_drained, client)

    assert memory_most - memory_before < 16 * MEBIBYTE
    assert b"[DONE]" not in received
    request_id = await cluster.database.fetchval("SELECT request_id FROM usage WHERE status = 'cancelled'")
    row = await settled_usage(cluster.database, request_id)
    assert row.completion_tokens > received.count(b'"content"') - 1
    assert row.cost == row.prompt_tokens * PRICES.prompt + row.completion_tokens * PRICES.completion
    await assert_serves(cluster, key)
    await assert_clean(cluster.database, cluster.redis)


@asynccontextmanager
async def _raw_request(cluster: Cluster, key: str, **fields: object) -> AsyncIterator[socket.socket]:
    """Send a streamed completion by hand, on a socket that takes little, and read nothing."""
    body = {"model": "sim/slow", "messages": [{"role": "user", "content": "story"}], "stream": True, **fields}
    content = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", cluster.ports["api0"]))
        head = (
            "POST /v1/chat/completions HTTP/1.1",
            "host: x",
            f"authorization: Bearer {key}",
            "content-type: application/json",
            f"content-length: {len(content)}",
        )
        client.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + content)
        yield client


def _reset(client: socket.socket) -> None:
    """Close without a goodbye: the other side gets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _drained(client: socket.socket) -> bytes:
    """Return what had been sent before the connection was cut."""
    parts = []
    client.settimeout(5)
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


async def _client_sockets(cluster: Cluster) -> int:
    """Return how many clients' sockets the node holds; its pools to the stores may have grown."""
    held = psutil.Process(cluster.processes["api0"].pid).net_connections("tcp")
    return sum(each.laddr.port == cluster.ports["api0"] and each.status != psutil.CONN_LISTEN for each in held)


async def _served(cluster: Cluster, key: str) -> bool:
    answer = await stream(cluster.base_url(), key, model="sim/slow")
    assert answer.complete or answer.status == 429, answer
    return answer.complete


async def _until(look: Callable[[], Awaitable[object]], *, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await look():
            await asyncio.sleep(0.005)


async def _until_not(look: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(20):
        while await look():
            await asyncio.sleep(0.005)
