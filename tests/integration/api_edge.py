"""The HTTP edge on a real server, with named fakes behind it: for tests of what a client sees."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import uvicorn

from api.app import create_app
from api.auth import Authenticator
from api.catalogue import CatalogueView
from api.node import Node
from api.protocol import protocol_options
from api.waiting import WaitingRoom
from shared import ids, secrets
from shared.catalogue import Model
from shared.clock import SystemClock
from shared.database.api_keys import Principal
from shared.presence import Health
from shared.pricing import Prices
from shared.quota import Quotas
from shared.settings import ApiSettings, SecretSettings, Settings
from shared.submission import Submission
from shared.wire import Chunk, End, FinishReason, Usage

PEPPER = "p" * 32
MODEL = Model(id="Org/sim-1", engine="simulator", context=4096, prices=Prices(100, 50, 300), created_at=1700000000)

Step = Chunk | Exception | float  # a chunk arrives, `next` raises, or seconds go by


def chunk(seq: int, text: str = "", *, tokens: int = 1, finish: FinishReason | None = None, **fields: Any) -> Chunk:
    """Return one chunk of choice 0."""
    return Chunk(1, "request", 1, seq, fields.pop("choice", 0), text, tuple(range(tokens)), finish, **fields)


def end(seq: int, *, status: Any = "completed", **fields: Any) -> Chunk:
    """Return the last chunk of a log, without a token."""
    usage = fields.pop("usage", Usage(7, 2, 3))
    return Chunk(1, "request", 1, seq, 0, "", (), fields.pop("finish", None), end=End(status, usage, **fields))


HELLO: tuple[Step, ...] = (chunk(1, "Hel"), chunk(2, "lo"), chunk(3, finish="stop"), end(4))


class ScriptedAnswer:
    """Plays its script; remembers what it was told."""

    def __init__(self, submission: Submission, script: Sequence[Step]) -> None:
        self.request_id = ids.new_chat_id()
        self.model = submission.model.id
        self.created = 1700000001
        self.job = submission
        self.end: End | None = None
        self.quotas: Quotas | None = None
        self.closed = 0
        self.failed: list[str] = []
        self.told: list[tuple[int, int]] = []
        self.more = asyncio.Event()
        self._script = list(script)
        self._pause_ends = 0.0

    async def next(
        self, timeout_seconds: float, push: Callable[[list[Chunk]], bool] | None = None
    ) -> list[Chunk] | None:
        assert self.end is None, "an ended answer has no next chunk"
        while True:
            try:
                async with asyncio.timeout(timeout_seconds):
                    chunks = await self._next()
            except TimeoutError:
                return None
            if self.end is not None or push is None or not push(chunks):
                return chunks

    async def _next(self) -> list[Chunk]:
        clock = asyncio.get_running_loop().time
        while not self._script or isinstance(self._script[0], float):
            if self._script:  # who gives up waiting does not start the pause again
                self._pause_ends = self._pause_ends or clock() + self._script[0]
                await asyncio.sleep(self._pause_ends - clock())
                self._pause_ends = 0.0
                self._script.pop(0)
            else:
                self.more.clear()
                await self.more.wait()
        chunks = []
        while self._script and not isinstance(self._script[0], float):
            step = self._script.pop(0)
            if isinstance(step, Exception):
                raise step
            chunks.append(msgspec.structs.replace(step, request_id=self.request_id))
            if step.end is not None:
                self.end = step.end
        return chunks

    def push(self, *steps: Step) -> None:
        """Let more happen."""
        self._script.extend(steps)
        self.more.set()

    def delivered(self, seq: int, tokens: int) -> None:
        self.told.append((seq, tokens))

    def fail(self, code: str) -> None:
        if self.end is None:
            self.failed.append(code)

    def close(self) -> None:
        self.closed += 1


class FakeDispatcher:
    """Answers every submission by the script, or refuses it."""

    def __init__(self) -> None:
        self.script: Sequence[Step] = HELLO
        self.refusal: Exception | None = None
        self.submissions: list[Submission] = []
        self.answers: list[ScriptedAnswer] = []
        self.cancelled: list[str] = []
        self.keys: set[str] = set()

    async def submit(self, submission: Submission) -> ScriptedAnswer:
        self.submissions.append(submission)
        if self.refusal is not None:
            raise self.refusal
        answer = ScriptedAnswer(submission, self.script)
        self.answers.append(answer)
        return answer

    def live_keys(self) -> set[str]:
        return set(self.keys)

    def cancel_keys(self, key_ids: Sequence[str]) -> None:
        self.cancelled.extend(key_ids)


def principal(**fields: Any) -> Principal:
    """Return an active principal without limits."""
    values: dict[str, Any] = {
        "account_id": "acct_1",
        "key_id": "key_1",
        "active": True,
        "revoked": False,
        "expires_at": None,
        "rpm": 0,
        "tpm": 0,
        "key_concurrency": 0,
        "account_concurrency": 0,
    }
    return Principal(**(values | fields))


class Keys:
    """Whose keys exist; counts the look-ups."""

    def __init__(self) -> None:
        self.principals: dict[bytes, Principal] = {}
        self.lookups = 0
        self.failure: Exception | None = None

    def add(self, **fields: Any) -> str:
        """Return a new key."""
        key = secrets.make_key()
        self.principals[secrets.digest(key, PEPPER)] = principal(**fields)
        return key

    async def find(self, digest: bytes) -> Principal | None:
        self.lookups += 1
        if self.failure is not None:
            raise self.failure
        return self.principals.get(digest)


class Edge:
    """A served edge: its address, its fakes, and a client with a key."""

    def __init__(self, served: "Served", node: Node, dispatcher: FakeDispatcher, keys: Keys) -> None:
        self.port = port = served.port
        self.stop = served.stop
        self.node = node
        self.dispatcher = dispatcher
        self.keys = keys
        self.key = keys.add()
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.client = httpx.AsyncClient(
            base_url=self.base_url, timeout=10, headers={"authorization": f"Bearer {self.key}"}
        )

    async def post(self, content: bytes, **headers: str) -> httpx.Response:
        """Post raw bytes as a completions body."""
        headers = {"content-type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
        return await self.client.post("/chat/completions", content=content, headers=headers)

    async def complete(self, **fields: Any) -> httpx.Response:
        """Post a valid body with `fields` changed."""
        return await self.post(body(**fields))


def body(**fields: Any) -> bytes:
    """Return a valid completions body with `fields` changed; `...` leaves one out."""
    values = {"model": MODEL.id, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return msgspec.json.encode({name: value for name, value in values.items() if value is not ...})


@asynccontextmanager
async def open_edge(*, drain_seconds: int = 2, **api: Any) -> AsyncIterator[Edge]:
    """Serve the edge on loopback with fakes behind it."""
    settings = Settings(api=ApiSettings(**api), secrets=SecretSettings(key_pepper=PEPPER, wire_key="w" * 32))
    dispatcher, keys = FakeDispatcher(), Keys()
    with ThreadPoolExecutor(1) as decoders:
        node = _fake_node(settings, dispatcher, keys, decoders)
        async with serve_app(settings, lambda _: contextlib.nullcontext(node), drain_seconds=drain_seconds) as server:
            edge = Edge(server, node, dispatcher, keys)
            async with edge.client:
                yield edge


@asynccontextmanager
async def serve_app(
    settings: Settings, open_node: Callable[[Settings], Any], *, drain_seconds: int = 2
) -> AsyncIterator["Served"]:
    """Serve the application on a free port of loopback, in this event loop."""
    app = create_app(settings, open_node=open_node)
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=drain_seconds, **protocol_options()))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    task = asyncio.create_task(server._serve([listener]))
    while not server.started:
        await asyncio.sleep(0.005)
        assert not task.done(), task.exception()
    served = Served(listener.getsockname()[1], server, task)
    try:
        yield served
    finally:
        await served.stop()


class Served:
    """A running server."""

    def __init__(self, port: int, server: uvicorn.Server, task: asyncio.Task[None]) -> None:
        self.port = port
        self._server = server
        self._task = task

    async def stop(self) -> None:
        """Stop accepting, let streams finish for the drain time, close; as a signal does."""
        self._server.should_exit = True
        await self._task


def _fake_node(settings: Settings, dispatcher: FakeDispatcher, keys: Keys, decoders: ThreadPoolExecutor) -> Node:
    clock = SystemClock()

    async def list_models() -> list[Model]:
        return [MODEL]

    async def ready(model: str) -> Health:
        return Health(model=model, status="ready", eta_seconds=0, queue_depth=0, workers=1)

    async def nowhere(model: str, request_id: str) -> None:
        return None

    return Node(
        settings=settings,
        authenticator=Authenticator(
            keys.find, pepper=PEPPER, cache_seconds=settings.api.auth_cache_seconds, clock=clock
        ),
        catalogue=CatalogueView(list_models, fresh_seconds=2, clock=clock),
        dispatcher=dispatcher,  # type: ignore[arg-type]
        ledger=None,  # type: ignore[arg-type]
        redis=None,  # type: ignore[arg-type]
        decoders=decoders,
        waiting=WaitingRoom(ready, nowhere, clock=clock),
    )


def events(text: str) -> list[Any]:
    """Return the data of every event of a stream, JSON decoded, `[DONE]` as it is."""
    found = []
    for event in text.split("\n\n"):
        data = [line[6:] for line in event.split("\n") if line.startswith("data: ")]
        if data:
            found.append(data[0] if data[0] == "[DONE]" else msgspec.json.decode(data[0]))
    return found


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait for something that happens in this event loop."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def running(edge: Edge) -> ScriptedAnswer:
    """Return the answer that was just begun."""
    await until(lambda: edge.dispatcher.answers)
    return edge.dispatcher.answers[-1]
