"""The OpenAPI document: what the framework found of our routes, completed by what only we know of them."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Final

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.routes import HTTPRoute

from api import csrf
from api.cookies import session_name
from api.dependencies import require_admin, require_key, require_session
from api.openapi import operations, queries
from api.openapi.account_bodies import account_schemas
from api.openapi.answers import STRUCTS, answers_csv, refusals, schemas_of, structs_of, success
from api.openapi.body_examples import body_content
from api.openapi.completion_bodies import body_schemas
from api.openapi.completions import COMPLETIONS, completion_operation, stream_operation
from api.openapi.conversation import conversation_schemas
from api.openapi.examples import example_text
from api.openapi.operations import TAGS, WORDS, Words, path_parameter
from api.openapi.parts import Schema, object_, reference, referred
from api.routes.models import HEALTH_SUFFIX
from shared.database.api_keys import Scope

TITLE: Final = "Inferbase"
VERSION: Final = "1"
DESCRIPTION: Final = (
    "OpenAI-compatible inference, metered and prepaid. All of `/api/v1/inference` is also served under `/v1`. Use an "
    "API key, or log in on this page: the cookie of the session is sent by itself, and a key that is pasted "
    "under *Authorize* wins over it. Amounts are decimal strings of credits (1 credit = 1 USD), times are Unix seconds."
)
LEGACY: Final = "_legacy"
INFERENCE_BASE: Final = "/api/v1/inference"
MODEL_PARAMETERS: Final = {"rest": "model", "model_path": "model"}  # paths with slashes, by their names in the code

SECURITY_SCHEMES: Final[dict[str, Schema]] = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer inf_…`."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": session_name(secure=True),
        "description": f"Set by a login. Over plain HTTP on this machine its name is `{session_name(secure=False)}`.",
    },
    "csrf": {
        "type": "apiKey",
        "in": "header",
        "name": csrf.HEADER,
        "description": "What the cookie `inferbase_csrf` holds; asked of sessions where something changes.",
    },
}


def openapi_config(**options: Any) -> OpenAPIConfig:
    """Return how the framework describes our routes."""
    return OpenAPIConfig(
        title=TITLE,
        version=VERSION,
        description=DESCRIPTION,
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, _, parts: _operation_id(handler.fn.__name__, parts),
        **options,
    )


def complete_document(app: Litestar, found: dict[str, Any], *, origin: str) -> Schema:
    """Return the whole document; `found`: the framework's own; `origin`: of the address in examples."""
    handlers = {handler.fn.__name__: handler for handler in _handlers(app)}
    base = origin + INFERENCE_BASE
    completer = _Completer(handlers, base)
    paths = _completions(base)
    for path, item in found["paths"].items():
        for method, operation in item.items():
            for whole, shown in completer.complete(path, method, operation):
                paths.setdefault(whole, {})[method] = shown
    schemas = account_schemas() | body_schemas() | conversation_schemas() | {"StripeEvent": object_({}, closed=False)}
    assert not schemas.keys() & completer.schemas.keys(), "two schemas have the same name"
    return {
        "openapi": "3.1.0",
        "info": found["info"],
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": referred(paths, schemas | completer.schemas),
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def _completions(base: str) -> dict[str, Schema]:
    """Return the paths whose routes speak ASGI themselves."""
    posting, reading = _security("completions"), _security("completions", method="get")
    paths: dict[str, Schema] = {}
    for path, completion in COMPLETIONS.items():
        resumable = bool(completion.events)
        operation = completion_operation(completion, base=base, security=posting, resumable=resumable)
        paths[INFERENCE_BASE + path] = {"post": operation}
        if resumable:
            again = f"{INFERENCE_BASE}{path}/{{request_id}}/stream"
            paths[again] = {"get": stream_operation(completion, security=reading)}
    return paths


class _Completer:
    """Completes operations; knows all handlers, by name, and the schemas of what they answer."""

    def __init__(self, handlers: dict[str, HTTPRouteHandler], base: str) -> None:
        self._handlers = handlers
        self._base = base
        annotations = {name: _annotation(handler) for name, handler in handlers.items()}
        structs = [*STRUCTS, *(one for annotation in annotations.values() for one in structs_of(annotation))]
        references, self.schemas = schemas_of(structs)
        self._answers: dict[str, list[Schema]] = {}
        left = iter(references[len(STRUCTS) :])
        for name, annotation in annotations.items():
            self._answers[name] = [next(left) for _ in structs_of(annotation)]
        self._csv = {name for name, annotation in annotations.items() if answers_csv(annotation)}

    def complete(self, path: str, method: str, operation: Schema) -> Iterator[tuple[str, Schema]]:
        """Yield path and operation; a model's health is an operation of its own, so is what a legacy path does."""
        for name, shown in MODEL_PARAMETERS.items():
            path = path.replace(f"{{{name}}}", f"{{{shown}}}")
        name = operation["operationId"].removesuffix(LEGACY)
        legacy = name != operation["operationId"]
        words, answers = _words(name), self._answers[name]
        if words.answers:
            answers = [reference(words.answers[legacy])]
        yield path, self._operation(name, words, method, operation, answers[:1])
        if name == "get_model":
            health = operation | {"operationId": "get_model_health", "description": "Poll this before you send work."}
            words = _words("get_model_health")
            yield path + HEALTH_SUFFIX, self._operation(name, words, method, health, answers[1:])

    def _operation(self, name: str, words: Words, method: str, operation: Schema, answers: list[Schema]) -> Schema:
        handler = self._handlers[name]
        guards, scope = _guards(handler)
        codes = _codes(words, guards, scope, method=method)
        in_path = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
        shown: Schema = {
            "operationId": operation["operationId"],
            "tags": [words.tag],
            "summary": words.summary,
            "description": "\n\n".join(
                part for part in (operation.get("description", ""), example_text(name, self._base)) if part
            ),
            "parameters": [*(path_parameter(MODEL_PARAMETERS.get(one, one)) for one in in_path), *words.parameters],
            "responses": {str(handler.status_code): self._success(name, words, answers)} | refusals(codes),
        }
        if name == "get_ready":
            shown["responses"]["503"] = success("Not now.", {"application/json": answers[0]})
        if guards:
            shown["security"] = _security(scope, method=method, session_only=require_session in guards)
        if words.body:
            shown["requestBody"] = {"required": words.body_needed, "content": body_content(words.body)}
        elif words.takes_nothing:
            nothing = {"schema": object_({}, closed=True)}
            shown["requestBody"] = {"required": False, "content": {"application/json": nothing}}
        return shown

    def _success(self, name: str, words: Words, answers: list[Schema]) -> Schema:
        content = {"application/json": answers[0]} if answers else {}
        headers: tuple[tuple[str, str], ...] = ()
        if name in self._csv:
            content["text/csv"] = {"type": "string", "description": "The fields of the rows, under a header row."}
        if words.sets_cookies:
            headers = (("set-cookie", "The cookies of the session."),)
        return success("Done." if not answers else "What was asked for.", content, *headers)


def _operation_id(name: str, parts: Sequence[Any]) -> str:
    """Return the id of an operation: its handler's name, told apart where that serves legacy completions too."""
    return name + LEGACY if "completions" in parts and "chat" not in parts else name


def _words(name: str) -> Words:
    return WORDS.get(name) or Words(tag="Other", summary=name)  # a test asks for words of every route


def _handlers(app: Litestar) -> Iterator[HTTPRouteHandler]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if handler.resolve_include_in_schema():
                    yield handler


def _annotation(handler: HTTPRouteHandler) -> Any:
    return handler.parsed_fn_signature.return_type.annotation


def _guards(handler: HTTPRouteHandler) -> tuple[set[Any], Scope | None]:
    """Return the guards of a handler, and the scope that one of them asks for."""
    guards = {getattr(guard, "ref", guard) for guard in handler.resolve_guards()}
    known = {guard for guard in guards if guard in (require_key, require_session, require_admin)}
    scopes = [inspect.getclosurevars(guard).nonlocals.get("scope") for guard in guards - known]
    assert len(scopes) <= 1, "a guard that the document does not know"
    return known, scopes[0] if scopes else None


def _codes(words: Words, guards: set[Any], scope: Scope | None, *, method: str) -> list[str]:
    codes: list[str] = []
    if guards:
        codes += operations.KEY_CODES
        if method != "get":
            codes.append("csrf_failed")
    if scope is not None:
        codes.append("scope_missing")
    if require_admin in guards:
        codes.append("not_found")
    if queries.AFTER in words.parameters:
        codes.append("not_found")
    if words.body or words.takes_nothing:
        codes += operations.BODY_CODES
    elif words.parameters or words.strict:
        codes += operations.QUERY_CODES
    codes += words.codes
    if words.tag != "Health":
        codes += operations.STORE_CODES
    return codes


def _security(scope: Scope | None, *, method: str = "post", session_only: bool = False) -> list[Schema]:
    session: Schema = {"session": []} if method == "get" else {"session": [], "csrf": []}
    return [session] if session_only else [{"key": [] if scope is None else [scope]}, session]
