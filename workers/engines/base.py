"""What an engine is: tokens in, tokens out. Everything above tokens is ours and the same for all engines.

Engines are opened by `workers/engines/__init__.py`'s `open_engine`, which imports the chosen one lazily; no other code
names an engine. One contract suite (`tests/contract/test_engine_contract.py`) runs on every engine.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from shared.wire import TokenLogprob


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine really does; what it does not is refused by name: `workers/engines/validation.py`."""

    seed: bool
    logprobs: bool
    penalties: bool  # presence and frequency
    repetition_penalty: bool
    logit_bias: bool
    top_k: bool
    min_p: bool
    guided_decoding: bool
    embeddings: bool


class GuideForm(msgspec.Struct, frozen=True):
    """A text with JSON in it: `prefix`, JSON of `schema` (the JSON text of a JSON Schema), `suffix`."""

    prefix: str
    schema: str
    suffix: str


class EngineGuide(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole answer must be: one of `forms`, or several with `separator` between them where there is one.

    With a `trigger`, with which the prefix of every form begins, free text may come first, or be all: a form is
    enforced from there on. With an `after`, free text up to and with that text comes before all this: a model that
    reasons goes on doing so. `param` names the public field to blame where a schema is of no use.
    JSON is written with one space behind each comma and colon and no other whitespace.

        any JSON object   forms=(GuideForm("", '{"type": "object"}', ""),)
        tool calls        forms=(GuideForm('<tool_call>\\n{"name": "f", "arguments": ', schema, "}\\n</tool_call>"), …),
                          separator="\\n" where calls may be parallel, trigger="<tool_call>" where none is required
    """

    forms: tuple[GuideForm, ...]
    param: str
    separator: str | None = None
    trigger: str | None = None
    after: str | None = None


class EngineSampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose the tokens of one choice; validated again here, since one bad value has killed an engine."""

    max_tokens: int  # >= 1, prompt + max_tokens <= context
    temperature: float  # [0, 2]; 0 = greedy
    top_p: float  # (0, 1]
    seed: int | None  # [0, 2^63); with a guide, the same in every attempt: its draws may have to be made again
    presence_penalty: float = 0.0  # [-2, 2]
    frequency_penalty: float = 0.0  # [-2, 2]
    repetition_penalty: float = 1.0  # (0, 2]
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # [0, 1]
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias in [-100, 100])
    top_logprobs: int | None = None  # None: no logprobs; 0 to 20: so many alternatives beside each token's own
    guide: EngineGuide | None = None
    cache_salt: str = ""  # where an engine keeps prompts for later requests, only those of the same salt share them


class Delta(msgspec.Struct, frozen=True):
    """The tokens of one step of one choice. The last delta of a choice has a finish reason, and may have no token.

    `stop`: the model ended its turn (the end token, where the engine tells it, counts and is among `token_ids`);
    `length`: max_tokens reached.
    """

    choice: int
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"] | None = None
    text: bytes | None = None  # where the engine's text is not its tokens' (the simulator's stamps); else None
    cached_tokens: int | None = None  # of the prompt, on the first delta, where the engine knows
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id, where asked for


class Embedding(msgspec.Struct, frozen=True):
    """What a prompt means to the model: `vector` (dimensions,) of unit length."""

    vector: tuple[float, ...]
    prompt_tokens: int


class Deltas(Protocol):
    """The answer to one request, as it is made; the request runs from `generate` on, also before the first `anext`."""

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Return self."""

    async def __anext__(self) -> Delta:
        """Return the next delta, or raise StopAsyncIteration after the last one."""

    def push_to(self, take: Callable[[Delta], bool]) -> None:
        """Offer each delta but the last to `take` while `__anext__` waits; what it takes is not returned.

        So no task is woken for a token. `take` must not wait; what it raises is raised in `__anext__`.
        """

    async def aclose(self) -> None:
        """Abort the request and free its slot; nothing after the last delta. Always call it (`contextlib.aclosing`)."""


class Tokenizer(Protocol):
    """Text to ids and back, of one loaded model; safe to call from several threads."""

    @property
    def longest_token_bytes(self) -> int:
        """No token stands for more bytes than this."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return ids; special tokens are recognised in `text` only where `special`."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; empty for special tokens."""


class Engine(Protocol):
    """One loaded model. `generate` may run up to `slots` times at once; who opens, closes."""

    @property
    def model(self) -> str:
        """Its id in the catalogue."""

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def slots(self) -> int:
        """Requests that run at once; more wait inside."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine does itself."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the loaded model."""

    @property
    def chat_template(self) -> str:
        """Jinja source, as the model's maker published it."""

    @property
    def template_variables(self) -> Mapping[str, str]:
        """What the template may name beside the messages: `bos_token`, `eos_token`."""

    @property
    def prompt_prefix_ids(self) -> tuple[int, ...]:
        """The ids that every prompt begins with, added where the template did not."""

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The ids that end a turn."""

    def generate(
        self, request_id: str, prompt_token_ids: Sequence[int], sampling: EngineSampling, *, emitted: int = 0
    ) -> Deltas:
        """Start a request; its deltas end with a finish reason.

        `prompt_token_ids` (prompt_tokens,) includes the last `emitted` ids already answered by an earlier attempt;
        `sampling.max_tokens` counts only what is still to come. A delta holds all tokens made since the last one was
        taken. Raises InvalidRequest at once, before the engine sees a bad request, or from the iterator before the
        first delta where the guide is bad; EngineFailed from the iterator; AnswerLost where the engine cannot take up
        a guided answer behind its emitted ids; EngineDead where the process must exit.
        """

    async def embed(self, request_id: str, prompts: Sequence[Sequence[int]]) -> list[Embedding]:
        """Return an embedding for each of `prompts`, token ids each. `abort` ends it with EngineFailed.

        Raises InvalidRequest for an empty or too long prompt, and where the engine has not the capability;
        EngineFailed or EngineDead as `generate`.
        """

    async def abort(self, request_id: str) -> None:
        """Free the slot of a running request, whose deltas then end without a finish reason; else nothing."""

    async def warm_up(self) -> None:
        """Make one real token."""

    def steps(self) -> int:
        """How many engine steps were made so far: the watchdog's pulse."""

    async def close(self) -> None:
        """Stop every request and free the model."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to open a model: catalogue row + worker settings."""

    model: str
    context: int
    path: str = ""  # of the weights, where the engine needs any
    slots: int = 0  # 0: the engine's default
    options: dict[str, str] = {}  # per model, scripts the simulator
