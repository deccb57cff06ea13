"""The simulator's tokenizer: bytes, a few words and the ChatML marks.

Ids 0 to 255 are single bytes, then come the special tokens, then words with a leading space. Any text can be encoded
and comes back unchanged; a character outside ASCII is one token per byte, so streams of it exercise UTF-8 hold-back.
"""

import re
from collections.abc import Sequence
from typing import Final

_WORD_LIST: Final = (
    "a about after again all almost always and another any as at away back because before began below best between "
    "bird blue boat book both bridge bright but by calm came can city clear cloud coast cold come could day deep did "
    "door down each early earth east enough even ever every far few field find fire first fish five for found four "
    "friend from garden gave gentle give go good grass great green ground half hand harbour has have hear here high "
    "hill home hour house how if in into island it journey just keep kind knew lake land large last late leaf left "
    "less letter light like line little long look low made make many map may meet might mile moon more morning most "
    "mountain much music near never new next night north not now ocean of often old on once one only open or other our "
    "out over page path people place plain point quick quiet rain read red rest river road rock room rose round sail "
    "same sand sea see seven shade ship shore short side silver sky slow small snow so soft some song soon sound south "
    "spring star still stone story street strong summer sun table tall tell ten than that the then there these they "
    "thing think this three through time to today together told took tower town tree true turn two under until up upon "
    "valley very village voice wait walk wall warm was water wave way well were west what when where which while white "
    "who why wide wild wind window winter with without wood word work world year yellow yet young"
)
WORDS: Final = tuple(_WORD_LIST.split())

IM_START: Final = 256
IM_END: Final = 257
END_OF_TEXT: Final = 258
FIRST_WORD: Final = 259
SPECIALS: Final = {"<|im_start|>": IM_START, "<|im_end|>": IM_END, "<|endoftext|>": END_OF_TEXT}
VOCABULARY_SIZE: Final = FIRST_WORD + len(WORDS)

_PIECES: Final = re.compile(rb" [a-z]{1,12}(?![a-z])|[^ ]+| ")
_SPECIAL: Final = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")
_WORD_IDS: Final = {b" " + word.encode(): FIRST_WORD + index for index, word in enumerate(WORDS)}
_TOKEN_BYTES: Final = (*(bytes((value,)) for value in range(256)), *(b"" for _ in SPECIALS), *_WORD_IDS)


class SimulatorTokenizer:
    """Reversible, without state."""

    longest_token_bytes: Final = max(map(len, _TOKEN_BYTES))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return ids; special tokens are recognised in `text` only where `special`."""
        if not special:
            return _encode_plain(text)
        ids: list[int] = []
        for piece in _SPECIAL.split(text):
            if piece in SPECIALS:
                ids.append(SPECIALS[piece])
            else:
                ids += _encode_plain(piece)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; empty for special tokens."""
        return _TOKEN_BYTES[token_id]


def decode(token_ids: Sequence[int]) -> bytes:
    """Return the bytes of `token_ids`."""
    return b"".join([_TOKEN_BYTES[token_id] for token_id in token_ids])


def _encode_plain(text: str) -> list[int]:
    ids: list[int] = []
    for piece in _PIECES.findall(text.encode()):
        word = _WORD_IDS.get(piece)
        if word is None:
            ids += piece
        else:
            ids.append(word)
    return ids
