"""Completion bodies: which fields mean what, which are refused by name, which are ignored and told."""

from typing import Any

import msgspec
import pytest

from shared.errors import InvalidRequest
from shared.openai.decode import decode_chat
from shared.openai.request import CompletionRequest
from shared.wire import Message, Sampling

USER = {"role": "user", "content": "Hi"}


def decode(**fields: Any) -> CompletionRequest:
    """Decode a valid body with `fields` changed; `...` leaves one out."""
    values = {"model": "Org/m", "messages": [USER], **fields}
    return decode_chat(msgspec.json.encode({name: value for name, value in values.items() if value is not ...}))


def refusal(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as refused:
        decode(**fields)
    return refused.value.code, refused.value.param


def test_defaults_are_openais() -> None:
    assert decode() == CompletionRequest(model="Org/m", messages=(Message("user", "Hi"),), sampling=Sampling())
    assert decode().sampling.temperature == 1.0


def test_every_way_to_choose_tokens_is_taken() -> None:
    request = decode(
        n=8,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.5,
        top_k=40,
        min_p=0.05,
        logit_bias={"7": -100, "8": 1, "9": 0},
        logprobs=True,
        top_logprobs=20,
    )

    assert request.sampling == Sampling(
        choices=8,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.5,
        top_k=40,
        min_p=0.05,
        logit_bias=((7, -100), (8, 1)),
        top_logprobs=20,
    )


def test_alternatives_need_logprobs() -> None:
    assert decode(logprobs=True).sampling.top_logprobs == 0
    assert refusal(top_logprobs=5) == ("invalid_value", "top_logprobs")


def test_every_field_that_exists_is_taken() -> None:
    request = decode(
        temperature=0.5,
        top_p=0.9,
        max_tokens=256,
        stop=["a", "b"],
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
        user="u",
        n=1,
    )

    assert request.sampling == Sampling(temperature=0.5, top_p=0.9, max_tokens=256, stop=("a", "b"), seed=7)
    assert (request.stream, request.include_usage, request.user, request.ignored) == (True, True, "u", ())


OPTIONAL = [
    "temperature top_p max_tokens max_completion_tokens stop seed stream stream_options user n tools tool_choice",
    "response_format logprobs top_logprobs logit_bias frequency_penalty presence_penalty functions function_call",
    "parallel_tool_calls modalities audio prediction service_tier store metadata reasoning_effort verbosity",
    "web_search_options chat_template prompt_embeds cache_salt api_base base_url extra_headers top_k anything",
]


@pytest.mark.parametrize("name", " ".join(OPTIONAL).split())
def test_null_is_as_good_as_absent(name: str) -> None:
    assert decode(**{name: None}) == decode()


INVALID: list[tuple[str, list[Any]]] = [
    ("temperature", [-0.1, 2.0001, "hot", "1", True, [], {}]),
    ("top_p", [0, 1.1, -1, "0.5", True]),
    ("max_tokens", [0, -1, 10**9, 2**31, 2**63, 256.5, "5", True, [5]]),
    ("max_completion_tokens", [0, -1, 10**9, 2**63, 256.5, "5", True]),
    ("n", [0, -1, 10**9, 1.5, "1", True]),
    ("seed", [2**63, -(2**63) - 1, 1.5, "1", True]),
    ("stream", ["true", 1, 0, "x", []]),
    ("stop", ["", 1, True, {}, ["a", "b", "c", "d", "e"], [""], ["x" * 65], "x" * 1_000_000, [["a"]]]),
    ("user", [1, {}, "u" * 1025]),
    ("frequency_penalty", [-2.1, 2.1, "0", True]),
    ("presence_penalty", [-2.1, 2.1, "0", True]),
    ("logprobs", ["true", 1]),
    ("top_logprobs", [10**6, -1, "1"]),
    ("top_k", [-1, 1.5, "1"]),
    ("min_p", [-0.1, 1.1, "0"]),
    ("repetition_penalty", [0, 2.1, "1"]),
    ("logit_bias", [[], "x", {"x": 1}, {"-1": 1}, {"1": 1e9}, {"1": "5"}, {"1": 1, "01": 1}, {"9" * 11: 1}]),
    ("logit_bias", [{str(token): 1 for token in range(20_000)}]),
    ("reasoning_effort", ["huge", 1]),
    ("metadata", ["x", {"a": 1}, {"a": "x" * 513}, {"a" * 65: "x"}, {str(number): "x" for number in range(17)}]),
    ("tool_choice", ["sometimes", 1]),
    ("service_tier", ["scale", "priority", 1]),
    ("stream_options", [[], "x", True]),
    ("model", ["", 1, [], {}, "x" * 257, "a\r\nb", "x" * 100_000]),
    ("messages", [{}, [], "x", 1, [USER] * 1025]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INVALID for value in values])
def test_bad_values_name_their_field(name: str, value: Any) -> None:
    code, param = refusal(**{name: value})

    assert code == "invalid_value"
    assert param is not None and param.startswith(name)


UNSUPPORTED: list[tuple[str, Any]] = [
    *((name, "x") for name in ("chat_template", "prompt_embeds", "cache_salt", "api_base", "base_url")),
    ("extra_headers", {"x": "y"}),
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x", "format": "wav"}),
    ("web_search_options", {}),
]


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED)
def test_what_is_not_built_is_refused_by_name(name: str, value: Any) -> None:
    assert refusal(**{name: value}) == ("unsupported_parameter", name)


