"""Tools, their results and guides: what is taken, and how what is wrong with them is named."""

from typing import Any

import msgspec
import pytest

from shared.errors import InvalidRequest
from shared.openai.decode import decode_chat
from shared.openai.request import CompletionRequest
from shared.wire import PLAIN_CHAT, Guide, Message, Tool, ToolCall, ToolUse

USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time", "strict": True}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TOOLS = (Tool("weather", "Now", msgspec.json.encode(SCHEMA).decode()), Tool("time", None, "{}", strict=True))


def decode(**fields: Any) -> CompletionRequest:
    return decode_chat(msgspec.json.encode({"model": "m", "messages": [USER], **fields}))


def refusal(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as refused:
        decode(**fields)
    return refused.value.code, refused.value.param


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_tools_are_offered() -> None:
    assert decode(tools=[WEATHER, TIME]).task.tool_use == ToolUse(TOOLS)


@pytest.mark.parametrize("choice", ["none", "auto", "required"])
def test_a_choice_of_tools_is_taken(choice: Any) -> None:
    use = decode(tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False).task.tool_use

    assert use == ToolUse(TOOLS, choice, parallel=False)


def test_a_named_function_is_chosen() -> None:
    assert decode(tools=[WEATHER, TIME], tool_choice=named("time")).task.tool_use == ToolUse(TOOLS, "named", "time")


def test_allowed_tools_leave_out_the_others() -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("time")]}}

    assert decode(tools=[WEATHER, TIME], tool_choice=choice).task.tool_use == ToolUse(TOOLS[1:], "required")


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": [], "tool_choice": "auto"}, {"tool_choice": "none"}])
def test_no_tools_are_a_plain_chat(fields: dict[str, Any]) -> None:
    assert decode(**fields).task is PLAIN_CHAT


BAD_TOOLS: list[tuple[Any, str, str]] = [
    ({}, "invalid_value", "tools"),
    ([WEATHER] * 129, "invalid_value", "tools"),
    ([{}] * 10_000, "invalid_value", "tools"),
    ([WEATHER, WEATHER], "invalid_value", "tools"),
    ([{}], "missing_required_parameter", "tools[0].type"),
    ([{"type": "custom", "custom": {"name": "x"}}], "unsupported_parameter", "tools[0].type"),
    ([{"type": "web"}], "invalid_value", "tools[0].type"),
    ([{"type": "function"}], "missing_required_parameter", "tools[0].function"),
    ([{"type": "function", "function": {}}], "missing_required_parameter", "tools[0].function.name"),
    ([named("a b")], "invalid_value", "tools[0].function.name"),
    ([named("x" * 65)], "invalid_value", "tools[0].function.name"),
    (
        [{"type": "function", "function": {"name": "f", "parameters": []}}],
        "invalid_value",
        "tools[0].function.parameters",
    ),
    (
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
        "invalid_value",
        "tools[0].function.parameters.type",
    ),
]


@pytest.mark.parametrize(("tools", "code", "param"), BAD_TOOLS)
def test_a_bad_tool_is_named(tools: Any, code: str, param: str) -> None:
    assert refusal(tools=tools) == (code, param)


@pytest.mark.parametrize("choice", [named("nobody"), "required"])
def test_a_choice_without_its_tool_is_refused(choice: Any) -> None:
    assert refusal(tool_choice=choice) == ("invalid_value", "tool_choice")


def test_the_result_of_a_call_is_a_turn() -> None:
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]

    assert decode(messages=turns).messages[1:] == (
        Message("assistant", "", tool_calls=(ToolCall("call_1", "weather", "{}"),), reasoning="hm"),
        Message("tool", "sunny", tool_call_id="call_1"),
    )


def test_a_result_without_its_call_is_refused() -> None:
    turns = [USER, {"role": "tool", "content": "sunny", "tool_call_id": "call_2"}]

    assert refusal(messages=turns) == ("invalid_value", "messages[1].tool_call_id")
    assert refusal(messages=[{"role": "tool", "content": "x"}])[0] == "missing_required_parameter"


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_a_response_format_is_a_guide() -> None:
    assert decode(response_format={"type": "json_object"}).task.guide == Guide("json_object")
    assert decode(response_format=schema_format(SCHEMA)).task.guide == Guide("json_schema", TOOLS[0].parameters)


BAD_SCHEMAS: list[Any] = [
    [],
    "x",
    {"$ref": "#/$defs/a"},
    {"$ref": "http://127.0.0.1:9/schema"},
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
    {"pattern": "a" * 513},
    {"enum": ["x" * 100_000]},
]


@pytest.mark.parametrize("schema", BAD_SCHEMAS)
def test_a_bad_schema_is_refused(schema: Any) -> None:
    code, param = refusal(response_format=schema_format(schema))

    assert (code, param) == ("invalid_value", "response_format.json_schema.schema")


def test_a_schema_may_hold_itself_further_down() -> None:
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}}

    assert decode(response_format=schema_format(tree)).task.guide is not None


@pytest.mark.parametrize(
    "value", [{}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}]
)
def test_a_bad_response_format_is_refused(value: Any) -> None:
    assert refusal(response_format=value)[0] in ("invalid_value", "missing_required_parameter")
