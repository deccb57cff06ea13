"""The tokenizer of a Hugging Face checkpoint: ids from its own tokenizer.json, bytes from its vocabulary.

Users' text goes through a second copy that has no added tokens at all, so that nothing a user writes becomes one. The
package comes with NVIDIA's container and is imported at opening only.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.errors import SettingsInvalid
from workers.engines.gguf import BYTE, CONTROL, NORMAL, USER_DEFINED
from workers.engines.llamacpp_tokenizer import byte_level_bytes, sentencepiece_bytes

BYTE_PIECE: Final = re.compile(r"<0x[0-9A-F]{2}>")
SENTENCEPIECE_PARTS: Final = frozenset({"Metaspace", "ByteFallback"})


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _File(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class CheckpointTokenizer:
    """Of one checkpoint; safe to call from several threads."""

    def __init__(self, path: Path, *, vocabulary: int) -> None:
        """Read tokenizer.json; `vocabulary` is how many ids the model has. SettingsInvalid where it is of no use."""
        from tokenizers import Tokenizer

        try:
            text = path.read_text(encoding="utf-8")
            file = msgspec.json.decode(text, type=_File)
            plain: dict[str, Any] = msgspec.json.decode(text)
            plain["added_tokens"] = [one for one in plain.get("added_tokens") or () if one["content"].isspace()]
            plain["post_processor"] = None  # what it adds is no user's, and may name what is gone
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SettingsInvalid(f"no usable tokenizer at {path}: {error}") from None
        try:
            self._whole: Final = Tokenizer.from_str(text)
            self._plain: Final = Tokenizer.from_str(msgspec.json.encode(plain).decode())
        except Exception as error:  # the package raises nothing more definite
            raise SettingsInvalid(f"no usable tokenizer at {path}: {error}") from None
        self._bytes: Final = _token_bytes(file, vocabulary, path)
        self.longest_token_bytes: Final = max(1, *map(len, self._bytes))
        self.special_ids: Final = frozenset(one.id for one in file.added_tokens if one.special)
        self._check_apart(file.added_tokens)

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return len(self._bytes)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text."""
        return tuple(self._whole.encode("").ids)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return ids; special tokens are recognised in `text` only where `special`."""
        tokenizer = self._whole if special else self._plain
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; empty for special tokens."""
        return self._bytes[token_id]

    def id_of(self, text: str) -> int | None:
        """Return the id of a token by its text."""
        token_id: int | None = self._whole.token_to_id(text)
        return token_id

    def _check_apart(self, added: Sequence[_Added]) -> None:
        for one in added:
            if one.special and not self.special_ids.isdisjoint(self.encode(one.content, special=False)):
                raise SettingsInvalid(f"the tokenizer takes a user's {one.content!r} for its own special token")


def _token_bytes(file: _File, vocabulary: int, path: Path) -> list[bytes]:
    """Return what each id stands for: empty for special ids and for those that no token has."""
    parts = {*_types(file.pre_tokenizer), *_types(file.decoder)}
    if "ByteLevel" in parts:
        of_kind = byte_level_bytes
    elif parts & SENTENCEPIECE_PARTS:
        of_kind = sentencepiece_bytes
    else:
        raise SettingsInvalid(f"{path} is of another kind than byte-level BPE and SentencePiece")
    vocab = file.model.vocab
    pieces = vocab.items() if isinstance(vocab, dict) else ((piece, at) for at, (piece, _) in enumerate(vocab))
    texts = {token_id: (text, BYTE if BYTE_PIECE.fullmatch(text) else NORMAL) for text, token_id in pieces}
    texts |= {one.id: (one.content, CONTROL if one.special else USER_DEFINED) for one in file.added_tokens}
    if max(texts, default=-1) >= vocabulary:
        raise SettingsInvalid(f"{path} has more tokens than the model, which has {vocabulary}")
    return [of_kind(*texts[token_id]) if token_id in texts else b"" for token_id in range(vocabulary)]


def _types(part: Any) -> Iterator[str]:
    """Yield the type of a part of the tokenizer, and of every part within it."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for inner in part.values():
            yield from _types(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _types(inner)
