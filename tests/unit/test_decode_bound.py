"""The bound of a prompt's tokens: never below the bytes of the text, normalised or not, and cheap for any text."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.submission import prompt_bound
from shared.wire import Message
from tests.integration.api_edge import MODEL

MARKS = st.sampled_from("aeo\u0301\u0323\u0345\u0958\u1112\u1161\u11ab\ufb1d中😀")


@given(st.text(MARKS, max_size=300))
def test_the_bound_covers_the_text_in_every_spelling(text: str) -> None:
    bound = prompt_bound(MODEL, [Message("user", text)])

    for form in (text, unicodedata.normalize("NFC", text)):
        assert bound >= len(form.encode()) + MODEL.template_tokens + MODEL.message_tokens


@pytest.mark.parametrize("unit", ["\u0301\u0323", "\u0323\u0301", "\u0958", "😀", "中", "\u1112\u1161\u11ab", "\u202e"])
def test_two_mebibytes_of_one_thing_are_bounded_in_a_second(unit: str) -> None:
    text = unit * (2 * 1024 * 1024 // len(unit.encode()))

    started = time.process_time()
    prompt_bound(MODEL, [Message("user", text)])

    assert time.process_time() - started < 1
