"""Reasoning and tool calls out of a model's text: the same however it is cut, and what is no call stays text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.inference.reasoning import ReasoningStream
from workers.inference.tool_calls import BARE_JSON, HERMES, ToolCallStream, ToolForm, form_of

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Pa}\\"ris", "days": [1, {"a": 2}]}}\n</tool_call>'
TIME = '<tool_call>{"name":"time","arguments":{}}</tool_call>'
PIECES = [CALL, TIME, "Hello ", "<tool_", "call>", "</tool_call>", '{"name": "x"', "}", "\n", "<", "<tool_call>[]", "é"]


def run(parts: list[str], form: ToolForm = HERMES, *, parallel: bool = True) -> tuple[str, list[tuple[str, str, str]]]:
    """Return the content and the calls (id, name, arguments) of a text that comes in parts."""
    stream = ToolCallStream(form, request_id="chatcmpl-1", choice=0, parallel=parallel)
    said, calls = "", []
    for part in parts:
        text, deltas = stream.push(part)
        said += text
        for delta in deltas:
            if delta.id is not None:
                calls.append([delta.id, delta.name, ""])
            calls[delta.index][2] += delta.arguments
    return said + stream.finish(), [tuple(call) for call in calls]


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def test_calls_are_told_from_content() -> None:
    said, calls = run([f"Let me look.\n{CALL}\n{TIME}\n"])

    assert said == "Let me look."
    assert [(name, json.loads(arguments)) for _, name, arguments in calls] == [
        ("weather", {"city": 'Pa}"ris', "days": [1, {"a": 2}]}),
        ("time", {}),
    ]
    assert len({call_id for call_id, _, _ in calls}) == 2


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.integers(1, 30), st.booleans())
def test_where_a_text_is_cut_never_matters(text: str, size: int, parallel: bool) -> None:
    assert run(cut(text, size), parallel=parallel) == run([text], parallel=parallel)


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "<tool_calls>",
        "<tool_call>not JSON</tool_call>",
        "<tool_call>[1]</tool_call> x",
        "a \n<tool_call>b",
        '<tool_call>{"name":',
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert run(cut(text, 3)) == (text, [])


def test_arguments_before_the_name_are_understood() -> None:
    text = '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>'

    assert [call[1:] for call in run(cut(text, 4))[1]] == [("f", '{"a":1}')]


def test_one_call_ends_the_answer_where_only_one_is_allowed() -> None:
    assert [name for _, name, _ in run([CALL + TIME + "more"], parallel=False)[1]] == ["weather"]


def test_arguments_stream_on_as_they_come() -> None:
    stream = ToolCallStream(HERMES, request_id="chatcmpl-1", choice=0)
    stream.push('<tool_call>{"name": "f", "arguments": ')

    parts = [delta.arguments for piece in ('{"a": "', "long", '"}') for delta in stream.push(piece)[1]]

    assert parts == ["", '{"a": "', "long", '"}']


@pytest.mark.parametrize(("text", "called"), [('{"name": "f", "parameters": {"a": 1}}', True), ('{"a": 1}', False)])
def test_a_whole_text_may_be_a_call(text: str, called: bool) -> None:
    for size in (1, 5, 100):
        said, calls = run(cut(text, size), BARE_JSON)

        assert bool(calls) is called
        assert said == ("" if called else text)


def test_forms_are_found_in_templates() -> None:
    assert form_of('<tool_call>\n{\\"name\\": <function-name>, \\"arguments\\": <args>}') is HERMES
    assert form_of("<tool_call><function=example>") is None
    assert form_of("{{ messages }}") is None


def split(parts: list[str], **options: Any) -> tuple[str, str]:
    stream = ReasoningStream(**{"inside": False, **options})
    found = [stream.push(part) for part in parts] + [stream.finish()]
    return "".join(one for one, _ in found), "".join(other for _, other in found)


THOUGHTS = [
    ("<think>\nhm, 1 < 2\n</think>\n\nTwo.", False, "hm, 1 < 2", "Two."),
    ("hm\n</think>\nTwo.", True, "hm", "Two."),
    ("Two. <think>x</think>", False, "", "Two. <think>x</think>"),
    (" Two.", False, "", " Two."),
    ("<thin", False, "", "<thin"),
    ("<think>cut off", False, "cut off", ""),
    ("<think></think>x", False, "", "x"),
]


@pytest.mark.parametrize(("text", "inside", "reasoning", "answer"), THOUGHTS)
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_reasoning_is_told_from_the_answer(text: str, inside: bool, reasoning: str, answer: str, size: int) -> None:
    assert split(cut(text, size), inside=inside) == (reasoning, answer)
