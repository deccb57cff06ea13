"""Tools and schemas through the official SDKs' own helpers, against a real `up` with the demo model on llamacpp."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, LengthFinishReasonError, OpenAI, pydantic_function_tool
from pydantic import BaseModel, ConfigDict

from tests.journeys.local_product import ROOT, LocalProduct, quiet_environment
from tests.node import command as node_command


class Weather(BaseModel):
    """Tells the weather."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Bern", "Rome"]
    days: Literal[1, 2, 3]


QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Weather in Bern?"}],
    "temperature": 0,
    "max_tokens": 200,
}
SCHEMA = Weather.model_json_schema()
TOOL: Any = pydantic_function_tool(Weather, name="weather")
CALLING: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture(scope="module")
def product(store_folder: Path) -> Iterator[LocalProduct]:
    folder = store_folder / "sdk"
    folder.mkdir(mode=0o711)
    product = LocalProduct(folder, "--no-self-check")
    try:
        yield product.wait(self_check=False)
    finally:
        product.stop()


@pytest.fixture
def client(product: LocalProduct) -> Iterator[OpenAI]:
    with OpenAI(api_key=product.ready["api_key"], base_url=product.ready["base_url"], max_retries=0) as client:
        yield client


@pytest.fixture
def question(product: LocalProduct) -> dict[str, Any]:
    return {"model": product.ready["model"], **QUESTION}


@pytest.fixture(scope="module")
def node(product: LocalProduct) -> dict[str, Any]:
    """What the Node SDK saw."""
    script = ROOT / "tests" / "journeys" / "sdk_features.mjs"
    ready = product.ready
    done = subprocess.run(
        [*node_command("node"), str(script), ready["base_url"], ready["api_key"], ready["model"], json.dumps(SCHEMA)],
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_python_parses_a_required_call(client: OpenAI, question: dict[str, Any]) -> None:
    answer = client.chat.completions.parse(**question, **CALLING)

    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert isinstance(call.function.parsed_arguments, Weather)


def test_python_streams_a_call_whose_parts_are_the_whole(client: OpenAI, question: dict[str, Any]) -> None:
    parts = []
    with client.chat.completions.stream(**question, **CALLING, stream_options={"include_usage": True}) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                parts.append(event.arguments_delta)
    answer = stream.get_final_completion()

    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    assert len(parts) > 1
    assert "".join(parts) == call.function.arguments
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    whole = client.chat.completions.create(**question, **CALLING)
    (same,) = whole.choices[0].message.tool_calls or []
    assert same.type == "function"
    assert same.function.arguments == call.function.arguments


def test_python_brings_the_result_of_a_call_back(client: OpenAI, question: dict[str, Any]) -> None:
    asked = client.chat.completions.create(**question, **CALLING).choices[0].message
    (call,) = asked.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}

    told = client.chat.completions.create(
        **question | {"messages": [*question["messages"], asked, result]}, tools=[TOOL]
    )

    assert told.choices[0].finish_reason == "stop"
    assert "sunny" in (told.choices[0].message.content or "")


def test_python_parses_a_schema_whole_and_streamed(client: OpenAI, question: dict[str, Any]) -> None:
    whole = client.chat.completions.parse(**question, response_format=Weather).choices[0].message

    with client.chat.completions.stream(**question, response_format=Weather) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    streamed = stream.get_final_completion().choices[0].message

    assert isinstance(whole.parsed, Weather)
    assert whole.parsed == streamed.parsed
    assert whole.content == streamed.content == text


async def test_asynchronous_python_does_the_same(product: LocalProduct, question: dict[str, Any]) -> None:
    ready = product.ready
    async with AsyncOpenAI(api_key=ready["api_key"], base_url=ready["base_url"], max_retries=0) as client:
        called = await client.chat.completions.parse(**question, **CALLING)
        async with client.chat.completions.stream(**question, response_format=Weather) as stream:
            kinds = {event.type async for event in stream}
            streamed = await stream.get_final_completion()
        several = await client.chat.completions.create(**question, n=2, logprobs=True, top_logprobs=2)

    (call,) = called.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    assert isinstance(streamed.choices[0].message.parsed, Weather)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert [choice.index for choice in several.choices] == [0, 1]
    assert all(choice.logprobs and choice.logprobs.content for choice in several.choices)


def test_an_answer_cut_short_is_not_parsed_but_told_so(client: OpenAI, question: dict[str, Any]) -> None:
    with pytest.raises(LengthFinishReasonError) as cut:
        client.chat.completions.parse(**question | {"max_tokens": 3}, response_format=Weather)

    assert cut.value.completion.choices[0].finish_reason == "length"


def test_node_gets_a_call_and_streams_the_same(node: dict[str, Any]) -> None:
    (call,) = node["call"]["message"]["tool_calls"]
    (streamed,) = node["streamedCall"]["message"]["tool_calls"]

    assert node["call"]["finish"] == node["streamedCall"]["finish"] == "tool_calls"
    Weather.model_validate_json(call["function"]["arguments"])
    for name in ("name", "arguments"):
        assert streamed["function"][name] == call["function"][name]
    assert "".join(node["streamedCall"]["pieces"]) == call["function"]["arguments"]
    assert node["streamedCall"]["usage"]["completion_tokens"] > 0


def test_node_goes_on_behind_a_call_by_hand_and_by_its_own_loop(node: dict[str, Any]) -> None:
    assert node["turn"]["finish"] == "stop"
    assert "sunny" in node["turn"]["content"]
    assert node["loop"]["roles"][-1] == "assistant"
    assert node["loop"]["content"]


def test_node_parses_a_schema_whole_and_streamed(node: dict[str, Any]) -> None:
    parsed, streamed = node["parsed"], node["streamedSchema"]

    Weather.model_validate_json(parsed["content"])
    assert parsed["refusal"] is None
    assert parsed["content"] == streamed["content"] == streamed["text"]
