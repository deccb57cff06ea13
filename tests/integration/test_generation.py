"""What a request may ask for beside plain text, from a queued job to its log: choices, calls, guides, vectors."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from shared import keys
from shared.channel import LogWriter, read_log
from shared.clock import SystemClock
from shared.connections import Redis
from shared.errors import AnswerLost
from shared.openai.fold import fold_for
from shared.openai.request import CompletionRequest
from shared.queue.claims import HANDED_OVER
from shared.settings import QueueSettings
from shared.wire import PLAIN_CHAT, Finish, Guide, Job, Message, Sampling, Task, Tool, ToolUse, decode_finish
from tests.integration.queue_rig import MODEL, SEAL, Rig, open_rig, until
from workers.engines import open_engine
from workers.engines.base import EngineOptions
from workers.inference.complete import Completer
from workers.inference.models import LoadedModel

SCHEMA = '{"type":"object","properties":{"city":{"type":"string","maxLength":5}},"required":["city"]}'
TOOLS = (Tool("weather", "Now", SCHEMA), Tool("time", None, "{}"))
ENGINES = ["simulator", "llamacpp"]


class Product:
    """A worker's job over a real queue."""

    def __init__(self, redis: Redis, rig: Rig, loaded: LoadedModel) -> None:
        self.redis = redis
        self.rig = rig
        self.loaded = loaded
        self.writer = LogWriter(redis, SEAL, QueueSettings())
        self.completer = Completer(
            lambda _: loaded,
            writer=self.writer,
            redis=redis,
            clock=SystemClock(),
            settings=QueueSettings(),
            on_dead=lambda why: None,
        )

    async def run(self, text: str, task: Task = PLAIN_CHAT, **sampling: Any) -> Job:
        """Run one request to its end and return its job."""
        sampling = {"max_tokens": 64, "temperature": 0.0, **sampling}
        messages = () if task.kind != "chat" else (Message("user", text),)
        job = await self.rig.enqueue(messages=messages, task=task, sampling=Sampling(**sampling), hold=10**12)
        await self.completer(await self.rig.claim_one())
        return job

    async def body(self, job: Job) -> Any:
        """Return the whole answer as a client gets it."""
        chunks = await read_log(self.redis, MODEL, job.request_id)
        fold = fold_for(CompletionRequest(model=MODEL, messages=(), sampling=job.sampling, task=job.task))
        fold.add(chunks)
        end = chunks[-1].end
        assert end is not None and end.status == "completed", end
        return fold.body(job.request_id, 0, MODEL, end.usage)

    async def refusal(self, job: Job) -> tuple[str | None, str | None]:
        end = (await read_log(self.redis, MODEL, job.request_id))[-1].end
        assert end is not None and end.status == "failed"
        return end.code, end.message

    async def record(self) -> Finish:
        ((_, fields),) = await self.redis.xrange(keys.settlement(MODEL))
        return decode_finish(SEAL.open(fields[b"f"]))


@pytest.fixture(params=ENGINES)
async def product(redis: Redis, request: Any) -> AsyncIterator[Product]:
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(open_rig(redis))
        options = EngineOptions(model=MODEL, context=1024, slots=4)
        engine = await stack.enter_async_context(open_engine(request.param, options))
        product = Product(redis, rig, LoadedModel(engine, 0.0))
        stack.push_async_callback(product.writer.close)
        yield product


only_simulator = pytest.mark.parametrize("product", ["simulator"], indirect=True)
only_llamacpp = pytest.mark.parametrize("product", ["llamacpp"], indirect=True)


async def test_several_choices_are_one_answer(product: Product) -> None:
    job = await product.run("Hello!", choices=3, max_tokens=8, temperature=1.0, seed=5)

    body = await product.body(job)
    assert [choice.index for choice in body.choices] == [0, 1, 2]
    assert all(choice.finish_reason in ("stop", "length") for choice in body.choices)
    record = await product.record()
    assert record.usage.completion_tokens == body.usage.completion_tokens <= 24
    assert product.loaded.running == 0


@pytest.mark.parametrize("choice", ["required", "named"])
async def test_a_call_that_is_required_is_made(product: Product, choice: Any) -> None:
    use = ToolUse(TOOLS, choice, "weather" if choice == "named" else None, parallel=False)

    body = await product.body(await product.run("Hello!", Task(tool_use=use), max_tokens=200))

    (said,) = body.choices
    assert said.finish_reason == "tool_calls"
    (call,) = said.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert choice == "required" or (call.function.name == "weather" and len(arguments["city"]) <= 5)
    assert said.message.content is None


