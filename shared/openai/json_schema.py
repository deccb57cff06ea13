"""JSON schemas from strangers, as text for the wire: bounded in size, their references resolved and without a loop.

What a schema means, and which keywords an engine's grammar can enforce, is decided by the worker, before the first
token. Source: JSON Schema 2020-12; OpenAI's response_format and function parameters.
"""

from typing import Any, Final

import msgspec

from shared.errors import InvalidRequest
from shared.openai import fields

SCHEMA_BYTES_MOST: Final = 64 * 1024
REFERENCES_MOST: Final = 1000
PATTERN_CHARACTERS_MOST: Final = 512
POINTER_PARTS_MOST: Final = 16

_encode: Final = msgspec.json.Encoder().encode
_AHEAD: Final = ("anyOf", "oneOf", "allOf")  # what stands for the same value as the schema itself


def schema_text(name: str, value: Any) -> str:
    """Return the JSON text of a schema. InvalidRequest where it is no object, too large, or its references fail."""
    schema = fields.object_(name, value)
    encoded = _encode(schema)
    if len(encoded) > SCHEMA_BYTES_MOST:
        raise fields.invalid(name, f"a JSON schema of at most {SCHEMA_BYTES_MOST} bytes")
    if b'"$ref"' in encoded or b'"pattern"' in encoded:
        _check_parts(name, schema)
    return encoded.decode()


def _check_parts(name: str, root: dict[str, Any]) -> None:
    waiting: list[Any] = [root]
    referring: list[dict[str, Any]] = []
    while waiting:
        part = waiting.pop()
        if type(part) is list:
            waiting += part
        elif type(part) is dict:
            pattern = part.get("pattern")
            if type(pattern) is str and len(pattern) > PATTERN_CHARACTERS_MOST:
                raise fields.invalid(name, f"patterns of at most {PATTERN_CHARACTERS_MOST} characters")
            if type(part.get("$ref")) is str:
                referring.append(part)
            waiting += part.values()
    if len(referring) > REFERENCES_MOST:
        raise fields.invalid(name, f"at most {REFERENCES_MOST} references")
    done: set[int] = set()
    for part in referring:
        _check_loop(name, root, part, done)


def _check_loop(name: str, root: dict[str, Any], part: dict[str, Any], done: set[int]) -> None:
    """Follow what stands for the same value: a schema that comes back to itself there says nothing.

    Depth first, each part once over all calls: `done` are those behind which no loop is. Following every reference
    anew took 3 s of a schema of 64 KiB.
    """
    within: set[int] = set()
    waiting: list[tuple[dict[str, Any], bool]] = [(part, False)]
    while waiting:
        at, left = waiting.pop()
        if left:
            within.discard(id(at))
            done.add(id(at))
            continue
        if id(at) in within:
            raise InvalidRequest(f"Invalid value for '{name}': a `$ref` leads back to itself.", param=name)
        if id(at) in done:
            continue
        within.add(id(at))
        waiting.append((at, True))
        same = [_resolve(name, root, at["$ref"])] if type(at.get("$ref")) is str else []
        for keyword in _AHEAD:
            if type(at.get(keyword)) is list:
                same += at[keyword]
        waiting += [(other, False) for other in same if type(other) is dict]


def _resolve(name: str, root: dict[str, Any], reference: str) -> Any:
    """Return what a JSON pointer (RFC 6901) inside the schema points to."""
    found: Any = root
    parts = reference.split("/")
    if parts[0] != "#" or len(parts) > POINTER_PARTS_MOST:
        raise InvalidRequest(
            f"Invalid value for '{name}': a `$ref` must point into the schema itself, like `#/$defs/…`.", param=name
        )
    for part in parts[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if type(found) is list and key.isascii() and key.isdigit() and len(key) < 6 and int(key) < len(found):
            found = found[int(key)]
        elif type(found) is dict and key in found:
            found = found[key]
        else:
            shown = ascii(reference[:100])[1:-1]
            raise InvalidRequest(f"Invalid value for '{name}': there is nothing at `$ref` {shown}.", param=name)
    return found