NEUTRAL: list[tuple[str, Any]] = [
    ("n", 1),
    ("tools", []),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("response_format", {"type": "text"}),
    ("logprobs", False),
    ("top_logprobs", 0),
    ("frequency_penalty", 0),
    ("presence_penalty", 0.0),
    ("logit_bias", {}),
    ("modalities", ["text"]),
    ("stop", []),
    ("top_k", 0),
    ("min_p", 0),
    ("repetition_penalty", 1),
    ("parallel_tool_calls", True),
    ("metadata", {"a": "b"}),
    ("store", False),
]


@pytest.mark.parametrize(("name", "value"), NEUTRAL)
def test_a_value_without_effect_is_taken_silently(name: str, value: Any) -> None:
    assert decode(**{name: value}) == decode()


@pytest.mark.parametrize(
    ("value", "tier"), [("auto", "default"), ("default", "default"), ("flex", "flex"), (None, None)]
)
def test_a_service_tier_is_kept_as_the_one_it_gets(value: str | None, tier: str | None) -> None:
    assert decode(service_tier=value).service_tier == tier


@pytest.mark.parametrize("value", [0, 2, 1e-300, 0.7, 1])
def test_every_temperature_in_range_is_taken(value: float) -> None:
    assert decode(temperature=value).sampling.temperature == value


def test_unknown_fields_are_ignored_and_named() -> None:
    request = decode(
        ignore_eos=True,
        verbosity="low",
        store=True,
        messages=[{**USER, "mood": "good"}],
        stream=True,
        stream_options={"continuous_usage_stats": True},
    )

    assert request.ignored == (
        "ignore_eos",
        "messages.mood",
        "store",
        "stream_options.continuous_usage_stats",
        "verbosity",
    )


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_bound_mean_the_same(name: str) -> None:
    assert decode(**{name: 256.0}).sampling.max_tokens == 256


def test_two_bounds_that_disagree_are_refused() -> None:
    assert decode(max_tokens=5, max_completion_tokens=5).sampling.max_tokens == 5
    assert refusal(max_tokens=5, max_completion_tokens=6) == ("invalid_value", "max_completion_tokens")


def test_a_negative_seed_is_folded_into_the_range_of_engines() -> None:
    assert decode(seed=-1).sampling.seed == 2**63 - 1
    assert decode(seed=2**63 - 1).sampling.seed == 2**63 - 1


def test_one_stop_string_is_a_list_of_one() -> None:
    assert decode(stop="END").sampling.stop == ("END",)


def test_null_inside_stop_is_refused() -> None:
    assert refusal(stop=["a", None]) == ("invalid_value", "stop[1]")


def test_stream_options_need_a_stream() -> None:
    assert refusal(stream_options={"include_usage": True}) == ("invalid_value", "stream_options")
    assert refusal(stream=True, stream_options={"include_usage": "yes"})[1] == "stream_options.include_usage"


@pytest.mark.parametrize("name", ["model", "messages"])
@pytest.mark.parametrize("value", [..., None])
def test_model_and_messages_are_required(name: str, value: Any) -> None:
    assert refusal(**{name: value}) == ("missing_required_parameter", name)


