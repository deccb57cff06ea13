"""What we need to know from the head of a GGUF file: its vocabulary, chat template and context. Reads no weights.

Source: the GGUF specification, versions 2 and 3, little-endian.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.errors import SettingsInvalid

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
KEYS_MOST: Final = 65_536
TEXT: Final = 8
ARRAY: Final = 9
_NUMBERS: Final = {
    kind: struct.Struct("<" + form)
    for kind, form in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_COUNT: Final = _NUMBERS[10]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token types

# Texts that end a turn in the published model families, besides the tokens that a file names.
END_TEXTS: Final = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    *("<|end|>", "<end_of_turn>", "<|return|>", "<eos>", "</s>"),
)


END_KEYS: Final = tuple(f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))


class GgufHead(msgspec.Struct, frozen=True, kw_only=True):
    """The head of one model file. Token lists are indexed by id."""

    kind: str  # of the vocabulary: `gpt2` (byte-level BPE) or `llama` (SentencePiece)
    tokens: list[str]
    token_types: list[int]
    chat_template: str
    context: int  # tokens that the model was trained for
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    end_ids: frozenset[int]
    pooled: bool  # whether the file says how its tokens' vectors become one

    def text_of(self, token_id: int | None) -> str:
        """Return a special token's text; empty for None."""
        return "" if token_id is None else self.tokens[token_id]


def read_head(path: Path) -> GgufHead:
    """Return the head of the file at `path`, or raise SettingsInvalid: missing, damaged, or not of our kinds."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            keys = _Reader(data).keys()
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"no usable model file at {path}: {error}") from None
    kind = keys.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise SettingsInvalid(f"the vocabulary of {path.name} is of kind {kind!r}; gpt2 and llama are served")
    if not keys.get("tokenizer.chat_template"):
        raise SettingsInvalid(f"{path.name} has no chat template")
    tokens: list[str] = keys["tokenizer.ggml.tokens"]
    types: list[int] = keys.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    eos = keys.get("tokenizer.ggml.eos_token_id")
    named = {keys[name] for name in END_KEYS if name in keys}
    ends = {index for index, text in enumerate(tokens) if text in END_TEXTS and types[index] != NORMAL}
    return GgufHead(
        kind=kind,
        tokens=tokens,
        token_types=types,
        chat_template=keys["tokenizer.chat_template"],
        context=int(keys.get(f"{keys.get('general.architecture')}.context_length", 0)),
        bos_id=keys.get("tokenizer.ggml.bos_token_id"),
        eos_id=eos,
        add_bos=bool(keys.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        end_ids=frozenset(named | ends),
        pooled=bool(keys.get(f"{keys.get('general.architecture')}.pooling_type", 0)),
    )


class _Reader:
    """Walks over the key-value part of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def keys(self) -> dict[str, Any]:
        if self._data[:4] != MAGIC:
            raise ValueError("not a GGUF file")
        version = int(_NUMBERS[4].unpack_from(self._data, 4)[0])
        if version not in VERSIONS:
            raise ValueError(f"GGUF version {version}")
        self._at = 16  # magic, version, number of tensors
        count = self._number(_COUNT)
        if count > KEYS_MOST:
            raise ValueError("a damaged head")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._text()
            found[key] = self._value(self._number(_NUMBERS[4]))
        return found

    def _number(self, form: struct.Struct) -> Any:
        value = form.unpack_from(self._data, self._at)[0]
        self._at += form.size
        return value

    def _text(self) -> str:
        length = self._number(_COUNT)
        raw = self._data[self._at : self._at + length]
        if len(raw) != length:
            raise ValueError("cut off in its head")
        self._at += length
        return raw.decode()

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind == ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise ValueError(f"value of unknown type {kind}")
        return self._number(_NUMBERS[kind])

    def _array(self) -> list[Any]:
        kind, length = self._number(_NUMBERS[4]), self._number(_COUNT)
        if kind in _NUMBERS:
            form = struct.Struct(f"<{length}{_NUMBERS[kind].format[1:]}")
            values = list(form.unpack_from(self._data, self._at))
            self._at += form.size
            return values
        read: Callable[[], Any] = self._text if kind == TEXT else self._array
        return [read() for _ in range(length)]