@pytest.mark.parametrize("guide", [Guide("json_object"), Guide("json_schema", SCHEMA)])
async def test_a_guided_answer_is_json_of_its_schema(product: Product, guide: Guide) -> None:
    body = await product.body(await product.run("Where?", Task(guide=guide), max_tokens=300))

    (said,) = body.choices
    if said.finish_reason == "stop":
        found = json.loads(said.message.content)
        assert guide.kind == "json_object" or isinstance(found["city"], str)
    else:
        assert guide.kind == "json_object"  # nothing bounds it


@only_simulator
async def test_a_scripted_call_is_told_from_text(product: Product) -> None:
    text = 'Call the function weather with {"city": "Bern"}'

    body = await product.body(await product.run(text, Task(tool_use=ToolUse(TOOLS)), max_tokens=200))

    (said,) = body.choices
    assert [call.function.name for call in said.message.tool_calls] == ["weather"]
    assert json.loads(said.message.tool_calls[0].function.arguments) == {"city": "Bern"}
    assert said.finish_reason == "tool_calls"


@only_simulator
@pytest.mark.parametrize("text", ["a <", "a <tool_call>{", "no "])
async def test_a_stop_string_swallows_nothing_before_it_that_could_have_become_a_call(
    product: Product, text: str
) -> None:
    task = Task(tool_use=ToolUse(TOOLS))

    body = await product.body(await product.run(f"Say exactly: {text}END more", task, stop=("END",)))

    assert (body.choices[0].message.content, body.choices[0].finish_reason) == (text, "stop")


@only_llamacpp
async def test_log_probabilities_are_one_for_each_token(product: Product) -> None:
    job = await product.run("What is Inferbase?", top_logprobs=2, max_tokens=12)

    body = await product.body(job)
    content = body.choices[0].logprobs.content
    assert len(content) == body.usage.completion_tokens
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in content)
    text = bytes(byte for one in content for byte in one.bytes).decode()
    assert text.startswith(body.choices[0].message.content)


async def test_bare_prompts_are_completed_each(product: Product) -> None:
    ids = tuple(product.loaded.engine.tokenizer.encode("Hello", special=False))
    task = Task(kind="completion", prompts=("Hello", ids), echo=True)

    body = await product.body(await product.run("", task, max_tokens=5, choices=2))

    assert [choice.text.startswith("Hello") for choice in body.choices] == [True] * 4
    assert body.choices[0].text == body.choices[1].text or product.loaded.engine.capabilities.logprobs
    assert body.usage.prompt_tokens >= 2 * len(ids)


@only_simulator
async def test_an_echoed_prompt_is_no_token_of_the_engine(redis: Redis, product: Product) -> None:
    settings = QueueSettings(next_token_seconds=-1, first_token_seconds=60)
    slow = EngineOptions(model=MODEL, context=1024, slots=4, options={"prefill_ms": "600000"})
    async with open_engine("simulator", slow) as engine:
        loaded = LoadedModel(engine, 0.0)
        completer = Completer(
            lambda _: loaded,
            writer=product.writer,
            redis=redis,
            clock=SystemClock(),
            settings=settings,
            on_dead=lambda why: None,
        )
        task = Task(kind="completion", prompts=("Hello",), echo=True)
        job = await product.rig.enqueue(messages=(), task=task, hold=10**12)
        claim = await product.rig.claim_one()
        running = asyncio.create_task(completer(claim))

        async def is_echoed() -> bool:
            return len(await read_log(redis, MODEL, job.request_id)) == 1

        await until(is_echoed)
        completer.expire()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert len(await read_log(redis, MODEL, job.request_id)) == 1
        claim.cancel.set("request_cancelled")
        await running
    assert (await product.record()).code == "request_cancelled"


async def test_prompts_become_vectors_of_unit_length(product: Product) -> None:
    if not product.loaded.engine.capabilities.embeddings:
        code, _ = await product.refusal(await product.run("", Task(kind="embedding", prompts=("a",))))
        assert code == "unsupported_parameter"
        return

    job = await product.run("", Task(kind="embedding", prompts=("Hello", "world", "Hello")))

    first, second, third = [one.embedding for one in (await product.body(job)).data]
    assert first == third != second
    assert sum(value * value for value in first) == pytest.approx(1.0, abs=1e-3)
    record = await product.record()
    assert (record.status, record.usage.completion_tokens) == ("completed", 0)
    assert len(struct.pack(f"<{len(first)}f", *first)) == 4 * len(first)


