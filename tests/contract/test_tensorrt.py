"""The TensorRT-LLM adapter beyond the common contract: what it asks of the engine, and what it makes of its ends."""

import asyncio
import json
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from shared.errors import EngineDead, EngineFailed, InvalidRequest, SettingsInvalid
from tests.contract.checkpoint import write_checkpoint
from tests.contract.engines import CHECKPOINTS, PATIENCE_SECONDS, collect, ids, opened, prompt, sampling
from workers.engines import open_engine
from workers.engines.base import Engine, EngineGuide, EngineOptions, GuideForm

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)
GUIDE = EngineGuide(forms=(GuideForm("", '{"type": "boolean"}', ""),), param="response_format")


def opened_with(path: Path | None = None, **options: str) -> AbstractAsyncContextManager[Any]:
    """Open the checkpoint, or the one at `path`, with options of a model."""
    place = {"path": str(path or CHECKPOINTS["tensorrt"])}
    return open_engine("tensorrt", EngineOptions(model="test/model", context=1024, options=place | options))


def fake_of(engine: Any) -> Any:
    """What stands behind the fake LLM."""
    return engine._llm.fake


async def test_prompts_are_reused_within_an_account_and_never_across() -> None:
    async with opened("tensorrt") as engine:
        asked = prompt(engine, "A long question that fills more than one block of the cache. " * 3)

        cached = []
        for key, account in enumerate(("one", "one", "two", "two")):
            deltas = await collect(engine.generate(str(key), asked, sampling(2, cache_salt=account)))
            cached.append(next(delta.cached_tokens for delta in deltas if delta.cached_tokens is not None))

        assert cached[0] == cached[2] == 0
        assert 0 < cached[1] == cached[3] < len(asked)


async def test_a_cache_that_is_off_keeps_nothing() -> None:
    async with opened_with(cache_prompt="false") as engine:
        asked = prompt(engine, "A long question that fills more than one block of the cache. " * 3)
        for key in "ab":
            deltas = await collect(engine.generate(key, asked, sampling(2, cache_salt="one")))

        assert deltas[0].cached_tokens == 0


async def test_options_reach_the_engine() -> None:
    options = {"max_batch_size": "7", "max_num_tokens": "256", "kv_cache_fraction": "0.5", "kv_cache_dtype": "fp8"}
    async with opened_with(**options, tensor_parallel_size="2") as engine:
        args = fake_of(engine).args

        assert engine.slots == args.max_batch_size == 7
        assert args.max_num_tokens == 256
        assert args.max_seq_len == engine.context == 1024
        assert (args.kv_cache_config.free_gpu_memory_fraction, args.kv_cache_config.dtype) == (0.5, "fp8")
        assert args.enable_chunked_prefill


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tensor_parallel_size", "0"),
        ("max_batch_size", "0"),
        ("max_num_tokens", "1"),
        ("kv_cache_fraction", "1.0"),
        ("kv_cache_dtype", "int3"),
    ],
)
async def test_an_option_out_of_range_is_refused(option: str, value: str) -> None:
    with pytest.raises(SettingsInvalid):
        async with opened_with(**{option: value}):
            pass


async def test_a_prompt_longer_than_one_step_takes_is_served_in_parts() -> None:
    async with opened_with(max_num_tokens="64") as engine:
        assert ids(await collect(engine.generate("a", prompt(engine, "x y " * 100), sampling(2))))


async def test_more_tokens_than_the_engine_makes_by_default_are_made() -> None:
    async with opened("tensorrt") as engine:
        deltas = await collect(engine.generate("a", prompt(engine), sampling(100, temperature=2.0)))

        assert len(ids(deltas)) == 100


async def test_an_end_of_the_generation_config_ends_a_turn_and_is_told() -> None:
    async with opened("tensorrt") as engine:
        (other_end,) = engine.end_token_ids - {engine._end_ids[0]}
        biased = sampling(9, logit_bias=((other_end, 100.0),))

        deltas = await collect(engine.generate("a", prompt(engine), biased))

        assert ids(deltas) == [other_end]
        assert deltas[-1].finish_reason == "stop"


