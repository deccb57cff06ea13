"""One streamed completion of llama.cpp's server: its HTTP chunks in, token ids out.

The server sends one event per token, but none for a token that ends inside a UTF-8 character: the next event's count
tells that ids are missing. They are found again from the event's text, see `_missing_ids`.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import msgspec

from shared.errors import EngineDead, EngineFailed
from workers.engines.delta_queue import DeltaQueue
from workers.engines.llamacpp_tokenizer import LlamaTokenizer

HEAD_BYTES_MOST: Final = 16_384
REPLACEMENT: Final = "\ufffd"


class _Progress(msgspec.Struct):
    cache: int = 0


class _Error(msgspec.Struct):
    message: str = "unknown"


class _Event(msgspec.Struct):
    content: str = ""
    tokens: list[int] = []
    tokens_predicted: int = 0
    stop_type: str = ""  # on the last event only
    prompt_progress: _Progress | None = None
    error: _Error | None = None


_decode_event: Final = msgspec.json.Decoder(_Event).decode


class CompletionStream(asyncio.Protocol):
    """Reads the answer to one request into its queue, and closes the queue when the engine does."""

    def __init__(self, request: bytes, queue: DeltaQueue, tokenizer: LlamaTokenizer, pulse: Callable[[], None]) -> None:
        self.done: Final = asyncio.get_running_loop().create_future()
        self._request = request
        self._queue = queue
        self._tokenizer = tokenizer
        self._pulse = pulse
        self._buffer = bytearray()
        self._status: int | None = None
        self._seen = 0  # tokens, with the recovered ones
        self._told_cached = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if self._status is None and not self._read_head():
                return
            while (chunk := self._next_chunk()) is not None:
                self._take(chunk)
        except EngineFailed as error:
            self._queue.close(error)
        except (ValueError, msgspec.DecodeError) as error:
            self._queue.close(EngineFailed(f"The engine's answer cannot be read: {error}"))
        self._queue.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._queue.close(EngineDead("The engine broke off an answer."))
        if not self.done.done():
            self.done.set_result(None)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MOST:
                raise ValueError("no end of its head")
            return False
        head = bytes(self._buffer[:end])
        self._status = int(head.split(b" ", 2)[1])
        del self._buffer[: end + 4]
        if self._status != 200:
            self._queue.close(EngineFailed(f"The engine refused a request: status {self._status}."))
        return True

    def _next_chunk(self) -> bytes | None:
        """Return the next HTTP chunk, empty for the last one; None until it is here whole."""
        if self._queue.closed:
            return None
        line = self._buffer.find(b"\r\n")
        if line < 0:
            return None
        length = int(bytes(self._buffer[:line]), 16)
        end = line + 2 + length
        if len(self._buffer) < end + 2:
            return None
        chunk = bytes(self._buffer[line + 2 : end])
        del self._buffer[: end + 2]
        return chunk

    def _take(self, chunk: bytes) -> None:
        for line in chunk.split(b"\n"):
            if line.startswith(b"data: {"):
                self._take_event(_decode_event(line[6:]))
            elif line.startswith(b"error: {"):
                self._take_event(_Event(error=_Error(line[7:].decode(errors="replace"))))

    def _take_event(self, event: _Event) -> None:
        if event.error is not None:
            self._queue.close(EngineFailed(f"The engine failed: {event.error.message}"))
            return
        self._pulse()
        if event.prompt_progress is not None:
            if not self._told_cached:
                self._queue.tell_cached(event.prompt_progress.cache)
                self._told_cached = True
            return
        missing = event.tokens_predicted - self._seen - len(event.tokens)
        if missing > 0:
            self._queue.put_all(_missing_ids(self._tokenizer, event.content, event.tokens, missing))
        self._queue.put_all(event.tokens)
        self._seen = max(self._seen, event.tokens_predicted)
        if event.stop_type:
            self._queue.finish("stop" if event.stop_type == "eos" else "length")


def _missing_ids(tokenizer: LlamaTokenizer, content: str, last: list[int], missing: int) -> list[int]:
    """Return `missing` ids that came before `last` and ended inside a character of `content`.

    Their number and bytes are exact; their ids are where the model split the characters as its own tokenizer does, or
    the bytes allow one split only. Bytes that are no UTF-8 cannot be known: then a byte that is none stands in.
    """
    if REPLACEMENT not in content:
        ids = tokenizer.encode(content, special=False)
        if len(ids) == missing + len(last) and ids[missing:] == last:
            return ids[:missing]
        data, tail = content.encode(), b"".join(map(tokenizer.token_bytes, last))
        if data.endswith(tail):
            found = tokenizer.split(data[: len(data) - len(tail)], missing)
            if found is not None:
                return found
    return [tokenizer.stand_in_id] * missing
