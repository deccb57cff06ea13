"""The conversation of a completions request: public messages in, `shared.wire.Message` out.

Decided where OpenAI leaves it open: a conversation of system messages only, one that ends with the assistant and empty
text are all valid; text parts are joined without anything between them; `developer` is the newer name of `system`.
"""

from typing import Any, Final

from shared.errors import InvalidRequest
from shared.openai import fields
from shared.wire import Message

MESSAGES_MOST: Final = 1024
NAME_CHARACTERS_MOST: Final = 64
ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_UNBUILT_ROLES: Final = frozenset({"tool", "function"})
_UNBUILT_FIELDS: Final = ("tool_calls", "function_call", "audio")
_UNBUILT_PARTS: Final = frozenset({"image_url", "input_audio", "file", "video_url", "audio_url"})
_KNOWN: Final = frozenset({"role", "content", "name", "refusal", *_UNBUILT_FIELDS})
_HARMLESS: Final = frozenset({"annotations"})  # what an SDK sends back of our own answer
_name: Final = fields.text(1, NAME_CHARACTERS_MOST)


def decode_messages(value: Any, ignored: set[str]) -> tuple[Message, ...]:
    """Return the messages of a request and add the fields we do not know to `ignored`."""
    messages = fields.array("messages", value)
    if not 1 <= len(messages) <= MESSAGES_MOST:
        raise fields.invalid("messages", f"an array of 1 to {MESSAGES_MOST} messages")
    return tuple(_message(message, f"messages[{index}]", ignored) for index, message in enumerate(messages))


def _message(value: Any, where: str, ignored: set[str]) -> Message:
    message = fields.object_(where, value)
    role = _role(message, where)
    content = message.get("content")
    if len(message) > 2 or content is None:
        content = _rest(message, role, where, ignored)
    if type(content) is not str:
        content = _parts(content, role, f"{where}.content")
    name = message.get("name")
    return Message(role, content, None if name is None else _name(f"{where}.name", name))


def _role(message: dict[str, Any], where: str) -> str:
    given = message.get("role")
    if given is None:
        raise fields.missing(f"{where}.role")
    if type(given) is str:
        role = ROLES.get(given)
        if role is not None:
            return role
        if given in _UNBUILT_ROLES:
            raise fields.unsupported(f"{where}.role", f"`{given}` is not supported yet")
    raise fields.invalid(f"{where}.role", "one of " + ", ".join(ROLES))


def _rest(message: dict[str, Any], role: str, where: str, ignored: set[str]) -> Any:
    """Check the fields beside role and content, and return the content."""
    for name in _UNBUILT_FIELDS:
        if message.get(name):
            raise fields.unsupported(f"{where}.{name}", "is not supported yet")
    for name, value in message.items():
        if name not in _KNOWN and name not in _HARMLESS and value is not None:
            ignored.add(f"messages.{name}")
    content = message.get("content")
    if content is None and role == "assistant":
        content = message.get("refusal")
    if content is None:
        raise fields.missing(f"{where}.content")
    return content


def _parts(value: Any, role: str, where: str) -> str:
    if type(value) is not list or not value:
        raise fields.invalid(where, "a string or an array of text parts")
    return "".join(_part(part, role, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: Any, role: str, where: str) -> str:
    part = fields.object_(where, value)
    kind = part.get("type")
    if kind is None:
        raise fields.missing(f"{where}.type")
    if type(kind) is str and kind in _UNBUILT_PARTS:
        raise fields.unsupported(where, f"of type `{kind}`: only text is supported")
    if kind != "text" and not (kind == "refusal" and role == "assistant"):
        raise fields.invalid(f"{where}.type", "`text`")
    text = part.get(kind)
    if text is None:
        raise fields.missing(f"{where}.{kind}")
    if type(text) is not str:
        raise InvalidRequest(f"Invalid value for '{where}.{kind}': expected a string.", param=f"{where}.{kind}")
    return text
