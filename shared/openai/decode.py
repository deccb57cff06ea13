"""Strict decoding of a chat completion's body: bytes in, CompletionRequest out, or InvalidRequest naming the field.

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
from shared.openai.json_schema import schema_text
from shared.openai.messages import decode_messages
from shared.openai.request import CompletionRequest
from shared.openai.sampling import SAMPLING_CHECKS, max_tokens, sampling_of
from shared.openai.tools import decode_tool_use
from shared.wire import PLAIN_CHAT, Guide, Task

MODEL_CHARACTERS_MOST: Final = 256
TOP_LOGPROBS_MOST: Final = 20
METADATA_PAIRS_MOST: Final = 16
METADATA_KEY_CHARACTERS_MOST: Final = 64
METADATA_VALUE_CHARACTERS_MOST: Final = 512
SCHEMA_NAME_CHARACTERS_MOST: Final = 64
REASONING_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def decode_chat(body: bytes) -> CompletionRequest:
    """Return the request of a body; InvalidRequest says which field is wrong and how."""
    given = parse_object(body)
    ignored: set[str] = set()
    values = check_fields(given, CHAT_CHECKS, ignored, besides=_OWN)
    for name in ("model", "messages"):
        if given.get(name) is None:
            raise fields.missing(name)
    stream = values.get("stream", False)
    if values.get("store"):
        ignored.add("store")  # taken, and not done: nothing of an answer is kept
    return CompletionRequest(
        model=values["model"],
        messages=decode_messages(given["messages"], ignored),
        sampling=sampling_of(values, max_tokens=_tokens(values), top_logprobs=_top_logprobs(values)),
        task=_task(given, values),
        stream=stream,
        include_usage=include_usage(values.get("stream_options"), stream, ignored),
        user=values.get("user"),
        service_tier=values.get("service_tier"),
        ignored=tuple(sorted(ignored)) if ignored else (),
    )


def check_fields(
    given: dict[str, Any], checks: dict[str, Check], ignored: set[str], *, besides: frozenset[str]
) -> dict[str, Any]:
    """Return the checked values of `given` by name; unknown fields go to `ignored`, `besides` are the caller's."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or name in besides:
            continue
        check = checks.get(name)
        if check is not None:
            values[name] = check(name, value)
        elif name in REFUSED:
            raise fields.unsupported(name)
        else:
            ignored.add(name)
    return values


def include_usage(options: dict[str, Any] | None, stream: bool, ignored: set[str]) -> bool:
    """Return whether a stream ends with its usage."""
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


def _tokens(values: dict[str, Any]) -> int | None:
    newer: int | None = values.get("max_completion_tokens")
    older: int | None = values.get("max_tokens")
    if newer is None or older is None or newer == older:
        return older if newer is None else newer
    raise InvalidRequest(
        "'max_tokens' and 'max_completion_tokens' mean the same and disagree: send one of them.",
        param="max_completion_tokens",
    )


def _top_logprobs(values: dict[str, Any]) -> int | None:
    top: int | None = values.get("top_logprobs")
    if values.get("logprobs"):
        return top or 0
    if top:
        raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    return None


def _task(given: dict[str, Any], values: dict[str, Any]) -> Task:
    tools, choice = given.get("tools"), given.get("tool_choice")
    guide: Guide | None = values.get("response_format")
    effort: str | None = values.get("reasoning_effort")
    if tools is None and choice is None and guide is None and effort is None:
        return PLAIN_CHAT
    tool_use = decode_tool_use(tools, choice, parallel=values.get("parallel_tool_calls", True))
    if tool_use is None and guide is None and effort is None:
        return PLAIN_CHAT
    return Task(tool_use=tool_use, guide=guide, reasoning_effort=effort)


def model_name(name: str, value: Any) -> str:
    """Return the id of a model, which may or may not exist."""
    model = fields.text(1, MODEL_CHARACTERS_MOST)(name, value)
    if not model.isprintable():
        raise fields.invalid(name, "a string without control characters")
    return str(model)


def _only(check: Check, *neutral: Any) -> Check:
    """Return the check of a field that is taken only at a value without effect; other valid ones are unsupported."""

    def only(name: str, value: Any) -> Any:
        checked = check(name, value)
        if checked not in neutral:
            raise fields.unsupported(name)
        return checked

    return only


def _response_format(name: str, value: Any) -> Guide | None:
    given = fields.object_(name, value)
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Guide("json_object")
    if kind != "json_schema":
        raise fields.invalid(f"{name}.type", "`text`, `json_object` or `json_schema`")
    where = f"{name}.json_schema"
    wrapper = fields.object_(where, fields.required(given, "json_schema", name))
    fields.text(1, SCHEMA_NAME_CHARACTERS_MOST)(f"{where}.name", fields.required(wrapper, "name", where))
    schema = wrapper.get("schema")
    return Guide("json_object") if schema is None else Guide("json_schema", schema_text(f"{where}.schema", schema))


def _metadata(name: str, value: Any) -> None:
    pairs = fields.object_(name, value)
    if len(pairs) > METADATA_PAIRS_MOST:
        raise fields.invalid(name, f"at most {METADATA_PAIRS_MOST} pairs")
    for key, text in pairs.items():
        if len(key) > METADATA_KEY_CHARACTERS_MOST:
            raise fields.invalid(name, f"keys of at most {METADATA_KEY_CHARACTERS_MOST} characters")
        fields.text(0, METADATA_VALUE_CHARACTERS_MOST)(f"{name}.{key}", text)


def _reasoning_effort(name: str, value: Any) -> str:
    if value not in REASONING_EFFORTS:
        raise fields.invalid(name, "one of " + ", ".join(f"`{effort}`" for effort in REASONING_EFFORTS))
    return str(value)


def _function_call(name: str, value: Any) -> None:
    if type(value) is dict:
        raise fields.unsupported(name, "is not supported: send `tools` and `tool_choice`")
    if value not in ("none", "auto"):
        raise fields.invalid(name, "`none`, `auto` or an object")


def _functions(name: str, value: Any) -> None:
    if fields.array(name, value):
        raise fields.unsupported(name, "is not supported: send `tools`")


def _service_tier(name: str, value: Any) -> str:
    if value not in ("auto", "default", "flex"):
        raise fields.invalid(name, "`auto`, `default` or `flex`")
    return "flex" if value == "flex" else "default"


REFUSED: Final = frozenset(
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
_OWN: Final = frozenset({"messages", "tools", "tool_choice"})  # decoded together, not field by field
CHAT_CHECKS: Final[dict[str, Check]] = {
    **SAMPLING_CHECKS,
    "model": model_name,
    "max_completion_tokens": max_tokens,
    "stream": fields.boolean,
    "stream_options": fields.object_,
    "user": fields.text(0, 1024),
    "logprobs": fields.boolean,
    "top_logprobs": fields.integer(0, TOP_LOGPROBS_MOST),
    "functions": _functions,
    "function_call": _function_call,
    "parallel_tool_calls": fields.boolean,
    "response_format": _response_format,
    "reasoning_effort": _reasoning_effort,
    "modalities": _only(fields.array, ["text"], []),
    "metadata": _metadata,
    "store": fields.boolean,
    "service_tier": _service_tier,
}
