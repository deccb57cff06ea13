"""Sessions of people who logged in: from a cookie to a principal, and how sessions begin, go on and end.

A session is a row; its cookie a short-lived token that names it. Refreshing gives a new token for the same row, until
the row itself is over. What is known of a row is believed as long as what is known of a key.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from litestar.datastructures import Cookie

from api import csrf
from api.auth import require_active
from api.callers import Caller, Callers
from api.cookies import CSRF, read_cookie, session_cookies, session_name
from api.ledger import Ledger
from api.lookups import Lookups
from api.passwords import Passwords
from api.session_tokens import Claims, SessionTokens, invalid_session
from shared.clock import Clock
from shared.database import sessions
from shared.database.api_keys import Principal
from shared.database.sessions import LoggedIn
from shared.database.users import User
from shared.errors import AuthenticationFailed
from shared.settings import Settings, require_secrets

Headers = Mapping[bytes, bytes]


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What a session is carried on with: its cookies, and when they expire (Unix seconds)."""

    expires_at: int
    cookies: list[Cookie]


@contextmanager
def open_sessions(settings: Settings, ledger: Ledger, *, clock: Clock) -> Iterator["Sessions | None"]:
    """Yield the sessions of a node; None where there is no key to sign them with. Raises SettingsInvalid."""
    if not settings.secrets.jwt_key:
        yield None
        return
    require_secrets(settings, "jwt_key")
    most = settings.sessions
    passwords = Passwords(threads=most.password_threads, queue_most=most.password_queue_most)
    try:
        yield Sessions(settings, ledger, passwords=passwords, clock=clock)
    finally:
        passwords.close()


class Sessions:
    """The sessions of one node's callers."""

    def __init__(self, settings: Settings, ledger: Ledger, *, passwords: Passwords, clock: Clock) -> None:
        self.passwords: Final = passwords
        self._settings = settings.sessions
        self._key = settings.secrets.jwt_key
        self._tokens = SessionTokens(self._key)
        self._ledger = ledger
        self._clock = clock
        self._callers = Callers(
            public_origin=self._settings.public_origin, trusted_proxies=self._settings.trusted_proxies
        )
        self._concurrency = settings.api.key_concurrency
        self._lookups = Lookups(self._look_up, cache_seconds=settings.api.auth_cache_seconds, clock=clock)

    def caller(self, scope: Mapping[str, Any], headers: Headers) -> Caller:
        """Return where a request comes from."""
        return self._callers.caller(scope, headers)

    async def authenticate(self, scope: Mapping[str, Any], headers: Headers) -> Principal:
        """Return whom the session's cookie speaks for; a request that changes something must come from our own page.

        Raises AuthenticationFailed, PermissionDenied (csrf_failed, account_deactivated) and DependencyUnavailable.
        """
        caller = self.caller(scope, headers)
        claims = self.claims(headers, caller)
        if not csrf.is_safe(scope["method"]):
            csrf.check_origin(headers, caller.origin, needed=True)
            expected = csrf.token(claims.session_id, self._key)
            csrf.check_token(headers, cookie=read_cookie(headers, CSRF), expected=expected)
        return self._admit(await self._find(claims.session_id), claims)

    def claims(self, headers: Headers, caller: Caller) -> Claims:
        """Return what the cookie says. Raises AuthenticationFailed."""
        token = read_cookie(headers, session_name(secure=caller.secure))
        if token is None:
            raise AuthenticationFailed(
                "Incorrect API key provided: there is none, and no session. Send `Authorization: Bearer inf_…`, or "
                "log in.",
                code="missing_api_key",
            )
        return self._tokens.read(token)

    async def begin(self, user: User, caller: Caller) -> Ticket:
        """Begin a session of a user who proved to be it."""
        begun = await self._ledger.query(
            lambda connection: sessions.begin_session(
                connection, user_id=user.id, seconds_most=self._settings.session_seconds_most
            )
        )
        return self._ticket(begun, caller)

    def carry_on(self, principal: Principal, caller: Caller) -> Ticket:
        """Return new cookies of a session, valid from now on."""
        assert principal.session and principal.expires_at is not None
        session = LoggedIn(id=principal.key_id, user_id=principal.user_id, expires_at=principal.expires_at)
        return self._ticket(session, caller)

    async def end(self, session_id: str) -> None:
        """End a session in the ledger; `Node.revoke` makes it felt."""
        await self._ledger.query(lambda connection: sessions.end_session(connection, session_id))

    def forget(self, session_id: str) -> None:
        """Drop what is known of a session, since it just ended."""
        self._lookups.forget(session_id)

    def no_cookies(self, caller: Caller) -> list[Cookie]:
        """Return what deletes both cookies."""
        return session_cookies("", "", seconds=0, secure=caller.secure)

    def _ticket(self, session: LoggedIn, caller: Caller) -> Ticket:
        now = int(time.time())
        expires_at = min(now + int(self._settings.session_seconds), int(session.expires_at.timestamp()))
        claims = Claims(user_id=session.user_id, session_id=session.id, issued_at=now, expires_at=expires_at)
        cookies = session_cookies(
            self._tokens.issue(claims),
            csrf.token(session.id, self._key),
            seconds=max(0, expires_at - now),
            secure=caller.secure,
        )
        return Ticket(expires_at=expires_at, cookies=cookies)

    async def _find(self, session_id: str) -> Principal | None:
        known = self._lookups.recall(session_id)
        return await self._lookups.ask(session_id) if known is None else known.principal

    async def _look_up(self, session_id: str) -> Principal | None:
        return await self._ledger.query(
            lambda connection: sessions.find_session(connection, session_id, concurrency=self._concurrency)
        )

    def _admit(self, principal: Principal | None, claims: Claims) -> Principal:
        if principal is None or principal.user_id != claims.user_id:
            raise invalid_session()
        assert principal.expires_at is not None
        over = principal.expires_at <= datetime.fromtimestamp(self._clock.unix_ms() / 1000, UTC)
        if principal.revoked or over:
            raise AuthenticationFailed("The session has ended: log in again.", code="token_expired")
        return require_active(principal)
