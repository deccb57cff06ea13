"""The simulator: an engine without a model, for load tests, chaos tests and client developers.

It behaves as a batched engine does: every running request advances by one token in each step, a request waits for a
slot, and its tokens depend only on the prompt and the position. One task makes all steps; a request costs one wake-up
per step and no task of its own.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from types import MappingProxyType
from typing import Final

from shared.errors import EngineFailed, InvalidRequest, SettingsInvalid
from workers.engines.base import Capabilities, Deltas, Embedding, EngineGuide, EngineOptions, EngineSampling
from workers.engines.delta_queue import DeltaQueue
from workers.engines.grammar import Grammars
from workers.engines.simulator_guided import embedding, guided_ids
from workers.engines.simulator_script import Answer, Script
from workers.engines.simulator_words import IM_END, IM_START, VOCABULARY_SIZE, SimulatorTokenizer
from workers.engines.validation import check_embedding, check_engine_sampling, check_request, parse_options

OUT_OF_MEMORY_STATUS: Final = 137  # 128 + SIGKILL, as the kernel's out-of-memory killer leaves it
PREFILL_CHUNK_SECONDS: Final = 1.0
WARM_UP_PROMPT: Final = (IM_START,)
CHAT_TEMPLATE: Final = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@asynccontextmanager
async def open_simulator(options: EngineOptions) -> AsyncIterator["Simulator"]:
    """Open a simulated model after its load time. SettingsInvalid names an unknown option or a bad value."""
    script = parse_options(options.options, Script, engine="simulator")
    if options.context < 1:
        raise SettingsInvalid("the context of a model is at least 1 token")
    await asyncio.sleep(script.load_seconds)
    engine = Simulator(options, script)
    try:
        yield engine
    finally:
        await engine.close()


class SimulatedRun:
    """One request: how far its answer is, and the queue to its reader."""

    def __init__(self, answer: Answer, *, emitted: int, max_tokens: int, fault_after: int = -1) -> None:
        self.queue: DeltaQueue
        self.fault_after: Final = fault_after
        self.own_tokens = 0  # made by this process
        self.prefill: asyncio.TimerHandle | None = None
        self._received_ns = time.monotonic_ns()
        self._emitted = emitted
        self.max_tokens: Final = max_tokens
        self.answer_with(answer)

    def answer_with(self, answer: Answer) -> None:
        """Say `answer`, of which nothing was said yet by this process."""
        self._answer = answer
        self._own_last = min(answer.tokens - self._emitted, self.max_tokens)

    def step(self, stamp: bool) -> None:
        """Make one token, and end where it is the last."""
        if self.own_tokens < self._own_last:
            text = self._stamp() if stamp else None
            self.queue.put(self._answer.token_id(self._emitted + self.own_tokens), text)
            self.own_tokens += 1
        if self.own_tokens < self._own_last:
            self.queue.wake()
        else:
            within = self.own_tokens < self.max_tokens or self._answer.has_end_token
            whole = self._emitted + self.own_tokens >= self._answer.tokens
            self.queue.finish("stop" if whole and within else "length")

    def _stamp(self) -> bytes:
        text = b"@S%016x" % time.monotonic_ns()
        return text if self._emitted or self.own_tokens else b"@R%016x%b" % (self._received_ns, text)


class Simulator:
    """One simulated model; see Engine."""

    capabilities: Final = Capabilities(
        seed=True,
        logprobs=False,  # nothing is likely or not, where there is no model
        penalties=False,
        repetition_penalty=False,
        logit_bias=False,
        top_k=False,
        min_p=False,
        guided_decoding=True,
        embeddings=True,
    )
    tokenizer: Final = SimulatorTokenizer()
    chat_template: Final = CHAT_TEMPLATE
    template_variables: Final = MappingProxyType({"bos_token": "", "eos_token": "<|im_end|>"})
    prompt_prefix_ids: Final[tuple[int, ...]] = ()
    end_token_ids: Final = frozenset({IM_END})

    def __init__(self, options: EngineOptions, script: Script) -> None:
        self.model: Final = options.model
        self.context: Final = options.context
        self.slots: Final = options.slots or script.slots
        self.loop: Final = asyncio.get_running_loop()
        self._script = script
        self._grammars = Grammars(self.tokenizer, vocabulary=VOCABULARY_SIZE, end_token_ids=self.end_token_ids)
        self._runs: dict[str, SimulatedRun] = {}  # in a slot or waiting for one
        self._guiding: dict[SimulatedRun, asyncio.Task[None]] = {}  # their grammar is being built
        self._waiting: deque[SimulatedRun] = deque()
        self._taken = 0  # slots
        self._stepping: dict[SimulatedRun, None] = {}  # prefilled
        self._steps = 0
        self._hung = False
        self._work = asyncio.Event()
        self._stepper = asyncio.create_task(self._step_for_ever(), name=f"simulator {options.model}")

    def generate(
        self, request_id: str, prompt_token_ids: Sequence[int], sampling: EngineSampling, *, emitted: int = 0
    ) -> Deltas:
        """Start a request; see Engine. An older run of the same id is aborted."""
        check_request(prompt_token_ids, sampling, context=self.context, vocabulary=VOCABULARY_SIZE, emitted=emitted)
        check_engine_sampling(sampling, self.capabilities)
        asked = prompt_token_ids[: len(prompt_token_ids) - emitted]
        run = SimulatedRun(
            Answer(asked, self._script),
            emitted=emitted,
            max_tokens=sampling.max_tokens,
            fault_after=self._script.fault_after(),
        )
        self._register(request_id, run)
        if sampling.guide is None:
            self._line_up(run)
        else:
            guided = self._guide(run, sampling.guide, asked, prompt_token_ids[len(asked) :])
            self._guiding[run] = asyncio.create_task(guided, name=f"guide of {request_id}")
        return run.queue

    async def embed(self, request_id: str, prompts: Sequence[Sequence[int]]) -> list[Embedding]:
        """Return made-up vectors, each after one step of the engine; see Engine."""
        check_embedding(prompts, context=self.context, vocabulary=VOCABULARY_SIZE)
        for prompt in prompts:
            run = SimulatedRun(
                Answer(prompt, Script(tokens=1)), emitted=0, max_tokens=1, fault_after=self._script.fault_after()
            )
            self._register(request_id, run)
            self._line_up(run)
            async with aclosing(run.queue):
                reasons = [delta.finish_reason async for delta in run.queue]
            if not any(reasons):
                raise EngineFailed("The request was aborted.")
        return [embedding(prompt) for prompt in prompts]

    async def abort(self, request_id: str) -> None:
        """Free the slot of a request; see Engine."""
        run = self._runs.get(request_id)
        if run is not None:
            run.queue.close()

    async def warm_up(self) -> None:
        """Make one real token, in a step of its own or of the requests that run."""
        run = SimulatedRun(Answer(WARM_UP_PROMPT, Script()), emitted=0, max_tokens=1)
        run.queue = DeltaQueue(self.loop, lambda: self._stepping.pop(run))
        self._join(run)
        try:
            await anext(run.queue)
        finally:
            run.queue.close()

    def steps(self) -> int:
        """How many steps were made."""
        return self._steps

    async def close(self) -> None:
        """Fail every request and stop stepping."""
        for run in {*self._runs.values(), *self._stepping}:
            run.queue.close(EngineFailed("The engine was closed."))
        self._stepper.cancel()
        await asyncio.wait({self._stepper})

    def _register(self, request_id: str, run: SimulatedRun) -> None:
        run.queue = DeltaQueue(self.loop, lambda: self._leave(request_id, run))
        older = self._runs.get(request_id)
        if older is not None:
            older.queue.close()
        self._runs[request_id] = run

    async def _guide(
        self, run: SimulatedRun, guide: EngineGuide, prompt_token_ids: Sequence[int], emitted: Sequence[int]
    ) -> None:
        """Find the guided answer of `run`, then let it wait for its slot."""
        limit = len(emitted) + run.max_tokens
        try:
            matcher = await self._grammars.open(guide)
            ids = await asyncio.to_thread(
                guided_ids, matcher, prompt_token_ids, emitted, tokens=self._script.tokens, limit=limit
            )
        except (InvalidRequest, EngineFailed) as error:
            run.queue.close(error)
            return
        del self._guiding[run]
        run.answer_with(Answer(prompt_token_ids, self._script, ids))
        self._line_up(run)

    def _line_up(self, run: SimulatedRun) -> None:
        if self._taken < self.slots:
            self._enter(run)
        else:
            self._waiting.append(run)

    def _leave(self, request_id: str, run: SimulatedRun) -> None:
        """Forget an ended run and give its slot to the next one."""
        del self._runs[request_id]
        if run in self._guiding:
            self._guiding.pop(run).cancel()
            return
        if run in self._waiting:
            self._waiting.remove(run)
            return
        self._stepping.pop(run, None)
        if run.prefill is not None:
            run.prefill.cancel()
        self._taken -= 1
        if self._waiting:
            self._enter(self._waiting.popleft())

    def _enter(self, run: SimulatedRun) -> None:
        self._taken += 1
        self._prefill(run, self._script.prefill_ms / 1000)

    def _prefill(self, run: SimulatedRun, seconds: float) -> None:
        """Work on the prompt for `seconds`, in chunks that count as steps: a long prefill is not a hang."""
        if seconds <= 0:
            self._join(run)
            return
        chunk_seconds = min(seconds, PREFILL_CHUNK_SECONDS)
        self._steps += not self._hung
        run.prefill = self.loop.call_later(chunk_seconds, self._prefill, run, seconds - chunk_seconds)

    def _join(self, run: SimulatedRun) -> None:
        self._stepping[run] = None
        self._work.set()

    async def _step_for_ever(self) -> None:
        step_seconds = self._script.step_ms / 1000
        due = self.loop.time()
        while True:
            if not self._stepping:
                self._work.clear()
                await self._work.wait()
                due = self.loop.time()
            if step_seconds:
                due = max(due + step_seconds, self.loop.time())
                await asyncio.sleep(due - self.loop.time())
            else:
                await asyncio.sleep(0)
            self._steps += 1
            for run in tuple(self._stepping):
                if run.own_tokens != run.fault_after:
                    run.step(self._script.stamp_tokens)
                elif not self._fail(run):
                    self._hung = True
                    await self.loop.create_future()  # as a stuck device does: only the watchdog ends this

    def _fail(self, run: SimulatedRun) -> bool:
        """Make the scripted fault of `run`; False where the engine hangs from now on."""
        if run.own_tokens == self._script.exit_after_tokens:
            os._exit(OUT_OF_MEMORY_STATUS)
        if run.own_tokens == self._script.hang_after_tokens:
            return False
        run.queue.close(EngineFailed("The simulator was told to fail here."))
        return True
