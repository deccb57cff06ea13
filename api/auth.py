"""Who is asking: API keys, cached for some seconds by their full hash, never decided from a prefix.

A key that is not one by its checksum costs no look-up. What is known of a key, also that it is unknown, is kept at most
`auth_cache_seconds`, so a revocation anywhere holds here within that time. Postgres down is 503, never 401.
Sessions are in `api/sessions.py`; `api/dependencies.py` says which of the two a request is asked for.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from api.lookups import Lookups
from shared import secrets
from shared.clock import Clock
from shared.database.api_keys import Principal
from shared.errors import AuthenticationFailed, PermissionDenied

_SCHEME: Final = b"bearer "
_KEY_BYTES_MOST: Final = 512

Find = Callable[[bytes], Awaitable[Principal | None]]  # digest -> whose key it is, in any state


class Authenticator:
    """Turns an Authorization header into a principal; one per API node."""

    def __init__(self, find: Find, *, pepper: str, cache_seconds: float, clock: Clock) -> None:
        self._find = find
        self._pepper = pepper
        self._clock = clock
        self._lookups = Lookups(self._look_up, cache_seconds=cache_seconds, clock=clock)
        self._used: set[str] = set()

    async def authenticate(self, authorization: bytes | None) -> Principal:
        """Return whose key this is.

        Raises AuthenticationFailed, PermissionDenied (revoked, deactivated) and DependencyUnavailable.
        """
        key = _bearer(authorization)
        digest = secrets.digest(key, self._pepper)
        known = self._lookups.recall(digest)
        if known is not None:
            return _admit(known.principal, self._clock.unix_ms())
        if not secrets.checksum_ok(key):
            raise _incorrect("it is not a key of this service")
        return _admit(await self._lookups.ask(digest), self._clock.unix_ms())

    def forget(self, key_id: str) -> None:
        """Drop what is known of a key, since it was just revoked."""
        self._lookups.forget(key_id)

    def take_used(self) -> set[str]:
        """Return the ids of the keys looked up since the last call: those in use, up to the cache's age."""
        used, self._used = self._used, set()
        return used

    async def _look_up(self, digest: bytes) -> Principal | None:
        principal = await self._find(digest)
        if principal is not None:
            self._used.add(principal.key_id)
        return principal


def _bearer(authorization: bytes | None) -> str:
    if not authorization:
        raise AuthenticationFailed(
            "Incorrect API key provided: there is none. Send it as `Authorization: Bearer inf_…`.",
            code="missing_api_key",
        )
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise _incorrect("the Authorization header must be `Bearer inf_…`")
    key = authorization[len(_SCHEME) :].strip()
    if len(key) > _KEY_BYTES_MOST or not key.isascii():
        raise _incorrect("it is not a key of this service")
    return key.decode("ascii")


def _admit(principal: Principal | None, now_ms: int) -> Principal:
    if principal is None:
        raise _incorrect("no such key exists")
    if principal.expires_at is not None and principal.expires_at <= datetime.fromtimestamp(now_ms / 1000, UTC):
        raise AuthenticationFailed("Incorrect API key provided: the key has expired.", code="token_expired")
    if principal.revoked:
        raise PermissionDenied("This API key has been revoked.")
    return require_active(principal)


def require_active(principal: Principal) -> Principal:
    """Return `principal`, or raise PermissionDenied where its account was deactivated."""
    if not principal.active:
        raise PermissionDenied("This account has been deactivated.", code="account_deactivated")
    return principal


def _incorrect(why: str) -> AuthenticationFailed:
    return AuthenticationFailed(f"Incorrect API key provided: {why}.")
