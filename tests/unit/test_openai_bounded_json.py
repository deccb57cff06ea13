"""Bodies from strangers: what is not strict JSON is refused by the right code, and quickly."""

import time

import pytest

from shared.errors import InvalidRequest
from shared.openai.bounded_json import DEPTH_MOST, parse_object

MEBIBYTE = 1024 * 1024

NOT_JSON = {
    "empty": b"",
    "word": b"hello",
    "array": b"[]",
    "null": b"null",
    "number": b"1",
    "string": b'"x"',
    "trailing comma": b'{"a":1,}',
    "comment": b'{"a":1 /* x */}',
    "line comment": b'{"a":1} // x',
    "single quotes": b"{'a':1}",
    "something behind": b'{"a":1}x',
    "two documents": b"{}{}",
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":-Infinity}',
    "leading zero": b'{"a":01}',
    "raw control character": b'{"a":"\x01"}',
    "raw NUL": b'{"a":"\x00"}',
    "raw line end": b'{"a":"\n"}',
    "truncated": b'{"a":"b',
    "UTF-8 mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 BE": '{"a":1}'.encode("utf-16-be"),
    "UTF-16 LE": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "UTF-32 BE": '{"a":1}'.encode("utf-32-be"),
    "same key": b'{"a":1,"a":1}',
    "same key, spelled otherwise": rb'{"a":1,"\u0061":2}',
    "same key, deep": b'{"a":[{"b":1,"b":2}]}',
    "same key around a colon": b'{"a:":":","a:":1}',
    "closing brackets": b"]" * (2 * MEBIBYTE),
    "bad escape": rb'{"a":"\q"}',
}
INVALID = {
    "bad UTF-8": b'{"a":"\xff\xfe"}',
    "overlong": b'{"a":"\xc0\xaf"}',
    "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "lone high surrogate": rb'{"a":"\ud800"}',
    "lone high surrogate, more behind": rb'{"a":"\ud800 and more text"}',
    "two high surrogates": rb'{"a":"\ud800\ud800"}',
    "lone low surrogate": rb'{"a":"\udc00"}',
    "NUL": rb'{"a":"x\u0000y"}',
    "NUL behind backslashes": rb'{"a":"\\\u0000"}',
    "5,000 digits": b'{"a":' + b"1" * 5000 + b"}",
    "1e400": b'{"a":1e400}',
    "-1e400": b'{"a":-1e400}',
    "33 levels": b'{"a":' * 33 + b"1" + b"}" * 33,
    "100,000 arrays deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "99,000 opened arrays": b"[" * 99_000,
    "100,000 objects deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "many keys": b"{" + b",".join(b'"%x":1' % number for number in range(210_000)) + b"}",
    "a million numbers": b'{"a":[' + b",".join([b"1"] * 1_000_000) + b"]}",
    "quotes": b'"' * (2 * MEBIBYTE),
}
VALID = {
    "escaped backslash before u0000": (rb'{"a":"\\u0000"}', {"a": r"\u0000"}),
    "pair": (rb'{"a":"\ud83d\ude00"}', {"a": "😀"}),
    "key twice, in two objects": (b'{"a":{"b":1},"c":{"b":2}}', {"a": {"b": 1}, "c": {"b": 2}}),
    "structure inside a string": (rb'{"a":"{\"b\":[[[1,}"}', {"a": '{"b":[[[1,}'}),
    "5,000 digits in a string": (b'{"a":"' + b"1" * 5000 + b'"}', {"a": "1" * 5000}),
    "white space": (b' \t\r\n{ "a" : 1 } ', {"a": 1}),
    "tiny": (b'{"a":1e-400}', {"a": 0.0}),
    "large integer": (b'{"a":9223372036854775808}', {"a": 2**63}),
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_one_json_object_is_invalid_json(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_object(NOT_JSON[name])

    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("name", INVALID)
def test_bad_text_numbers_and_sizes_are_invalid_values(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_object(INVALID[name])

    assert refused.value.code == "invalid_value"


@pytest.mark.parametrize("name", VALID)
def test_strict_json_is_parsed(name: str) -> None:
    body, value = VALID[name]

    assert parse_object(body) == value


def test_thirty_two_levels_are_allowed() -> None:
    parse_object(b'{"a":' * DEPTH_MOST + b"1" + b"}" * DEPTH_MOST)


@pytest.mark.parametrize(
    "unit",
    ["a", "\\n", "\\\\", '\\"', "\\u4e2d", "\\ud83d\\ude00", "😀", "a\u0301", "\u202e", "中"],
    ids=["letter", "newline", "backslash", "quote", "cjk", "emoji", "raw emoji", "marks", "override", "raw cjk"],
)
def test_two_mebibytes_of_anything_are_parsed_in_a_quarter_of_a_second(unit: str) -> None:
    raw = unit.encode()
    body = b'{"a":"' + raw * (2 * MEBIBYTE // len(raw) - 8) + b'"}'

    started = time.process_time()
    parse_object(body)

    assert time.process_time() - started < 0.25


@pytest.mark.parametrize("name", [*NOT_JSON, *INVALID])
def test_nothing_takes_long_to_refuse(name: str) -> None:
    body = NOT_JSON.get(name, INVALID.get(name, b""))

    started = time.process_time()
    with pytest.raises(InvalidRequest):
        parse_object(body)

    assert time.process_time() - started < 0.25
