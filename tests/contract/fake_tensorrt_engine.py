"""What the fake TensorRT-LLM does: each behaviour that the facts tell of, on a made-up model whose answers depend on
the ids before them alone. One task makes all steps, for as many requests at once as the batch has room.
"""

import asyncio
import hashlib
import itertools
import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llguidance

STEP_SECONDS = 0.0003
ANSWER_TOKENS = 14  # after which a greedy answer ends soon
HOT = 1.9  # from this temperature on an answer never ends by itself
BEHAVIOURS: dict[str, Callable[..., Any]] = {}
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
CLOSERS = '"}].,'


def behave(name: str, *args: Any, **keywords: Any) -> Any:
    """Do what the facts say; what they do not describe cannot be called."""
    if name not in BEHAVIOURS and name.endswith(".__post_init__"):
        return None
    if name not in BEHAVIOURS:
        raise NotImplementedError(f"there is no fact about what {name} does")
    return BEHAVIOURS[name](*args, **keywords)


async def behave_later(name: str, *args: Any, **keywords: Any) -> Any:
    """As `behave`, of what is awaited."""
    return await behave(name, *args, **keywords)


def behaviour(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        BEHAVIOURS[name] = function
        return function

    return keep


@behaviour("SamplingParams.__post_init__")
def _check_sampling(self: Any) -> None:
    self.pad_id = self.end_id if self.pad_id is None else self.pad_id
    self.best_of = self.best_of or self.n
    if self.top_k is not None and self.top_k < 0:
        raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
    if self.top_p is not None and not 0 <= self.top_p <= 1:
        raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
    if self.guided_decoding is not None:
        BEHAVIOURS["GuidedDecodingParams._validate"](self.guided_decoding)


@behaviour("GuidedDecodingParams._validate")
def _check_guide(self: Any) -> None:
    guides = [self.json, self.regex, self.grammar, self.json_object, self.structural_tag]
    if sum(map(bool, guides)) > 1:
        raise ValueError("Only one guide can be used for a request.")


@behaviour("LLM.__init__")
def _open(self: Any, **arguments: Any) -> None:
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

    explicit = ("tokenizer", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code", "dtype", "revision")
    model = Path(arguments.pop("model"))
    for name in (*explicit, "tokenizer_revision", "tensor_parallel_size"):
        arguments.pop(name)
    try:
        args = TorchLlmArgs(**arguments)
    except TypeError as error:
        raise ValueError(f"LLM got invalid argument: {error}") from None
    if "corrupt" in model.name:
        raise RuntimeError("the weights cannot be read")
    self.fake = Engine(model, args)


@behaviour("BaseLLM.generate_async")
def _generate(self: Any, **arguments: Any) -> Any:
    asyncio.get_running_loop()
    return self.fake.submit(**arguments)


@behaviour("BaseLLM.shutdown")
def _shutdown(self: Any) -> None:
    self.fake.down = True


@behaviour("GenerationResultBase.outputs")
def _outputs(self: Any) -> list[Any]:
    return self.fake_outputs


@behaviour("GenerationResult.finished")
def _finished(self: Any) -> bool:
    return self.fake_done


@behaviour("GenerationResult.aborted")
def _aborted(self: Any) -> bool:
    return self.fake_aborted


@behaviour("GenerationResult.request_id")
def _request_id(self: Any) -> int:
    return self.fake_id


@behaviour("GenerationResult.abort")
def _abort(self: Any) -> None:
    self.fake_aborted = True


@behaviour("GenerationResult.__aiter__")
def _iterate(self: Any) -> Any:
    return self


@behaviour("GenerationResult.__anext__")
async def _next(self: Any) -> Any:
    if self.fake_done:
        raise StopAsyncIteration
    response = await self.fake_queue.get()
    if isinstance(response, Exception):
        raise response
    token_id, logprobs, reason, self.cached_tokens = response
    output, asked = self.fake_outputs[0], self.fake_asked
    if token_id is not None:
        output.token_ids.append(token_id)
        output.logprobs += logprobs
    if reason is not None:
        self.fake_done, output.finish_reason = True, reason
        if reason == "stop" and token_id != asked.end_id:
            output.stop_reason = token_id
            if not asked.include_stop_str_in_output:
                output.token_ids = output.token_ids[:-1]
    return self


class Engine:
    """What stands behind one LLM."""

    def __init__(self, model: Path, args: Any) -> None:
        config = json.loads((model / "config.json").read_text())
        self.args = args
        self.down = False
        self.dying: Exception | None = None
        self.vocabulary = config["vocab_size"]
        tokenizer = (model / "tokenizer.json").read_text()
        self.ids = json.loads(tokenizer)["model"]["vocab"]
        self.start = config["bos_token_id"]
        self.eos = config["eos_token_id"]
        self.guides = llguidance.LLTokenizer(tokenizer, n_vocab=self.vocabulary, eos_token=self.eos)
        self.numbers = itertools.count(1)
        self.cached: dict[str | None, list[list[int]]] = {}
        self.requests: list[Request] = []
        self.stepper: asyncio.Task[None] | None = None

    def submit(self, *, inputs: Any, sampling_params: Any, streaming: bool, cache_salt: str | None, **rest: Any) -> Any:
        from tensorrt_llm.llmapi import CompletionOutput, RequestOutput

        if any(value is not None for value in rest.values()):
            raise NotImplementedError("there is no fact about these")
        if self.down:
            raise RuntimeError("LLM is shutting down")
        if not self.args.enable_chunked_prefill and len(inputs) > self.args.max_num_tokens:
            raise ValueError("The sum of prompt length and query length should not exceed max_num_tokens")
        result = RequestOutput()
        result.fake_id, result.fake_asked = next(self.numbers), sampling_params
        result.fake_outputs = [CompletionOutput(index=0)]
        result.fake_queue = asyncio.Queue()
        result.fake_done = result.fake_aborted = False
        if sampling_params.max_tokens < 1:
            self.dying = RuntimeError("max_tokens must not be zero")
        self.requests.append(Request(self, list(inputs), result, cache_salt))
        if self.stepper is None or self.stepper.done():
            self.stepper = asyncio.get_running_loop().create_task(self.step_while_busy())
        return result

    async def step_while_busy(self) -> None:
        while self.requests and not self.down:
            await asyncio.sleep(STEP_SECONDS)
            for request in list(self.requests):
                if self.dying is not None:
                    request.result.fake_queue.put_nowait(self.dying)
                elif request.result.fake_aborted:
                    request.respond(None, [], "cancelled")
            self.down = self.down or self.dying is not None
            for request in self.requests[: self.args.max_batch_size]:
                request.step()

    def reused(self, salt: str | None, prompt: list[int]) -> int:
        """How many tokens of the prompt are kept from earlier ones of the same salt: whole blocks, never all."""
        longest = 0
        if self.args.kv_cache_config.enable_block_reuse:
            for kept in self.cached.get(salt, []):
                same = sum(
                    1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(kept, prompt, strict=False))
                )
                longest = max(longest, same)
        self.cached.setdefault(salt, []).append(prompt)
        block = self.args.kv_cache_config.tokens_per_block
        return min(longest, len(prompt) - 1) // block * block


class Request:
    """One sequence in the engine."""

    def __init__(self, engine: Engine, prompt: list[int], result: Any, salt: str | None) -> None:
        self.engine, self.result, self.asked = engine, result, result.fake_asked
        self.sequence, self.made = prompt, 0
        self.cached = engine.reused(salt, prompt)
        self.matcher: Any = None
        guide = self.asked.guided_decoding
        if guide is not None and engine.args.guided_decoding_backend == "llguidance":
            self.matcher = llguidance.LLMatcher(engine.guides, llguidance.LLMatcher.grammar_from_lark(guide.grammar))

    def respond(self, token_id: int | None, logprobs: list[Any], reason: str | None) -> None:
        self.result.fake_queue.put_nowait((token_id, logprobs, reason, self.cached))
        if reason is not None:
            self.engine.requests.remove(self)

    def step(self) -> None:
        from tensorrt_llm.llmapi import RequestError

        if self.matcher is not None and self.matcher.is_error():
            self.engine.requests.remove(self)
            self.result.fake_queue.put_nowait(RequestError(self.matcher.get_error()))
            return
        scores = self.guided_scores() if self.matcher is not None else self.free_scores()
        for token_id, bias in enumerate(self.asked.embedding_bias or ()):
            if bias:
                scores[token_id] = scores.get(token_id, -9.0) + bias
        token_id = self.draw(scores)
        self.sequence.append(token_id)
        self.made += 1
        if self.matcher is not None and token_id != self.engine.eos:
            assert self.matcher.consume_token(token_id)
        ended = not self.asked.ignore_eos and token_id in (self.asked.end_id, *(self.asked.stop_token_ids or ()))
        reason = "stop" if ended else "length" if self.made >= self.asked.max_tokens else None
        self.respond(token_id, self.logprobs(scores), reason)

    def draw(self, scores: dict[int, float]) -> int:
        ranked = sorted(scores, key=lambda token_id: -scores[token_id])
        if not self.asked.temperature:
            return ranked[0]
        return random.choice(ranked[: self.asked.top_k or 8])

    def logprobs(self, scores: dict[int, float]) -> list[Any]:
        from tensorrt_llm.executor.result import Logprob

        if not self.asked.logprobs:
            return []
        total = math.log(sum(map(math.exp, scores.values())))
        ranked = sorted(scores, key=lambda token_id: -scores[token_id])[: self.asked.logprobs]
        return [{one: Logprob(scores[one] - total, rank) for rank, one in enumerate(ranked, start=1)}]

    def digest(self) -> bytes:
        return hashlib.blake2b(struct.pack(f"<{len(self.sequence)}I", *self.sequence)).digest()

    def free_scores(self) -> dict[int, float]:
        digest = self.digest()
        scores = {self.engine.ids[letter]: digest[at] / 32 for at, letter in enumerate(LETTERS)}
        backwards = self.sequence[::-1]
        since_start = backwards.index(self.engine.start) if self.engine.start in backwards else len(backwards)
        late = since_start > ANSWER_TOKENS + len("assistant\n") + digest[40] % 8
        if late and not (self.asked.temperature and self.asked.temperature >= HOT):
            return {self.engine.eos: 20.0, **scores} if not self.asked.temperature else {self.engine.eos: 20.0}
        return scores

    def guided_scores(self) -> dict[int, float]:
        mask = self.matcher.compute_bitmask()
        allowed = [at for at in range(self.engine.vocabulary) if mask[at // 8] >> at % 8 & 1]
        if self.engine.eos in allowed and (self.made > ANSWER_TOKENS or allowed == [self.engine.eos]):
            return {self.engine.eos: 0.0}
        allowed = [token_id for token_id in allowed if token_id != self.engine.eos] or allowed
        preferred = CLOSERS if self.made > ANSWER_TOKENS else LETTERS + CLOSERS + "0123456789"
        nice = [token_id for one in preferred if (token_id := self.engine.ids[one]) in allowed]
        digest = self.digest()
        return {token_id: digest[at % 64] / 32 for at, token_id in enumerate(nice or allowed)}
