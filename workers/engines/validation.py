"""What every engine demands of a request before it sees it, what it can do for one, and what it takes as an option.

One bad value has killed an engine process with all its requests, so the API's checks are made again here.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from shared.errors import InvalidRequest, SettingsInvalid
from shared.wire import Sampling, Task
from workers.engines.base import Capabilities, EngineSampling

SEED_LIMIT: Final = 2**63
TEMPERATURE_MOST: Final = 2.0
PENALTY_MOST: Final = 2.0
BIAS_MOST: Final = 100.0
TOP_LOGPROBS_MOST: Final = 20

Options = TypeVar("Options", bound=msgspec.Struct)


def check_capabilities(sampling: Sampling, task: Task, capabilities: Capabilities) -> None:
    """Raise InvalidRequest, code unsupported_parameter, naming the first field that the engine cannot give effect to.

    Neutral values always pass: a penalty of 0, a `top_k` of 0, a `min_p` of 0, no bias, tools that nobody must call.
    """
    if task.kind == "embedding" and not capabilities.embeddings:
        raise InvalidRequest("This model gives no embeddings.", code="unsupported_parameter", param="model")
    for param, asked, able in (*_task_demands(sampling, task, capabilities), *_demands(sampling, capabilities)):
        if asked and not able:
            raise unsupported(param)


def unsupported(param: str) -> InvalidRequest:
    """The refusal of a public field that the model's engine cannot give effect to."""
    return InvalidRequest(f"{param} is not supported with this model.", code="unsupported_parameter", param=param)


def check_request(
    prompt_token_ids: Sequence[int], sampling: EngineSampling, *, context: int, vocabulary: int, emitted: int
) -> None:
    """Raise InvalidRequest where an engine of `context` tokens and `vocabulary` ids must not see this request."""
    check_sampling(sampling, vocabulary=vocabulary)
    prompt_tokens = len(prompt_token_ids)
    if not 0 <= emitted < prompt_tokens:
        raise InvalidRequest("The prompt is empty.", param="messages")
    if prompt_tokens + sampling.max_tokens > context:
        raise InvalidRequest(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt_tokens + sampling.max_tokens} tokens ({prompt_tokens} in the messages, "
            f"{sampling.max_tokens} in the completion).",
            code="context_length_exceeded",
            param="messages",
        )
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocabulary:
        raise InvalidRequest("The prompt holds an unknown token.", param="messages")


def check_sampling(sampling: EngineSampling, *, vocabulary: int) -> None:
    """Raise InvalidRequest unless every field is of its type and in its range; `bool` is no number."""
    _check_integer("max_tokens", sampling.max_tokens, least=1, limit=2**31)
    _check_number("temperature", sampling.temperature, least=0.0, most=TEMPERATURE_MOST)
    _check_positive("top_p", sampling.top_p, most=1.0)
    if sampling.seed is not None:
        _check_integer("seed", sampling.seed, least=0, limit=SEED_LIMIT)
    _check_number("presence_penalty", sampling.presence_penalty, least=-PENALTY_MOST, most=PENALTY_MOST)
    _check_number("frequency_penalty", sampling.frequency_penalty, least=-PENALTY_MOST, most=PENALTY_MOST)
    _check_positive("repetition_penalty", sampling.repetition_penalty, most=PENALTY_MOST)
    _check_integer("top_k", sampling.top_k, least=0, limit=2**31)
    _check_number("min_p", sampling.min_p, least=0.0, most=1.0)
    for token_id, bias in sampling.logit_bias:
        if type(token_id) is not int or not 0 <= token_id < vocabulary:
            raise InvalidRequest(
                f"logit_bias names the token {token_id}; the model has the tokens 0 to {vocabulary - 1}.",
                param="logit_bias",
            )
        _check_number("logit_bias", bias, least=-BIAS_MOST, most=BIAS_MOST)
    if sampling.top_logprobs is not None:
        _check_integer("top_logprobs", sampling.top_logprobs, least=0, limit=TOP_LOGPROBS_MOST + 1)


def check_embedding(prompts: Sequence[Sequence[int]], *, context: int, vocabulary: int) -> None:
    """Raise InvalidRequest where an engine of `context` tokens and `vocabulary` ids must not see these prompts."""
    for prompt in prompts:
        if not prompt:
            raise InvalidRequest("The input is empty.", param="input")
        if len(prompt) > context:
            raise InvalidRequest(
                f"This model's maximum context length is {context} tokens. However, an input has {len(prompt)} tokens.",
                code="context_length_exceeded",
                param="input",
            )
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise InvalidRequest("The input holds an unknown token.", param="input")


def check_engine_sampling(sampling: EngineSampling, capabilities: Capabilities) -> None:
    """Raise InvalidRequest as `check_capabilities`: what an engine makes sure of for itself."""
    if sampling.guide is not None and not capabilities.guided_decoding:
        raise unsupported(sampling.guide.param)
    for param, asked, able in _demands(sampling, capabilities):
        if asked and not able:
            raise unsupported(param)


def parse_options(options: dict[str, str], kind: type[Options], *, engine: str) -> Options:
    """Return `options` as a `kind`, or raise SettingsInvalid naming the unknown option or the bad value."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    for name in options:
        if name not in known:
            raise SettingsInvalid(f"engine {engine} has no option {name!r}; it has: {', '.join(known)}")
    try:
        return msgspec.convert(options, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsInvalid(f"option of engine {engine}: {error}") from None


def _demands(sampling: Sampling | EngineSampling, able: Capabilities) -> tuple[tuple[str, bool, bool], ...]:
    """Return (public field, whether it is to have an effect, whether the engine can) of each."""
    return (
        ("seed", sampling.seed is not None, able.seed),
        ("presence_penalty", sampling.presence_penalty != 0, able.penalties),
        ("frequency_penalty", sampling.frequency_penalty != 0, able.penalties),
        ("repetition_penalty", sampling.repetition_penalty != 1, able.repetition_penalty),
        ("logit_bias", bool(sampling.logit_bias), able.logit_bias),
        ("top_k", sampling.top_k != 0, able.top_k),
        ("min_p", sampling.min_p != 0, able.min_p),
        ("logprobs", sampling.top_logprobs is not None, able.logprobs),
    )


def _task_demands(sampling: Sampling, task: Task, able: Capabilities) -> Iterator[tuple[str, bool, bool]]:
    yield "echo", task.echo and sampling.top_logprobs is not None, False  # no engine tells the prompt's logprobs
    yield "response_format", task.guide is not None, able.guided_decoding
    use = task.tool_use
    if use is not None:
        yield "tool_choice", use.choice in ("required", "named"), able.guided_decoding
        yield "tools", use.choice != "none" and any(tool.strict for tool in use.tools), able.guided_decoding


def _check_integer(name: str, value: int, *, least: int, limit: int) -> None:
    if type(value) is not int or not least <= value < limit:
        raise InvalidRequest(f"{name} must be an integer of at least {least} and below {limit}.", param=name)


def _check_number(name: str, value: float, *, least: float, most: float) -> None:
    if not least <= _number(name, value) <= most:
        raise InvalidRequest(f"{name} must be from {least:g} to {most:g}.", param=name)


def _check_positive(name: str, value: float, *, most: float) -> None:
    if not 0.0 < _number(name, value) <= most:
        raise InvalidRequest(f"{name} must be above 0 and at most {most:g}.", param=name)


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequest(f"{name} must be a finite number.", param=name)
    return value
