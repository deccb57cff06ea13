"""Where a request comes from: only a trusted proxy is believed."""

from typing import Any

import pytest

from api.callers import Callers
from shared.errors import SettingsInvalid

PROXY = "10.0.0.1"


def caller(callers: Callers, peer: str | None = PROXY, *, scheme: str = "http", **headers: str) -> Any:
    raw = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return callers.caller({"client": (peer, 1) if peer else None, "scheme": scheme}, raw)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # no proxy of ours
        (PROXY, "198.51.100.1", "198.51.100.1"),
        (PROXY, "1.2.3.4, 198.51.100.1", "198.51.100.1"),  # the first is what the client said
        (PROXY, "1.2.3.4, 198.51.100.1, 10.0.0.2", "198.51.100.1"),  # through two proxies
        (PROXY, "10.0.0.9", "10.0.0.9"),
        (PROXY, "", PROXY),
        (PROXY, "nonsense", PROXY),
        (PROXY, "198.51.100.1, nonsense", PROXY),
        (PROXY, "::ffff:198.51.100.1", "198.51.100.1"),
        (PROXY, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        (PROXY, "1.1.1.1," * 100_000 + "198.51.100.1", "198.51.100.1"),
    ],
)
def test_the_address_is_the_last_that_no_proxy_of_ours_named(peer: str, forwarded: str, address: str) -> None:
    callers = Callers(public_origin="", trusted_proxies="10.0.0.0/29, fd00::/8")

    assert caller(callers, peer, x_forwarded_for=forwarded).address == address


def test_nobody_is_trusted_unless_configured() -> None:
    callers = Callers(public_origin="", trusted_proxies="")

    found = caller(callers, "127.0.0.1", x_forwarded_for="1.2.3.4", x_forwarded_proto="https", host="api.example.com")

    assert (found.address, found.origin) == ("127.0.0.1", "http://api.example.com")


def test_a_client_on_a_unix_socket_has_no_address() -> None:
    assert caller(Callers(public_origin="", trusted_proxies="10.0.0.0/8"), None).address == "unknown"


@pytest.mark.parametrize(
    ("public", "host", "proto", "origin", "secure"),
    [
        ("", "localhost:8000", "", "http://localhost:8000", False),
        ("", "127.0.0.1:8000", "", "http://127.0.0.1:8000", False),
        ("", "[::1]:8000", "", "http://[::1]:8000", False),
        ("", "LOCALHOST", "", "http://localhost", False),
        ("", "localhost:8000", "https", "https://localhost:8000", True),
        ("", "api.example.com", "", "http://api.example.com", True),
        ("", "api.example.com", "https", "https://api.example.com", True),
        ("", "api.example.com", "http, https", "https://api.example.com", True),
        ("", "localhost.example.com", "", "http://localhost.example.com", True),
        ("", "", "", "http://", True),
        ("https://API.example.com", "localhost:8000", "", "https://api.example.com", True),
        ("http://localhost:8000", "api.example.com", "https", "http://localhost:8000", False),
    ],
)
def test_the_origin_is_the_configured_one_or_what_the_request_names(
    public: str, host: str, proto: str, origin: str, secure: bool
) -> None:
    callers = Callers(public_origin=public, trusted_proxies=PROXY)

    found = caller(callers, host=host, x_forwarded_proto=proto)

    assert (found.origin, found.secure) == (origin, secure)


@pytest.mark.parametrize("origin", ["api.example.com", "https://api.example.com/", "ftp://x", "https://", "null"])
def test_an_origin_that_no_browser_sends_is_no_setting(origin: str) -> None:
    with pytest.raises(SettingsInvalid, match="PUBLIC_ORIGIN"):
        Callers(public_origin=origin, trusted_proxies="")


def test_a_proxy_is_an_address_or_a_network() -> None:
    with pytest.raises(SettingsInvalid, match="TRUSTED_PROXIES"):
        Callers(public_origin="", trusted_proxies="proxy.example.com")
