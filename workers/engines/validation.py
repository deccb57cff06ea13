"""What every engine demands of a request before it sees it, and what it accepts as an option.

One bad value has killed an engine process with all its requests, so the API's checks are made again here.
"""

import math
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from shared.errors import InvalidRequest, SettingsInvalid
from workers.engines.base import EngineSampling

SEED_LIMIT: Final = 2**63
TEMPERATURE_MOST: Final = 2.0

Options = TypeVar("Options", bound=msgspec.Struct)


def check_request(
    prompt_token_ids: Sequence[int], sampling: EngineSampling, *, context: int, vocabulary: int, emitted: int
) -> None:
    """Raise InvalidRequest where an engine of `context` tokens and `vocabulary` ids must not see this request."""
    check_sampling(sampling)
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


def check_sampling(sampling: EngineSampling) -> None:
    """Raise InvalidRequest unless every field is of its type and in its range; `bool` is no number."""
    _check_integer("max_tokens", sampling.max_tokens, least=1, limit=2**31)
    if not 0.0 <= _number("temperature", sampling.temperature) <= TEMPERATURE_MOST:
        raise InvalidRequest(f"temperature must be from 0 to {TEMPERATURE_MOST:g}.", param="temperature")
    if not 0.0 < _number("top_p", sampling.top_p) <= 1.0:
        raise InvalidRequest("top_p must be above 0 and at most 1.", param="top_p")
    if sampling.seed is not None:
        _check_integer("seed", sampling.seed, least=0, limit=SEED_LIMIT)


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


def _check_integer(name: str, value: int, *, least: int, limit: int) -> None:
    if type(value) is not int or not least <= value < limit:
        raise InvalidRequest(f"{name} must be an integer of at least {least} and below {limit}.", param=name)


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequest(f"{name} must be a finite number.", param=name)
    return value
