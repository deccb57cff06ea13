"""Chunks of one chat as server-sent events in OpenAI's shape; bytes in front of and behind the text are made once.

Source: CreateChatCompletionStreamResponse; the rules of the stream are in DESIGN section 7. What is not an event of a
completed answer (pings, errors) is the business of `api/sse.py`, the legacy completions' events that of
`render_text.py`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shared.errors import BackendFailed
from shared.openai.response import Logprobs, logprobs_body, public_usage
from shared.wire import Chunk, ToolCallDelta, Usage

DONE: Final = b"data: [DONE]\n\n"

_encode: Final = msgspec.json.Encoder().encode
# Valid in JSON, but clients that split lines as Python's str does would cut an event in two there.
_LINE_ENDS: Final = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


class StreamRenderer:
    """Renders the chunks of one answer in order; one per stream."""

    # Invariant: `_heads` has the choices that have begun; the end needs all of them, and all there are, to be finished.

    def __init__(
        self, request_id: str, created: int, model: str, *, include_usage: bool, choices: int | None = 1
    ) -> None:
        """`choices` None: whoever reads does not know how many there are."""
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            _encode(request_id),
            created,
            line_text(model),
        )
        usage = b',"usage":null' if include_usage else b""
        self._heads: dict[int, bytes] = {}  # in front of the text of a choice
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._finish_tail = b"}]" + usage + b"}\n\n"
        self._include_usage = include_usage
        self._choices = choices
        self._finished = 0

    def name_tier(self, service_tier: str) -> None:
        """Name the service tier in every event; before the first one."""
        assert not self._heads
        choices = b'"choices":['
        self._head = self._head.removesuffix(choices) + b'"service_tier":%b,%b' % (_encode(service_tier), choices)

    def render(self, chunks: Sequence[Chunk]) -> bytes:
        """Return the events of `chunks`, maybe none; BackendFailed where the answer ends without a finish reason.

        The caller asks for no chunk whose `end` is not `completed`.
        """
        if len(chunks) == 1:
            (chunk,) = chunks
            head = self._heads.get(chunk.choice)
            if head and chunk.text and chunk.finish_reason is None and chunk.end is None and chunk.extra is None:
                return b"".join((head, line_text(chunk.text), self._text_tail))
        parts: list[bytes] = []
        for chunk in chunks:
            parts.append(self.begin(chunk))
            if chunk.extra is not None:
                parts.extend(self._extra(chunk))
            elif chunk.text:
                parts.append(self._heads[chunk.choice])
                parts.append(line_text(chunk.text))
                parts.append(self._text_tail)
            if chunk.finish_reason is not None:
                self._finished += 1
                parts.append(self._finish(chunk.choice, chunk.finish_reason))
            if chunk.end is not None:
                assert chunk.end.status == "completed"
                parts.append(self.end(chunk.end.usage))
        return b"".join(parts)

    def begin(self, chunk: Chunk) -> bytes:
        """Return the event that names the role of a choice, before its first chunk; else nothing."""
        if chunk.choice in self._heads:
            return b""
        head = self._head + b'{"index":%d,"delta":{' % chunk.choice
        self._heads[chunk.choice] = head + b'"content":'
        return head + b'"role":"assistant","content":"","refusal":null' + self._text_tail

    def _extra(self, chunk: Chunk) -> list[bytes]:
        """Return the events of a chunk with more than text: reasoning, then text with its logprobs, then calls."""
        extra = chunk.extra
        assert extra is not None
        deltas: list[dict[str, object]] = []
        if extra.reasoning:
            deltas.append({"reasoning_content": extra.reasoning})
        if chunk.text:
            deltas.append({"content": chunk.text})
        deltas += [{"tool_calls": [_call(call)]} for call in extra.tool_calls]
        if extra.logprobs and not deltas:
            deltas.append({"content": ""})  # of tokens whose text is held back
        logprobs = Logprobs(content=logprobs_body(extra.logprobs)) if extra.logprobs else None
        parts: list[bytes] = []
        for delta in deltas:
            choice = {"index": chunk.choice, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            parts += (self._head, line_json(choice), self._finish_tail[1:])
            logprobs = None
        return parts

    def _finish(self, choice: int, reason: str) -> bytes:
        middle = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b' % (choice, _encode(reason))
        return self._head + middle + self._finish_tail

    def end(self, usage: Usage) -> bytes:
        """Return the last events; BackendFailed where a choice has not finished."""
        if self._finished != (len(self._heads) if self._choices is None else self._choices):
            raise BackendFailed("The answer ended without a finish reason.")
        if not self._include_usage:
            return DONE
        return self._head + b'],"usage":' + _encode(public_usage(usage)) + b"}\n\n" + DONE


def line_text(text: str) -> bytes:
    """Return `text` as a JSON string without anything that any client takes for the end of a line."""
    encoded = _encode(text)
    return encoded if text.isascii() else _one_line(encoded)


def line_json(value: object) -> bytes:
    """Return `value` as JSON without anything that any client takes for the end of a line."""
    return _one_line(_encode(value))


def _one_line(encoded: bytes) -> bytes:
    for raw, escaped in _LINE_ENDS:
        if raw in encoded:
            encoded = encoded.replace(raw, escaped)
    return encoded


def _call(call: ToolCallDelta) -> dict[str, object]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
