"""Rendered streams: what a client adds up is the whole answer, and the rules of the stream hold for every split."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BackendFailed
from shared.openai.fold import ChatFold
from shared.openai.render import StreamRenderer
from shared.wire import Chunk, End, FinishReason, Usage
from tests.integration.api_edge import chunk, end, events

ID, CREATED, MODEL = "chatcmpl-0", 1700000000, "Org/m"
REASONS = st.sampled_from(["stop", "length", "content_filter"])


@st.composite
def logs(draw: st.DrawFn) -> tuple[int, list[list[Chunk]]]:
    """Return a number of choices and a complete log, cut into batches anywhere."""
    choices = draw(st.integers(1, 3))
    texts = st.tuples(st.integers(0, choices - 1), st.text(max_size=8))
    chunks = [chunk(0, text, choice=choice) for choice, text in draw(st.lists(texts, max_size=20))]
    chunks += [chunk(0, draw(st.text(max_size=3)), choice=n, finish=draw(REASONS)) for n in range(choices)]
    usage = Usage(draw(st.integers(1, 9)), 0, len(chunks))
    if draw(st.booleans()):
        chunks.append(end(0, usage=usage))
    else:
        chunks[-1] = msgspec.structs.replace(chunks[-1], end=End("completed", usage))
    cuts = sorted(draw(st.sets(st.integers(1, len(chunks)), max_size=6)) | {0, len(chunks)})
    return choices, [chunks[a:b] for a, b in itertools.pairwise(cuts)]


def render(batches: list[list[Chunk]], *, choices: int = 1, include_usage: bool = True) -> str:
    renderer = StreamRenderer(ID, CREATED, MODEL, include_usage=include_usage, choices=choices)
    return b"".join(renderer.render(batch) for batch in batches).decode()


def add_up(found: list[Any], choices: int) -> list[dict[str, Any]]:
    """Add up events as a client does."""
    said = [{"role": "", "content": "", "finish_reason": None} for _ in range(choices)]
    for event in found:
        for choice in event["choices"]:
            one, delta = said[choice["index"]], choice["delta"]
            assert one["finish_reason"] is None, "a delta after the finish chunk"
            one["role"] += delta.get("role", "")
            one["content"] += delta.get("content", "")
            one["finish_reason"] = choice["finish_reason"]
    return said


@given(logs())
def test_a_fold_of_the_rendered_stream_is_the_whole_answer(log: tuple[int, list[list[Chunk]]]) -> None:
    choices, batches = log
    fold = ChatFold(choices)
    for batch in batches:
        fold.add(batch)
    usage = batches[-1][-1].end
    assert usage is not None
    whole = msgspec.to_builtins(fold.body(ID, CREATED, MODEL, usage.usage))

    *streamed, last, done = events(render(batches, choices=choices))

    assert done == "[DONE]"
    assert add_up(streamed, choices) == [
        {"role": "assistant", "content": c["message"]["content"], "finish_reason": c["finish_reason"]}
        for c in whole["choices"]
    ]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {(e["id"], e["created"], e["model"]) for e in [*streamed, last]} == {(ID, CREATED, MODEL)}


@given(logs())
def test_where_a_log_is_cut_into_batches_never_matters(log: tuple[int, list[list[Chunk]]]) -> None:
    choices, batches = log

    assert render(batches, choices=choices) == render([[c for b in batches for c in b]], choices=choices)


@given(st.text())
def test_no_text_can_end_a_line_or_an_event(text: str) -> None:
    rendered = render([[chunk(1, text + "\u2028\u2029\x85\r\n\x1c"), end(2, finish="stop")]])

    lines = rendered.splitlines()
    assert all(line == "" or line.startswith("data: ") for line in lines)
    assert rendered.count("\n") == 2 * sum(line != "" for line in lines)


def test_the_first_delta_carries_the_role_and_one_event_the_finish_reason() -> None:
    role, text, finish, done = events(render([[chunk(1, "a", finish="length"), end(2)]], include_usage=False))

    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert text["choices"] == [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}]
    assert finish["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert done == "[DONE]"
    assert "usage" not in role


def test_with_usage_every_earlier_event_has_usage_null() -> None:
    *earlier, last, _ = events(render([[chunk(1, "a", finish="stop"), end(2)]]))

    assert [event["usage"] for event in earlier] == [None] * 3
    assert last["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_held_back_text_makes_no_event() -> None:
    renderer = StreamRenderer(ID, CREATED, MODEL, include_usage=False)

    assert len(events(renderer.render([chunk(1)]).decode())) == 1
    assert renderer.render([chunk(2)]) == b""


@pytest.mark.parametrize("reasons", [(None, None), ("stop", None)])
def test_an_end_without_a_finish_reason_is_an_error_not_an_answer(reasons: tuple[FinishReason | None, ...]) -> None:
    chunks = [*(chunk(1, "a", choice=index, finish=reason) for index, reason in enumerate(reasons)), end(2)]
    fold = ChatFold(2)
    fold.add(chunks)

    with pytest.raises(BackendFailed):
        render([chunks], choices=2)
    with pytest.raises(BackendFailed):
        fold.body(ID, CREATED, MODEL, Usage())


def test_a_whole_answer_has_every_key_that_openais_schema_requires() -> None:
    fold = ChatFold()
    fold.add([chunk(1, "a", finish="stop")])

    whole = msgspec.to_builtins(fold.body(ID, CREATED, MODEL, Usage(3, 1, 2)))

    assert whole == {
        "id": ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }
