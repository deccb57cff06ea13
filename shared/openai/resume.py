"""Events that a client can take up again: each chunk's last one carries the chunk's seq as its id.

The whole log is rendered, so that the state of choices is that of an uninterrupted stream; what the client has is left
out. Role, usage and `[DONE]` carry no id; usage and `[DONE]` always follow the final chunk.
Source: DESIGN section 7; HTML Standard, section 9.2 (Last-Event-ID).
"""

from collections.abc import Sequence

import msgspec

from shared.openai.render import StreamRenderer
from shared.openai.render_text import TextRenderer
from shared.wire import Chunk

_EVENT = b"data: "


class ResumableRenderer:
    """Renders the chunks of one answer behind seq `after`, with ids."""

    def __init__(self, renderer: StreamRenderer | TextRenderer, *, after: int = 0) -> None:
        self._renderer = renderer
        self._after = after

    def render(self, chunks: Sequence[Chunk]) -> bytes:
        """Return the events of `chunks`, maybe none; as the renderer itself."""
        parts: list[bytes] = []
        for chunk in chunks:
            role = self._renderer.begin(chunk)
            said = self._renderer.render([chunk if chunk.end is None else msgspec.structs.replace(chunk, end=None)])
            if chunk.seq > self._after:
                parts += (role, _with_id(said, chunk.seq))
            if chunk.end is not None:
                parts.append(self._renderer.end(chunk.end.usage))
        return b"".join(parts)


def _with_id(events: bytes, seq: int) -> bytes:
    """Return `events` with an id on the last one; nothing stays nothing."""
    if not events:
        return events
    last = events.rfind(b"\n\n" + _EVENT, 0, len(events) - 2)
    at = 0 if last < 0 else last + 2
    return b"%bid: %d\n%b" % (events[:at], seq, events[at:])