async def test_logprobs_are_the_likeliest_tokens_beside_the_one_made() -> None:
    async with opened("tensorrt") as engine:
        deltas = await collect(engine.generate("a", prompt(engine), sampling(5, top_logprobs=3)))

        told = [one for delta in deltas for one in delta.logprobs]
        assert len(told) == len(ids(deltas)) == 5
        for token_id, one in zip(ids(deltas), told, strict=True):
            assert one.text == engine.tokenizer.token_bytes(token_id)
            assert len(one.top) == 3
            assert one.top[0] == (one.text, one.logprob)


async def test_a_token_beyond_the_likeliest_has_the_least_logprob() -> None:
    async with opened("tensorrt") as engine:
        asked = sampling(60, temperature=2.0, top_logprobs=0, logit_bias=((0, 3.0),))
        deltas = await collect(engine.generate("a", prompt(engine), asked))

        told = [one for delta in deltas for one in delta.logprobs]
        assert all(not one.top and -9999.0 <= one.logprob <= 0 for one in told)


async def test_a_request_that_the_engine_refuses_fails_alone() -> None:
    from tensorrt_llm.llmapi import RequestError

    async with opened("tensorrt") as engine:
        running = engine.generate("a", prompt(engine), sampling(50, temperature=2.0))
        await anext(running)
        fake_of(engine).requests[0].result.fake_queue.put_nowait(RequestError("no"))

        with pytest.raises(EngineFailed) as failed:
            await collect(running)

        assert not isinstance(failed.value, EngineDead)
        assert ids(await collect(engine.generate("b", prompt(engine), sampling(2))))


async def test_an_engine_that_dies_is_dead_to_all_and_to_the_next() -> None:
    async with opened("tensorrt") as engine:
        running = [engine.generate(key, prompt(engine), sampling(900, temperature=2.0)) for key in "ab"]
        await anext(running[0])
        fake_of(engine).dying = ValueError("CUDA error: an illegal memory access was encountered")

        for answer in running:
            with pytest.raises(EngineDead):
                await collect(answer)
        with pytest.raises(EngineDead):
            await engine.warm_up()


async def test_an_answer_that_ends_for_no_good_reason_fails() -> None:
    async with opened("tensorrt") as engine:
        for reason in ("timeout", "cancelled"):
            running = engine.generate("a", prompt(engine), sampling(900, temperature=2.0))
            await anext(running)
            fake_of(engine).requests[0].respond(None, [], reason)

            with pytest.raises(EngineFailed, match=reason):
                await collect(running)


async def test_leaving_aborts_within_the_engine() -> None:
    async with opened("tensorrt") as engine:
        running = engine.generate("a", prompt(engine), sampling(900, temperature=2.0))
        await anext(running)
        (request,) = fake_of(engine).requests

        await running.aclose()
        await asyncio.sleep(0.01)

        assert request.result.aborted()
        assert fake_of(engine).requests == []


async def test_a_finished_answer_is_not_aborted() -> None:
    async with opened("tensorrt") as engine:
        running = engine.generate("a", prompt(engine), sampling(3))
        await anext(running)
        (request,) = fake_of(engine).requests or (None,)
        await collect(running)

        assert request is None or not request.result.aborted()


@pytest.mark.parametrize("max_tokens", [0, -1])
async def test_what_has_killed_the_engine_never_reaches_it(max_tokens: int) -> None:
    async with opened("tensorrt", context=64) as engine:
        with pytest.raises(InvalidRequest):
            engine.generate("a", prompt(engine), sampling(max_tokens))
        with pytest.raises(InvalidRequest):
            engine.generate("a", [5] * 65, sampling(1))
        with pytest.raises(InvalidRequest):
            engine.generate("a", [5], sampling(1, top_k=-1))

        assert ids(await collect(engine.generate("b", prompt(engine, "x"), sampling(2))))


async def test_weights_that_cannot_be_read_are_a_dead_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineDead, match="weights"):
        async with opened_with(write_checkpoint(tmp_path / "corrupt")):
            pass


