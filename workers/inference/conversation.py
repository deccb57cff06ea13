"""What a chat template is given: turns, tools and switches as the plain values that published templates expect.

Every content stands between unguessable marks, its outer whitespace outside of them. Strings inside of tools, calls and
earlier reasoning are marked only where the tokenizer would take them for more than text: templates compare and reorder
those, and what is text anyway needs no mark.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from shared.errors import InvalidRequest
from shared.wire import Message, ToolUse

EXTRA: Final = "x"  # the name of a mark that may be dropped or repeated

_decode: Final = msgspec.json.Decoder().decode


class Marks:
    """The marks of one template."""

    def __init__(self, secret: str, is_text: Callable[[str], bool]) -> None:
        self._open, self._close = f"[{secret}(", f"){secret}]"
        self._is_text = is_text
        self.pattern: Final = re.compile(re.escape(self._open) + r"(\w+);(.*?)" + re.escape(self._close), re.DOTALL)

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
        """Return a JSON value whose strings are marked where they are more than text."""
        if self._is_text("\n".join(_strings(value))):  # one question for all of them: nearly always
            return value
        return self._wrap_strings(value)

    def _wrap_strings(self, value: Any) -> Any:
        if isinstance(value, str):
            return value if self._is_text(value) else self.wrap(EXTRA, value)
        if isinstance(value, dict):
            return {self._wrap_strings(key): self._wrap_strings(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._wrap_strings(item) for item in value]
        return value


def turn_of(index: int, role: str, message: Message, marks: Marks | None) -> dict[str, Any]:
    """Return one turn; without `marks`, as a template sees it that is asked for its opinion of the bare text."""
    turn: dict[str, Any] = {
        "role": role,
        "content": message.content if marks is None else marks.wrap(str(index), message.content),
    }
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
