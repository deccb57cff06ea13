"""Sessions on a ledger that counts, hangs up and forgets."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from api import csrf
from api.callers import Caller
from api.cookies import CSRF, SESSION
from api.passwords import Passwords
from api.session_tokens import Claims, SessionTokens
from api.sessions import Sessions, open_sessions
from shared.clock import SystemClock
from shared.database.api_keys import Principal
from shared.errors import AuthenticationFailed, DependencyUnavailable, PermissionDenied, SettingsInvalid
from shared.settings import SecretSettings, Settings
from tests.integration.api_edge import principal

KEY = "k" * 32
CALLER = Caller("127.0.0.1", "http://localhost", secure=False)


class Ledger:
    """Answers every query with one row, or refuses it."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Principal | Exception | None = principal(
            key_id="sess_1",
            user_id="user_1",
            session=True,
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )

    async def query(self, _: Any) -> Principal | None:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def sessions(ledger: Ledger) -> Any:
    settings = Settings(secrets=SecretSettings(jwt_key=KEY))
    passwords = Passwords(threads=1, queue_most=1)
    yield Sessions(settings, ledger, passwords=passwords, clock=SystemClock())  # type: ignore[arg-type]
    passwords.close()


def request(method: str = "GET", **claims: Any) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    """Return scope and headers of a request of our own page."""
    now = int(datetime.now(UTC).timestamp())
    said = {"user_id": "user_1", "session_id": "sess_1", "issued_at": now, "expires_at": now + 60, **claims}
    token, guard = SessionTokens(KEY).issue(Claims(**said)), csrf.token(said["session_id"], KEY)
    headers = {
        b"host": b"localhost",
        b"cookie": f"theme=dark; {SESSION}={token}; {CSRF}={guard}".encode(),
        b"origin": b"http://localhost",
        b"x-csrf-token": guard.encode(),
    }
    return {"method": method, "client": ("127.0.0.1", 1), "scheme": "http"}, headers


async def test_a_session_is_looked_up_once_in_five_seconds(sessions: Sessions, ledger: Ledger) -> None:
    for _ in range(10):
        found = await sessions.authenticate(*request())

    assert (found.key_id, ledger.asked) == ("sess_1", 1)
    sessions.forget("sess_1")
    await sessions.authenticate(*request())
    assert ledger.asked == 2


async def test_a_ledger_that_is_away_is_503_and_not_401(sessions: Sessions, ledger: Ledger) -> None:
    ledger.answer = DependencyUnavailable()

    with pytest.raises(DependencyUnavailable):
        await sessions.authenticate(*request())


async def test_a_request_of_another_site_costs_no_look_up(sessions: Sessions, ledger: Ledger) -> None:
    scope, headers = request("POST")

    with pytest.raises(PermissionDenied, match="Origin"):
        await sessions.authenticate(scope, headers | {b"origin": b"null"})

    assert ledger.asked == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"revoked": True}, "token_expired"),
        ({"expires_at": datetime.now(UTC) - timedelta(seconds=1)}, "token_expired"),
        ({"user_id": "user_2"}, "invalid_api_key"),
        ({"active": False}, "account_deactivated"),
    ],
)
async def test_a_row_that_no_longer_stands_opens_nothing(
    sessions: Sessions, ledger: Ledger, changes: dict[str, Any], code: str
) -> None:
    assert isinstance(ledger.answer, Principal)
    ledger.answer = msgspec.structs.replace(ledger.answer, **changes)

    with pytest.raises((AuthenticationFailed, PermissionDenied)) as refused:
        await sessions.authenticate(*request())

    assert refused.value.code == code


async def test_a_session_of_nobody_is_401(sessions: Sessions, ledger: Ledger) -> None:
    ledger.answer = None

    with pytest.raises(AuthenticationFailed):
        await sessions.authenticate(*request())


def test_a_short_key_does_not_start() -> None:
    settings = Settings(secrets=SecretSettings(jwt_key="k" * 31))

    with pytest.raises(SettingsInvalid, match="JWT_KEY"), open_sessions(settings, None, clock=SystemClock()):  # type: ignore[arg-type]
        pass
