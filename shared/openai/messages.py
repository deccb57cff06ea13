"""The conversation of a completions request: public messages in, `shared.wire.Message` out.

Decided where OpenAI leaves it open: a conversation of system messages only, one that ends with the assistant and empty
text are all valid; text parts are joined without anything between them; `developer` is the newer name of `system`.
"""

from typing import Any, Final

from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.tools import function_name
from shared.wire import Message, ToolCall

MESSAGES_MOST: Final = 1024
NAME_CHARACTERS_MOST: Final = 64
CALLS_MOST: Final = 128  # of one turn
CALL_ID_CHARACTERS_MOST: Final = 256
ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}

_UNBUILT_FIELDS: Final = ("function_call", "audio")
_UNBUILT_PARTS: Final = frozenset({"image_url", "input_audio", "file", "video_url", "audio_url"})
_ASSISTANTS: Final = frozenset({"refusal", "tool_calls", "reasoning_content"})
_KNOWN: Final = frozenset({"role", "content", "name", *_UNBUILT_FIELDS})
_HARMLESS: Final = frozenset({"annotations"})  # what an SDK sends back of our own answer
_name: Final = fields.text(1, NAME_CHARACTERS_MOST)
_call_id: Final = fields.text(1, CALL_ID_CHARACTERS_MOST)
_text: Final = fields.text(0, 2**31)


def decode_messages(value: Any, ignored: set[str]) -> tuple[Message, ...]:
    """Return the messages of a request and add the fields we do not know to `ignored`."""
    given = fields.array("messages", value)
    if not 1 <= len(given) <= MESSAGES_MOST:
        raise fields.invalid("messages", f"an array of 1 to {MESSAGES_MOST} messages")
    messages = tuple(_message(message, f"messages[{index}]", ignored) for index, message in enumerate(given))
    _check_results(messages)
    return messages


def _message(value: Any, where: str, ignored: set[str]) -> Message:
    message = fields.object_(where, value)
    role = _role(message, where)
    content = message.get("content")
    if len(message) == 2 and type(content) is str and role != "tool":
        return Message(role, content)
    _check_rest(message, role, where, ignored)
    calls = _tool_calls(message.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else ()
    if content is None and role == "assistant":
        content = message.get("refusal")
        if content is None and calls:
            content = ""
    if content is None:
        raise fields.missing(f"{where}.content")
    if type(content) is not str:
        content = _parts(content, role, f"{where}.content")
    name, reasoning = message.get("name"), message.get("reasoning_content")
    return Message(
        role,
        content,
        name=None if name is None else _name(f"{where}.name", name),
        tool_calls=calls,
        tool_call_id=_call_id_of(message, where) if role == "tool" else None,
        reasoning=None if reasoning is None or role != "assistant" else _text(f"{where}.reasoning_content", reasoning),
    )


def _role(message: dict[str, Any], where: str) -> str:
    given = fields.required(message, "role", where)
    if type(given) is str:
        role = ROLES.get(given)
        if role is not None:
            return role
        if given == "function":
            raise fields.unsupported(f"{where}.role", "`function` is not supported: send `tool`")
    raise fields.invalid(f"{where}.role", "one of " + ", ".join(ROLES))


def _check_rest(message: dict[str, Any], role: str, where: str, ignored: set[str]) -> None:
    """Check the fields beside role and content."""
    for name in _UNBUILT_FIELDS:
        if message.get(name):
            raise fields.unsupported(f"{where}.{name}")
    known = _KNOWN | (_ASSISTANTS if role == "assistant" else {"tool_call_id"} if role == "tool" else set())
    for name, value in message.items():
        if name in known or name in _HARMLESS or value is None:
            continue
        if name in _ASSISTANTS and value:
            raise InvalidRequest(f"'{where}.{name}' is only allowed for the role `assistant`.", param=f"{where}.{name}")
        if name not in _ASSISTANTS:
            ignored.add(f"messages.{name}")


def _tool_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    given = fields.array(where, value)
    if len(given) > CALLS_MOST:
        raise fields.invalid(where, f"at most {CALLS_MOST} calls")
    return tuple(_tool_call(call, f"{where}[{index}]") for index, call in enumerate(given))


def _tool_call(value: Any, where: str) -> ToolCall:
    call = fields.object_(where, value)
    if call.get("type", "function") != "function":
        raise fields.unsupported(f"{where}.type", "is not supported: only `function` is")
    function = fields.object_(f"{where}.function", fields.required(call, "function", where))
    name = function_name(fields.required(function, "name", f"{where}.function"), f"{where}.function.name")
    arguments = function.get("arguments")
    return ToolCall(
        id=_call_id(f"{where}.id", fields.required(call, "id", where)),
        name=name,
        arguments="" if arguments is None else _text(f"{where}.function.arguments", arguments),
    )


def _call_id_of(message: dict[str, Any], where: str) -> str:
    call_id: str = _call_id(f"{where}.tool_call_id", fields.required(message, "tool_call_id", where))
    return call_id


def _check_results(messages: tuple[Message, ...]) -> None:
    """Refuse a tool's result that answers no earlier call."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls)
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise InvalidRequest(
                f"'messages[{index}]' has the role `tool`, but no earlier message calls its 'tool_call_id'.",
                param=f"messages[{index}].tool_call_id",
            )


def _parts(value: Any, role: str, where: str) -> str:
    if type(value) is not list or not value:
        raise fields.invalid(where, "a string or an array of text parts")
    return "".join(_part(part, role, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: Any, role: str, where: str) -> str:
    part = fields.object_(where, value)
    kind = fields.required(part, "type", where)
    if type(kind) is str and kind in _UNBUILT_PARTS:
        raise fields.unsupported(where, f"of type `{kind}`: only text is supported")
    if kind != "text" and not (kind == "refusal" and role == "assistant"):
        raise fields.invalid(f"{where}.type", "`text`")
    text = fields.required(part, kind, where)
    if type(text) is not str:
        raise InvalidRequest(f"Invalid value for '{where}.{kind}': expected a string.", param=f"{where}.{kind}")
    return text
