"""TensorRT-LLM in this process, through its LLM API: a checkpoint folder on one GPU or several. For NVIDIA's container.

What we rely on is written down in `tests/contract/trtllm_1_2_1.json`, each fact with its source; the tests run on a
strict fake made from it. The package is imported in `open_tensorrt` and nowhere else.

An error of one request fails that request. Any other is the engine's end: it shuts itself down on them, so the process
must exit and be replaced.
"""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from shared import log
from shared.errors import AnswerLost, EngineDead, EngineFailed, InvalidRequest, SettingsInvalid
from shared.wire import TokenLogprob
from workers.engines.base import Capabilities, Deltas, Embedding, EngineOptions, EngineSampling
from workers.engines.delta_queue import DeltaQueue
from workers.engines.grammar import Grammars, GuideMatcher, check_ended, write_grammar
from workers.engines.tensorrt_checkpoint import Checkpoint, read_checkpoint
from workers.engines.tensorrt_request import sampling_fields, token_logprobs
from workers.engines.tensorrt_tokenizer import CheckpointTokenizer
from workers.engines.validation import check_engine_sampling, check_request, parse_options, unsupported

GUIDED_BACKEND: Final = "llguidance"  # takes our grammars as they are: the same library and dialect
CLOSE_SECONDS_MOST: Final = 30.0

logger = log.get_logger("tensorrt")


class TensorRtOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a tensorrt model. A quantised checkpoint tells its own precision."""

    path: str = ""  # of the checkpoint folder
    tensor_parallel_size: Annotated[int, Meta(ge=1, le=64)] = 1  # GPUs that share the model
    max_batch_size: Annotated[int, Meta(ge=1, le=4096)] = 64  # requests running at once
    max_num_tokens: Annotated[int, Meta(ge=64, le=1_048_576)] = 8192  # of all requests, in one step
    kv_cache_fraction: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.9  # of the memory that the weights leave free
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    cache_prompt: bool = True  # reuse the prompts of earlier requests of the same account


class _Api(NamedTuple):
    """What is used of the package."""

    llm: Callable[..., Any]
    sampling_params: Callable[..., Any]
    guided_decoding_params: Callable[..., Any]
    kv_cache_config: Callable[..., Any]
    request_error: type[Exception]


@asynccontextmanager
async def open_tensorrt(options: EngineOptions) -> AsyncIterator["TensorRt"]:
    """Load a checkpoint. SettingsInvalid where it or an option is bad, EngineDead where the engine does not start."""
    own = parse_options(options.options, TensorRtOptions, engine="tensorrt")
    path = options.path or own.path
    if not path:
        raise SettingsInvalid("engine tensorrt needs the option path: the folder of a checkpoint")
    checkpoint = await asyncio.to_thread(read_checkpoint, Path(path))
    api = await asyncio.to_thread(_import)
    tokenizer = await asyncio.to_thread(
        CheckpointTokenizer, checkpoint.path / "tokenizer.json", vocabulary=checkpoint.vocabulary
    )
    engine = TensorRt(options, own, checkpoint, tokenizer, api=api)
    try:
        await engine.load()
        yield engine
    finally:
        await engine.close()


class TensorRt:
    """One loaded checkpoint; see Engine."""

    # Invariant: `_llm` is there from `load` to `close`; a request is in `_queues` until its queue has ended.

    capabilities: Final = Capabilities(
        seed=False,  # the default sampler draws all requests from one generator
        logprobs=True,
        penalties=False,
        repetition_penalty=False,
        logit_bias=True,
        top_k=True,
        min_p=False,
        guided_decoding=True,
        embeddings=False,
    )

    def __init__(
        self,
        options: EngineOptions,
        own: TensorRtOptions,
        checkpoint: Checkpoint,
        tokenizer: CheckpointTokenizer,
        *,
        api: _Api,
    ) -> None:
        self.model: Final = options.model
        self.context: Final = min(options.context, checkpoint.context or options.context)
        self.slots: Final = options.slots or own.max_batch_size
        self.tokenizer: Final = tokenizer
        self.chat_template: Final = checkpoint.chat_template
        self.template_variables: Final[Mapping[str, str]] = {
            "bos_token": checkpoint.bos_text,
            "eos_token": checkpoint.eos_text,
        }
        self.prompt_prefix_ids: Final = tokenizer.prefix_ids
        self._end_ids: Final = _end_ids(checkpoint, tokenizer)
        self.end_token_ids: Final = frozenset(self._end_ids)
        if self.context < options.context:
            logger.warning("context_lowered", model=self.model, context=self.context, asked=options.context)
        self._own = own
        self._checkpoint = checkpoint
        self._api: Final = api
        self._llm: Any = None
        self._grammars = Grammars(tokenizer, vocabulary=tokenizer.vocabulary, end_token_ids=self._end_ids[:1])
        self._queues: dict[str, DeltaQueue] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._steps = 0

    async def load(self) -> None:
        """Load the weights, apart from the loop: beats and presence go on. EngineDead where it cannot."""
        quantization = self._checkpoint.quantization or "none"
        logger.info("engine_loads", model=self.model, quantization=quantization, gpus=self._own.tensor_parallel_size)
        self._llm = await _apart(self._open)

    def generate(
        self, request_id: str, prompt_token_ids: Sequence[int], sampling: EngineSampling, *, emitted: int = 0
    ) -> Deltas:
        """Start a request; see Engine. An older run of the same id is aborted."""
        check_request(
            prompt_token_ids, sampling, context=self.context, vocabulary=self.tokenizer.vocabulary, emitted=emitted
        )
        check_engine_sampling(sampling, self.capabilities)
        older = self._queues.get(request_id)
        if older is not None:
            older.close()
        queue = DeltaQueue(asyncio.get_running_loop(), lambda: self._leave(request_id, task))
        self._queues[request_id] = queue
        task = self._own_task(self._serve(queue, list(prompt_token_ids), sampling, emitted), request_id)
        return queue

    async def embed(self, request_id: str, prompts: Sequence[Sequence[int]]) -> list[Embedding]:
        """Refuse: the engine makes no embeddings."""
        raise unsupported("model")

    async def abort(self, request_id: str) -> None:
        """Free the slot of a request; see Engine."""
        queue = self._queues.get(request_id)
        if queue is not None:
            queue.close()

    async def warm_up(self) -> None:
        """Make one real token. EngineDead where the engine has died."""
        sampling = EngineSampling(max_tokens=1, temperature=0.0, top_p=1.0, seed=None)
        prompt = self.prompt_prefix_ids or self._end_ids[:1]
        async with aclosing(self.generate(f"warm-up {secrets.token_hex(8)}", prompt, sampling)) as deltas:
            async for _ in deltas:
                pass

    def steps(self) -> int:
        """How many responses came so far: one per step of a request."""
        return self._steps

    async def close(self) -> None:
        """Fail every request and free the model; nothing the second time."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        for queue in list(self._queues.values()):
            queue.close(EngineFailed("The engine was closed."))
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MOST):
                await asyncio.to_thread(llm.shutdown)
        except TimeoutError:
            logger.error("engine_does_not_close", model=self.model)

    def _open(self) -> Any:
        own = self._own
        try:
            cache = self._api.kv_cache_config(
                enable_block_reuse=own.cache_prompt,
                free_gpu_memory_fraction=own.kv_cache_fraction,
                dtype=own.kv_cache_dtype,
            )
            return self._api.llm(
                model=str(self._checkpoint.path),
                tensor_parallel_size=own.tensor_parallel_size,
                max_batch_size=self.slots,
                max_num_tokens=own.max_num_tokens,
                max_seq_len=self.context,
                kv_cache_config=cache,
                enable_chunked_prefill=True,  # else a prompt of more than max_num_tokens is refused
                guided_decoding_backend=GUIDED_BACKEND,
            )
        except Exception as error:  # whatever it is, there is no engine
            raise EngineDead(f"The engine cannot load the model: {error!r}") from error

    def _leave(self, request_id: str, task: "asyncio.Task[None]") -> None:
        del self._queues[request_id]
        task.cancel()

    def _own_task(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Run `work` as a task that `close` waits for."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(
        self, queue: DeltaQueue, prompt_token_ids: list[int], sampling: EngineSampling, emitted: int
    ) -> None:
        """Carry one answer from the engine to its queue; every error ends the queue."""
        try:
            matcher, guide = await self._guide(sampling, emitted)
            fields = sampling_fields(sampling, end_ids=self._end_ids, vocabulary=self.tokenizer.vocabulary, guide=guide)
            result = self._submit(prompt_token_ids, fields, sampling.cache_salt)
        except (InvalidRequest, EngineFailed) as error:
            queue.close(error)
            return
        try:
            await self._follow(queue, result, sampling, matcher)
        except self._api.request_error as error:
            queue.close(EngineFailed(f"The engine refused a request: {error}"))
        except EngineFailed as error:
            queue.close(error)
        except Exception as error:  # the engine shuts itself down on all of them
            queue.close(EngineDead(f"The engine died: {error!r}"))
        finally:
            if not result.finished and self._llm is not None:
                result.abort()

    async def _guide(self, sampling: EngineSampling, emitted: int) -> tuple[GuideMatcher | None, Any]:
        """Return what holds the answer to its guide, ours and the engine's; a begun one cannot be taken up."""
        if sampling.guide is None:
            return None, None
        matcher = await self._grammars.open(sampling.guide)
        if emitted:
            raise AnswerLost("A guided answer cannot be continued by another worker.")
        return matcher, self._api.guided_decoding_params(grammar=write_grammar(sampling.guide))

    def _submit(self, prompt_token_ids: list[int], fields: dict[str, Any], salt: str) -> Any:
        """Hand a request over. EngineFailed where the engine refuses it, EngineDead where it is no more."""
        if self._llm is None:
            raise EngineFailed("The engine was closed.")
        try:
            return self._llm.generate_async(
                prompt_token_ids,
                sampling_params=self._api.sampling_params(**fields),
                streaming=True,
                cache_salt=salt or None,
            )
        except (self._api.request_error, ValueError, TypeError) as error:  # its own checks of one request
            raise EngineFailed(f"The engine refused a request: {error}") from None
        except RuntimeError as error:
            raise EngineDead(f"The engine takes no requests: {error}") from None

    async def _follow(
        self, queue: DeltaQueue, result: Any, sampling: EngineSampling, matcher: GuideMatcher | None
    ) -> None:
        """Give on what each step adds: the engine yields one object that grows."""
        seen = 0
        async for grown in result:
            self._steps += 1
            output = grown.outputs[0]
            token_ids = output.token_ids[seen:]
            if seen == 0:
                queue.tell_cached(grown.cached_tokens)
            if matcher is not None and not matcher.take([one for one in token_ids if one not in self.end_token_ids]):
                raise EngineFailed("The engine left the guide of an answer.")
            logprobs: tuple[TokenLogprob, ...] = ()
            if sampling.top_logprobs is not None:
                logprobs = token_logprobs(token_ids, output.logprobs[seen:], sampling.top_logprobs, self.tokenizer)
            queue.put_all(token_ids, logprobs)
            seen += len(token_ids)
            if output.finish_reason is None:
                queue.wake()
                continue
            if output.finish_reason not in ("stop", "length"):
                raise EngineFailed(f"The engine ended an answer: {output.finish_reason}.")
            if matcher is not None and output.finish_reason == "stop":
                check_ended(matcher)
            queue.finish(output.finish_reason)
            return
        raise EngineFailed("The engine ended an answer without a reason.")


