"""The simulator's answers under a guide, and its embeddings: made up, but valid, repeatable and of their proper form.

Token i is chosen among those that the guide allows by a hash of (prompt, i), so that the guided answer depends on
prompt and position alone. What the prompt scripts is said as far as the guide allows it. From `tokens` tokens on,
whatever closes is preferred, so that an answer ends soon where its schema has short instances.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from shared.errors import AnswerLost, EngineFailed
from workers.engines.base import Embedding
from workers.engines.grammar import GuideMatcher
from workers.engines.simulator_script import Answer, Script, mixed, prompt_hash
from workers.engines.simulator_words import FIRST_WORD, IM_END, WORDS, SimulatorTokenizer

DIMENSIONS: Final = 64
QUOTE: Final = ord('"')
CLOSERS: Final = tuple(map(ord, '"}],'))
WORD_MASK: Final = ((1 << len(WORDS)) - 1) << FIRST_WORD
PLAIN_MASK: Final = sum(1 << value for value in range(0x20, 0x7F) if value != ord("\\"))
STRING_WORDS_MOST: Final = 3  # on average


def guided_ids(
    matcher: GuideMatcher, prompt_token_ids: Sequence[int], emitted: Sequence[int], *, tokens: int, limit: int
) -> list[int]:
    """Return the answer's ids, `emitted` first: at most `limit` in all, the end token last where it is whole.

    A guide that asks for nothing lets the plain answer stand. Raises EngineFailed where `emitted` is no answer of this
    guide, or the guide allows nothing more.
    """
    plain = Answer(prompt_token_ids, Script(tokens=tokens))
    said = SimulatorTokenizer().encode(matcher.after or "", special=False)
    said += [plain.token_id(position) for position in range(plain.tokens)]
    if not plain.has_end_token:
        said.append(IM_END)
    hash_ = prompt_hash(prompt_token_ids)
    ids = list(emitted)
    if not matcher.take(ids):
        raise AnswerLost("The emitted tokens do not match the guide.")
    as_said = said[: len(ids)] == ids
    while len(ids) < limit:
        position = len(ids)
        allowed = matcher.allowed()
        if as_said and position < len(said) and allowed >> said[position] & 1:
            chosen = said[position]
        elif allowed:
            as_said = False
            empty = ids[-1:] == [QUOTE]  # a string that has just begun, or ended
            chosen = _choose(allowed, mixed(hash_, position), late=position >= tokens, close=not empty)
        else:
            raise EngineFailed("The guide allows no further token.")
        ids.append(chosen)
        if chosen == IM_END:
            break
        if not matcher.take((chosen,)):
            raise EngineFailed("The guide does not allow what it allowed.")
    return ids


def embedding(prompt_token_ids: Sequence[int]) -> Embedding:
    """Return a vector of unit length that depends on the ids alone; like prompts are not near each other."""
    data = b"".join(token_id.to_bytes(4, "big") for token_id in prompt_token_ids)
    noise = hashlib.shake_128(data).digest(DIMENSIONS)
    raw = [value - 127.5 for value in noise]
    length = math.sqrt(sum(value * value for value in raw))
    return Embedding(tuple(value / length for value in raw), len(prompt_token_ids))


def _choose(allowed: int, number: int, *, late: bool, close: bool) -> int:
    """Return one of the bits of `allowed`: the end first, then what is nice to read; `close` a string now and then."""
    if allowed >> IM_END & 1:
        return IM_END
    if late:
        for closer in CLOSERS:
            if allowed >> closer & 1:
                return closer
    words = allowed & WORD_MASK
    if words:
        if close and allowed >> QUOTE & 1 and number % STRING_WORDS_MOST == 0:
            return QUOTE
        return _bit(words, number)
    return _bit(allowed & PLAIN_MASK or allowed, number)


def _bit(bits: int, number: int) -> int:
    """Return one of the set bits, by `number`."""
    for _ in range(number % bits.bit_count()):
        bits &= bits - 1
    return (bits & -bits).bit_length() - 1
