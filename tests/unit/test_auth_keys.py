"""API keys: their form, and what is believed of them for how long."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from api.auth import Authenticator
from shared import secrets
from shared.errors import AuthenticationFailed, DependencyUnavailable, PermissionDenied, Refusal
from tests.integration.api_edge import PEPPER, Keys, principal


class StillClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def unix_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def authenticator(keys: Keys, clock: StillClock) -> Authenticator:
    return Authenticator(keys.find, pepper=PEPPER, cache_seconds=5, clock=clock)


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_a_new_key_has_53_characters_and_a_checksum() -> None:
    key = secrets.make_key()

    assert key.startswith("inf_") and len(key) == 53 and key[4:].isalnum()
    assert secrets.checksum_ok(key)
    assert key != secrets.make_key()


def test_no_single_changed_character_passes_the_checksum() -> None:
    key = secrets.make_key()

    for position in range(4, len(key)):
        other = "a" if key[position] != "a" else "b"
        assert not secrets.checksum_ok(key[:position] + other + key[position + 1 :])


@pytest.mark.parametrize("key", ["", "inf_", "sk-abc", "inf_" + "0" * 49, "x" * 53, "inf_" + "é" * 49, "inf_ " * 11])
def test_what_is_no_key_fails_the_checksum(key: str) -> None:
    assert not secrets.checksum_ok(key)


def test_a_digest_depends_on_key_and_pepper() -> None:
    assert len(secrets.digest("a", PEPPER)) == 32
    assert len({secrets.digest("a", PEPPER), secrets.digest("b", PEPPER), secrets.digest("a", "q" * 32)}) == 3


async def test_a_key_opens_its_account(authenticator: Authenticator, keys: Keys) -> None:
    key = keys.add(account_id="acct_7")

    assert (await authenticator.authenticate(bearer(key))).account_id == "acct_7"
    assert (await authenticator.authenticate(b"bearer " + key.encode())).account_id == "acct_7"


BAD = [
    b"",
    b"Bearer ",
    b"Bearer",
    b"Basic dXNlcjpwYXNz",
    b"Bearer inf_" + b"a" * 49,
    b"Bearer ' OR 1=1 --",
    b"Bearer " + b"a" * 8192,
    "Bearer inf_é".encode(),
    b"Bearer \xff\xfe",
]


@pytest.mark.parametrize("header", BAD)
async def test_what_is_no_key_is_401_without_a_look_up(authenticator: Authenticator, keys: Keys, header: bytes) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        await authenticator.authenticate(header)

    assert refused.value.message.startswith("Incorrect API key provided")
    assert keys.lookups == 0


async def test_no_header_is_a_missing_key(authenticator: Authenticator) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        await authenticator.authenticate(None)

    assert refused.value.code == "missing_api_key"
    assert "Incorrect API key provided" in refused.value.message


async def test_an_unknown_key_is_looked_up_once_in_five_seconds(
    authenticator: Authenticator, keys: Keys, clock: StillClock
) -> None:
    header = bearer(secrets.make_key())

    for _ in range(3):
        with pytest.raises(AuthenticationFailed):
            await authenticator.authenticate(header)
    assert keys.lookups == 1

    clock.seconds += 5
    with pytest.raises(AuthenticationFailed):
        await authenticator.authenticate(header)
    assert keys.lookups == 2


@pytest.mark.parametrize(
    ("fields", "code"), [({"revoked": True}, "key_revoked"), ({"active": False}, "account_deactivated")]
)
async def test_a_dead_key_is_403(authenticator: Authenticator, keys: Keys, fields: dict[str, bool], code: str) -> None:
    key = keys.add(**fields)

    for _ in range(2):
        with pytest.raises(PermissionDenied) as refused:
            await authenticator.authenticate(bearer(key))
        assert refused.value.code == code
    assert keys.lookups == 1


async def test_a_key_expires_while_it_is_cached(authenticator: Authenticator, keys: Keys, clock: StillClock) -> None:
    key = keys.add(expires_at=datetime.fromtimestamp(clock.seconds, UTC) + timedelta(seconds=2))
    await authenticator.authenticate(bearer(key))

    clock.seconds += 2

    with pytest.raises(AuthenticationFailed) as refused:
        await authenticator.authenticate(bearer(key))
    assert refused.value.code == "token_expired"


async def test_a_revocation_elsewhere_holds_within_the_age_of_the_cache(
    authenticator: Authenticator, keys: Keys, clock: StillClock
) -> None:
    key = keys.add()
    await authenticator.authenticate(bearer(key))
    keys.principals[secrets.digest(key, PEPPER)] = principal(revoked=True)

    clock.seconds += 4.9
    await authenticator.authenticate(bearer(key))
    clock.seconds += 0.1

    with pytest.raises(PermissionDenied):
        await authenticator.authenticate(bearer(key))


async def test_a_key_revoked_here_is_asked_for_at_once(authenticator: Authenticator, keys: Keys) -> None:
    key, other = keys.add(key_id="key_1"), keys.add(key_id="key_2")
    for one in (key, other):
        await authenticator.authenticate(bearer(one))
    keys.principals[secrets.digest(key, PEPPER)] = principal(revoked=True)

    authenticator.forget("key_1")

    with pytest.raises(PermissionDenied):
        await authenticator.authenticate(bearer(key))
    await authenticator.authenticate(bearer(other))
    assert keys.lookups == 3


async def test_a_store_that_is_down_is_503_and_not_remembered(authenticator: Authenticator, keys: Keys) -> None:
    key = keys.add()
    keys.failure = DependencyUnavailable()
    with pytest.raises(DependencyUnavailable):
        await authenticator.authenticate(bearer(key))

    keys.failure = None

    assert (await authenticator.authenticate(bearer(key))).key_id == "key_1"


async def test_a_crowd_with_one_key_asks_once(authenticator: Authenticator, keys: Keys) -> None:
    key = keys.add()

    found = await asyncio.gather(*(authenticator.authenticate(bearer(key)) for _ in range(100)))

    assert len(found) == 100
    assert keys.lookups == 1


async def test_who_stops_waiting_does_not_stop_the_others(authenticator: Authenticator, keys: Keys) -> None:
    key = keys.add()
    first = asyncio.create_task(authenticator.authenticate(bearer(key)))
    second = asyncio.create_task(authenticator.authenticate(bearer(key)))
    await asyncio.sleep(0)

    first.cancel()

    assert (await second).key_id == "key_1"
    assert keys.lookups == 1


async def test_strangers_do_not_push_out_customers(
    authenticator: Authenticator, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.lookups.CACHED_MOST", 3)
    key = keys.add()
    await authenticator.authenticate(bearer(key))

    for _ in range(10):
        with pytest.raises(Refusal):
            await authenticator.authenticate(bearer(secrets.make_key()))
    await authenticator.authenticate(bearer(key))

    assert keys.lookups == 11


async def test_keys_in_use_are_told_once(authenticator: Authenticator, keys: Keys) -> None:
    await authenticator.authenticate(bearer(keys.add(key_id="key_9")))

    assert authenticator.take_used() == {"key_9"}
    assert authenticator.take_used() == set()
