"""What messages and tools of a chat may be, as JSON schemas: the words of `shared/openai/{messages,tools}.py`.

Unknown fields are allowed in a message, ignored, and named in the header `x-inferbase-ignored`.
"""

from typing import Final

from api.openapi.parts import Schema, array, boolean, choice, object_, one_of, optional, reference, text
from shared.openai.messages import CALL_ID_CHARACTERS_MOST, CALLS_MOST, NAME_CHARACTERS_MOST
from shared.openai.tools import DESCRIPTION_CHARACTERS_MOST, FUNCTION_NAME, TOOLS_MOST

_NAME: Final = text("A name to tell apart participants of the same role.", least=1, most=NAME_CHARACTERS_MOST)
_FUNCTION_NAME: Final = text("The name of the function.", pattern=f"^{FUNCTION_NAME.pattern}$")
_CALL_ID: Final = text("The id of the call.", least=1, most=CALL_ID_CHARACTERS_MOST)
_TEXT_PART: Final = object_(
    {"type": choice("", "text"), "text": text("The text.")}, "A text.", required=("type", "text"), closed=False
)
_REFUSAL_PART: Final = object_(
    {"type": choice("", "refusal"), "refusal": text("The refusal.")},
    "A refusal that an earlier answer held.",
    required=("type", "refusal"),
    closed=False,
)
_CONTENT: Final = one_of(
    "The text of the message. Parts are joined without anything between them.",
    text(),
    array(_TEXT_PART, least=1),
)
_ASSISTANT_CONTENT: Final = one_of(
    "The text of the answer; it may be missing where there are `tool_calls` or a `refusal`.",
    text(),
    array(one_of("", _TEXT_PART, _REFUSAL_PART), least=1),
)
_UNBUILT: Final = {name: {"type": "null", "description": "Refused by name."} for name in ("audio", "function_call")}
_ROLES: Final = {
    "system": "What the model is told before the conversation.",
    "developer": "The newer name of `system`.",
    "user": "What a person says.",
    "tool": "What a function answered; `tool_call_id` is that of a call in an earlier message.",
    "assistant": "What the model said before, with the calls it made.",
}


def conversation_schemas() -> dict[str, Schema]:
    """Return the component schemas of messages and tools by name."""
    return {
        "Message": one_of("One turn of the conversation.", *(reference(_turn_name(role)) for role in _ROLES)),
        **{_turn_name(role): _message(role) for role in _ROLES},
        "ToolCall": _tool_call(),
        "Tool": _tool(),
        "ToolChoice": _tool_choice(),
    }


def tools_schema() -> Schema:
    """Return the schema of the field `tools`."""
    return array(reference("Tool"), "The functions that the model may call; no two of the same name.", most=TOOLS_MOST)


def _turn_name(role: str) -> str:
    return f"{role.capitalize()}Turn"


def _message(role: str) -> Schema:
    properties: dict[str, Schema] = {"role": choice("", role), "content": _CONTENT, "name": _NAME}
    required: tuple[str, ...] = ("role", "content")
    if role == "tool":
        properties["tool_call_id"] = _CALL_ID
        required = ("role", "content", "tool_call_id")
    if role != "assistant":
        return object_(optional(properties, *required) | _UNBUILT, _ROLES[role], required=required, closed=False)
    properties |= {
        "content": _ASSISTANT_CONTENT,
        "refusal": text("A refusal that an earlier answer held."),
        "tool_calls": array(reference("ToolCall"), "The calls that an earlier answer made.", most=CALLS_MOST),
        "reasoning_content": text("The reasoning that an earlier answer told."),
    }
    return object_(optional(properties, "role") | _UNBUILT, _ROLES[role], required=("role",), closed=False)


def _tool_call() -> Schema:
    function = {"name": _FUNCTION_NAME, "arguments": text("The arguments as JSON text.")}
    return object_(
        {
            "id": _CALL_ID,
            "type": choice("", "function", default="function"),
            "function": object_(optional(function, "name"), required=("name",), closed=False),
        },
        "One call of a function.",
        required=("id", "function"),
        closed=False,
    )


def _tool() -> Schema:
    function = {
        "name": _FUNCTION_NAME,
        "description": text("What the function does.", most=DESCRIPTION_CHARACTERS_MOST),
        "parameters": {
            "type": "object",
            "description": "A JSON schema of the arguments, at most 64 KiB; `$ref` may point into itself only.",
            "properties": {"type": {"const": "object"}},
        },
        "strict": boolean("Whether the arguments must follow the schema to the letter.", default=False),
    }
    return object_(
        {
            "type": choice("Only functions are tools.", "function"),
            "function": object_(optional(function, "name"), required=("name",), closed=False),
        },
        "A function that the model may call.",
        required=("type", "function"),
        closed=False,
    )


def _tool_choice() -> Schema:
    named = object_({"name": _FUNCTION_NAME}, required=("name",), closed=False)
    function = object_(
        {"type": choice("", "function"), "function": named},
        "This function must be called.",
        required=("type", "function"),
        closed=False,
    )
    allowed = object_(
        {"mode": choice("", "auto", "required"), "tools": array(function)}, required=("mode", "tools"), closed=False
    )
    return one_of(
        "`none`: no call. `auto`: the model decides. `required`: at least one call. An object names the function that "
        "must be called, or those that may be. What is named must be in `tools`.",
        choice("", "none", "auto", "required"),
        function,
        object_(
            {"type": choice("", "allowed_tools"), "allowed_tools": allowed},
            "Only these functions may be called.",
            required=("type", "allowed_tools"),
            closed=False,
        ),
        default="auto",
    )
