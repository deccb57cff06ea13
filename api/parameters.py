"""Query parameters, decoded strictly: an unknown, repeated or malformed one is 400 and never passed over."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from litestar import Request

from shared.errors import InvalidRequest
from shared.openai import fields

PAGE_PARAMETERS: Final = ("after", "limit")
PAGE_MOST: Final = 100
PAGE_DEFAULT: Final = 20
ID_CHARACTERS_MOST: Final = 64
TEXT_CHARACTERS_MOST: Final = 256  # the longest model id is shorter
VALUES_MOST: Final = 100  # of one parameter that takes several
SECONDS_MOST: Final = 253_402_300_799  # the last second of the year 9999
_INTEGER_DIGITS_MOST: Final = len(str(SECONDS_MOST))


class Page(msgspec.Struct, frozen=True):
    """Which part of a list is asked for."""

    after: str | None
    limit: int


class Parameters:
    """The query parameters of one request, each of which is among `names`; raises InvalidRequest throughout.

    A parameter of several values is repeated (`a=1&a=2`, or `a[]=1` as OpenAI's SDKs write it) or has commas.
    """

    def __init__(self, request: Request[Any, Any, Any], names: Collection[str] = ()) -> None:
        self._given: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            plain = name.removesuffix("[]")
            if plain not in names:
                shown = ascii(name[:ID_CHARACTERS_MOST])[1:-1]
                raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unsupported_parameter", param=shown)
            self._given.setdefault(plain, []).append(value)

    def page(self, most: int = PAGE_MOST, default: int = PAGE_DEFAULT) -> Page:
        """Return `after` and `limit` from 1 to `most`."""
        after = self.one("after")
        if after is not None and len(after) > ID_CHARACTERS_MOST:
            raise fields.invalid("after", "the `last_id` of a page")
        return Page(after, self.integer("limit", 1, most) or default)

    def one(self, name: str) -> str | None:
        """Return a text, or None where it is not given."""
        values = self._given.get(name, [])
        if len(values) > 1:
            raise fields.invalid(name, "one value, not several")
        return None if not values else _text(name, values[0])

    def many(self, name: str) -> tuple[str, ...] | None:
        """Return all values of a parameter that may have several, or None where it is not given."""
        if name not in self._given:
            return None
        values = [part for value in self._given[name] for part in value.split(",")]
        if len(values) > VALUES_MOST:
            raise fields.invalid(name, f"at most {VALUES_MOST} values")
        return tuple(_text(name, value) for value in values)

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Return an integer in [least, most], or None where it is not given."""
        value = self.one(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) <= _INTEGER_DIGITS_MOST):
            raise fields.invalid(name, f"an integer of at least {least} and at most {most}")
        return int(fields.integer(least, most)(name, int(value)))

    def moment(self, name: str) -> datetime | None:
        """Return Unix seconds as a moment, or None where it is not given."""
        seconds = self.integer(name, 0, SECONDS_MOST)
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

    def choice(self, name: str, options: Sequence[str]) -> str | None:
        """Return one of `options`, or None where it is not given."""
        value = self.one(name)
        if value is not None and value not in options:
            raise one_of(name, options)
        return value

    def choices(self, name: str, options: Sequence[str]) -> tuple[str, ...]:
        """Return some of `options`, or none."""
        values = self.many(name) or ()
        if not set(values) <= set(options):
            raise one_of(name, options)
        return values


def one_of(name: str, options: Sequence[str]) -> InvalidRequest:
    """Return the refusal of a value that is not among `options`."""
    return fields.invalid(name, "one of " + ", ".join(f"'{option}'" for option in options))


def _text(name: str, value: str) -> str:
    if not (0 < len(value) <= TEXT_CHARACTERS_MOST and value.isascii() and value.isprintable()):
        raise fields.invalid(name, f"1 to {TEXT_CHARACTERS_MOST} printable characters")
    return value