async def test_a_load_that_nobody_waits_for_any_more_is_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorrt_llm.llmapi import LLM

    opened_ones: list[Any] = []
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(**arguments: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        opened_ones.append(LLM(**arguments))
        return opened_ones[0]

    monkeypatch.setattr("tensorrt_llm.llmapi.LLM", slow)
    loading = asyncio.create_task(opened("tensorrt").__aenter__())
    await begun.wait()

    loading.cancel()
    await asyncio.wait({loading})
    may_end.set()

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (opened_ones and opened_ones[0].fake.down):
            await asyncio.sleep(0.001)


async def test_a_context_beyond_the_models_own_is_lowered(tmp_path: Path) -> None:
    async with opened_with(write_checkpoint(tmp_path, max_position_embeddings=512)) as engine:
        assert engine.context == 512


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", None, "config.json"),
        ("config.json", "{}", "vocab_size"),
        ("config.json", "nonsense", "config.json"),
        ("tokenizer.json", None, "tokenizer"),
        ("tokenizer.json", '{"model": {}}', "tokenizer"),
        ("chat_template.jinja", None, "chat template"),
    ],
)
async def test_a_checkpoint_of_no_use_is_refused(tmp_path: Path, file: str, content: str | None, named: str) -> None:
    path = write_checkpoint(tmp_path) / file
    path.unlink()
    if content is not None:
        path.write_text(content)

    with pytest.raises(SettingsInvalid, match=named):
        async with opened_with(tmp_path):
            pass


async def test_a_missing_folder_and_a_missing_path_are_refused() -> None:
    with pytest.raises(SettingsInvalid, match="no checkpoint folder"):
        async with opened_with(Path("/nowhere")):
            pass
    with pytest.raises(SettingsInvalid, match="option path"):
        async with open_engine("tensorrt", EngineOptions(model="m", context=64)):
            pass


async def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="more tokens than the model"):
        async with opened_with(write_checkpoint(tmp_path, vocab_size=100)):
            pass


async def test_the_template_may_stand_in_the_tokenizers_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    named = [{"name": "other", "template": "x"}, {"name": "default", "template": template}]
    for chat_template in (template, named):
        config = {"eos_token": "<|im_end|>", "chat_template": chat_template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

        async with opened_with(tmp_path) as engine:
            assert engine.chat_template == template


async def test_a_checkpoint_without_an_end_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, eos_token_id=None)
    for file in ("generation_config.json", "tokenizer_config.json"):
        (tmp_path / file).write_text("{}")

    with pytest.raises(SettingsInvalid, match="no end token"):
        async with opened_with(tmp_path):
            pass


async def test_a_machine_without_the_package_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_llm.llmapi", None)

    with pytest.raises(EngineDead, match="not installed"):
        async with opened_with():
            pass


async def test_a_guide_the_engine_leaves_fails_the_answer() -> None:
    async with opened("tensorrt") as engine:
        fake_of(engine).args.guided_decoding_backend = None  # then the engine answers unguided, without a word

        with pytest.raises(EngineFailed, match="guide"):
            await collect(engine.generate("a", prompt(engine), sampling(50, guide=GUIDE)))


async def test_requests_beyond_the_batch_wait_within_the_engine() -> None:
    async with opened("tensorrt", slots=1) as engine:
        long = engine.generate("long", prompt(engine), sampling(900, temperature=2.0))
        await anext(long)
        waiting = asyncio.create_task(collect(engine.generate("next", prompt(engine), sampling(1))))
        await asyncio.sleep(0.01)

        assert not waiting.done()
        await long.aclose()
        assert ids(await waiting)


def text_ids(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.encode(text, special=False)


async def test_tokens_that_were_merged_come_back_as_their_bytes() -> None:
    async with opened("tensorrt") as engine:
        merged = text_ids(engine, " the thing")

        assert len(merged) < len(" the thing")
        assert b"".join(map(engine.tokenizer.token_bytes, merged)) == b" the thing"
