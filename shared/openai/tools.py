"""The functions that a model may call, and which of them it must: public `tools` and `tool_choice` in, ToolUse out.

Source: ChatCompletionTool, ChatCompletionToolChoiceOption.
"""

import re
from typing import Any, Final, Literal

from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.json_schema import schema_text
from shared.wire import Tool, ToolUse

TOOLS_MOST: Final = 128
DESCRIPTION_CHARACTERS_MOST: Final = 16_384
FUNCTION_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CHOICES: Final = ("none", "auto", "required")

Choice = Literal["none", "auto", "required", "named"]

_description: Final = fields.text(0, DESCRIPTION_CHARACTERS_MOST)


def decode_tool_use(tools: Any, choice: Any, *, parallel: bool) -> ToolUse | None:
    """Return what `tools` and `tool_choice` ask for; None where no function is offered. Either may be None: absent."""
    offered = _tools(tools) if tools is not None else ()
    kind: Choice = "auto"
    named: str | None = None
    if choice is None or choice in CHOICES:
        kind = choice or "auto"
    elif type(choice) is dict:
        kind, named, offered = _object_choice(choice, offered)
    else:
        raise fields.invalid("tool_choice", "`none`, `auto`, `required` or an object")
    if not offered:
        if kind in ("required", "named"):
            raise InvalidRequest("'tool_choice' asks for a function, but 'tools' holds none.", param="tool_choice")
        return None
    return ToolUse(offered, kind, named, parallel)


def _tools(value: Any) -> tuple[Tool, ...]:
    given = fields.array("tools", value)
    if len(given) > TOOLS_MOST:
        raise fields.invalid("tools", f"at most {TOOLS_MOST} tools")
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(given))
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequest("Invalid value for 'tools': two functions have the same name.", param="tools")
    return tools


def _tool(value: Any, where: str) -> Tool:
    tool = fields.object_(where, value)
    _check_type(tool, where)
    function = fields.object_(f"{where}.function", fields.required(tool, "function", where))
    inside = f"{where}.function"
    description, parameters, strict = (function.get(name) for name in ("description", "parameters", "strict"))
    return Tool(
        name=function_name(fields.required(function, "name", inside), f"{inside}.name"),
        description=None if description is None else _description(f"{inside}.description", description),
        parameters="{}" if parameters is None else _parameters(f"{inside}.parameters", parameters),
        strict=strict is not None and fields.boolean(f"{inside}.strict", strict),
    )


def function_name(value: Any, where: str) -> str:
    """Return the name of a function."""
    if type(value) is not str or FUNCTION_NAME.fullmatch(value) is None:
        raise fields.invalid(where, "1 to 64 letters, digits, underscores or dashes")
    return value


def _parameters(name: str, value: Any) -> str:
    if fields.object_(name, value).get("type", "object") != "object":
        raise fields.invalid(f"{name}.type", "`object`: a function's arguments are an object")
    return schema_text(name, value)


def _check_type(tool: dict[str, Any], where: str) -> None:
    kind = fields.required(tool, "type", where)
    if kind == "custom":
        raise fields.unsupported(f"{where}.type", "`custom` is not supported: only functions are")
    if kind != "function":
        raise fields.invalid(f"{where}.type", "`function`")


def _object_choice(choice: dict[str, Any], tools: tuple[Tool, ...]) -> tuple[Choice, str | None, tuple[Tool, ...]]:
    """Return choice, name and remaining tools of a `tool_choice` that is an object."""
    kind = fields.required(choice, "type", "tool_choice")
    if kind == "function":
        name = _chosen(choice, "tool_choice", tools)
        return "named", name, tools
    if kind == "allowed_tools":
        where = "tool_choice.allowed_tools"
        allowed = fields.object_(where, fields.required(choice, "allowed_tools", "tool_choice"))
        mode = fields.required(allowed, "mode", where)
        if mode not in ("auto", "required"):
            raise fields.invalid(f"{where}.mode", "`auto` or `required`")
        listed = fields.array(f"{where}.tools", fields.required(allowed, "tools", where))
        names = {
            _chosen(fields.object_(f"{where}.tools[{index}]", tool), f"{where}.tools[{index}]", tools)
            for index, tool in enumerate(listed[: TOOLS_MOST + 1])
        }
        return mode, None, tuple(tool for tool in tools if tool.name in names)
    if kind == "custom":
        raise fields.unsupported("tool_choice.type", "`custom` is not supported: only functions are")
    raise fields.invalid("tool_choice.type", "`function` or `allowed_tools`")


def _chosen(value: dict[str, Any], where: str, tools: tuple[Tool, ...]) -> str:
    _check_type(value, where)
    function = fields.object_(f"{where}.function", fields.required(value, "function", where))
    name = function_name(fields.required(function, "name", f"{where}.function"), f"{where}.function.name")
    if all(tool.name != name for tool in tools):
        raise InvalidRequest(f"'{where}' names the function '{name}', which is not in 'tools'.", param="tool_choice")
    return name
