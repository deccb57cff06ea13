"""One running answer to one client, streamed as events or folded into one body.

The status line of a stream is held until the first chunk, or for some seconds, so that what fails before the first
token is a real HTTP status. Whoever made the answer closes it.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from api import sse
from api.client import Client
from api.errors import ending_error
from api.waiting import WaitingRoom
from shared.answer import Answer
from shared.errors import Refusal
from shared.openai.fold import fold_for
from shared.openai.render import StreamRenderer
from shared.openai.render_text import TextRenderer
from shared.openai.request import CompletionRequest
from shared.openai.resume import ResumableRenderer
from shared.settings import ApiSettings
from shared.wire import Chunk, End

Headers = list[tuple[bytes, bytes]]
Renderer = StreamRenderer | TextRenderer | ResumableRenderer

COLD: Final = frozenset({"model_loading", "model_unavailable"})

_encode: Final = msgspec.json.Encoder().encode


class Relay:
    """Relays one answer to one client, by `fold` or by `stream`, and counts what it handed to the socket.

    Both raise the Refusal that tells why the answer did not complete; after the status it belongs into an error event.
    """

    def __init__(
        self, answer: Answer, client: Client, settings: ApiSettings, headers: Headers, *, waiting: WaitingRoom
    ) -> None:
        self.tokens = 0  # in the chunks seen so far
        self._seq = 0  # of the last of them
        self._answer = answer
        self._client = client
        self._settings = settings
        self._headers = headers
        self._waiting = waiting
        self._clock = asyncio.get_running_loop().time
        self._written = float("-inf")  # when, by `_clock`; nothing yet: after a hold a ping follows the headers at once

    async def fold(self, request: CompletionRequest) -> None:
        """Send the whole answer as one body."""
        answer = self._answer
        fold = fold_for(request)

        def gather(chunks: list[Chunk]) -> bool:
            fold.add(chunks)
            self._count(chunks)
            return True

        while answer.end is None:
            chunks = await answer.next(self._settings.ping_seconds, gather)
            if chunks is not None:
                gather(chunks)
        if answer.end.status != "completed":
            raise await self._ending(answer.end)
        body = _encode(fold.body(answer.request_id, answer.created, answer.model, answer.end.usage))
        length = (b"content-length", b"%d" % len(body))
        await self._client.answer(200, [(b"content-type", b"application/json"), length, *self._headers], body)
        answer.delivered(self._seq, self.tokens)

    async def stream(self, request: CompletionRequest, *, after: int | None = None) -> None:
        """Send the answer as server-sent events; with ids, and only what is behind seq `after`, where that is given."""
        answer = self._answer
        chunks = await answer.next(self._settings.status_hold_seconds)
        if answer.end is not None and answer.end.status != "completed" and chunks is not None and len(chunks) == 1:
            raise await self._ending(answer.end)
        await self._client.start(200, [*sse.HEADERS, *self._headers])
        renderer = _renderer(answer, request, after)

        def push(chunks: list[Chunk]) -> bool:
            if not self._client.writable:
                return False
            data = self._said(renderer, chunks)
            if data:
                self._client.push(data)
            answer.delivered(self._seq, self.tokens)
            return True

        while True:
            data = self._said(renderer, chunks)
            if data is sse.PING and not self._seq:
                data = await self._waiting.comment(answer.model, answer.request_id)
            if data:
                await self._client.write(data, more=answer.end is None)
            answer.delivered(self._seq, self.tokens)
            if answer.end is not None:
                return
            chunks = await answer.next(self._settings.ping_seconds, push)

    def _said(self, renderer: Renderer, chunks: list[Chunk] | None) -> bytes:
        """Return what is to be written now, maybe nothing: events, or a ping after long silence."""
        data = self._render(renderer, chunks) if chunks else b""
        now = self._clock()
        if not data:
            if now - self._written < self._settings.ping_seconds:
                return b""
            data = sse.PING
        self._written = now
        return data

    def _render(self, renderer: Renderer, chunks: list[Chunk]) -> bytes:
        """Return the events of `chunks`, the error event included where they end badly."""
        self._count(chunks)
        end = chunks[-1].end
        if end is None or end.status == "completed":
            return renderer.render(chunks)
        last = msgspec.structs.replace(chunks[-1], end=None, finish_reason=None)
        said = [*chunks[:-1], last] if last.text or last.extra else chunks[:-1]
        return renderer.render(said) + sse.error(self._refusal(end))

    async def _ending(self, end: End) -> Refusal:
        if end.code in COLD:
            await self._waiting.look(self._answer.model)
        return self._refusal(end)

    def _refusal(self, end: End) -> Refusal:
        """Return what a client is told of an answer that did not complete; of a cold model, when to come again."""
        eta_seconds = self._waiting.eta_seconds(self._answer.model) if end.code in COLD else None
        if eta_seconds:
            end = msgspec.structs.replace(end, retry_after_seconds=eta_seconds)
        return ending_error(end, self._answer.request_id)

    def _count(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self.tokens += len(chunk.token_ids)
        self._seq = chunks[-1].seq


def _renderer(answer: Answer, request: CompletionRequest, after: int | None) -> Renderer:
    kind = TextRenderer if request.task.kind == "completion" else StreamRenderer
    choices = request.sampling.choices * max(1, len(request.task.prompts))
    renderer = kind(
        answer.request_id,
        answer.created,
        answer.model,
        include_usage=request.include_usage,
        choices=choices or None,
    )
    if request.service_tier is not None and isinstance(renderer, StreamRenderer):
        renderer.name_tier(request.service_tier)
    return renderer if after is None else ResumableRenderer(renderer, after=after)