def plain(body: Any) -> Any:
    """Return an answer without the ids of its calls, which are those of its request."""
    found = json.loads(msgspec.json.encode(body.choices))
    for choice in found:
        for call in choice.get("message", {}).get("tool_calls", []):
            assert call.pop("id")
    return found


REFUSED: list[tuple[dict[str, Any], Task]] = [
    ({"presence_penalty": 1.0}, Task()),
    ({"logit_bias": ((1, 5.0),)}, Task()),
    ({"top_logprobs": 1}, Task()),
    ({}, Task(reasoning_effort="high")),
]


@only_simulator
@pytest.mark.parametrize(("sampling", "task"), REFUSED)
async def test_what_an_engine_cannot_do_is_refused_for_free(product: Product, sampling: Any, task: Task) -> None:
    code, _ = await product.refusal(await product.run("Hello!", task, **sampling))

    assert code == "unsupported_parameter"
    assert (await product.record()).usage.completion_tokens == 0


@only_simulator
@pytest.mark.parametrize(
    ("text", "task", "choices"),
    [
        ("Hello!", Task(), 3),
        ("Hello!", Task(tool_use=ToolUse(TOOLS, "required")), 1),
        ("Where?", Task(guide=Guide("json_schema", SCHEMA)), 2),
        ('Call the function weather with {"city": "Bern, Biel, Basel"}', Task(tool_use=ToolUse(TOOLS)), 1),
        ("", Task(kind="completion", prompts=("Hello", "world"), echo=True), 2),
    ],
)
async def test_a_successor_says_what_its_predecessor_would_have_said(
    redis: Redis, product: Product, text: str, task: Task, choices: int
) -> None:
    whole = await product.body(await product.run(text, task, choices=choices, max_tokens=60))
    await redis.delete(keys.settlement(MODEL))
    slow = EngineOptions(model=MODEL, context=1024, slots=4, options={"step_ms": "1"})
    async with open_engine("simulator", slow) as engine:
        product.loaded = LoadedModel(engine, 0.0)
        product.completer.models = lambda _: product.loaded
        messages = (Message("user", text),) if task.kind == "chat" else ()
        sampling = Sampling(max_tokens=60, temperature=0.0, choices=choices)
        job = await product.rig.enqueue(messages=messages, task=task, sampling=sampling, hold=10**12)
        claim = await product.rig.claim_one()
        started = engine.steps()
        running = asyncio.create_task(product.completer(claim))
        await until(lambda: engine.steps() > started + 5)
        claim.cancel.set(HANDED_OVER)
        await asyncio.gather(running, return_exceptions=True)
        await product.writer.flush()
        await product.rig.die(job)
        await product.rig.reap()

        await product.completer(await product.rig.claim_one())

    body = await product.body(job)
    assert plain(body) == plain(whole)
    assert body.usage == whole.usage


@only_simulator
async def test_an_answer_that_cannot_be_continued_is_worker_lost_and_free(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any, **__: Any) -> list[int]:
        raise AnswerLost("It was drawn by chance.")

    slow = EngineOptions(model=MODEL, context=1024, slots=4, options={"step_ms": "1"})
    async with open_engine("simulator", slow) as engine:
        product.loaded = LoadedModel(engine, 0.0)
        product.completer.models = lambda _: product.loaded
        task = Task(guide=Guide("json_schema", SCHEMA))
        sampling = Sampling(max_tokens=60, temperature=0.0)
        job = await product.rig.enqueue(messages=(Message("user", "?"),), task=task, sampling=sampling, hold=10**12)
        claim = await product.rig.claim_one()
        running = asyncio.create_task(product.completer(claim))
        await until(lambda: engine.steps() > 5)
        claim.cancel.set(HANDED_OVER)
        await asyncio.gather(running, return_exceptions=True)
        await product.writer.flush()
        await product.rig.die(job)
        await product.rig.reap()
        monkeypatch.setattr("workers.engines.simulator.guided_ids", cannot)

        await product.completer(await product.rig.claim_one())

    code, message = await product.refusal(job)
    assert code == "worker_lost"
    assert message is not None and "not charged" in message
    assert (await product.record()).status == "failed"
