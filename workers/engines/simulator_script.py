"""What the simulator answers, and how it is told to misbehave: the options of a model, the answer of a prompt.

Token i of an answer is a pure function of (prompt, i), so any worker continues where another one died.
`Say exactly: TEXT` in the last user message is answered with TEXT and the end token; lines of
`Call the function NAME with JSON` with a tool call each, in the form of Hermes and Qwen; any other prompt with `tokens`
words, the last of which ends the turn. A guided answer is in `simulator_guided.py`.
"""

import json
import re
import zlib
from array import array
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from workers.engines.simulator_words import FIRST_WORD, IM_END, IM_START, WORDS, SimulatorTokenizer, decode

SAY: Final = "Say exactly:"
CALL: Final = re.compile(r"^Call the function ([\w.-]{1,64}) with (.*)$", re.MULTILINE | re.ASCII)
USER_TURN: Final = b"user\n"
_STRIDE: Final = 0x9E3779B1  # odd and large: neighbours in position differ in every bit
_HASH_MASK: Final = 0xFFFFFFFF

Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a simulated model. Counts are tokens of one request, made by one process."""

    load_seconds: Annotated[float, Meta(ge=0, le=3600)] = 0.0  # until the model is open
    prefill_ms: Annotated[float, Meta(ge=0, le=600_000)] = 0.0  # from the request to its first step
    step_ms: Annotated[float, Meta(ge=0, le=600_000)] = 0.0  # one token of every running request; 0: at once
    tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 16  # of an answer
    slots: Annotated[int, Meta(ge=1, le=4096)] = 64  # requests running at once
    fail_before_first_token: bool = False  # the request fails, after its prefill
    fail_after_tokens: Count | None = None  # the request fails
    hang_after_tokens: Count | None = None  # no request gets another step
    exit_after_tokens: Count | None = None  # the process ends as if killed for its memory
    stamp_tokens: bool = False  # texts are time stamps instead of words

    def fault_after(self) -> int:
        """Return the number of tokens after which the first fault strikes; -1 for none."""
        before_first = 0 if self.fail_before_first_token else None
        faults = (before_first, self.fail_after_tokens, self.hang_after_tokens, self.exit_after_tokens)
        return min((tokens for tokens in faults if tokens is not None), default=-1)


class Answer:
    """The whole answer to one prompt, by position. `said` are its ids, where they are known beforehand."""

    def __init__(self, prompt_token_ids: Sequence[int], script: Script, said: list[int] | None = None) -> None:
        self._said = scripted(prompt_token_ids) if said is None else said
        self._hash = prompt_hash(prompt_token_ids)
        self.tokens: Final = script.tokens if self._said is None else len(self._said)
        self.has_end_token: Final = self._said is not None and self._said[-1] == IM_END

    def token_id(self, position: int) -> int:
        """Return token `position`, from 0."""
        if self._said is not None:
            return self._said[position]
        return FIRST_WORD + (((self._hash * (position + 1) * _STRIDE) & _HASH_MASK) >> 7) % len(WORDS)


def scripted(prompt_token_ids: Sequence[int]) -> list[int] | None:
    """Return the ids that the last user turn asks for, the end token last; None where it asks for nothing."""
    turn = _last_user_turn(prompt_token_ids)
    if turn is None:
        return None
    _, asked, text = turn.partition(SAY)
    said = text.removeprefix(" ") if asked else _tool_calls(turn)
    return None if said is None else [*SimulatorTokenizer().encode(said, special=False), IM_END]


def prompt_hash(prompt_token_ids: Sequence[int]) -> int:
    """Return an odd number of 32 bits that stands for the prompt."""
    return zlib.crc32(array("I", prompt_token_ids).tobytes()) | 1


def mixed(hash_: int, position: int) -> int:
    """Return a number below 2^25 that stands for `position` of the answer to the prompt of `hash_`."""
    return ((hash_ * (position + 1) * _STRIDE) & _HASH_MASK) >> 7


def _tool_calls(turn: str) -> str | None:
    """Return the calls that `turn` asks for, a line each; None for none. JSON is written as a guide writes it."""
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {_tidy(arguments)}}}\n</tool_call>'
        for name, arguments in CALL.findall(turn)
    ]
    return "\n".join(calls) or None


def _tidy(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        return text.strip()


def _last_user_turn(prompt_token_ids: Sequence[int]) -> str | None:
    end = len(prompt_token_ids)
    for start in range(len(prompt_token_ids) - 1, -1, -1):
        if prompt_token_ids[start] == IM_END:
            end = start
        elif prompt_token_ids[start] == IM_START:
            turn = decode(prompt_token_ids[start + 1 : end])
            if turn.startswith(USER_TURN):
                return turn[len(USER_TURN) :].decode(errors="replace")
    return None
