"""The model's own chat template, rendered so that it is known which characters are the user's.

Every content is put between unguessable marks, its outer whitespace outside of them, so that a template may trim it. A
template that looks into contents could decide otherwise because of the marks: such a one is rendered a second time
without them, and both texts must agree. At load it is tried on conversations of all roles; one whose marked text
differs even for plain words cannot be used at all. Strings of tools and calls are marked only where they hold what the
tokenizer would take for more than text: templates look into them (`workers/inference/conversation.py`).
"""

import datetime
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import InvalidRequest, SettingsInvalid
from shared.wire import PLAIN_CHAT, Message, Task, Tool, ToolCall, ToolUse
from workers.inference.conversation import EXTRA, Marks, reasoning_variables, tools_of, turn_of

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
PLAIN_WORDS: Final = "plain words"
KEPT_ROLES_MOST: Final = 1024  # sequences of roles whose template text is kept
ODD_CONTENTS: Final = (
    "  outer space\n",
    "<think>one</think>two",
    "<tool_response>\n{}\n</tool_response>",
    '{"name": "f", "arguments": {}}',
    "a|b[INST]c</s>",
    "",
)
# What an expression of a template may end in, beside its own refusal.
TEMPLATE_ERRORS: Final = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError, RecursionError),
)


PROBE_FUNCTION: Final = "probe_of_functions"
PROBE_TURN: Final = Message("user", PLAIN_WORDS)
PROBE_TASK: Final = Task(tool_use=ToolUse((Tool(PROBE_FUNCTION, "", '{"type":"object","properties":{}}'),)))
PROBE_CALL: Final = (
    PROBE_TURN,
    Message("assistant", "", tool_calls=(ToolCall("call00001", PROBE_FUNCTION, "{}"),)),
    Message("tool", PLAIN_WORDS, tool_call_id="call00001"),
)

Turn = tuple[str, Message]  # the role that the template knows it by


class Piece(NamedTuple):
    """A run of characters of one origin."""

    text: str
    from_user: bool


