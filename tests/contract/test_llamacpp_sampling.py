"""Each thing that llamacpp says it can do has its effect on the demo model."""

import math
from collections.abc import AsyncIterator

import pytest

from tests.contract.engines import collect, ids, prompt, sampling, text
from workers.engines.base import Delta, EngineGuide, EngineOptions, EngineSampling, GuideForm
from workers.engines.llamacpp import LlamaCpp, open_llamacpp
from workers.engines.llamacpp_request import completion_body, seeded
from workers.engines.llamacpp_stream import UNKNOWN

pytestmark = pytest.mark.timeout(60)
QUESTION = "What is Inferbase?"


@pytest.fixture
async def engine() -> AsyncIterator[LlamaCpp]:
    async with open_llamacpp(EngineOptions(model="m", context=512, slots=2)) as llamacpp:
        yield llamacpp


async def answer(engine: LlamaCpp, asked: EngineSampling, prompt_ids: list[int] | None = None) -> list[Delta]:
    """The answer to the question, or to a prompt of ids."""
    return await collect(engine.generate("a", prompt_ids or prompt(engine, QUESTION), asked))


async def first(engine: LlamaCpp, prompt_ids: list[int], emitted: int = 0, **more: object) -> int:
    """The greedy next token."""
    return ids(await collect(engine.generate("a", prompt_ids, sampling(1, **more), emitted=emitted)))[0]


async def test_a_bias_of_minus_100_removes_the_greedy_token(engine: LlamaCpp) -> None:
    greedy = ids(await answer(engine, sampling(12)))

    without = ids(await answer(engine, sampling(12, logit_bias=((greedy[0], -100.0),))))

    assert greedy[0] not in without


async def test_a_bias_of_100_forces_a_token(engine: LlamaCpp) -> None:
    (slash,) = engine.tokenizer.encode("/", special=False)

    forced = ids(await answer(engine, sampling(6, temperature=1.0, logit_bias=((slash, 100.0),))))

    assert forced == [slash] * 6


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 1.0}, {"presence_penalty": 2.0}])
async def test_a_penalty_counts_what_the_answer_holds_and_not_the_prompt(
    engine: LlamaCpp, penalty: dict[str, float]
) -> None:
    (slash,) = engine.tokenizer.encode("/", special=False)
    begun = prompt(engine, QUESTION) + [slash] * 3
    forced = sampling(1, top_logprobs=1, logit_bias=((slash, 100.0),))
    (delta, *_) = await collect(engine.generate("a", begun, forced))
    behind = delta.logprobs[0].top[0][1] - delta.logprobs[0].logprob
    just = ((slash, behind + 1.5),)  # so much that it is just the greedy token

    assert await first(engine, begun, logit_bias=just, emitted=3) == slash
    assert await first(engine, begun, logit_bias=just, emitted=3, **penalty) != slash
    assert await first(engine, begun, logit_bias=just, **penalty) == slash


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}])
async def test_a_penalty_does_not_count_the_prompt(engine: LlamaCpp, penalty: dict[str, float]) -> None:
    begun = prompt(engine, QUESTION) + engine.tokenizer.encode("Inferbase is a", special=False)
    greedy = await first(engine, begun)

    assert await first(engine, [greedy] * 40 + begun, **penalty) == greedy


async def test_a_repetition_penalty_counts_the_prompt(engine: LlamaCpp) -> None:
    begun = prompt(engine, QUESTION) + engine.tokenizer.encode("Inferbase is a", special=False)
    greedy = await first(engine, begun)

    assert await first(engine, [greedy] * 40 + begun, repetition_penalty=2.0) != greedy


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1.0}])
async def test_a_choice_of_one_is_greedy_at_any_temperature(engine: LlamaCpp, narrow: dict[str, float]) -> None:
    hot = ids(await answer(engine, sampling(20, temperature=2.0, **narrow)))

    assert hot == ids(await answer(engine, sampling(20)))


@pytest.mark.parametrize("top", [0, 1, 5, 20])
async def test_each_token_has_its_logprob_and_the_likeliest_beside_it(engine: LlamaCpp, top: int) -> None:
    deltas = await answer(engine, sampling(12, top_logprobs=top))

    token_bytes = [engine.tokenizer.token_bytes(token_id) for token_id in ids(deltas)]
    logprobs = [one for delta in deltas for one in delta.logprobs]
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert [one.text for one in logprobs] == token_bytes
    for one in logprobs:
        assert len(one.top) == top
        assert [likely for _, likely in one.top] == sorted((likely for _, likely in one.top), reverse=True)
        assert sum(math.exp(likely) for _, likely in one.top) <= 1 + 1e-4
        assert one.logprob <= 0
        assert not one.top or one.top[0] == (one.text, one.logprob)  # greedy


async def test_logprobs_are_of_the_model_and_not_of_the_sampling(engine: LlamaCpp) -> None:
    (slash,) = engine.tokenizer.encode("/", special=False)

    deltas = await answer(engine, sampling(1, top_logprobs=2, logit_bias=((slash, 100.0),)))

    assert deltas[0].logprobs[0].text == b"/"
    assert deltas[0].logprobs[0].logprob < deltas[0].logprobs[0].top[0][1]


async def test_logprobs_stay_beside_their_tokens_inside_a_character(engine: LlamaCpp) -> None:
    said = "\U0001f600\u00e9a"
    guide = EngineGuide(forms=(GuideForm(said, '{"const": 1}', "."),), param="tools")

    deltas = await answer(engine, sampling(40, top_logprobs=2, guide=guide))

    logprobs = [one for delta in deltas for one in delta.logprobs]
    assert text(engine, deltas) == said + "1."
    assert [one.text for one in logprobs] == [engine.tokenizer.token_bytes(token_id) for token_id in ids(deltas)]
    assert sum(one.logprob == UNKNOWN for one in logprobs) == 4  # three of four bytes, one of two


async def test_no_logprobs_are_told_unasked(engine: LlamaCpp) -> None:
    assert all(delta.logprobs == () for delta in await answer(engine, sampling(5)))


def test_only_samplers_with_something_to_do_are_named() -> None:
    def samplers(**more: object) -> list[str]:
        named: list[str] = completion_body([1], sampling(**more), emitted=0, context=9)["samplers"]
        return named

    assert samplers() == ["temperature", "top_p"]
    assert samplers(top_k=3, min_p=0.1) == ["temperature", "top_k", "top_p", "min_p"]
    assert samplers(presence_penalty=1.0) == ["penalties", "temperature", "top_p"]


def test_a_guided_request_has_a_seed_of_its_own() -> None:
    assert seeded("a", sampling(seed=5)).seed == 5
    assert seeded("a", sampling()).seed == seeded("a", sampling()).seed != seeded("b", sampling()).seed
