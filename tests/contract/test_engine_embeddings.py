"""Embeddings of every engine that makes them; a model that does not is refused by name."""

import asyncio
import math

import pytest

from shared.errors import EngineFailed, InvalidRequest, SettingsInvalid
from tests.contract.engines import PATIENCE_SECONDS, collect, ids, opened, prompt, sampling
from workers.engines import open_engine
from workers.engines.base import Engine, EngineOptions

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)
both = pytest.mark.parametrize("name", ["simulator", "llamacpp"])


def embedding_engine(name: str, context: int = 1024, **options: str):
    """An engine opened for embeddings."""
    own = {"embeddings": "true"} if name == "llamacpp" else {}
    return open_engine(name, EngineOptions(model="m", context=context, slots=2, options=own | options))


def encoded(engine: Engine, *texts: str) -> list[list[int]]:
    return [engine.tokenizer.encode(text, special=False) for text in texts]


@both
async def test_each_prompt_has_a_vector_of_unit_length_and_its_token_count(name: str) -> None:
    async with embedding_engine(name) as engine:
        prompts = encoded(engine, "a queue", "what money is held", "x")

        made = await engine.embed("a", prompts)

        assert engine.capabilities.embeddings
        assert [one.prompt_tokens for one in made] == [len(prompt_ids) for prompt_ids in prompts]
        assert len({len(one.vector) for one in made}) == 1
        for one in made:
            assert math.isclose(math.hypot(*one.vector), 1.0, rel_tol=1e-4)


@both
async def test_the_same_prompt_has_the_same_vector_and_another_one_another(name: str) -> None:
    async with embedding_engine(name) as engine:
        prompts = encoded(engine, "a queue", "the ledger", "a queue")

        first, other, again = await engine.embed("a", prompts)

        assert first.vector == again.vector
        assert math.dist(first.vector, other.vector) > 0.01


@both
async def test_a_prompt_as_long_as_the_context_is_embedded_and_a_longer_one_refused(name: str) -> None:
    async with embedding_engine(name, context=700) as engine:
        (word,) = encoded(engine, "x")

        assert len(await engine.embed("a", [word * 700])) == 1
        with pytest.raises(InvalidRequest) as refused:
            await engine.embed("a", [word * 701])

        assert refused.value.code == "context_length_exceeded"


@both
@pytest.mark.parametrize("bad", [[], [-1], [10**9]], ids=["empty", "negative", "unknown"])
async def test_a_bad_prompt_is_refused(name: str, bad: list[int]) -> None:
    async with embedding_engine(name) as engine:
        with pytest.raises(InvalidRequest) as refused:
            await engine.embed("a", [[5], bad])

        assert refused.value.param == "input"


@both
async def test_embeddings_and_answers_share_an_engine(name: str) -> None:
    async with opened(name) as plain:
        alone = ids(await collect(plain.generate("a", prompt(plain), sampling(10))))

    async with embedding_engine(name) as engine:
        answer = collect(engine.generate("a", prompt(engine), sampling(10)))
        made, beside = await asyncio.gather(engine.embed("b", encoded(engine, "a", "b", "c", "d")), answer)

        assert len(made) == 4
        assert ids(beside) == alone


@both
async def test_an_embedding_is_a_step(name: str) -> None:
    async with embedding_engine(name) as engine:
        before = engine.steps()
        await engine.embed("a", [[5]])

        assert engine.steps() > before


@pytest.mark.parametrize("name", ["llamacpp", "tensorrt"])
async def test_an_engine_that_was_not_opened_for_embeddings_refuses_them_by_name(name: str) -> None:
    async with opened(name) as engine:
        with pytest.raises(InvalidRequest) as refused:
            await engine.embed("a", [[5]])

        assert not engine.capabilities.embeddings
        assert refused.value.code == "unsupported_parameter"


async def test_the_pooling_of_llamacpp_can_be_chosen() -> None:
    vectors = []
    for pooling in ("mean", "last", "cls"):
        async with embedding_engine("llamacpp", pooling=pooling) as engine:
            vectors += [one.vector for one in await engine.embed("a", encoded(engine, "two words"))]

    assert len(set(vectors)) == 3
    with pytest.raises(SettingsInvalid, match="pooling"):
        async with embedding_engine("llamacpp", pooling="most"):
            pass


async def test_a_scripted_failure_fails_an_embedding() -> None:
    async with embedding_engine("simulator", fail_before_first_token="true") as engine:
        with pytest.raises(EngineFailed):
            await engine.embed("a", [[5]])


async def test_an_aborted_embedding_fails() -> None:
    async with embedding_engine("simulator", prefill_ms="10000") as engine:
        waiting = asyncio.create_task(engine.embed("a", [[5]]))
        await asyncio.sleep(0)

        await engine.abort("a")

        with pytest.raises(EngineFailed):
            await waiting
