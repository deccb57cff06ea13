"""The bricks of our JSON schemas (2020-12, as OpenAPI 3.1 takes them): each says what one check of ours accepts."""

from typing import Any, Final

Schema = dict[str, Any]

_COMPONENTS: Final = "#/components/schemas/"


def text(description: str = "", *, least: int = 0, most: int | None = None, **more: Any) -> Schema:
    """Return the schema of a string of `least` to `most` characters."""
    bounds: Schema = {"minLength": least} if least else {}
    if most is not None:
        bounds["maxLength"] = most
    return _described({"type": "string", **bounds, **more}, description)


def integer(description: str, least: int, most: int, **more: Any) -> Schema:
    """Return the schema of an integer in [least, most]; 256.0 is one, as JSON Schema has it."""
    return _described({"type": "integer", "minimum": least, "maximum": most, **more}, description)


def number(description: str, least: float, most: float, *, above: bool = False, **more: Any) -> Schema:
    """Return the schema of a number in [least, most], or in (least, most] where it must be `above` the least."""
    lower = "exclusiveMinimum" if above else "minimum"
    return _described({"type": "number", lower: least, "maximum": most, **more}, description)


def boolean(description: str, **more: Any) -> Schema:
    """Return the schema of true or false."""
    return _described({"type": "boolean", **more}, description)


def choice(description: str, *options: str, **more: Any) -> Schema:
    """Return the schema of one of some strings."""
    return _described({"type": "string", "enum": list(options), **more}, description)


def array(items: Schema, description: str = "", *, least: int = 0, most: int | None = None, **more: Any) -> Schema:
    """Return the schema of an array of `least` to `most` items."""
    bounds: Schema = {"minItems": least} if least else {}
    if most is not None:
        bounds["maxItems"] = most
    return _described({"type": "array", "items": items, **bounds, **more}, description)


def object_(
    properties: dict[str, Schema], description: str = "", *, required: tuple[str, ...] = (), closed: bool, **more: Any
) -> Schema:
    """Return the schema of an object; a closed one has no other properties."""
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    return _described(schema | more, description)


def one_of(description: str, *schemas: Schema, **more: Any) -> Schema:
    """Return the schema of a value that fits at least one of `schemas`."""
    return _described({"anyOf": list(schemas), **more}, description)


def nullable(schema: Schema) -> Schema:
    """Return `schema` with null as another value of it, as every optional field of a body may be."""
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    found = {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        found["enum"] = [*schema["enum"], None]
    return found


def optional(properties: dict[str, Schema], *needed: str) -> dict[str, Schema]:
    """Return `properties`, each of them nullable but the `needed` ones."""
    return {name: schema if name in needed else nullable(schema) for name, schema in properties.items()}


def reference(name: str) -> Schema:
    """Return a reference to a schema of the document's components."""
    return {"$ref": _COMPONENTS + name}


def referred(part: object, schemas: dict[str, Schema]) -> dict[str, Schema]:
    """Return those of `schemas` that a part of the document refers to, also by way of each other, by name."""
    found: dict[str, Schema] = {}
    waiting: list[object] = [part]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            name = str(at.get("$ref", "")).removeprefix(_COMPONENTS)
            if name in schemas and name not in found:
                found[name] = schemas[name]
                waiting.append(schemas[name])
            waiting += at.values()
        elif isinstance(at, list | tuple):
            waiting += at
    return dict(sorted(found.items()))


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description} if description else schema
