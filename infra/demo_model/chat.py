"""Conversations and their text: the model's own Jinja template renders them, so training sees what serving sends."""

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

from jinja2.sandbox import ImmutableSandboxedEnvironment

from .config import CHAT_TEMPLATE, TURN_END, TURN_START

BORDER: Final = "\ue000"
"""Stands around what a user wrote, where a server may cut the text before it makes tokens of it."""

Message = dict[str, Any]
Tool = dict[str, Any]

ANSWER: Final = re.compile(re.escape(f"{TURN_START}assistant\n") + r"(.*?" + re.escape(TURN_END) + ")", re.DOTALL)


@dataclass
class Conversation:
    """Messages in OpenAI's form, the tools offered, and how tool JSON is written (`separators` of json.dumps)."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)
    separators: tuple[str, str] = (", ", ": ")
    sort_keys: bool = False


def _environment(conversation: Conversation) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(
        value, ensure_ascii=False, separators=conversation.separators, sort_keys=conversation.sort_keys
    )
    return environment


def render(conversation: Conversation, *, generation_prompt: bool = False) -> str:
    """The conversation as the text that the model reads."""
    template = _environment(conversation).from_string(CHAT_TEMPLATE.read_text())
    return template.render(
        messages=conversation.messages, tools=conversation.tools, add_generation_prompt=generation_prompt
    )


def render_plain(conversation: Conversation) -> str:
    """The same text without Jinja, for the many conversations without tools (checked against `render`)."""
    turns = (f"{TURN_START}{message['role']}\n{message['content']}{TURN_END}\n" for message in conversation.messages)
    return "".join(turns)


def mark_borders(conversation: Conversation) -> Conversation:
    """The same conversation with BORDER around every string that did not come from the template."""
    return replace(conversation, messages=_mark(conversation.messages), tools=_mark(conversation.tools))


def split_answers(text: str) -> list[tuple[str, bool]]:
    """Cut rendered text into (piece, is an answer); an answer includes its <|im_end|>."""
    pieces: list[tuple[str, bool]] = []
    end = 0
    for match in ANSWER.finditer(text):
        pieces += [(text[end : match.start(1)], False), (match.group(1), True)]
        end = match.end()
    pieces.append((text[end:], False))
    return pieces


def _mark(value: Any) -> Any:
    if isinstance(value, dict):
        kept = ("role", "type")
        return {key: inner if key in kept else _mark(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mark(inner) for inner in value]
    return f"{BORDER}{value}{BORDER}" if isinstance(value, str) and value else value
