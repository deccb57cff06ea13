"""Checks of single JSON values: the value in our type, or InvalidRequest naming the field.

Strings and booleans are never taken for numbers, nor the other way round.
"""

from collections.abc import Callable
from typing import Any, Final

from shared.errors import InvalidRequest

Check = Callable[[str, Any], Any]  # (field's name, value that is not null) -> value

_KINDS: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
}


def invalid(name: str, what: str) -> InvalidRequest:
    """Return the refusal of a field whose value is not `what` it must be."""
    return InvalidRequest(f"Invalid value for '{name}': expected {what}.", param=name)


def missing(name: str) -> InvalidRequest:
    """Return the refusal of a body without a required field."""
    return InvalidRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)


def unsupported(name: str, why: str = "is not supported") -> InvalidRequest:
    """Return the refusal of a field, or a value of it, that we know and do not honour."""
    return InvalidRequest(f"Unsupported parameter: '{name}' {why}.", code="unsupported_parameter", param=name)


def kind_of(value: Any) -> str:
    """Return how JSON calls the type of a value, for messages."""
    return _KINDS.get(type(value), "null")


def boolean(name: str, value: Any) -> bool:
    """Return a JSON true or false."""
    if type(value) is not bool:
        raise invalid(name, f"a boolean, not {kind_of(value)}")
    return value


def number(least: float, most: float, *, above: float | None = None) -> Check:
    """Return the check of a number in [least, most], or in (above, most]."""

    def check(name: str, value: Any) -> float:
        kind = type(value)
        if kind is not float and kind is not int:
            raise invalid(name, f"a number, not {kind_of(value)}")
        if not least <= value <= most or (above is not None and value <= above):
            lower = f"more than {above:g}" if above is not None else f"at least {least:g}"
            raise invalid(name, f"a number of {lower} and at most {most:g}")
        return float(value)

    return check


def integer(least: int, most: int) -> Check:
    """Return the check of an integer in [least, most]; 256.0 is 256."""

    def check(name: str, value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise invalid(name, f"an integer, not {kind_of(value)}")
        if not least <= value <= most:
            raise invalid(name, f"an integer of at least {least} and at most {most}")
        return value

    return check


def text(least: int, most: int) -> Check:
    """Return the check of a string of `least` to `most` characters."""

    def check(name: str, value: Any) -> str:
        if type(value) is not str:
            raise invalid(name, f"a string, not {kind_of(value)}")
        if not least <= len(value) <= most:
            raise invalid(name, f"a string of {least} to {most} characters")
        return value

    return check


def object_(name: str, value: Any) -> dict[str, Any]:
    """Return a JSON object."""
    if type(value) is not dict:
        raise invalid(name, f"an object, not {kind_of(value)}")
    return value


def array(name: str, value: Any) -> list[Any]:
    """Return a JSON array."""
    if type(value) is not list:
        raise invalid(name, f"an array, not {kind_of(value)}")
    return value


def required(parent: dict[str, Any], key: str, where: str) -> Any:
    """Return what stands under `key` of the object called `where`, neither absent nor null."""
    value = parent.get(key)
    if value is None:
        raise missing(f"{where}.{key}")
    return value
