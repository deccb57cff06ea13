"""The model's own chat template, rendered so that it is known which characters are the user's.

Every content is put between unguessable marks, its outer whitespace outside of them, so that a template may trim it. A
template that looks into contents could decide otherwise because of the marks: such a one is rendered a second time
without them, and both texts must agree. At load it is tried on conversations of all roles; one whose marked text
differs even for plain words cannot be used at all.
"""

import datetime
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.errors import InvalidRequest, SettingsInvalid
from shared.wire import Message

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


class Piece(NamedTuple):
    """A run of characters of one origin."""

    text: str
    from_user: bool


class ChatTemplate:
    """A compiled template. SettingsInvalid where it does not compile or cannot keep contents apart."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        mark = secrets.token_hex(16)
        self._open, self._close = f"[{mark}(", f"){mark}]"
        self._marks = re.compile(re.escape(self._open) + r"(\d+);(.*?)" + re.escape(self._close), re.DOTALL)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise SettingsInvalid(f"the model's chat template does not compile: {error}") from None
        self._variables = dict(variables)
        self.roles: Final = self._supported_roles()
        self.inspects_content: Final = self._inspects_content()
        # Where contents cannot change a template's own text, that text depends on the roles alone and is kept.
        self._kept: dict[tuple[str, ...], list[str]] | None = None
        if not self.inspects_content and "strftime_now" not in source:
            self._kept = {}

    def render(self, messages: Sequence[Message]) -> list[Piece]:
        """Return the prompt's text in pieces. InvalidRequest where the template does not take this conversation."""
        turns = [(self._role(message.role), message.content) for message in messages]
        if self._kept is not None and all(_is_plain(content) for _, content in turns):
            return self._fill(self._kept, turns)
        pieces = self._pieces(turns)
        if self.inspects_content and _joined(pieces) != self._text(turns):
            raise InvalidRequest(
                "The messages hold text that this model's chat template keeps for itself.", param="messages"
            )
        return pieces

    def _fill(self, kept: dict[tuple[str, ...], list[str]], turns: Sequence[tuple[str, str]]) -> list[Piece]:
        """Return the pieces of plain contents, from the template's text around the contents of these roles."""
        roles = tuple(role for role, _ in turns)
        around = kept.get(roles)
        if around is None:
            probe = self._pieces([(role, f"{PLAIN_WORDS} {index}") for index, role in enumerate(roles)])
            around = _around(probe, len(turns))
            if around is None:
                return self._pieces(turns)
            if len(kept) < KEPT_ROLES_MOST:
                kept[roles] = around
        pieces = [Piece(around[0], False)] if around[0] else []
        for (_, content), text in zip(turns, around[1:], strict=True):
            pieces.append(Piece(content, True))
            if text:
                pieces.append(Piece(text, False))
        return pieces

    def _pieces(self, turns: Sequence[tuple[str, str]]) -> list[Piece]:
        rendered = self._text([(role, self._marked(index, content)) for index, (role, content) in enumerate(turns)])
        pieces: list[Piece] = []
        seen: set[int] = set()
        after = 0
        for match in self._marks.finditer(rendered):
            pieces += (Piece(rendered[after : match.start()], False), Piece(match[2], True))
            seen.add(int(match[1]))
            after = match.end()
        pieces.append(Piece(rendered[after:], False))
        wanted = {index for index, (_, content) in enumerate(turns) if content.strip()}
        if seen != wanted or any(self._open in text or self._close in text for text, _ in pieces):
            raise InvalidRequest("This model's chat template cannot take these messages.", param="messages")
        return [piece for piece in pieces if piece.text]

    def _marked(self, index: int, content: str) -> str:
        core = content.strip()
        if not core:
            return content
        before, after = content[: content.index(core)], content[content.index(core) + len(core) :]
        return f"{before}{self._open}{index};{core}{self._close}{after}"

    def _text(self, turns: Sequence[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._variables)
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

    def _takes(self, turns: Sequence[tuple[str, str]]) -> bool:
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

    def _renders(self, turns: Sequence[tuple[str, str]]) -> bool:
        try:
            self._text(turns)
        except InvalidRequest:
            return False
        return True


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
