"""Small JSON bodies of ordinary routes: known fields only, so that nothing can be slipped in, each of them checked."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from litestar import Request

from api.body import check_json
from api.parameters import Parameters
from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.bounded_json import parse_object

DECIMAL_CHARACTERS_MOST: Final = 32

_DECIMAL: Final = re.compile(r"[0-9]+(\.[0-9]+)?")


async def read_fields(
    request: Request[Any, Any, Any], checks: Mapping[str, fields.Check], *, optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the fields of a body, each through its check; an optional one that is absent or null is left out.

    Raises Refusal (413, 415) and InvalidRequest, also for any field that is not in `checks` and any query parameter.
    """
    Parameters(request)
    check_json(dict(request.scope["headers"]))
    given = parse_object(await request.body())
    for name in given:
        if name not in checks:
            shown = ascii(name[:64])[1:-1]
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unsupported_parameter", param=shown)
    found = {}
    for name, check in checks.items():
        value = given.get(name)
        if value is not None:
            found[name] = check(name, value)
        elif name not in optional:
            raise fields.missing(name)
    return found


async def read_nothing(request: Request[Any, Any, Any]) -> None:
    """Read the body of a route that takes none: empty, or an empty object. Raises as `read_fields`."""
    Parameters(request)
    if await request.body():
        await read_fields(request, {})


def decimal(parse: Callable[[str], int], what: str) -> fields.Check:
    """Return the check of a decimal string that `parse` takes; a JSON number would be a float on its way."""

    def check(name: str, value: Any) -> int:
        text = fields.text(1, DECIMAL_CHARACTERS_MOST)(name, value)
        if not _DECIMAL.fullmatch(text):
            raise fields.invalid(name, what)
        try:
            return parse(text)
        except ValueError as error:
            raise fields.invalid(name, f"{what}: {error}") from None

    return check


def printable(least: int, most: int) -> fields.Check:
    """Return the check of a string of `least` to `most` printable characters."""
    check_text = fields.text(least, most)

    def check(name: str, value: Any) -> str:
        text: str = check_text(name, value)
        if not text.isprintable():
            raise fields.invalid(name, "a string without control characters")
        return text

    return check
