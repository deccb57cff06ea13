"""Strict decoding of a completions body: bytes in, ChatRequest out, or InvalidRequest naming the field.

Every optional field may be null, which is as good as absent. Fields nobody knows are ignored and named to the client;
OpenAI's fields that would change the answer in a way we do not build, and fields that reach for the engine or the
network, are refused by name.
Source: OpenAI's schema CreateChatCompletionRequest, DESIGN section 10, FAULTS section 2.
"""

from typing import Any, Final

from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.bounded_json import parse_object
from shared.openai.fields import Check
from shared.openai.messages import decode_messages
from shared.openai.request import ChatRequest
from shared.wire import Sampling

MODEL_CHARACTERS_MOST: Final = 256
MAX_TOKENS_MOST: Final = 2**24  # beyond any context; less than this but over the context is context_length_exceeded
STOPS_MOST: Final = 4
STOP_CHARACTERS_MOST: Final = 64
CHOICES_MOST: Final = 8
SEED_MODULUS: Final = 2**63  # engines take [0, 2^63); a negative seed is as good as any

_max_tokens: Final = fields.integer(1, MAX_TOKENS_MOST)
_stop: Final = fields.text(1, STOP_CHARACTERS_MOST)


def decode_chat(body: bytes) -> ChatRequest:
    """Return the request of a body; InvalidRequest says which field is wrong and how."""
    given = parse_object(body)
    ignored: set[str] = set()
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or name == "messages":
            continue
        check = _CHECKS.get(name)
        if check is not None:
            values[name] = check(name, value)
        elif name in _REFUSED:
            raise fields.unsupported(name)
        else:
            ignored.add(name)
    if values.get("top_k"):  # not OpenAI's: checked, since clients send -1 for "off", and ignored like any other
        ignored.add("top_k")
    for name in ("model", "messages"):
        if given.get(name) is None:
            raise fields.missing(name)
    stream = values.get("stream", False)
    return ChatRequest(
        model=values["model"],
        messages=decode_messages(given["messages"], ignored),
        sampling=_sampling(values),
        stream=stream,
        include_usage=_include_usage(values.get("stream_options"), stream, ignored),
        user=values.get("user"),
        ignored=tuple(sorted(ignored)) if ignored else (),
    )


def _sampling(values: dict[str, Any]) -> Sampling:
    return Sampling(
        temperature=values.get("temperature", 1.0),
        top_p=values.get("top_p", 1.0),
        seed=values.get("seed"),
        stop=values.get("stop", ()),
        max_tokens=_tokens(values),
    )


def _tokens(values: dict[str, Any]) -> int | None:
    newer: int | None = values.get("max_completion_tokens")
    older: int | None = values.get("max_tokens")
    if newer is None or older is None or newer == older:
        return older if newer is None else newer
    raise InvalidRequest(
        "'max_tokens' and 'max_completion_tokens' mean the same and disagree: send one of them.",
        param="max_completion_tokens",
    )


def _include_usage(options: dict[str, Any] | None, stream: bool, ignored: set[str]) -> bool:
    if options is None:
        return False
    if not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    include = False
    for name, value in options.items():
        if value is None:
            continue
        if name == "include_usage":
            include = fields.boolean("stream_options.include_usage", value)
        else:
            ignored.add(f"stream_options.{name}")
    return include


def _model(name: str, value: Any) -> str:
    model = fields.text(1, MODEL_CHARACTERS_MOST)(name, value)
    if not model.isprintable():
        raise fields.invalid(name, "a string without control characters")
    return str(model)


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


def _only(check: Check, *neutral: Any) -> Check:
    """Return the check of a field that is taken only at a value without effect; other valid ones are unsupported."""

    def only(name: str, value: Any) -> Any:
        checked = check(name, value)
        if checked not in neutral:
            raise fields.unsupported(name, "is not supported yet")
        return checked

    return only


def _response_format(name: str, value: Any) -> None:
    kind = fields.object_(name, value).get("type")
    if kind in ("json_object", "json_schema"):
        raise fields.unsupported(name, f"of type `{kind}` is not supported yet")
    if kind != "text":
        raise fields.invalid(f"{name}.type", "`text`, `json_object` or `json_schema`")


def _tool_choice(name: str, value: Any) -> None:
    if type(value) is dict or value == "required":
        raise fields.unsupported(name, "is not supported yet")
    if value not in ("none", "auto"):
        raise fields.invalid(name, "`none`, `auto`, `required` or an object")


def _service_tier(name: str, value: Any) -> None:
    if value == "flex":
        raise fields.unsupported(name, "`flex` is not supported yet")
    if value not in ("auto", "default"):
        raise fields.invalid(name, "`auto`, `default` or `flex`")


_REFUSED: Final = frozenset(
    {
        "chat_template",
        "prompt_embeds",
        "cache_salt",
        "api_base",
        "base_url",
        "extra_headers",
        "audio",
        "web_search_options",
        "moderation",
    }
)
_CHECKS: Final[dict[str, Check]] = {
    "model": _model,
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1, above=0),
    "max_tokens": _max_tokens,
    "max_completion_tokens": _max_tokens,
    "stop": _stops,
    "seed": _seed,
    "stream": fields.boolean,
    "stream_options": fields.object_,
    "user": fields.text(0, 1024),
    "n": _only(fields.integer(1, CHOICES_MOST), 1),
    "frequency_penalty": _only(fields.number(-2, 2), 0),
    "presence_penalty": _only(fields.number(-2, 2), 0),
    "logit_bias": _only(fields.object_, {}),
    "logprobs": _only(fields.boolean, False),
    "top_logprobs": _only(fields.integer(0, 20), 0),
    "tools": _only(fields.array, []),
    "functions": _only(fields.array, []),
    "tool_choice": _tool_choice,
    "function_call": _tool_choice,
    "parallel_tool_calls": fields.boolean,
    "response_format": _response_format,
    "modalities": _only(fields.array, ["text"], []),
    "service_tier": _service_tier,
    "top_k": fields.integer(0, 2**31 - 1),
}
