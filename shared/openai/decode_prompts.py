"""Bodies without messages: the legacy completions and embeddings, both of texts or token ids.

Source: CreateCompletionRequest, CreateEmbeddingRequest. A legacy completion ignores and names unknown fields as a chat
does; an embedding request has few fields and refuses others.
"""

from typing import Any, Final

from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.bounded_json import parse_object
from shared.openai.decode import check_fields, include_usage, model_name
from shared.openai.fields import Check
from shared.openai.request import CompletionRequest
from shared.openai.sampling import CHOICES_MOST, SAMPLING_CHECKS, TOKEN_ID_LIMIT, sampling_of
from shared.wire import Sampling, Task

PROMPTS_MOST: Final = 32
CHOICES_TOGETHER_MOST: Final = 64  # prompts x n
INPUTS_MOST: Final = 256
MAX_TOKENS_DEFAULT: Final = 16  # OpenAI's, of this endpoint alone
TOP_LOGPROBS_MOST: Final = 5

Prompts = tuple[str | tuple[int, ...], ...]

_token: Final = fields.integer(0, TOKEN_ID_LIMIT - 1)


def decode_completion(body: bytes) -> CompletionRequest:
    """Return the request of a legacy completion's body; InvalidRequest says which field is wrong and how."""
    given = parse_object(body)
    ignored: set[str] = set()
    values = check_fields(given, COMPLETION_CHECKS, ignored, besides=frozenset({"prompt"}))
    for name in ("model", "prompt"):
        if given.get(name) is None:
            raise fields.missing(name)
    prompts = _prompts("prompt", given["prompt"], most=PROMPTS_MOST)
    choices = values.get("n", 1)
    if values.get("best_of", choices) != choices:
        raise fields.unsupported("best_of", "is not supported beyond 'n'")
    if len(prompts) * choices > CHOICES_TOGETHER_MOST:
        raise fields.invalid("n", f"at most {CHOICES_TOGETHER_MOST} choices over all prompts")
    if values.get("suffix"):
        raise fields.unsupported("suffix")
    echo, top_logprobs = values.get("echo", False), values.get("logprobs")
    if echo and top_logprobs is not None:
        raise fields.unsupported("logprobs", "is not supported together with 'echo'")
    stream = values.get("stream", False)
    return CompletionRequest(
        model=values["model"],
        messages=(),
        sampling=sampling_of(
            values, max_tokens=values.get("max_tokens", MAX_TOKENS_DEFAULT), top_logprobs=top_logprobs
        ),
        task=Task(kind="completion", prompts=prompts, echo=echo),
        stream=stream,
        include_usage=include_usage(values.get("stream_options"), stream, ignored),
        user=values.get("user"),
        ignored=tuple(sorted(ignored)) if ignored else (),
    )


def decode_embedding(body: bytes) -> CompletionRequest:
    """Return the request of an embeddings body; InvalidRequest says which field is wrong and how."""
    given = parse_object(body)
    unknown: set[str] = set()
    values = check_fields(given, EMBEDDING_CHECKS, unknown, besides=frozenset({"input"}))
    if unknown:
        shown = ascii(min(unknown)[:64])[1:-1]
        raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unsupported_parameter", param=shown)
    for name in ("model", "input"):
        if given.get(name) is None:
            raise fields.missing(name)
    return CompletionRequest(
        model=values["model"],
        messages=(),
        sampling=Sampling(max_tokens=1),
        task=Task(kind="embedding", prompts=_prompts("input", given["input"], most=INPUTS_MOST)),
        base64=values.get("encoding_format", "float") == "base64",
        user=values.get("user"),
    )


def _prompts(name: str, value: Any, *, most: int) -> Prompts:
    """Return one or several prompts, each a text or (prompt_tokens,) ids."""
    if type(value) is str:
        return (_prompt(name, value),)
    given = fields.array(name, value)
    if not given:
        raise fields.invalid(name, "at least one text or token")
    if type(given[0]) is int or type(given[0]) is float:
        return (_prompt(name, given),)
    if len(given) > most:
        raise fields.invalid(name, f"at most {most} texts")
    return tuple(_prompt(f"{name}[{index}]", prompt) for index, prompt in enumerate(given))


def _prompt(name: str, value: Any) -> str | tuple[int, ...]:
    if type(value) is str:
        if not value:
            raise fields.invalid(name, "a text of at least 1 character")
        return value
    tokens = fields.array(name, value)
    if not tokens:
        raise fields.invalid(name, "at least one token")
    return tuple(_token(f"{name}[{index}]", token) for index, token in enumerate(tokens))


def _encoding_format(name: str, value: Any) -> str:
    if value not in ("float", "base64"):
        raise fields.invalid(name, "`float` or `base64`")
    return str(value)


def _dimensions(name: str, value: Any) -> None:
    fields.integer(1, 2**20)(name, value)
    raise fields.unsupported(name)


COMPLETION_CHECKS: Final[dict[str, Check]] = {
    **SAMPLING_CHECKS,
    "model": model_name,
    "stream": fields.boolean,
    "stream_options": fields.object_,
    "user": fields.text(0, 1024),
    "logprobs": fields.integer(0, TOP_LOGPROBS_MOST),
    "best_of": fields.integer(1, CHOICES_MOST),
    "echo": fields.boolean,
    "suffix": fields.text(0, 2**21),
}
EMBEDDING_CHECKS: Final[dict[str, Check]] = {
    "model": model_name,
    "encoding_format": _encoding_format,
    "dimensions": _dimensions,
    "user": fields.text(0, 1024),
}
