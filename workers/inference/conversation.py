"""What a chat template is given: turns, tools and switches as the plain values that published templates expect.

Every content stands between unguessable marks, its outer whitespace outside of them. Strings inside of tools, calls and
earlier reasoning are marked only where the tokenizer would take them for more than text: templates compare and reorder
those, and what is text anyway needs no mark.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from shared.errors import InvalidRequest
from shared.wire import Message, ToolUse

EXTRA: Final = "x"  # the name of a mark that may be dropped or repeated
SPECIAL_STRINGS_MOST: Final = 64  # of the tools and calls of a request; each costs several questions to the tokenizer

_decode: Final = msgspec.json.Decoder().decode


class Marks:
    """The marks of one template; `fresh` ones for each request, since they count."""

    def __init__(self, secret: str, is_text: Callable[[str], bool]) -> None:
        self._secret, self._is_text = secret, is_text
        self._open, self._close = f"[{secret}(", f"){secret}]"
        self._special_left = SPECIAL_STRINGS_MOST
        self.pattern: Final = re.compile(re.escape(self._open) + r"(\w+);(.*?)" + re.escape(self._close), re.DOTALL)

    def fresh(self) -> "Marks":
        """Return the same marks, which have marked nothing yet."""
        return Marks(self._secret, self._is_text)

    def wrap(self, name: str, content: str) -> str:
        """Return `content` with marks around it, inside its outer whitespace; nothing around nothing."""
        core = content.strip()
        if not core:
            return content
        before, after = content[: content.index(core)], content[content.index(core) + len(core) :]
        return f"{before}{self._open}{name};{core}{self._close}{after}"

    def remain(self, text: str) -> bool:
        """Tell whether half of a mark is left in `text`."""
        return self._open in text or self._close in text

    def wrap_inside(self, value: Any) -> Any:
        """Return a JSON value whose strings are marked where they are more than text.

        Raises InvalidRequest where a request has too many of them: nobody's tools do, and an attacker's took 30 s.
        """
        special = self._special(list(dict.fromkeys(_strings(value))))
        return self._wrap_strings(value, special) if special else value

    def _special(self, strings: Sequence[str]) -> set[str]:
        """Return those that are more than text: one question for all, nearly always, else one for each half."""
        if not strings or self._is_text("\n".join(strings)):
            return set()
        if len(strings) == 1:
            self._special_left -= 1
            if self._special_left < 0:
                raise InvalidRequest(
                    f"More than {SPECIAL_STRINGS_MOST} strings of the tools and calls hold this model's special tokens."
                )
            return set(strings)
        half = len(strings) // 2
        return self._special(strings[:half]) | self._special(strings[half:])

    def _wrap_strings(self, value: Any, special: set[str]) -> Any:
        if isinstance(value, str):
            return self.wrap(EXTRA, value) if value in special else value
        if isinstance(value, dict):
            return {self._wrap_strings(key, special): self._wrap_strings(item, special) for key, item in value.items()}
        if isinstance(value, list):
            return [self._wrap_strings(item, special) for item in value]
        return value


def turn_of(index: int, role: str, message: Message, marks: Marks | None) -> dict[str, Any]:
    """Return one turn; without `marks`, as a template sees it that is asked for its opinion of the bare text."""
    turn: dict[str, Any] = {
        "role": role,
        "content": message.content if marks is None else marks.wrap(str(index), message.content),
    }
    if message.name is not None:
        turn["name"] = _inside(message.name, marks)
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning if marks is None else marks.wrap(EXTRA, message.reasoning)
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": _inside(call.id, marks),
                "type": "function",
                "function": {"name": call.name, "arguments": _inside(_arguments(call.arguments), marks)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = _inside(message.tool_call_id, marks)
    return turn


def tools_of(tool_use: ToolUse, marks: Marks | None) -> list[dict[str, Any]]:
    """Return the functions in OpenAI's shape, which templates print."""
    tools = []
    for tool in tool_use.tools:
        function = {"name": tool.name, "description": tool.description or "", "parameters": _decode(tool.parameters)}
        tools.append({"type": "function", "function": _inside(function, marks)})
    return tools


def reasoning_variables(source: str, effort: str | None) -> dict[str, Any]:
    """Return the switches of a template for a reasoning effort.

    Raises InvalidRequest (`unsupported_parameter`) where the template has no switch that could honour it.
    """
    if effort is None:
        return {}
    if "enable_thinking" in source:
        return {"enable_thinking": effort != "none"}
    if "reasoning_effort" in source:
        return {"reasoning_effort": effort}
    if effort == "none" and "<think>" not in source:
        return {}
    raise InvalidRequest(
        "This model's chat template knows no reasoning effort.", code="unsupported_parameter", param="reasoning_effort"
    )


def text_bytes(messages: Sequence[Message], tool_use: ToolUse | None) -> int:
    """Return how many bytes of text a prompt holds at least: contents, and the strings of calls and tools."""
    total = sum(len(message.content.encode()) for message in messages)
    shown = [_arguments(call.arguments) for message in messages for call in message.tool_calls]
    if tool_use is not None and tool_use.choice != "none":
        shown += [_decode(tool.parameters) for tool in tool_use.tools]
    return total + sum(len(text.encode()) for value in shown for text in _strings(value))


def _strings(value: Any) -> Iterator[str]:
    """Yield every string of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _inside(value: Any, marks: Marks | None) -> Any:
    return value if marks is None else marks.wrap_inside(value)


def _arguments(text: str) -> Any:
    """Return the arguments of a call as an object, which templates expect, or as they are where they are none."""
    try:
        value = _decode(text or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return text
    return value if isinstance(value, dict) else text
