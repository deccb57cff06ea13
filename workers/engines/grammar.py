"""Guides made enforceable: a guide's grammar as text, and matchers that follow an answer token by token.

The text is llguidance's own Lark dialect. llama.cpp's server takes it as it is (xllamacpp is built with the same
library); the simulator chooses among the tokens that a matcher allows. The library bounds itself: every regex and rule
has a fixed budget of work, nothing is fetched, nothing backtracks; what exceeds it is an error and not a wait. We bound
the size of what it gets, and how long we wait for it.

Source: llguidance's docs/syntax.md and docs/json_schema.md, 1.9.
"""

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from shared.errors import EngineFailed, InvalidRequest
from workers.engines.base import EngineGuide, Tokenizer

GUIDE_CHARACTERS_MOST: Final = 131_072  # of all schemas and texts of a guide
FORMS_MOST: Final = 256
BUILD_SECONDS_MOST: Final = 5.0
STEPS_TRIED: Final = 4
NEWLINES_AFTER_MOST: Final = 2  # between reasoning and a form
GRAMMARS_KEPT: Final = 16
REASON_CHARACTERS_MOST: Final = 300
JSON_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # whitespace ends

_SOURCE_LINE: Final = re.compile(r"\n\s*\d+ \|.*|\n\s*\^+ *(?=\n|$)")
_PLACE: Final = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_decode: Final = msgspec.json.Decoder().decode


def write_grammar(guide: EngineGuide) -> str:
    """Return the grammar of `guide`, or raise InvalidRequest: too large, or a schema that is not JSON."""
    size = sum(len(form.prefix) + len(form.schema) + len(form.suffix) for form in guide.forms)
    if size > GUIDE_CHARACTERS_MOST or len(guide.forms) > FORMS_MOST:
        raise InvalidRequest(
            f"{guide.param} is too large: at most {GUIDE_CHARACTERS_MOST} characters of schemas in at most "
            f"{FORMS_MOST} functions.",
            param=guide.param,
        )
    head = len(guide.trigger or "")
    rules = [
        "%llguidance {}",
        _start(guide),
        "form: " + " | ".join(f"form{index}" for index in range(len(guide.forms))),
    ]
    for index, form in enumerate(guide.forms):
        rules.append(f"form{index}: {_quoted(form.prefix[head:])} json{index} {_quoted(form.suffix)}")
        rules.append(f"json{index}: %json {_schema(form.schema, guide.param)}")
    return "\n".join(rules)


