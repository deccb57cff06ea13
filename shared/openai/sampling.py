"""The fields that say how tokens are chosen, shared by chat and the legacy completions.

Source: CreateChatCompletionRequest, CreateCompletionRequest; `top_k`, `min_p` and `repetition_penalty` are the usual
extensions of inference engines. Whether a model's engine honours a field is decided by its worker.
"""

from typing import Any, Final

import msgspec

from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.fields import Check
from shared.wire import Sampling

MAX_TOKENS_MOST: Final = 2**24  # beyond any context; less than this but over the context is context_length_exceeded
STOPS_MOST: Final = 4
STOP_CHARACTERS_MOST: Final = 64
CHOICES_MOST: Final = 8
SEED_MODULUS: Final = 2**63  # engines take [0, 2^63); a negative seed is as good as any
LOGIT_BIASES_MOST: Final = 1024
TOKEN_ID_LIMIT: Final = 2**31
TOP_K_MOST: Final = 2**31 - 1

_RARE: Final = ("presence_penalty", "frequency_penalty", "repetition_penalty", "top_k", "min_p", "logit_bias")
_stop: Final = fields.text(1, STOP_CHARACTERS_MOST)
_bias: Final = fields.number(-100, 100)
max_tokens: Final = fields.integer(1, MAX_TOKENS_MOST)


def sampling_of(values: dict[str, Any], *, max_tokens: int | None, top_logprobs: int | None) -> Sampling:
    """Return the sampling of checked values by name."""
    get = values.get
    plain = Sampling(
        temperature=get("temperature", 1.0),
        top_p=get("top_p", 1.0),
        seed=get("seed"),
        stop=get("stop", ()),
        max_tokens=max_tokens,
        choices=get("n", 1),
        top_logprobs=top_logprobs,
    )
    rare = {name: values[name] for name in _RARE if name in values}
    return msgspec.structs.replace(plain, **rare) if rare else plain


def _seed(name: str, value: Any) -> int:
    seed: int = fields.integer(-SEED_MODULUS, SEED_MODULUS - 1)(name, value)
    return seed % SEED_MODULUS


def _stops(name: str, value: Any) -> tuple[str, ...]:
    if type(value) is str:
        return (_stop(name, value),)
    stops = fields.array(name, value)
    if len(stops) > STOPS_MOST:
        raise fields.invalid(name, f"at most {STOPS_MOST} strings")
    return tuple(_stop(f"{name}[{index}]", stop) for index, stop in enumerate(stops))


def _logit_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    given = fields.object_(name, value)
    if len(given) > LOGIT_BIASES_MOST:
        raise fields.invalid(name, f"at most {LOGIT_BIASES_MOST} tokens")
    biases: dict[int, float] = {}
    for token, bias in given.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10) or int(token) >= TOKEN_ID_LIMIT:
            raise fields.invalid(name, "an object whose keys are token ids")
        if int(token) in biases:
            raise InvalidRequest(f"Invalid value for '{name}': token {int(token)} is there twice.", param=name)
        biases[int(token)] = _bias(f"{name}.{token}", bias)
    return tuple((token, bias) for token, bias in biases.items() if bias)


SAMPLING_CHECKS: Final[dict[str, Check]] = {
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1, above=0),
    "max_tokens": max_tokens,
    "stop": _stops,
    "seed": _seed,
    "n": fields.integer(1, CHOICES_MOST),
    "presence_penalty": fields.number(-2, 2),
    "frequency_penalty": fields.number(-2, 2),
    "logit_bias": _logit_bias,
    "top_k": fields.integer(0, TOP_K_MOST),
    "min_p": fields.number(0, 1),
    "repetition_penalty": fields.number(0, 2, above=0),
}
