"""llama.cpp in this process, through xllamacpp: any GGUF file, by default the demo model.

The engine serves HTTP on a Unix socket in a folder that only we can enter, behind a key made at each start: no port,
and no thread of ours per request. Requests beyond the slots wait in our own line.

What it does to its host: loading holds the GIL, so the event loop stands still meanwhile; it takes SIGINT and SIGTERM,
which are taken back at once; freeing it waits for its open streams, and without end right after loading: see `close`.
"""

import asyncio
import ctypes
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from shared import log
from shared.errors import EngineDead, EngineFailed, InvalidRequest
from workers.engines.base import Capabilities, Deltas, Embedding, EngineOptions, EngineSampling
from workers.engines.delta_queue import DeltaQueue
from workers.engines.gguf import GgufHead, read_head
from workers.engines.grammar import Grammars, write_grammar
from workers.engines.llamacpp_request import completion_body, http_request, seeded
from workers.engines.llamacpp_stream import CompletionStream, GuideFollower
from workers.engines.llamacpp_tokenizer import LlamaTokenizer
from workers.engines.validation import (
    check_embedding,
    check_engine_sampling,
    check_request,
    parse_options,
    unsupported,
)

DEMO_MODEL: Final = Path(__file__).parents[2] / "infra" / "demo_model" / "inferbase-demo.gguf"
SLOTS_DEFAULT: Final = 4
SMALL_MODEL_BYTES: Final = 64 * 2**20  # below, one thread is fastest
BATCH_TOKENS: Final = 512  # of a prompt at once; an abort waits for one batch
PING_SECONDS: Final = 1
SPARE_HTTP_THREADS: Final = 4  # beside one per running request
EUCLIDEAN: Final = 2  # a vector of unit length
POOLING: Final = {name: f"LLAMA_POOLING_TYPE_{name.upper()}" for name in ("mean", "cls", "last")}
CLOSE_SECONDS_MOST: Final = 5.0
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

Result = TypeVar("Result")

logger = log.get_logger("llamacpp")


class _Vectors(msgspec.Struct):
    embedding: list[tuple[float, ...]]


_encode: Final = msgspec.json.Encoder().encode
_decode_vectors: Final = msgspec.json.Decoder(list[_Vectors]).decode


class LlamaOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a llamacpp model."""

    path: str = ""  # of the GGUF file; empty: the demo model
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0  # 0: one for a small model, else all cores but one
    slots: Annotated[int, Meta(ge=0, le=256)] = 0  # requests running at once; 0: SLOTS_DEFAULT
    gpu_layers: Annotated[int, Meta(ge=-1, le=10_000)] = -1  # -1: as many as fit
    cache_prompt: bool = False  # reuse the prompts of earlier requests, whoever sent them
    embeddings: bool = False  # also make embeddings; a prompt is then worked on at once, which takes more memory
    pooling: Literal["", "mean", "cls", "last"] = ""  # of embeddings; empty: the file's own, else mean


def loads_slowly(options: EngineOptions) -> bool:
    """Tell whether loading would hold the interpreter for longer than a blink."""
    path = Path(options.path or options.options.get("path", "") or DEMO_MODEL)
    return path.is_file() and path.stat().st_size >= SMALL_MODEL_BYTES


@asynccontextmanager
async def open_llamacpp(options: EngineOptions) -> AsyncIterator["LlamaCpp"]:
    """Load a GGUF file. SettingsInvalid where it or an option is bad, EngineDead where the engine does not start."""
    own = parse_options(options.options, LlamaOptions, engine="llamacpp")
    path = Path(options.path or own.path or DEMO_MODEL)
    head = await asyncio.to_thread(read_head, path)
    with tempfile.TemporaryDirectory(prefix="inferbase-llamacpp-") as folder:
        engine = LlamaCpp(options, own, path=path, head=head, socket_path=str(Path(folder) / "engine.sock"))
        try:
            yield engine
        finally:
            await engine.close()


class LlamaCpp:
    """One loaded GGUF model; see Engine."""

    def __init__(
        self, options: EngineOptions, own: LlamaOptions, *, path: Path, head: GgufHead, socket_path: str
    ) -> None:
        self.capabilities: Final = Capabilities(
            seed=True,
            logprobs=True,
            penalties=True,
            repetition_penalty=True,
            logit_bias=True,
            top_k=True,
            min_p=True,
            guided_decoding=True,
            embeddings=own.embeddings,
        )
        self.model: Final = options.model
        self.context: Final = min(options.context, head.context or options.context)
        self.slots: Final = options.slots or own.slots or SLOTS_DEFAULT
        self.chat_template: Final = head.chat_template
        self.end_token_ids: Final = head.end_ids
        self.template_variables: Final[Mapping[str, str]] = {
            "bos_token": head.text_of(head.bos_id),
            "eos_token": head.text_of(head.eos_id),
        }
        self.prompt_prefix_ids: Final = (head.bos_id,) if head.add_bos and head.bos_id is not None else ()
        if self.context < options.context:
            logger.warning("context_lowered", model=self.model, context=self.context, asked=options.context)
        self._socket_path = socket_path
        self._key = secrets.token_hex(32)
        self._cache_prompt = own.cache_prompt
        self._server: Any = _start_server(self._parameters(own, path, head))
        self.tokenizer: Final = LlamaTokenizer(head, socket_path=socket_path, key=self._key)
        self._grammars = Grammars(self.tokenizer, vocabulary=self.tokenizer.vocabulary, end_token_ids=head.end_ids)
        self._line = asyncio.Semaphore(self.slots)
        self._queues: dict[str, DeltaQueue] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._steps = 0

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
        if sampling.guide is None:
            serving = self._serve(queue, self._request(prompt_token_ids, sampling, emitted), sampling.top_logprobs)
        else:
            serving = self._serve_guided(queue, prompt_token_ids, seeded(request_id, sampling), emitted)
        task = self._own(serving, request_id)
        return queue

    async def embed(self, request_id: str, prompts: Sequence[Sequence[int]]) -> list[Embedding]:
        """Return the model's vectors, each prompt in a slot of its own; see Engine."""
        if not self.capabilities.embeddings:
            raise unsupported("model")
        check_embedding(prompts, context=self.context, vocabulary=self.tokenizer.vocabulary)
        return [await self._own(self._embed(prompt), request_id) for prompt in prompts]

    async def abort(self, request_id: str) -> None:
        """Free the slot of a request; see Engine."""
        queue = self._queues.get(request_id)
        if queue is not None:
            queue.close()

    async def warm_up(self) -> None:
        """Make one real token. EngineFailed where the engine cannot."""
        sampling = EngineSampling(max_tokens=1, temperature=0.0, top_p=1.0, seed=None)
        prompt = self.prompt_prefix_ids or (0,)
        async with aclosing(self.generate(f"warm-up {secrets.token_hex(8)}", prompt, sampling)) as deltas:
            async for _ in deltas:
                pass

    def steps(self) -> int:
        """How many tokens and pieces of prompts were told of so far."""
        return self._steps

    async def close(self) -> None:
        """Fail every request and free the model; nothing the second time."""
        server, self._server = self._server, None
        if server is None:
            return
        for queue in list(self._queues.values()):
            queue.close(EngineFailed("The engine was closed."))
        if self._tasks:
            await asyncio.wait(self._tasks)
        if not await self._settle():
            logger.error("engine_does_not_close", model=self.model)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))  # freeing it would wait for ever
        self.tokenizer.close()
        del server  # the last reference: joins the engine's threads

    async def _settle(self) -> bool:
        """Let the engine make a token before it is freed; False where it does not.

        It has then noticed that its streams were broken off, and its loop has surely begun: freed between loading and
        its loop's begin, it would miss the order to stop and be waited for without end.
        """
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MOST):
                await self.warm_up()
        except (TimeoutError, EngineFailed):
            return False
        return True

    def _leave(self, request_id: str, task: "asyncio.Task[None]") -> None:
        del self._queues[request_id]
        task.cancel()

    def _own(self, work: Coroutine[Any, Any, Result], name: str) -> "asyncio.Task[Result]":
        """Run `work` as a task that `close` waits for."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve_guided(
        self, queue: DeltaQueue, prompt_token_ids: Sequence[int], sampling: EngineSampling, emitted: int
    ) -> None:
        """Serve behind a guide. The engine, which answers unguided where it cannot read one, is followed."""
        assert sampling.guide is not None
        try:
            matcher = await self._grammars.open(sampling.guide)
        except InvalidRequest as error:
            queue.close(error)
            return
        follower = GuideFollower(matcher, prompt_token_ids[len(prompt_token_ids) - emitted :], self.end_token_ids)
        request = self._request(prompt_token_ids, sampling, emitted, write_grammar(sampling.guide))
        await self._serve(queue, request, sampling.top_logprobs, follower)

    async def _serve(
        self, queue: DeltaQueue, request: bytes, top_logprobs: int | None, follower: GuideFollower | None = None
    ) -> None:
        """Wait for a slot and hold it until the answer has ended, well or not."""
        async with self._line:
            stream = CompletionStream(request, queue, self.tokenizer, self._pulse)
            stream.top_logprobs, stream.follower = top_logprobs, follower
            try:
                loop = asyncio.get_running_loop()
                transport, _ = await loop.create_unix_connection(lambda: stream, self._socket_path)
            except OSError as error:
                queue.close(EngineDead(f"The engine does not answer: {error!r}"))
                return
            try:
                await stream.done
            finally:
                transport.abort()

    async def _embed(self, prompt_token_ids: Sequence[int]) -> Embedding:
        body = _encode({"content": list(prompt_token_ids), "embd_normalize": EUCLIDEAN})
        async with self._line:
            answer = await asyncio.to_thread(self.tokenizer.ask, "/embedding", body)
        self._pulse()
        return Embedding(_decode_vectors(answer)[0].embedding[0], len(prompt_token_ids))

    def _pulse(self) -> None:
        self._steps += 1

    def _request(
        self, prompt_token_ids: Sequence[int], sampling: EngineSampling, emitted: int = 0, grammar: str | None = None
    ) -> bytes:
        body = completion_body(prompt_token_ids, sampling, emitted=emitted, context=self.context, grammar=grammar)
        return http_request("/completion", self._key, body | {"cache_prompt": self._cache_prompt})

    def _parameters(self, own: LlamaOptions, path: Path, head: GgufHead) -> Any:
        from xllamacpp import CommonParams, llama_pooling_type

        parameters = CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = self.context * self.slots  # the engine shares it out among its slots
        parameters.n_parallel = self.slots
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        if own.embeddings:
            parameters.embedding = True
            parameters.n_batch = parameters.n_ubatch = max(BATCH_TOKENS, self.context)  # a prompt is embedded at once
            if own.pooling or not head.pooled:
                parameters.pooling_type = getattr(llama_pooling_type, POOLING[own.pooling or "mean"])
        parameters.n_gpu_layers = own.gpu_layers
        small = path.stat().st_size < SMALL_MODEL_BYTES
        threads = own.threads or (1 if small else max(1, len(os.sched_getaffinity(0)) - 1))
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_threads_http = self.slots + SPARE_HTTP_THREADS
        parameters.hostnames = [self._socket_path]
        parameters.api_keys = [self._key]
        parameters.sse_ping_interval = PING_SECONDS
        parameters.cache_prompt = own.cache_prompt
        parameters.cache_ram_mib = 0
        parameters.ui = parameters.endpoint_props = parameters.endpoint_slots = False
        parameters.verbosity = -1
        return parameters


def _start_server(parameters: Any) -> Any:
    """Load the model, keeping SIGINT and SIGTERM ours: they wait until the engine's handlers are replaced again."""
    from xllamacpp import Server

    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return Server(parameters)
    except RuntimeError as error:
        raise EngineDead(f"The engine cannot load the model: {error}") from None
    finally:
        for number, handler in handlers.items():
            if main and handler is not None:
                signal.signal(number, handler)
                signal.siginterrupt(number, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
