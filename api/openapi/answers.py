"""What routes answer, as OpenAPI responses: shapes from our own structs, refusals from the table of `api/errors.py`."""

import http
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from litestar import Response
from litestar.response import Stream

from api.errors import ErrorBody, http_error
from api.openapi.events import CancellationBody, ChatCompletionChunk
from api.openapi.parts import Schema, reference
from shared.errors import Refusal
from shared.openai.response import ChatCompletion, EmbeddingList, TextCompletion

REF_TEMPLATE: Final = "#/components/schemas/{name}"
STRUCTS: Final[tuple[Any, ...]] = (
    ErrorBody,
    ChatCompletion,
    ChatCompletionChunk,
    TextCompletion,
    EmbeddingList,
    CancellationBody,
)

_HEADERS: Final[dict[str, Schema]] = {
    "x-request-id": {"description": "The id of this request, for logs and support.", "schema": {"type": "string"}},
    "retry-after": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 120},
    },
    "www-authenticate": {"description": "How to say who asks.", "schema": {"type": "string"}},
    "x-should-retry": {"description": "Tells the SDKs not to send it again.", "schema": {"const": "false"}},
}
_HEADERS_OF: Final = {
    401: ("www-authenticate",),
    409: ("x-should-retry",),
    429: ("retry-after", "x-should-retry"),
    502: ("retry-after", "x-should-retry"),
    503: ("retry-after",),
}


def structs_of(annotation: Any) -> tuple[Any, ...]:
    """Return the structs that a handler of this return annotation answers with; files and raw bytes are none."""
    origin = typing.get_origin(annotation)
    if origin is Response:
        return structs_of(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union):
        return tuple(one for part in typing.get_args(annotation) for one in structs_of(part))
    return () if annotation in (None, type(None), Stream, bytes) else (annotation,)


def answers_csv(annotation: Any) -> bool:
    """Tell whether a handler of this return annotation may answer with a file of rows."""
    return Stream in typing.get_args(annotation)


def schemas_of(structs: Sequence[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """Return a reference for each of `structs`, and the schemas that they refer to by name."""
    references, components = msgspec.json.schema_components(structs, ref_template=REF_TEMPLATE)
    return list(references), {name: _always_there(schema) for name, schema in components.items()}


def success(description: str, content: dict[str, Schema], *headers: tuple[str, str]) -> Schema:
    """Return the response of a success; `content`: schema by media type; `headers`: names and what they say."""
    shown = {"x-request-id": _HEADERS["x-request-id"]}
    shown |= {name: {"description": text, "schema": {"type": "string"}} for name, text in headers}
    answer: Schema = {"description": description, "headers": shown}
    if content:
        answer["content"] = {media_type: {"schema": schema} for media_type, schema in content.items()}
    return answer


def refusals(codes: Iterable[str]) -> dict[str, Schema]:
    """Return the responses of the refusals with these codes, by status."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(http_error(Refusal(code=code)).status, []).append(code)
    return {str(status): _refusal(status, by_status[status]) for status in sorted(by_status)}


def _refusal(status: int, codes: list[str]) -> Schema:
    names = ("x-request-id", *_HEADERS_OF.get(status, ()))
    shown = " or ".join(f"`{code}`" for code in codes)
    return {
        "description": f"{http.HTTPStatus(status).phrase}: {shown}.",
        "headers": {name: _HEADERS[name] for name in names},
        "content": {"application/json": {"schema": reference("ErrorBody")}},
    }


def _always_there(schema: Schema) -> Schema:
    """Return the schema of a struct as we send it: a field with a default is there, too."""
    properties = schema.get("properties", {})
    kept = {name: {key: part[key] for key in part if key != "default"} for name, part in properties.items()}
    missing = schema.get("required", [])
    needed = [name for name, part in properties.items() if name in missing or "default" in part]
    return {**schema, "properties": kept, "required": needed} if properties else schema
