"""Server-sent events that are no part of an answer, and the headers of a stream. Source: HTML Standard, section 9.2."""

from typing import Final

from api.errors import error_event
from shared.errors import Refusal

# One newline: a comment followed by a blank line makes some clients dispatch an empty event.
PING: Final = b": ping\n"

HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


def error(refusal: Refusal) -> bytes:
    """Return the last event of a stream that broke after its status was sent; no `[DONE]` follows it."""
    return b"data: " + error_event(refusal) + b"\n\n"
