"""The two cookies of a session: its token, which no script can read, and the CSRF token, which our pages must read."""

import re
from collections.abc import Mapping
from typing import Final

from litestar.datastructures import Cookie

SESSION: Final = "inferbase_session"
CSRF: Final = "inferbase_csrf"

_HOST_PREFIX: Final = "__Host-"  # a browser takes such a name only over HTTPS, for this host alone (RFC 6265bis)
_VALUE: Final = re.compile(r"[A-Za-z0-9._~-]{1,2048}")  # all that a token of ours can be


def session_name(*, secure: bool) -> str:
    """Return the name of the session's cookie; the plain one only over plain HTTP on this machine."""
    return _HOST_PREFIX + SESSION if secure else SESSION


def session_cookies(token: str, csrf_token: str, *, seconds: int, secure: bool) -> list[Cookie]:
    """Return both cookies of a session; with 0 seconds they are deleted."""
    return [
        _cookie(session_name(secure=secure), token, seconds=seconds, secure=secure, httponly=True),
        _cookie(CSRF, csrf_token, seconds=seconds, secure=secure, httponly=False),
    ]


def read_cookie(headers: Mapping[bytes, bytes], name: str) -> str | None:
    """Return the value of a cookie; None where there is none, or two, or one that we cannot have set."""
    start = name.encode() + b"="
    parts = [part.strip() for part in headers.get(b"cookie", b"").split(b";")]
    values = [part[len(start) :] for part in parts if part.startswith(start)]
    if len(values) != 1:
        return None
    value = values[0].decode("latin-1")
    return value if _VALUE.fullmatch(value) else None


def _cookie(name: str, value: str, *, seconds: int, secure: bool, httponly: bool) -> Cookie:
    return Cookie(
        key=name,
        value=value,
        path="/",
        max_age=seconds,
        secure=secure or None,
        httponly=httponly or None,
        samesite="Lax",  # type: ignore[arg-type]  # written as it is given
    )