class GuideMatcher:
    """How far an answer has followed its guide. Calls take microseconds, of a simple schema."""

    def __init__(self, matcher: LLMatcher, after: str | None = None) -> None:
        self.after: Final = after  # the guide's
        self._matcher = matcher

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def stopped(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> int:
        """Return the ids that may come next, as the bits of a number; an end token's where the answer may end."""
        return int.from_bytes(self._matcher.compute_bitmask(), "little")

    def take(self, token_ids: Sequence[int]) -> bool:
        """Go on behind `token_ids`; False for ever where the guide does not allow them."""
        return bool(self._matcher.consume_tokens(list(token_ids)))


def check_ended(matcher: GuideMatcher) -> None:
    """Raise EngineFailed where an answer that ended by itself does not match its guide."""
    if not (matcher.accepting or matcher.stopped):
        raise EngineFailed("The engine ended an answer against its guide.")


class Grammars:
    """The guides of one loaded model. `end_token_ids` end an answer; ids without bytes are never allowed inside one."""

    def __init__(self, tokenizer: Tokenizer, *, vocabulary: int, end_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_token_ids = sorted(end_token_ids)
        self._own: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    async def open(self, guide: EngineGuide) -> GuideMatcher:
        """Return a matcher at the begin of an answer. InvalidRequest where the guide is of no use, or takes too long.

        A schema that has no instance is refused, but for one whose instances are all without end.
        """
        grammar = write_grammar(guide)
        kept = self._kept.get(grammar)
        if kept is None:
            try:
                async with asyncio.timeout(BUILD_SECONDS_MOST):
                    kept = await asyncio.to_thread(self._build, grammar, guide)
            except TimeoutError:
                raise InvalidRequest(f"{guide.param} is too complex to be enforced.", param=guide.param) from None
            self._kept[grammar] = kept
            if len(self._kept) > GRAMMARS_KEPT:
                self._kept.popitem(last=False)
        return GuideMatcher(kept.deep_copy(), guide.after)

    def _build(self, grammar: str, guide: EngineGuide) -> LLMatcher:
        if self._own is None:
            ends = self._end_token_ids  # one alone is given as such: releases before 1.0 take no list
            self._own = LLTokenizer(
                TokenizerWrapper(self._vocabulary_of()), eos_token=ends if len(ends) > 1 else ends[0]
            )
        for index in range(len(guide.forms)):
            rule = next(line for line in grammar.split("\n") if line.startswith(f"json{index}: "))
            alone = _matcher(self._own, f"%llguidance {{}}\nstart: json{index}\n{rule}", guide)
            self._try_first_steps(alone, guide)
        return _matcher(self._own, grammar, guide)

    def _try_first_steps(self, matcher: LLMatcher, guide: EngineGuide) -> None:
        """Raise InvalidRequest where a schema cannot be begun: it has no instance, or each step takes too much."""
        for step in range(STEPS_TRIED):
            allowed = int.from_bytes(matcher.compute_bitmask(), "little")
            if matcher.is_error():
                raise InvalidRequest(f"{guide.param} is too complex to be enforced.", param=guide.param)
            if not allowed or matcher.is_stopped():
                if step == 0:
                    raise InvalidRequest(f"{guide.param} has a schema that no JSON can match.", param=guide.param)
                return
            token_id = (allowed & -allowed).bit_length() - 1
            if token_id in self._end_token_ids:
                return
            matcher.consume_token(token_id)

    def _vocabulary_of(self) -> "_Vocabulary":
        texts = [self._tokenizer.token_bytes(token_id) for token_id in range(self._vocabulary)]
        special = [token_id for token_id, text in enumerate(texts) if not text]
        for token_id in special:
            texts[token_id] = b"\xff<%d>" % token_id
        single = {text: token_id for token_id, text in enumerate(texts) if len(text) == 1}
        return _Vocabulary(
            self._end_token_ids[0], texts, special, lambda data: [single.get(bytes((value,)), 0) for value in data]
        )


class _Vocabulary:
    """What llguidance wants to know of a tokenizer. Source: TokenizerWrapper of its package."""

    def __init__(self, end: int, tokens: list[bytes], special: list[int], encode: Callable[[bytes], list[int]]) -> None:
        self.eos_token_id = end
        self.bos_token_id = None
        self.tokens = tokens
        self.special_token_ids = special
        self._encode = encode

    def __call__(self, data: bytes) -> list[int]:
        return self._encode(data)


def _matcher(tokenizer: LLTokenizer, grammar: str, guide: EngineGuide) -> LLMatcher:
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise InvalidRequest(
            f"{guide.param} has a schema that cannot be enforced: {_reason(matcher.get_error())}", param=guide.param
        )
    return matcher


def _start(guide: EngineGuide) -> str:
    """Return the rules down to the forms: (before) forms, or (before) free text with forms in it."""
    rules = []
    if guide.trigger is None:
        again = "" if guide.separator is None else f" ({_quoted(guide.separator)} form)*"
        start = f"form{again}"
    else:
        assert all(form.prefix.startswith(guide.trigger) for form in guide.forms)
        trigger = _literal(guide.trigger)
        start = "(end | lead form)" if guide.separator is None else "(lead form)* end"
        rules += [f"lead[lazy]: /(.|\\n)*{trigger}/", "end: END", f"END: ~/(.|\\n)*{trigger}(.|\\n)*/"]
    if guide.after is not None:
        start = f"before gap? {start}" if guide.trigger is None else f"before {start}"
        rules += [f"before[lazy]: /(.|\\n)*{_literal(guide.after)}/", f"gap: /\\n{{1,{NEWLINES_AFTER_MOST}}}/"]
    return "\n".join([f"start: {start}", *rules])


def _literal(text: str) -> str:
    """Return a regex of exactly `text`."""
    return re.escape(text).replace("/", "\\/")


def _schema(text: str, param: str) -> str:
    """Return the schema with our style of JSON, on one line."""
    try:
        schema: Any = _decode(text)
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise InvalidRequest(f"{param} has a schema that is not an object.", param=param)
        return json.dumps({**schema, "x-guidance": JSON_STYLE})
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"{param} has a schema that is not JSON, or too deep.", param=param) from None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _reason(error: str) -> str:
    """Return the library's reason without the lines of our grammar around it."""
    text = " ".join(_PLACE.sub("", _SOURCE_LINE.sub("", error)).split())
    return text[:REASON_CHARACTERS_MOST]
