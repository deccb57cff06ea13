"""What an answer holds beside text: calls, reasoning, log probabilities, legacy choices and vectors."""

import base64
import json
import math
import struct
from typing import Any

import msgspec

from shared.openai.fold import ChatFold, EmbeddingFold, TextFold
from shared.openai.render import StreamRenderer
from shared.openai.render_text import TextRenderer
from shared.wire import Chunk, Extra, TokenLogprob, ToolCallDelta, Usage
from tests.integration.api_edge import chunk, end, events

ID, CREATED, MODEL = "chatcmpl-0", 1700000000, "Org/m"
USAGE = Usage(5, 2, 3, 1)


def with_extra(text: str = "", *, choice: int = 0, **extra: Any) -> Chunk:
    return msgspec.structs.replace(chunk(0, text, choice=choice), extra=Extra(**extra))


CALLS = [
    with_extra(reasoning="hm"),
    with_extra(tool_calls=(ToolCallDelta(0, "call_1", "weather", ""),)),
    with_extra(tool_calls=(ToolCallDelta(0, None, None, '{"city":'),)),
    with_extra(tool_calls=(ToolCallDelta(0, None, None, '"\u2028"}'), ToolCallDelta(1, "call_2", "time", "{}"))),
    chunk(0, "", finish="tool_calls"),
    end(0, usage=USAGE),
]
LIKELY = TokenLogprob("é".encode()[:1], -0.5, (("é".encode()[:1], -0.5), (b"a", -math.inf)))
NEXT = TokenLogprob("é".encode()[1:], 0.0)


def streamed(chunks: list[Chunk], renderer: Any = None) -> list[Any]:
    renderer = renderer or StreamRenderer(ID, CREATED, MODEL, include_usage=True)
    *found, done = events(b"".join(renderer.render([one]) for one in chunks).decode())
    assert done == "[DONE]"
    return found


def whole(fold: Any, chunks: list[Chunk]) -> Any:
    fold.add(chunks)
    return json.loads(msgspec.json.encode(fold.body(ID, CREATED, MODEL, USAGE)))


def test_a_stream_tells_reasoning_and_calls_in_parts() -> None:
    deltas = [event["choices"][0]["delta"] for event in streamed(CALLS) if event["choices"]]

    assert deltas[1] == {"reasoning_content": "hm"}
    assert deltas[2]["tool_calls"] == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    ]
    assert deltas[3]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"city":'}}]
    assert [delta["tool_calls"][0]["index"] for delta in deltas[4:6]] == [0, 1]


def test_no_event_holds_what_a_client_takes_for_a_line_end() -> None:
    renderer = StreamRenderer(ID, CREATED, MODEL, include_usage=False)

    said = b"".join(renderer.render([one]) for one in CALLS).decode()

    assert all(line == "" or line.startswith("data: ") for line in said.splitlines())


def test_a_whole_answer_adds_the_calls_up() -> None:
    (choice,) = whole(ChatFold(), CALLS)["choices"]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"\u2028"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }


def test_usage_tells_the_tokens_of_reasoning() -> None:
    usage = whole(ChatFold(), CALLS)["usage"]

    assert usage["completion_tokens_details"] == {"reasoning_tokens": 1}


LOGGED = [with_extra("", logprobs=(LIKELY,)), with_extra("é", logprobs=(NEXT,)), chunk(0, "", finish="stop"), end(0)]


def test_log_probabilities_stand_beside_their_tokens() -> None:
    found = [event["choices"][0] for event in streamed(LOGGED) if event["choices"]]

    assert [one["logprobs"] and len(one["logprobs"]["content"]) for one in found] == [None, 1, 1, None]
    assert found[1]["delta"] == {"content": ""}
    first = found[1]["logprobs"]["content"][0]
    assert (first["token"], first["bytes"], first["logprob"]) == ("\ufffd", [0xC3], -0.5)
    assert first["top_logprobs"][1] == {"token": "a", "bytes": [97], "logprob": -9999.0}
    content = whole(ChatFold(), LOGGED)["choices"][0]["logprobs"]["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == "é"


def test_a_legacy_stream_adds_up_to_the_legacy_answer() -> None:
    chunks = [
        with_extra("a", choice=1, logprobs=(TokenLogprob(b"a", -1.0, ((b"a", -1.0),)),)),
        chunk(0, "x", choice=0),
        with_extra("bc", choice=1, logprobs=(TokenLogprob(b"bc", -2.0),)),
        chunk(0, "", choice=0, finish="length"),
        chunk(0, "d", choice=1, finish="stop"),
        end(0, usage=USAGE),
    ]
    renderer = TextRenderer(ID, CREATED, MODEL, include_usage=True, choices=2)

    found = streamed(chunks, renderer)
    answer = whole(TextFold(2), chunks)

    assert {event["object"] for event in found} == {answer["object"]} == {"text_completion"}
    for index, choice in enumerate(answer["choices"]):
        parts = [one for event in found for one in event["choices"] if one["index"] == index]
        assert "".join(one["text"] for one in parts) == choice["text"]
        assert [one["finish_reason"] for one in parts if one["finish_reason"]] == [choice["finish_reason"]]
    assert answer["choices"][1]["logprobs"]["text_offset"] == [0, 1]
    assert [o for e in found for c in e["choices"] if c["logprobs"] for o in c["logprobs"]["text_offset"]] == [0, 1]
    assert found[-1]["choices"] == [] and found[-1]["usage"] == answer["usage"]


def test_vectors_are_numbers_or_base64() -> None:
    vectors = [struct.pack("<2f", 0.5, -1.0), struct.pack("<2f", 1.0, 0.0)]
    chunks = [with_extra(choice=index, embedding=vector) for index, vector in enumerate(vectors)]

    assert [one["embedding"] for one in whole(EmbeddingFold(2, as_base64=False), chunks)["data"]] == [[0.5, -1], [1, 0]]
    found = whole(EmbeddingFold(2, as_base64=True), chunks)
    assert [base64.b64decode(one["embedding"]) for one in found["data"]] == vectors
    assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
