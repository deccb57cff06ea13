"""E-mail addresses as names of people: one spelling each."""

import unicodedata
from typing import Final

CHARACTERS_MOST: Final = 254  # RFC 5321, section 4.5.3.1.3, less the angle brackets


def normalised(email: str) -> str:
    """Return the one spelling of an address: composed, in lower case; ValueError for what cannot be one.

    Whether it can be reached is not asked. Lower case throughout: nobody tells people apart by the case of a letter.
    """
    text = unicodedata.normalize("NFKC", email).lower()
    local, at, domain = text.rpartition("@")
    if not (at and local and domain) or "@" in local or len(text) > CHARACTERS_MOST:
        raise ValueError("an e-mail address is like name@example.com")
    if not text.isprintable() or any(character.isspace() for character in text):
        raise ValueError("an e-mail address holds no spaces and no control characters")
    return text
