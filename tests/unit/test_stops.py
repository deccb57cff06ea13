"""TextStream: what may be sent of an answer, and when."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.inference.stops import StopStrings, TextStream


class BytePerToken:
    """A tokenizer whose tokens are the 256 bytes, and 256 for a special token."""

    longest_token_bytes = 1

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == 256 else bytes((token_id,))


TOKENIZER = BytePerToken()
letters = st.text("abé😀 \n", max_size=30)
stop_lists = st.lists(st.text("abé😀 ", min_size=1, max_size=5), max_size=4)


def said(data: bytes, cuts: Sequence[int], stops: Sequence[str]) -> tuple[list[str], TextStream]:
    """What a stream says of `data`, cut into deltas, each push apart and the rest last."""
    stream = TextStream(TOKENIZER, tuple(stops))
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    texts = [stream.push(list(data[begin:end])) for begin, end in itertools.pairwise(edges)]
    return [*texts, stream.finish()], stream


def expected(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is complete first, by trying every length."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


@given(letters, st.lists(st.integers(0, 200), max_size=12), stop_lists)
def test_where_an_answer_is_cut_never_matters(text: str, cuts: list[int], stops: list[str]) -> None:
    texts, stream = said(text.encode(), cuts, stops)

    assert "".join(texts) == expected(text, stops)
    assert stream.stopped == (expected(text, stops) != text)


@given(letters, st.lists(st.integers(0, 200), max_size=12), stop_lists)
def test_no_part_of_a_stop_string_leaks(text: str, cuts: list[int], stops: list[str]) -> None:
    texts, _ = said(text.encode(), cuts, stops)
    whole = "".join(texts)

    sent = ""
    for piece in texts:
        sent += piece
        assert whole.startswith(sent)


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=12))
def test_any_bytes_become_the_text_that_decoding_them_at_once_gives(data: bytes, cuts: list[int]) -> None:
    texts, _ = said(data, cuts, ())

    assert "".join(texts) == data.decode(errors="replace")


@given(letters, st.integers(0, 200), stop_lists)
def test_a_replayed_stream_goes_on_as_the_first_would_have(text: str, cut: int, stops: list[str]) -> None:
    data = text.encode()
    before, after = data[: cut % (len(data) + 1)], data[cut % (len(data) + 1) :]
    first = TextStream(TOKENIZER, tuple(stops))
    sent = first.push(list(before))

    second = TextStream(TOKENIZER, tuple(stops))
    second.replay(list(before), sent)

    assert second.stopped == first.stopped
    assert second.push(list(after)) + second.finish() == first.push(list(after)) + first.finish()


def test_a_replay_owes_what_was_logged_but_not_sent() -> None:
    stream = TextStream(TOKENIZER)
    stream.replay(list(b"abcdef"), "abc")

    assert stream.push(list(b"gh")) == "defgh"
    assert stream.finish() == ""


def test_a_replay_that_sent_more_than_a_stop_allowed_drops_only_that() -> None:
    stream = TextStream(TOKENIZER, ("end",))
    stream.replay(list(b"the e"), "the e")

    assert stream.push(list(b"nd")) + stream.finish() == "nd"


def test_a_replay_of_texts_that_are_not_the_tokens_leaves_nothing_held() -> None:
    stream = TextStream(TOKENIZER, ("zz",))
    stream.replay(list(b"abz"), "@S0123")

    assert stream.push(list(b"x")) == "x"


def test_a_character_is_sent_with_its_last_byte() -> None:
    stream = TextStream(TOKENIZER)

    assert [stream.push([byte]) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]


def test_an_incomplete_character_ends_as_a_replacement() -> None:
    stream = TextStream(TOKENIZER)

    assert stream.push(list(b"a\xf0\x9f")) == "a"
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_a_stop_string_that_never_completes_is_sent_at_the_end() -> None:
    stream = TextStream(TOKENIZER, ("abc",))

    assert stream.push(list(b"xab")) == "x"
    assert not stream.stopped
    assert stream.finish() == "ab"


def test_nothing_is_said_after_a_stop() -> None:
    stream = TextStream(TOKENIZER, ("b",))

    assert stream.push(list(b"abc")) == "a"
    assert stream.stopped
    assert stream.push(list(b"def")) + stream.finish() == ""


def test_the_stop_string_complete_first_wins_over_the_one_begun_first() -> None:
    assert StopStrings(("abcd", "bc")).find("abcd") == 1
    assert StopStrings(("bc", "abc")).find("abc") == 0


def test_special_tokens_have_no_text() -> None:
    assert TextStream(TOKENIZER).push([97, 256]) == "a"


@pytest.mark.parametrize("stops", [(), ("s",)])
def test_a_text_of_its_own_stands_in_for_the_tokens(stops: tuple[str, ...]) -> None:
    stream = TextStream(TOKENIZER, stops)

    assert stream.push([97], b"@R01") + stream.finish() == "@R01"
