"""Tool calls out of a model's text, as it comes: content, then calls whose arguments stream on.

Templates teach models a form; the forms known here are found in the template's own source. What looks like a call and
is none stays text, word for word. Where the text is cut into parts never matters.
"""

import hashlib
import re
from typing import Final, Literal, NamedTuple

import msgspec

from shared.wire import ToolCallDelta

HEAD_CHARACTERS_MOST: Final = 1024  # in which a call has to tell its function, so that its arguments can stream
CALL_CHARACTERS_MOST: Final = 65_536  # of a call that tells it later, if at all: text after all
_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_decode: Final = msgspec.json.Decoder().decode


class ToolForm(NamedTuple):
    """How a model writes a call: `begin`, JSON with `name` and `arguments_key`, `end`. Empty: the whole text is one."""

    begin: str
    end: str
    arguments_key: str


HERMES: Final = ToolForm("<tool_call>", "</tool_call>", "arguments")  # also Qwen's
BARE_JSON: Final = ToolForm("", "", "parameters")  # Llama's


def form_of(template: str) -> ToolForm | None:
    """Return the form of calls that a chat template teaches; None for one that we do not know."""
    if "<tool_call>" in template and '"arguments' in template.replace('\\"', '"') and "<function=" not in template:
        return HERMES
    if '"parameters": dictionary of argument name' in template.replace('\\"', '"'):
        return BARE_JSON
    return None


def call_id(request_id: str, choice: int, index: int) -> str:
    """Return the id of a call: the same on any worker that continues the answer."""
    digest = hashlib.blake2b(f"{request_id}:{choice}:{index}".encode(), digest_size=12).hexdigest()
    return f"call_{digest}"


class ToolCallStream:
    """Splits the text of one choice into content and calls."""

    # States: `text` looks for the begin of a call, holding back what could become one; `head` gathers until the
    # function's name is sure; `arguments` passes them on; `tail` waits for the end; `plain` knows that no call will
    # come; `done` wants nothing more. `_held` is what is not yet decided, no end of a call before `_sought`.

    def __init__(self, form: ToolForm, *, request_id: str, choice: int, parallel: bool = True) -> None:
        self.calls = 0
        self._form = form
        self._request_id = request_id
        self._choice = choice
        self.parallel = parallel
        self.single: Final = not (parallel and form.end)  # the first call ends the answer
        self._state: Literal["text", "head", "arguments", "tail", "plain", "done"] = "text" if form.begin else "head"
        self._held = ""
        self._gap = ""  # whitespace before the present begin: content, should no call follow
        self._sought = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def complete(self) -> bool:
        """Whether nothing that the model may still write belongs to the answer."""
        return self._state == "done"

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Return what `text` settles: content, and parts of calls behind it."""
        self._held += text
        said: list[str] = []
        deltas: list[ToolCallDelta] = []
        while True:
            before = self._state, len(self._held)
            if self._state == "text":
                self._take_text(said)
            elif self._state == "head":
                self._take_head(said, deltas)
            elif self._state == "arguments":
                self._take_arguments(deltas)
            elif self._state == "plain":
                said.append(self._held)
                self._held = ""
            else:
                self._take_tail()
            if (self._state, len(self._held)) == before:
                return "".join(said), deltas

    def finish(self) -> str:
        """Return what was held back and is text after all."""
        held, self._held = self._held, ""
        if self._state == "text":
            return held if not self.calls or held.strip() else ""
        if self._state == "head":
            return self._gap + self._form.begin + held
        return ""

    def _take_text(self, said: list[str]) -> None:
        begin = self._form.begin
        at = self._held.find(begin)
        if at >= 0:
            before = self._held[:at].rstrip()
            self._gap, self._held = self._held[len(before) : at], self._held[at + len(begin) :]
            if before:
                said.append(before)
            self._state = "head"
            return
        keep = next((n for n in range(len(begin) - 1, 0, -1) if self._held.endswith(begin[:n])), 0)
        safe = self._held[: len(self._held) - keep].rstrip()  # whitespace before a call is not content
        if safe:
            said.append(safe)
            self._held = self._held[len(safe) :]

    def _take_head(self, said: list[str], deltas: list[ToolCallDelta]) -> None:
        head = _HEAD.match(self._held, 0, HEAD_CHARACTERS_MOST)  # each push tries again
        if head is not None:
            deltas.append(self._new_call(head[1], ""))
            self._held = self._held[head.end() :]
            self._state, self._depth, self._sought = "arguments", 0, 0
            return
        end = self._form.end
        at = self._held.find(end, self._sought, CALL_CHARACTERS_MOST) if end else -1
        self._sought = max(0, len(self._held) - len(end) + 1) if at < 0 else 0
        if at >= 0:
            inside, self._held = self._held[:at], self._held[at + len(end) :]
            call = _whole_call(inside, self._form.arguments_key)
            if call is None:
                said.append(self._gap + self._form.begin + inside + end)
                self._state = "text"
            else:
                deltas.append(self._new_call(*call))
                self._end_call()
        elif self._is_no_call():
            cut = (CALL_CHARACTERS_MOST if end else HEAD_CHARACTERS_MOST) + 1
            said.append(self._gap + self._form.begin + self._held[:cut])
            self._held, self._sought = self._held[cut:], 0
            self._state = "text" if end else "plain"

    def _is_no_call(self) -> bool:
        if self._form.end:
            return len(self._held) > CALL_CHARACTERS_MOST
        return len(self._held) > HEAD_CHARACTERS_MOST or not _may_become_head(self._held)

    def _take_arguments(self, deltas: list[ToolCallDelta]) -> None:
        at = self._end_of_object()
        part = self._held if at is None else self._held[:at]
        if part:
            deltas.append(ToolCallDelta(self.calls - 1, None, None, part))
        self._held = self._held[len(part) :]
        if at is not None:
            self._state = "tail"

    def _end_of_object(self) -> int | None:
        """Return where the arguments' object ends in what is held, looking at each character once."""
        for index, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None

    def _take_tail(self) -> None:
        end = self._form.end
        at = self._held.find(end) if end else -1
        if self._state == "done" or not end:
            self._held, self._state = "", "done"
        elif at >= 0:
            self._held = self._held[at + len(end) :]
            self._end_call()
        else:
            self._held = self._held[1 - len(end) :]

    def _end_call(self) -> None:
        self._state = "text" if self.parallel else "done"

    def _new_call(self, name: str, arguments: str) -> ToolCallDelta:
        index = self.calls
        self.calls += 1
        return ToolCallDelta(index, call_id(self._request_id, self._choice, index), name, arguments)


def _whole_call(inside: str, arguments_key: str) -> tuple[str, str] | None:
    """Return name and arguments of a call whose keys came in another order, or as text; None where it is none."""
    try:
        call = _decode(inside)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = call.get(arguments_key, {})
    return call["name"], arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _may_become_head(text: str) -> bool:
    """Tell whether a text that is bare JSON at most may still turn out to be a call."""
    start = text.lstrip()
    if not start.startswith("{"):
        return not start
    key = start[1:].lstrip()
    return key.startswith('"name"') or '"name"'.startswith(key)