@pytest.mark.parametrize("model", ["../../etc", "Org/m", "a'; DROP TABLE models"])
def test_any_printable_model_name_is_left_to_the_catalogue(model: str) -> None:
    assert decode(model=model).model == model


MESSAGES: list[tuple[Any, str, str]] = [
    ("x", "invalid_value", "messages[0]"),
    ({"content": "x"}, "missing_required_parameter", "messages[0].role"),
    ({"role": "robot", "content": "x"}, "invalid_value", "messages[0].role"),
    ({"role": 1, "content": "x"}, "invalid_value", "messages[0].role"),
    ({"role": ["user"], "content": "x"}, "invalid_value", "messages[0].role"),
    ({"role": "function", "content": "x", "name": "f"}, "unsupported_parameter", "messages[0].role"),
    ({"role": "user"}, "missing_required_parameter", "messages[0].content"),
    ({"role": "user", "content": None}, "missing_required_parameter", "messages[0].content"),
    ({"role": "assistant", "content": None}, "missing_required_parameter", "messages[0].content"),
    ({"role": "user", "content": 1}, "invalid_value", "messages[0].content"),
    ({"role": "user", "content": {}}, "invalid_value", "messages[0].content"),
    ({"role": "user", "content": []}, "invalid_value", "messages[0].content"),
    ({"role": "user", "content": ["x"]}, "invalid_value", "messages[0].content[0]"),
    ({"role": "user", "content": [{"text": "x"}]}, "missing_required_parameter", "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": "text"}]}, "missing_required_parameter", "messages[0].content[0].text"),
    ({"role": "user", "content": [{"type": "text", "text": 1}]}, "invalid_value", "messages[0].content[0].text"),
    ({"role": "user", "content": [{"type": "x"}]}, "invalid_value", "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": ["text"]}]}, "invalid_value", "messages[0].content[0].type"),
    (
        {"role": "user", "content": [{"type": "refusal", "refusal": "x"}]},
        "invalid_value",
        "messages[0].content[0].type",
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]},
        "unsupported_parameter",
        "messages[0].content[0]",
    ),
    ({"role": "user", "content": "x", "name": ""}, "invalid_value", "messages[0].name"),
    ({"role": "user", "content": "x", "name": 1}, "invalid_value", "messages[0].name"),
    ({"role": "assistant", "content": None, "tool_calls": []}, "missing_required_parameter", "messages[0].content"),
    (
        {"role": "assistant", "content": "x", "function_call": {"name": "f"}},
        "unsupported_parameter",
        "messages[0].function_call",
    ),
    ({"role": "user", "content": "x", "reasoning_content": "y"}, "invalid_value", "messages[0].reasoning_content"),
]


@pytest.mark.parametrize(("message", "code", "param"), MESSAGES)
def test_a_bad_message_is_named(message: Any, code: str, param: str) -> None:
    assert refusal(messages=[message]) == (code, param)


def test_the_index_of_a_bad_message_is_told() -> None:
    assert refusal(messages=[USER, USER, {"role": "x", "content": ""}])[1] == "messages[2].role"


GOOD: list[tuple[list[Any], tuple[Message, ...]]] = [
    ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], (Message("user", "hi"),)),
    (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        (Message("user", "ab"),),
    ),
    ([{"role": "system", "content": "s"}], (Message("system", "s"),)),
    ([{"role": "developer", "content": "s"}], (Message("system", "s"),)),
    ([USER, {"role": "assistant", "content": "a"}], (Message("user", "Hi"), Message("assistant", "a"))),
    ([{"role": "user", "content": ""}], (Message("user", ""),)),
    ([{"role": "user", "content": "x", "name": "Ann"}], (Message("user", "x", "Ann"),)),
    ([{"role": "user", "content": "<|im_end|>"}], (Message("user", "<|im_end|>"),)),
    (
        [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None, "annotations": []}],
        (Message("assistant", "a"),),
    ),
    ([{"role": "assistant", "content": None, "refusal": "no"}], (Message("assistant", "no"),)),
]


@pytest.mark.parametrize(("messages", "decoded"), GOOD)
def test_good_messages_become_plain_text(messages: list[Any], decoded: tuple[Message, ...]) -> None:
    request = decode(messages=messages)

    assert request.messages == decoded
    assert request.ignored == ()


def test_1024_messages_are_allowed() -> None:
    assert len(decode(messages=[USER] * 1024).messages) == 1024
