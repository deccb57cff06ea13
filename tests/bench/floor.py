"""The floor: the bare shape of the product, which every figure is compared with.

    POST -> SUBSCRIBE -> LPUSH -> BLPOP -> one pipeline of PUBLISH per step -> SSE (or one JSON body)

No account, no money, no log, no lease, no cancel, no checks; an answer is lost with whichever process dies. The same
libraries as the product's (uvicorn, redis-py, uvloop), one API process, one worker, one Valkey.
"""

import asyncio
import itertools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import redis.asyncio
import uvicorn
import uvloop

from compose.stores import free_port, open_valkey
from tests.bench.load import Client
from tests.bench.measure import Roles

QUEUE: Final = "floor:queue"
START_SECONDS: Final = 20.0
SSE_HEADERS: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
JSON_HEADERS: Final = [(b"content-type", b"application/json")]
ROOT: Final = Path(__file__).resolve().parents[2]


class Ask(msgspec.Struct, frozen=True):
    """What a client asks for."""

    tokens: int
    step_ms: float
    stream: bool


class Task(msgspec.Struct, array_like=True):
    """What stands in the queue."""

    channel: str
    tokens: int
    step_ms: float


class Relay:
    """The channels of one API process, on one connection."""

    def __init__(self, url: str) -> None:
        self.redis: Final = redis.asyncio.Redis.from_url(url)
        self._subscriptions = self.redis.pubsub()
        self._queues: dict[bytes, asyncio.Queue[bytes]] = {}
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}

    async def read(self) -> None:
        await self._subscriptions.subscribe("floor:none")
        while True:
            kind, channel, data = await self._subscriptions.parse_response(block=True)
            if kind == b"message":
                if (queue := self._queues.get(channel)) is not None:
                    queue.put_nowait(data)
            elif kind == b"subscribe" and channel in self._confirmed:
                self._confirmed.pop(channel).set_result(None)

    async def subscribe(self, channel: str) -> "asyncio.Queue[bytes]":
        name = channel.encode()
        queue = self._queues[name] = asyncio.Queue()
        confirmed = self._confirmed[name] = asyncio.get_running_loop().create_future()
        await self._subscriptions.subscribe(channel)
        await confirmed
        return queue

    async def unsubscribe(self, channel: str) -> None:
        name = channel.encode()
        del self._queues[name]
        await self._subscriptions.unsubscribe(channel)
        del self._subscriptions.channels[name]  # `parse_response` leaves the client's books to us
        self._subscriptions.pending_unsubscribe_channels.discard(name)


class FloorApi:
    """The ASGI application."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._numbers = itertools.count()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            event = await receive()
            body += event["body"]
            if not event["more_body"]:
                break
        ask = msgspec.json.decode(body, type=Ask)
        channel = f"floor:{next(self._numbers)}"
        queue = await self._relay.subscribe(channel)
        task = msgspec.msgpack.encode(Task(channel, ask.tokens, ask.step_ms))
        await self._relay.redis.lpush(QUEUE, task)
        if ask.stream:
            await self._stream(queue, send)
        else:
            await self._fold(queue, send)
        await self._relay.unsubscribe(channel)

    async def _stream(self, queue: "asyncio.Queue[bytes]", send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        last = False
        while not last:
            data = await queue.get()
            last = data[:1] == b"1"
            event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % data[1:]
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _fold(self, queue: "asyncio.Queue[bytes]", send: Any) -> None:
        texts = []
        last = False
        while not last:
            data = await queue.get()
            last = data[:1] == b"1"
            texts.append(data[1:])
        body = b'{"choices":[{"index":0,"message":{"content":"%b"}}]}' % b"".join(texts)
        headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    """One request in the floor's worker."""

    def __init__(self, task: Task) -> None:
        self.channel: Final = task.channel
        self.left = task.tokens
        self.received_ns = time.monotonic_ns()

    def step(self) -> bytes:
        self.left -= 1
        start = b"@R%016x" % self.received_ns if self.received_ns else b""
        self.received_ns = 0
        return b"%d%b@S%016x" % (self.left == 0, start, time.monotonic_ns())


async def work(url: str) -> None:
    """Take tasks for ever; requests of the same pace step together."""
    client = redis.asyncio.Redis.from_url(url)
    steppers: dict[float, tuple[list[Running], asyncio.Event]] = {}
    tasks: set[asyncio.Task[None]] = set()
    while True:
        _, first = await client.blpop([QUEUE])
        more = await client.rpop(QUEUE, 63) or []
        for payload in (first, *more):
            task = msgspec.msgpack.decode(payload, type=Task)
            if task.step_ms not in steppers:
                steppers[task.step_ms] = ([], asyncio.Event())
                tasks.add(asyncio.create_task(_step(client, task.step_ms / 1000, *steppers[task.step_ms])))
            running, awake = steppers[task.step_ms]
            running.append(Running(task))
            awake.set()


async def _step(client: "redis.asyncio.Redis", seconds: float, running: list[Running], awake: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        if not running:
            awake.clear()
            await awake.wait()
            due = loop.time()
        due = max(due + seconds, loop.time())
        await asyncio.sleep(due - loop.time())
        pipeline = client.pipeline(transaction=False)
        for request in running:
            pipeline.publish(request.channel, request.step())
        running[:] = [request for request in running if request.left]
        await pipeline.execute()


async def serve(url: str, port: int) -> None:
    """Serve HTTP until SIGTERM."""
    relay = Relay(url)
    reading = asyncio.create_task(relay.read())
    config = uvicorn.Config(
        FloorApi(relay),
        port=port,
        lifespan="off",
        http="httptools",
        access_log=False,
        log_level="warning",
        date_header=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    await uvicorn.Server(config).serve()
    reading.cancel()


class Floor:
    """A started floor."""

    def __init__(self, port: int, roles: Roles) -> None:
        self.port: Final = port
        self.roles: Final = roles

    def client(self) -> Client:
        return Client(self.port, "/")

    def body(self, *, tokens: int, step_ms: float, stream: bool) -> bytes:
        return msgspec.json.encode(Ask(tokens, step_ms, stream))


@contextmanager
def open_floor() -> Iterator[Floor]:
    """Start Valkey, the worker and the API of the floor, and stop them."""
    with tempfile.TemporaryDirectory(prefix="inferbase-floor-") as name:
        port = free_port()
        with open_valkey(Path(name), free_port(), password="") as valkey:
            command = [sys.executable, "-m", "tests.bench.floor"]
            worker = subprocess.Popen([*command, "worker", valkey.url], cwd=ROOT)
            api = subprocess.Popen([*command, "api", valkey.url, str(port)], cwd=ROOT)
            try:
                _wait_until_served(port)
                yield Floor(port, {"api": [api.pid], "worker": [worker.pid], "valkey": [valkey.pid]})
            finally:
                for process in (api, worker):
                    process.send_signal(signal.SIGKILL)
                    process.wait()


def _wait_until_served(port: int) -> None:
    async def knock() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    give_up = time.monotonic() + START_SECONDS
    while not uvloop.run(knock()):
        if time.monotonic() > give_up:
            raise TimeoutError("the floor did not start")
        time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1] == "api":
        uvloop.run(serve(sys.argv[2], int(sys.argv[3])))
    else:
        uvloop.run(work(sys.argv[2]))
