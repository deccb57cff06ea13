"""What crosses Redis between our processes: one struct per arrow, msgpack as arrays, sealed where it could cost money.

    Job     API node  -> worker      in arq's job format, sealed
    Chunk   worker    -> API node    in the request's log and on its channel
    Finish  worker    -> settlement  in the model's settlement queue, sealed

Every struct starts with the version of the inner wire. A seal is a 16-byte keyed BLAKE2b (RFC 7693) behind the payload;
bytes without a valid seal raise SealInvalid and are never decoded.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from shared.errors import SealInvalid
from shared.pricing import Prices

VERSION: Final = 1
SEAL_BYTES: Final = 16

Lane = Literal["interactive", "batch"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Status = Literal["completed", "cancelled", "failed"]


class ToolCall(msgspec.Struct, frozen=True, array_like=True):
    """A call that an assistant's turn made; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One turn of a conversation, its content already joined to plain text."""

    role: str  # system, user, assistant or tool
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str | None = None  # of a tool: the call that this is the result of
    reasoning: str | None = None  # of an assistant


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How to choose tokens. `max_tokens` None: as many as context, model default and hold allow."""

    temperature: float = 1.0  # [0, 2]
    top_p: float = 1.0  # (0, 1]
    seed: int | None = None
    stop: tuple[str, ...] = ()  # at most 4 strings of 1 to 64 characters
    max_tokens: int | None = None  # >= 1
    choices: int = 1  # per prompt, 1 to 8
    presence_penalty: float = 0.0  # [-2, 2]
    frequency_penalty: float = 0.0  # [-2, 2]
    repetition_penalty: float = 1.0  # (0, 2]
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # [0, 1]
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias in [-100, 100])
    top_logprobs: int | None = None  # None: no logprobs; 0 to 20: so many alternatives beside each token's own


class Tool(msgspec.Struct, frozen=True, array_like=True):
    """A function that the model may call; `parameters` is the JSON text of its schema."""

    name: str
    description: str | None
    parameters: str
    strict: bool = False


class ToolUse(msgspec.Struct, frozen=True, array_like=True):
    """Which functions there are, and whether one must be called. `named` is the one of the choice `named`."""

    tools: tuple[Tool, ...]
    choice: Literal["none", "auto", "required", "named"] = "auto"
    named: str | None = None
    parallel: bool = True  # more than one call in a turn


class Guide(msgspec.Struct, frozen=True, array_like=True):
    """What the whole text must be: any JSON object, or JSON of a schema (its JSON text)."""

    kind: Literal["json_object", "json_schema"]
    schema: str = ""


class Task(msgspec.Struct, frozen=True, array_like=True):
    """What to make beside plain chat text.

    `completion` (the legacy endpoint) and `embedding` take `prompts`, text or token ids each, and no messages; choice
    `p * sampling.choices + i` is the i-th one of prompt p.
    """

    kind: Literal["chat", "completion", "embedding"] = "chat"
    prompts: tuple[str | tuple[int, ...], ...] = ()
    echo: bool = False  # of a completion: the prompt's text in front of the answer's
    tool_use: ToolUse | None = None
    guide: Guide | None = None
    reasoning_effort: str | None = None  # for templates that know it


PLAIN_CHAT: Final = Task()


class TokenHold(msgspec.Struct, frozen=True, array_like=True):
    """Tokens per minute that were taken for a request: as many of each holder (name, its limit, mark of the taking)."""

    tokens: int
    holders: tuple[tuple[str, int, int], ...]


class Job(msgspec.Struct, frozen=True, array_like=True):
    """One request on its way to a worker. Times are Unix milliseconds, money nanocredits."""

    version: int
    request_id: str
    account_id: str
    key_id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    prices: Prices  # in force at admission
    hold: int  # the answer may never cost more
    default_max_tokens: int
    reader: str  # node id of the API node that relays the answer
    resumable: bool
    lane: Lane
    weight: int  # of the account in fair queueing, >= 1
    cost_tokens: int  # prompt bound + max_tokens: the fair-queueing cost
    reserved_ms: int
    queue_deadline_ms: int
    deadline_ms: int
    task: Task = PLAIN_CHAT
    token_hold: TokenHold | None = None  # None: no limit of tokens
    trace: str = ""  # `traceparent` of the request's span; empty: it is not traced


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one answer: cached <= prompt; completion = ids in the log."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion tokens


class End(msgspec.Struct, frozen=True, array_like=True):
    """How a request ended; `code` and `message` (for a person) only where it did not complete."""

    status: Status
    usage: Usage
    code: str | None = None
    message: str | None = None
    retry_after_seconds: int | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """How likely a token was; natural logarithms. `top` are the likeliest tokens: (bytes, logprob) each."""

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, array_like=True):
    """A further part of a call; the first one of an index carries id and name."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Extra(msgspec.Struct, frozen=True, array_like=True):
    """What few chunks carry beside text."""

    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id of the chunk, where they were asked for
    embedding: bytes | None = None  # float32, little endian: of the prompt that `choice` numbers


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One position of a request's log. The last one carries `end`, possibly with the last token in it.

    `token_ids` are logged in the step that makes them, with empty text while text is held back.
    """

    version: int
    request_id: str
    attempt: int
    seq: int  # from 1, over all choices
    choice: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None  # on the first chunk of an attempt
    cached_tokens: int | None = None
    end: End | None = None
    extra: Extra | None = None


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """The settlement record: all that is needed to charge one request, whatever else is lost.

    Durations are milliseconds: in the queue, to the first token and to the end, each from the reservation.
    """

    version: int
    request_id: str
    account_id: str
    key_id: str
    model: str
    status: Status
    code: str | None  # why it did not complete
    finish_reason: FinishReason | None
    usage: Usage
    prefill_began: bool
    attempts: int
    queue_ms: int
    ttft_ms: int | None
    latency_ms: int
    finished_ms: int  # Unix milliseconds
    token_hold: TokenHold | None = None  # of the job: what was not used is given back
    trace: str = ""  # `traceparent` of the run's span


class Seal:
    """Signs and checks bytes with the wire key; the previous key is still accepted, so that keys can be rotated."""

    def __init__(self, key: bytes, previous: bytes | None = None) -> None:
        self._key = key
        self._keys: Sequence[bytes] = (key,) if previous is None else (key, previous)

    def close(self, payload: bytes) -> bytes:
        """Return `payload` with its seal behind it."""
        return payload + hashlib.blake2b(payload, digest_size=SEAL_BYTES, key=self._key).digest()

    def open(self, sealed: bytes) -> bytes:
        """Return the payload of `sealed`, or raise SealInvalid."""
        payload, seal = sealed[:-SEAL_BYTES], sealed[-SEAL_BYTES:]
        for key in self._keys:
            expected = hashlib.blake2b(payload, digest_size=SEAL_BYTES, key=key).digest()
            if hmac.compare_digest(seal, expected):
                return payload
        raise SealInvalid


encode: Final = msgspec.msgpack.Encoder().encode
decode_job: Final = msgspec.msgpack.Decoder(Job).decode
decode_chunk: Final = msgspec.msgpack.Decoder(Chunk).decode
decode_finish: Final = msgspec.msgpack.Decoder(Finish).decode
decode_any: Final = msgspec.msgpack.Decoder(Any).decode
