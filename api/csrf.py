"""Is it our own page that sends a request with a cookie? Asked of cookies and unsafe methods only, never of API keys.

Three guards, each enough by itself in some browser: the Origin is ours; the browser does not say that another site asks
(`Sec-Fetch-Site`, W3C Fetch Metadata); and the request repeats in a header what only our pages can read in a cookie.
That token is an HMAC of the session, so a cookie that a neighbouring site planted is of no use to it.
"""

import hmac
from collections.abc import Mapping
from typing import Final

from shared.errors import PermissionDenied

HEADER: Final = "x-csrf-token"

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITES: Final = (b"same-origin", b"none")  # none: typed, or a bookmark
_PURPOSE: Final = "inferbase-csrf:"

Headers = Mapping[bytes, bytes]


def is_safe(method: str) -> bool:
    """Tell whether a method changes nothing, so that nothing is asked of it."""
    return method in _SAFE_METHODS


def token(session_id: str, key: str) -> str:
    """Return the token of a session: 64 hexadecimal digits."""
    return hmac.digest(key.encode(), (_PURPOSE + session_id).encode(), "sha256").hex()


def check_origin(headers: Headers, origin: str, *, needed: bool) -> None:
    """Raise PermissionDenied (`csrf_failed`) where a request comes from another site than `origin`.

    `needed`: a request that does not say where it comes from is refused too.
    """
    named = headers.get(b"origin")
    if named is None and needed:
        raise _failed("it has no Origin header")
    if named is not None and named.lower() != origin.encode("latin-1"):
        raise _failed("its Origin is not this server")
    if headers.get(b"sec-fetch-site", b"none") not in _OWN_SITES:
        raise _failed("it comes from another site")


def check_token(headers: Headers, *, cookie: str | None, expected: str) -> None:
    """Raise PermissionDenied (`csrf_failed`) unless header and cookie both hold the session's token."""
    sent = headers.get(HEADER.encode(), b"")
    for found in (sent, (cookie or "").encode("latin-1")):
        if not hmac.compare_digest(found, expected.encode()):
            raise _failed(f"the header {HEADER} must repeat the cookie inferbase_csrf")


def _failed(why: str) -> PermissionDenied:
    return PermissionDenied(f"Cross-site request refused: {why}.", code="csrf_failed")
