"""What a model was talked into writing costs its worker no more than any other text."""

import time
from typing import Any

import pytest

from tests.unit.test_stops import BytePerToken
from workers.inference.reasoning import ReasoningStream
from workers.inference.stops import TextStream
from workers.inference.tool_calls import BARE_JSON, CALL_CHARACTERS_MOST, HEAD_CHARACTERS_MOST, HERMES, ToolCallStream

LENGTH = 70_000  # beyond what is ever held back
CPU_SECONDS_MOST = 10.0  # for 70,000 deltas, each looking at little; looking at all that is held took 22
TEXTS = {
    "a name without end": '<tool_call>{"name": "' + "a" * LENGTH,
    "space in place of a call": "<tool_call>" + " " * LENGTH,
    "space inside a head": '<tool_call>{"name"' + " " * LENGTH,
    "begin upon begin": "<tool_call>" * (LENGTH // 11),
    "almost a begin": "<" * LENGTH,
    "objects in arguments": '<tool_call>{"name": "f", "arguments": ' + "{" * LENGTH,
    "arrays before the name": '<tool_call>{"arguments":' + "[" * LENGTH,
    "an escape without end": '<tool_call>{"name": "f", "arguments": {"a":"' + "\\" * LENGTH,
    "a call that does not end": '<tool_call>{"name": "f", "arguments": {}}' + "x" * LENGTH,
    "a whole call too deep": '<tool_call>{"arguments":'
    + '{"a":' * 9000
    + "1"
    + "}" * 9000
    + ',"name":"f"}</tool_call>',
    "a thousand calls": '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 1000,
    "space": " " * LENGTH,
}


def said(stream: ToolCallStream, parts: list[str]) -> tuple[str, int, int]:
    """Return the content, the number of calls and the length of their arguments."""
    content, arguments = "", 0
    for part in parts:
        text, deltas = stream.push(part)
        content += text
        arguments += sum(len(delta.arguments) for delta in deltas)
    return content + stream.finish(), stream.calls, arguments


@pytest.mark.parametrize("form", [HERMES, BARE_JSON], ids=["hermes", "bare"])
@pytest.mark.parametrize("name", TEXTS)
def test_what_looks_like_a_call_for_long_costs_little_and_is_told_the_same(name: str, form: Any) -> None:
    text = TEXTS[name]
    if form is BARE_JSON:
        text = text.replace("<tool_call>", "").replace("</tool_call>", "").replace('"arguments"', '"parameters"')
    whole = said(ToolCallStream(form, request_id="r", choice=0), [text])

    began = time.process_time()
    cut = said(ToolCallStream(form, request_id="r", choice=0), list(text))
    used = time.process_time() - began

    assert cut == whole
    assert used < CPU_SECONDS_MOST


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_function_must_be_told_within_the_head(beyond: int) -> None:
    name = "n" * (HEAD_CHARACTERS_MOST - len('{"name": "", "parameters": {') + beyond)
    text = f'{{"name": "{name}", "parameters": {{}}}}'

    content, calls, _ = said(ToolCallStream(BARE_JSON, request_id="r", choice=0), list(text))

    assert (content, calls) == ((text, 0) if beyond else ("", 1))


def test_a_call_that_never_ends_becomes_text_and_the_next_one_is_found() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    text = "<tool_call>" + "x" * (CALL_CHARACTERS_MOST + 1) + call

    content, calls, _ = said(ToolCallStream(HERMES, request_id="r", choice=0), [text])

    assert (content, calls) == (text.removesuffix(call), 1)


@pytest.mark.parametrize("text", ["<think>" + " " * LENGTH, "<think>" + "<" * LENGTH, " " * LENGTH])
def test_reasoning_that_never_ends_costs_little(text: str) -> None:
    stream = ReasoningStream(inside=False)

    began = time.process_time()
    told = [part for character in text for part in stream.push(character)]
    told += stream.finish()

    assert len("".join(told)) <= len(text)
    assert time.process_time() - began < CPU_SECONDS_MOST


@pytest.mark.parametrize("stops", [["a" * 64], ["a" * 63 + "b"] * 4, ["ab" * 32, "ba" * 32, "a" * 64, "aab" * 21]])
@pytest.mark.parametrize("token", [b"a", b"ab", b"aaaaaaab"])
def test_stop_strings_that_almost_come_cost_little(stops: list[str], token: bytes) -> None:
    stream = TextStream(BytePerToken(), stops)

    began = time.process_time()
    for _ in range(LENGTH // len(token)):
        stream.push([0], token)

    assert time.process_time() - began < CPU_SECONDS_MOST
