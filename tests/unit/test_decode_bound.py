"""The bound of a prompt's tokens: never below the bytes of the text, normalised or not, and cheap for any text."""

import json
import time
import unicodedata
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.submission import PREFIX_TOKENS, prompt_bounds
from shared.wire import PLAIN_CHAT, Message, Task, Tool, ToolUse
from tests.integration.api_edge import MODEL

MARKS = st.sampled_from("aeo\u0301\u0323\u0345\u0958\u1112\u1161\u11ab\ufb1d中😀")


@given(st.text(MARKS, max_size=300))
def test_the_bound_covers_the_text_in_every_spelling(text: str) -> None:
    (bound,) = prompt_bounds(MODEL, [Message("user", text)], PLAIN_CHAT)

    for form in (text, unicodedata.normalize("NFC", text)):
        assert bound >= len(form.encode()) + MODEL.template_tokens + MODEL.message_tokens


@pytest.mark.parametrize("unit", ["\u0301\u0323", "\u0323\u0301", "\u0958", "😀", "中", "\u1112\u1161\u11ab", "\u202e"])
def test_two_mebibytes_of_one_thing_are_bounded_in_a_second(unit: str) -> None:
    text = unit * (2 * 1024 * 1024 // len(unit.encode()))

    started = time.process_time()
    prompt_bounds(MODEL, [Message("user", text)], PLAIN_CHAT)

    assert time.process_time() - started < 1


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(MARKS | st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(MARKS, max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(MARKS, max_size=5), JSON_VALUES, max_size=3), st.text(MARKS, max_size=30))
def test_the_bound_covers_a_tool_however_a_template_writes_it(schema: dict[str, Any], description: str) -> None:
    tool = Tool("look_up", description, msgspec.json.encode(schema).decode())
    task = Task(tool_use=ToolUse((tool,)))

    (bound,) = prompt_bounds(MODEL, [Message("user", "x")], task)

    told = {"type": "function", "function": {"name": "look_up", "description": description, "parameters": schema}}
    assert bound >= len(json.dumps(told, ensure_ascii=False).encode()) + MODEL.template_tokens + MODEL.message_tokens


def test_each_bare_prompt_has_its_own_bound() -> None:
    short, ids = prompt_bounds(MODEL, [], Task(kind="completion", prompts=("abc", (1, 2, 3, 4))))

    assert (short, ids) == (PREFIX_TOKENS + 3, PREFIX_TOKENS + 4)
