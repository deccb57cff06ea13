"""API keys: how one is made, how a mistyped one is told apart without a lookup, and what of it is stored.

A key is `inf_`, 43 base62 digits of 256 random bits and 6 base62 digits of the CRC-32 of everything before them. Stored
are its HMAC-SHA256 under the pepper, against which a stolen database alone tests no guesses, and a prefix for people.
"""

import hmac
import secrets
import zlib
from typing import Final

KEY_START: Final = "inf_"
SECRET_BITS: Final = 256
PREFIX_CHARACTERS: Final = 12  # shown in lists: `inf_` and eight digits

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGIT_SET: Final = frozenset(_DIGITS)
_SECRET_DIGITS: Final = 43
_CHECKSUM_DIGITS: Final = 6
_KEY_CHARACTERS: Final = len(KEY_START) + _SECRET_DIGITS + _CHECKSUM_DIGITS


def make_key() -> str:
    """Return a new key: 53 characters, 256 bits from the system's random source."""
    body = KEY_START + _base62(secrets.randbits(SECRET_BITS), _SECRET_DIGITS)
    return body + _checksum(body)


def checksum_ok(key: str) -> bool:
    """Tell whether `key` has the form of a key; no look-up is worth making for one that has not."""
    if len(key) != _KEY_CHARACTERS or not key.startswith(KEY_START) or not _DIGIT_SET.issuperset(key[len(KEY_START) :]):
        return False
    return key[-_CHECKSUM_DIGITS:] == _checksum(key[:-_CHECKSUM_DIGITS])


def digest(key: str, pepper: str) -> bytes:
    """Return the 32 bytes under which a key is stored and looked up."""
    return hmac.digest(pepper.encode(), key.encode(), "sha256")


def prefix(key: str) -> str:
    """Return the part of a key that may be shown."""
    return key[:PREFIX_CHARACTERS]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_DIGITS)


def _base62(number: int, digits: int) -> str:
    characters = []
    for _ in range(digits):
        number, digit = divmod(number, 62)
        characters.append(_DIGITS[digit])
    assert number == 0
    return "".join(reversed(characters))
