"""One streamed completion of llama.cpp's server: its HTTP chunks in, token ids out.

The server sends one event per token, but none for a token that ends inside a UTF-8 character: the next event's count
tells that ids are missing. They are found again from the event's text, see `_missing_ids`. How likely they were is not
told by anyone: such a token has the logprob UNKNOWN and no alternatives.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final, cast

import msgspec

from shared.errors import AnswerLost, EngineDead, EngineFailed
from shared.wire import TokenLogprob
from workers.engines.delta_queue import DeltaQueue
from workers.engines.grammar import GuideMatcher, check_ended
from workers.engines.llamacpp_tokenizer import LlamaTokenizer

HEAD_BYTES_MOST: Final = 16_384
REPLACEMENT: Final = "\ufffd"
UNKNOWN: Final = -9999.0  # the least logprob that is told; OpenAI's own mark for what is beyond the known ones


class _Progress(msgspec.Struct):
    cache: int = 0


class _Error(msgspec.Struct):
    message: str = "unknown"


class _Likely(msgspec.Struct):
    id: int
    logprob: float | None = None


class _Probability(_Likely):
    top_logprobs: list[_Likely] = []


class _Event(msgspec.Struct):
    content: str = ""
    tokens: list[int] = []
    tokens_predicted: int = 0
    stop_type: str = ""  # on the last event only
    prompt_progress: _Progress | None = None
    error: _Error | None = None
    completion_probabilities: list[_Probability] = []  # of `tokens`, where asked for


_decode_event: Final = msgspec.json.Decoder(_Event).decode


class GuideFollower:
    """Holds an engine to its guide, and drops the tokens that it makes `again` before it goes on behind them."""

    def __init__(self, matcher: GuideMatcher, again: Sequence[int], end_token_ids: Collection[int]) -> None:
        self._matcher = matcher
        self._again = list(again)
        self._end_token_ids = end_token_ids

    def take(self, token_ids: Sequence[int]) -> int:
        """Return how many of the first `token_ids` are not new. EngineFailed where one is against the guide."""
        if not self._matcher.take([token_id for token_id in token_ids if token_id not in self._end_token_ids]):
            raise EngineFailed("The engine left the guide of an answer.")
        if not self._again:
            return 0
        old = min(len(self._again), len(token_ids))
        if list(token_ids[:old]) != self._again[:old]:
            raise AnswerLost("The engine made another answer than the one that was begun.")
        del self._again[:old]
        return old

    def end(self) -> None:
        """Raise EngineFailed where the answer must not end here by itself."""
        check_ended(self._matcher)


class CompletionStream(asyncio.Protocol):
    """Reads the answer to one request into its queue, and closes the queue when the engine does.

    `follower` and `top_logprobs` (None: no logprobs) are set before the connection is made.
    """

    def __init__(self, request: bytes, queue: DeltaQueue, tokenizer: LlamaTokenizer, pulse: Callable[[], None]) -> None:
        self.done: Final = asyncio.get_running_loop().create_future()
        self.follower: GuideFollower | None = None
        self.top_logprobs: int | None = None
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
        token_ids = event.tokens
        if missing > 0:
            token_ids = _missing_ids(self._tokenizer, event.content, event.tokens, missing) + token_ids
        logprobs = () if self.top_logprobs is None else self._logprobs(token_ids, event.completion_probabilities)
        if self.follower is not None:
            old = self.follower.take(token_ids)
            token_ids, logprobs = token_ids[old:], logprobs[old:]
        self._queue.put_all(token_ids, logprobs)
        self._seen = max(self._seen, event.tokens_predicted)
        if event.stop_type:
            if self.follower is not None and event.stop_type == "eos":
                self.follower.end()
            self._queue.finish("stop" if event.stop_type == "eos" else "length")

    def _logprobs(self, token_ids: Sequence[int], known: Sequence[_Probability]) -> tuple[TokenLogprob, ...]:
        """Return one for each of `token_ids`: what is `known` is of the last ones."""
        text = self._tokenizer.token_bytes
        known = known if [one.id for one in known] == list(token_ids[len(token_ids) - len(known) :]) else ()
        told = [
            TokenLogprob(
                text(one.id),
                _logprob(one),
                tuple((text(other.id), _logprob(other)) for other in one.top_logprobs[: self.top_logprobs]),
            )
            for one in known
        ]
        return (
            *(TokenLogprob(text(token_id), UNKNOWN) for token_id in token_ids[: len(token_ids) - len(known)]),
            *told,
        )


def _logprob(one: _Likely) -> float:
    """Return the logprob, which the engine gives as null or as the least number of its kind where it is -infinity."""
    return UNKNOWN if one.logprob is None else min(0.0, max(UNKNOWN, one.logprob))


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