class ChatTemplate:
    """A compiled template. SettingsInvalid where it does not compile or cannot keep contents apart."""

    def __init__(
        self, source: str, variables: Mapping[str, str], *, is_text: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`is_text` tells whether the tokenizer takes a string for nothing but text, as the template's own or not."""
        self._marks = Marks(secrets.token_hex(16), is_text)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise SettingsInvalid(f"the model's chat template does not compile: {error}") from None
        self._source = source
        self._variables = dict(variables)
        self.roles: Final = self._supported_roles()
        self.inspects_content: Final = self._inspects_content()
        self.takes_tools: Final = self._shows([PROBE_TURN], PROBE_TASK)
        self.takes_calls: Final = self._shows(PROBE_CALL, PLAIN_CHAT)
        # Where contents cannot change a template's own text, that text depends on the roles alone and is kept.
        self._kept: dict[tuple[str, ...], list[str]] | None = None
        if not self.inspects_content and "strftime_now" not in source:
            self._kept = {}

    def render(self, messages: Sequence[Message], task: Task = PLAIN_CHAT) -> list[Piece]:
        """Return the prompt's text in pieces.

        Raises InvalidRequest where the template does not take this conversation, or, `unsupported_parameter`, where it
        has no place for tools, calls or a reasoning effort.
        """
        turns = [(self._role(message.role), message) for message in messages]
        plain = task is PLAIN_CHAT or (task.tool_use is None and task.reasoning_effort is None)
        plain = plain and not any(message.tool_calls or message.reasoning or message.name for message in messages)
        if plain and self._kept is not None and all(_is_plain(message.content) for message in messages):
            return self._fill(self._kept, [(role, message.content) for role, message in turns])
        self._check(messages, task)
        pieces = self._pieces(turns, task)
        if self.inspects_content and _joined(pieces) != self._text(turns, task):
            raise InvalidRequest(
                "The messages hold text that this model's chat template keeps for itself.", param="messages"
            )
        return pieces

    def _check(self, messages: Sequence[Message], task: Task) -> None:
        if task.tool_use is not None and task.tool_use.choice != "none" and not self.takes_tools:
            raise _unsupported("tools", "This model's chat template has no place for tools.")
        if not self.takes_calls and any(message.tool_calls for message in messages):
            raise _unsupported("messages", "This model's chat template has no place for tool calls.")

    def _fill(self, kept: dict[tuple[str, ...], list[str]], turns: Sequence[tuple[str, str]]) -> list[Piece]:
        """Return the pieces of plain contents, from the template's text around the contents of these roles."""
        roles = tuple(role for role, _ in turns)
        around = kept.get(roles)
        if around is None:
            probe = self._pieces([_turn(role, f"{PLAIN_WORDS} {index}") for index, role in enumerate(roles)])
            around = _around(probe, len(turns))
            if around is None:
                return self._pieces([_turn(role, content) for role, content in turns])
            if len(kept) < KEPT_ROLES_MOST:
                kept[roles] = around
        pieces = [Piece(around[0], False)] if around[0] else []
        for (_, content), text in zip(turns, around[1:], strict=True):
            pieces.append(Piece(content, True))
            if text:
                pieces.append(Piece(text, False))
        return pieces

    def _pieces(self, turns: Sequence[Turn], task: Task = PLAIN_CHAT) -> list[Piece]:
        rendered = self._text(turns, task, marked=True)
        pieces: list[Piece] = []
        seen: set[str] = set()
        after = 0
        for match in self._marks.pattern.finditer(rendered):
            pieces += (Piece(rendered[after : match.start()], False), Piece(match[2], True))
            seen.add(match[1])
            after = match.end()
        pieces.append(Piece(rendered[after:], False))
        wanted = {str(index) for index, (_, message) in enumerate(turns) if message.content.strip()}
        if seen - {EXTRA} != wanted or any(self._marks.remain(text) for text, _ in pieces):
            raise InvalidRequest("This model's chat template cannot take these messages.", param="messages")
        return [piece for piece in pieces if piece.text]

    def _text(self, turns: Sequence[Turn], task: Task = PLAIN_CHAT, *, marked: bool = False) -> str:
        marks = self._marks.fresh() if marked else None
        messages = [turn_of(index, role, message, marks) for index, (role, message) in enumerate(turns)]
        variables = self._variables | reasoning_variables(self._source, task.reasoning_effort)
        if task.tool_use is not None and task.tool_use.choice != "none":
            variables["tools"] = tools_of(task.tool_use, marks)
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **variables)
        except InvalidRequest:
            raise
        except TEMPLATE_ERRORS:
            raise InvalidRequest("This model's chat template cannot take these messages.", param="messages") from None

    def _role(self, role: str) -> str:
        if role in self.roles:
            return role
        if role == "developer" and "system" in self.roles:
            return "system"
        raise InvalidRequest(f"This model's chat template has no role {role!r}.", param="messages")

    def _supported_roles(self) -> frozenset[str]:
        if not self._takes([("user", PLAIN_WORDS)]):
            raise SettingsInvalid("the model's chat template does not keep a user's text apart from its own")
        found = {"user"}
        for role in ROLES:
            alone = [(role, PLAIN_WORDS), ("user", PLAIN_WORDS)]
            behind = [("user", PLAIN_WORDS), (role, PLAIN_WORDS), ("user", PLAIN_WORDS)]
            if self._takes(alone) or self._takes(behind):
                found.add(role)
        return frozenset(found)

    def _takes(self, spoken: Sequence[tuple[str, str]]) -> bool:
        turns = [_turn(role, content) for role, content in spoken]
        try:
            return _joined(self._pieces(turns)) == self._text(turns)
        except InvalidRequest:
            return False

    def _inspects_content(self) -> bool:
        for role in self.roles:
            for content in ODD_CONTENTS:
                for turns in (
                    [("user", PLAIN_WORDS), (role, content), ("user", PLAIN_WORDS)],
                    [(role, content), ("user", PLAIN_WORDS)],
                    [("user", PLAIN_WORDS), (role, content)],
                ):
                    if not self._takes(turns) and self._renders(turns):
                        return True
        return False

    def _renders(self, spoken: Sequence[tuple[str, str]]) -> bool:
        try:
            self._text([_turn(role, content) for role, content in spoken])
        except InvalidRequest:
            return False
        return True

    def _shows(self, messages: Sequence[Message], task: Task) -> bool:
        """Tell whether the function of a probe appears in the prompt."""
        try:
            return PROBE_FUNCTION in self._text([(message.role, message) for message in messages], task)
        except InvalidRequest:
            return False


def _turn(role: str, content: str) -> Turn:
    return role, Message(role, content)


def _unsupported(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(why, code="unsupported_parameter", param=param)


def _is_plain(content: str) -> bool:
    """Tell whether a template puts `content` where it stands: not empty, no outer whitespace to trim."""
    return bool(content) and not content[0].isspace() and not content[-1].isspace()


def _around(probe: Sequence[Piece], contents: int) -> list[str] | None:
    """Return the template's text before, between and after the probe's contents; None where their order is not ours."""
    around, seen = [""], 0
    for text, from_user in probe:
        if not from_user:
            around[-1] += text
            continue
        if text != f"{PLAIN_WORDS} {seen}":
            return None
        seen += 1
        around.append("")
    return around if seen == contents else None


def _joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _tojson
    return environment


def _raise_exception(message: str) -> None:
    raise InvalidRequest(f"This model's chat template refused: {message}", param="messages")


def _strftime_now(form: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).strftime(form)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
