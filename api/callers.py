"""Where a request comes from: the address that it counts for, and the origin that its browser must name.

What a client says of itself in `X-Forwarded-…` is believed only where the connection comes from a trusted proxy.
"""

import ipaddress
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from shared.errors import SettingsInvalid

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
UNKNOWN: Final = "unknown"  # the address of a client on a Unix socket

_V6_PREFIX_BITS: Final = 64  # what one customer of an access provider has
_HOPS_MOST: Final = 32

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = Mapping[bytes, bytes]


class Caller(msgspec.Struct, frozen=True):
    """`address`: of the client, for IPv6 its /64. `origin`: what a page of ours has as its origin.

    `secure`: cookies are for HTTPS alone; false only where a browser on this machine speaks plain HTTP to it.
    """

    address: str
    origin: str
    secure: bool


class Callers:
    """Tells callers by the settings. Raises SettingsInvalid where these cannot be understood."""

    def __init__(self, *, public_origin: str, trusted_proxies: str) -> None:
        self._origin = _checked_origin(public_origin)
        self._trusted = _networks(trusted_proxies)

    def caller(self, scope: Mapping[str, Any], headers: Headers) -> Caller:
        """Return who sent the request of an ASGI `scope` with these headers."""
        client = scope.get("client")
        peer = _address(client[0]) if client else None
        trusted = peer is not None and self._trusts(peer)
        scheme = _scheme(scope, headers, trusted=trusted)
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = self._origin or f"{scheme}://{host}"
        secure = not (origin.startswith("http://") and _name(origin) in LOOPBACK_NAMES)
        return Caller(self._counted(peer, headers, trusted=trusted), origin, secure)

    def _counted(
        self, peer: ipaddress.IPv4Address | ipaddress.IPv6Address | None, headers: Headers, *, trusted: bool
    ) -> str:
        address = peer
        if trusted:  # the last address that a proxy of ours did not name as a proxy of ours
            hops = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[-_HOPS_MOST:]
            for hop in reversed(hops):
                found = _address(hop.strip())
                if found is None:
                    break
                address = found
                if not self._trusts(found):
                    break
        if address is None:
            return UNKNOWN
        if address.version == 6:
            return str(ipaddress.ip_network((address, _V6_PREFIX_BITS), strict=False))
        return str(address)

    def _trusts(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)


def _scheme(scope: Mapping[str, Any], headers: Headers, *, trusted: bool) -> str:
    said = headers.get(b"x-forwarded-proto", b"").decode("latin-1").split(",")[-1].strip().lower()
    return said if trusted and said in ("http", "https") else str(scope.get("scheme", "http"))


def _name(origin: str) -> str:
    """Return the host of an origin without its port."""
    host = origin.partition("://")[2]
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise SettingsInvalid(f"INFERBASE_TRUSTED_PROXIES: {error}") from None


def _checked_origin(text: str) -> str:
    """Return an origin as browsers write it; SettingsInvalid for anything else."""
    parts = urlsplit(text)
    plain = parts.scheme in ("http", "https") and parts.netloc and "@" not in parts.netloc
    if text and not (plain and text.lower() == f"{parts.scheme}://{parts.netloc}".lower()):
        raise SettingsInvalid("INFERBASE_PUBLIC_ORIGIN must be like https://api.example.com, without a path")
    return text.lower()