def _end_ids(checkpoint: Checkpoint, tokenizer: CheckpointTokenizer) -> tuple[int, ...]:
    """Return the ids that end a turn, the tokenizer's own first."""
    own = tokenizer.id_of(checkpoint.eos_text) if checkpoint.eos_text else None
    ends = sorted(token_id for token_id in checkpoint.end_ids if 0 <= token_id < checkpoint.vocabulary)
    ids = dict.fromkeys([*([] if own is None else [own]), *ends])
    if not ids:
        raise SettingsInvalid(f"{checkpoint.path} tells no end token")
    return tuple(ids)


async def _apart(load: Callable[[], Any]) -> Any:
    """Return what `load` returns, or raise its EngineDead. One that is not waited for any more is shut down.

    The thread is a daemon, so that a process told to end in the minutes of a load does not wait for it.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Any] = loop.create_future()

    def deliver(llm: Any, error: EngineDead | None) -> None:
        if not loaded.done():
            loaded.set_result(llm) if error is None else loaded.set_exception(error)
        elif llm is not None:
            threading.Thread(target=llm.shutdown, daemon=True).start()

    def run() -> None:
        llm, failed = None, None
        try:
            llm = load()
        except EngineDead as error:
            failed = error
        with suppress(RuntimeError):  # the loop has gone, and the process with it
            loop.call_soon_threadsafe(deliver, llm, failed)

    threading.Thread(target=run, name="tensorrt load", daemon=True).start()
    return await loaded


def _import() -> _Api:
    try:
        from tensorrt_llm.llmapi import LLM, GuidedDecodingParams, KvCacheConfig, RequestError, SamplingParams
    except ImportError as error:
        raise EngineDead(f"TensorRT-LLM is not installed here: {error}. Run the worker in its container.") from None
    return _Api(LLM, SamplingParams, GuidedDecodingParams, KvCacheConfig, RequestError)
