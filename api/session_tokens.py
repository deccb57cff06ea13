"""Session tokens: JWTs (RFC 7519) that this product makes for itself, as RFC 8725 wants them.

One algorithm, one key from the settings, every claim required and checked; a header that names anything else, such as
where to fetch a key, makes a token none of ours. A token only names a session: whether that still stands is looked up.
"""

from typing import Any, Final

import jwt
import msgspec

from shared.errors import AuthenticationFailed

ALGORITHM: Final = "HS256"
ISSUER: Final = "inferbase"
AUDIENCE: Final = "inferbase-session"

_CLAIMS: Final = ("exp", "iat", "sub", "jti", "aud", "iss")
_HEADER: Final = {"alg": ALGORITHM, "typ": "JWT"}
_OPTIONS: Final[Any] = {"require": list(_CLAIMS), "strict_aud": True}


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says. Times are Unix seconds."""

    user_id: str
    session_id: str
    issued_at: int
    expires_at: int


class SessionTokens:
    """Makes and reads tokens; `key` has at least 32 bytes."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def issue(self, claims: Claims) -> str:
        """Return the token."""
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": claims.user_id,
            "jti": claims.session_id,
            "iat": claims.issued_at,
            "exp": claims.expires_at,
        }
        return jwt.encode(payload, self._key, algorithm=ALGORITHM)

    def read(self, token: str) -> Claims:
        """Return what a token of ours says; AuthenticationFailed for every other and for one that has expired."""
        try:
            found = jwt.decode_complete(
                token, self._key, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER, options=_OPTIONS
            )
        except jwt.ExpiredSignatureError:
            raise AuthenticationFailed("The session has expired: log in again.", code="token_expired") from None
        except jwt.InvalidTokenError:
            raise invalid_session() from None
        payload = found["payload"]
        if found["header"] != _HEADER or set(payload) != set(_CLAIMS):
            raise invalid_session()
        return Claims(
            user_id=payload["sub"],
            session_id=payload["jti"],
            issued_at=int(payload["iat"]),
            expires_at=int(payload["exp"]),
        )


def invalid_session() -> AuthenticationFailed:
    """Return the refusal of a cookie that is none of ours."""
    return AuthenticationFailed("Incorrect API key provided: the session cookie is not valid. Log in again.")
