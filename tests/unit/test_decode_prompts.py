"""Legacy completions and embeddings: prompts in four forms, and what is wrong with a body."""

from typing import Any

import msgspec
import pytest

from shared.errors import InvalidRequest
from shared.openai.decode_prompts import decode_completion, decode_embedding
from shared.openai.request import CompletionRequest
from shared.wire import Sampling, Task


def completion(**fields: Any) -> CompletionRequest:
    return decode_completion(msgspec.json.encode({"model": "m", "prompt": "Hi", **fields}))


def embedding(**fields: Any) -> CompletionRequest:
    return decode_embedding(msgspec.json.encode({"model": "m", "input": "Hi", **fields}))


def refusal(decode: Any, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as refused:
        decode(**fields)
    return refused.value.code, refused.value.param


PROMPTS: list[tuple[Any, tuple[Any, ...]]] = [
    ("Hi", ("Hi",)),
    (["a", "b"], ("a", "b")),
    ([1, 2.0], ((1, 2),)),
    ([[1], [2, 3]], ((1,), (2, 3))),
    (["a", [2]], ("a", (2,))),
]


@pytest.mark.parametrize(("prompt", "decoded"), PROMPTS)
def test_a_prompt_is_text_or_tokens_one_or_several(prompt: Any, decoded: tuple[Any, ...]) -> None:
    assert completion(prompt=prompt).task == Task(kind="completion", prompts=decoded)
    assert embedding(input=prompt).task == Task(kind="embedding", prompts=decoded)


def test_defaults_are_openais() -> None:
    assert completion().sampling == Sampling(max_tokens=16)
    assert embedding() == CompletionRequest(
        model="m", messages=(), sampling=Sampling(max_tokens=1), task=Task(kind="embedding", prompts=("Hi",))
    )


def test_fields_of_a_legacy_completion_are_taken() -> None:
    request = completion(max_tokens=5, n=2, best_of=2, echo=True, stop="x", stream=True, suffix="", mood="good")

    assert request.sampling == Sampling(max_tokens=5, choices=2, stop=("x",))
    assert (request.task.echo, request.stream, request.ignored) == (True, True, ("mood",))
    assert completion(logprobs=5).sampling.top_logprobs == 5


BAD: list[tuple[str, Any, str]] = [
    *(("prompt", value, "invalid_value") for value in ("", [], {}, 1, [""], [[]], [1, "a"], [-1], [True], ["a"] * 33)),
    *(("logprobs", value, "invalid_value") for value in (6, -1, True)),
    ("max_tokens", 0, "invalid_value"),
    ("best_of", 3, "unsupported_parameter"),
    ("suffix", "x", "unsupported_parameter"),
    ("prompt", None, "missing_required_parameter"),
    ("model", None, "missing_required_parameter"),
]


@pytest.mark.parametrize(("name", "value", "code"), BAD)
def test_a_bad_field_of_a_legacy_completion_is_named(name: str, value: Any, code: str) -> None:
    found, param = refusal(completion, **{name: value})

    assert found == code
    assert param is not None and param.startswith(name)


def test_prompts_times_choices_are_bounded() -> None:
    assert refusal(completion, prompt=["a"] * 9, n=8) == ("invalid_value", "n")


def test_logprobs_of_an_echoed_prompt_are_refused() -> None:
    assert refusal(completion, echo=True, logprobs=1) == ("unsupported_parameter", "logprobs")


def test_an_embedding_knows_few_fields() -> None:
    assert embedding(encoding_format="base64", user="u").base64
    assert refusal(embedding, encoding_format="hex") == ("invalid_value", "encoding_format")
    assert refusal(embedding, dimensions=64) == ("unsupported_parameter", "dimensions")
    assert refusal(embedding, mood="good") == ("unsupported_parameter", "mood")
    assert refusal(embedding, input=["a"] * 257) == ("invalid_value", "input")
