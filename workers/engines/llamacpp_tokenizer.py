"""The tokenizer of a GGUF model: ids from the engine itself, bytes from the file's vocabulary.

The engine is asked over its own socket (about 0.1 ms), one connection per thread. What a token stands for is read once
from the file, so that decoding costs a table look-up.
"""

import http.client
import socket
import threading
from functools import cached_property
from typing import Final

import msgspec

from shared.errors import EngineDead, EngineFailed
from workers.engines.gguf import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, GgufHead

ANSWER_SECONDS_MOST: Final = 30.0
LONE_BYTE: Final = b"\xf0"
SPACE_MARK: Final = "\u2581"  # SentencePiece writes a space so


class _Ids(msgspec.Struct):
    tokens: list[int]


_decode_ids: Final = msgspec.json.Decoder(_Ids).decode
_encode: Final = msgspec.json.Encoder().encode


class LlamaTokenizer:
    """Of one loaded model; safe to call from several threads."""

    def __init__(self, head: GgufHead, *, socket_path: str, key: str) -> None:
        self._bytes: Final = vocabulary_bytes(head)
        self._socket_path = socket_path
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._local = threading.local()
        self._connections: list[_SocketConnection] = []
        self.longest_token_bytes: Final = max(1, *map(len, self._bytes))

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return len(self._bytes)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return ids; special tokens are recognised in `text` only where `special`. EngineDead where nobody answers."""
        if not text:
            return []
        body = _encode({"content": text, "add_special": False, "parse_special": special})
        return _decode_ids(self.ask("/tokenize", body)).tokens

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; empty for special tokens."""
        return self._bytes[token_id]

    def close(self) -> None:
        """Close the connections of all threads; the look-ups go on working."""
        for connection in self._connections:
            connection.close()

    def split(self, data: bytes, tokens: int) -> list[int] | None:
        """Return `tokens` ids that stand for `data` together, the longest first; None where there are none."""
        if tokens == 0:
            return None if data else []
        for length in range(min(len(data) - tokens + 1, self.longest_token_bytes), 0, -1):
            token_id = self._ids.get(data[:length])
            if token_id is not None and (rest := self.split(data[length:], tokens - 1)) is not None:
                return [token_id, *rest]
        return None

    @property
    def stand_in_id(self) -> int:
        """An id whose byte alone is no UTF-8."""
        return self._ids.get(LONE_BYTE, 0)

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {data: token_id for token_id, data in enumerate(self._bytes) if data}

    def ask(self, path: str, body: bytes) -> bytes:
        """Return the engine's answer to a POST. EngineFailed where it refuses, EngineDead where nobody answers."""
        for fresh in (False, True):  # the engine closes a connection that idles
            connection = self._connection(fresh)
            try:
                connection.request("POST", path, body, self._headers)
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._connections.remove(connection)
                if fresh:
                    raise EngineDead(f"The engine does not answer: {error!r}") from None
                continue
            if answer.status != http.HTTPStatus.OK:
                raise EngineFailed(f"The engine refused {path}: status {answer.status}.")
            return data
        raise AssertionError("a fresh connection answers or raises")

    def _connection(self, fresh: bool) -> "_SocketConnection":
        if fresh or not hasattr(self._local, "connection"):
            self._local.connection = _SocketConnection(self._socket_path)
            self._connections.append(self._local.connection)
        connection: _SocketConnection = self._local.connection
        return connection


def vocabulary_bytes(head: GgufHead) -> list[bytes]:
    """Return what each id stands for: empty for the ids that are no text."""
    token_bytes = byte_level_bytes if head.kind == "gpt2" else sentencepiece_bytes
    return [token_bytes(text, kind) for text, kind in zip(head.tokens, head.token_types, strict=True)]


def byte_level_bytes(text: str, kind: int) -> bytes:
    """Return what a token of a byte-level BPE vocabulary stands for; `kind` as in GGUF files."""
    if kind in (CONTROL, UNKNOWN, UNUSED):
        return b""
    if kind == USER_DEFINED:
        return text.encode()
    try:
        return bytes([_BYTE_OF[character] for character in text])
    except KeyError:
        return text.encode()


def sentencepiece_bytes(text: str, kind: int) -> bytes:
    """Return what a token of a SentencePiece vocabulary stands for; `kind` as in GGUF files."""
    if kind == BYTE:
        return bytes((int(text[3:-1], 16),))  # <0xF0>
    if kind in (NORMAL, USER_DEFINED):
        return text.replace(SPACE_MARK, " ").encode()
    return b""


def _byte_characters() -> dict[str, int]:
    """Return the byte of each character in a byte-level vocabulary. Source: GPT-2's published encoder.

    Bytes that print stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printing]
    return {chr(value): value for value in printing} | {chr(256 + index): value for index, value in enumerate(others)}


_BYTE_OF: Final = _byte_characters()


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS_MOST)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
