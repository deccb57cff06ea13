"""The document says what the code does: every route, field, parameter and refusal, no more and no less."""

import re
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import schemathesis

from api import errors, key_options
from api.app import create_app
from api.openapi import queries
from api.openapi.body_examples import BODY_EXAMPLES
from api.openapi.completions import COMPLETIONS
from api.openapi.document import complete_document
from api.openapi.examples import EXAMPLES
from api.openapi.operations import WORDS
from api.parameters import PAGE_PARAMETERS
from api.routes import admin_models, credits, usage
from api.routes.chat import DECODERS
from api.summary import SUMMARY_PARAMETERS
from shared.openai.decode import CHAT_CHECKS, REFUSED
from shared.openai.decode_prompts import COMPLETION_CHECKS, EMBEDDING_CHECKS
from shared.settings import Settings

BASE = "/api/v1/inference"
MODEL = re.compile(r"\{(rest|model_path)\}")
CONVERSATION = {"messages", "tools", "tool_choice"}
EVENT_ONLY = {"request_cancelled"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = create_app(Settings())
    return complete_document(app, app.openapi_schema.to_schema(), origin="http://127.0.0.1:8000")


@pytest.fixture(scope="module")
def schemas(document: dict[str, Any]) -> dict[str, Any]:
    return document["components"]["schemas"]


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_every_schema_is_valid_json_schema(schemas: dict[str, Any]) -> None:
    jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": schemas})


def test_every_reference_leads_somewhere(document: dict[str, Any], schemas: dict[str, Any]) -> None:
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', msgspec.json.encode(document).decode()))

    assert referred == set(schemas)


def test_every_path_that_is_served_is_documented(document: dict[str, Any]) -> None:
    served = {route.path_format for route in create_app(Settings()).routes}
    own = {path for path in served if not path.startswith(("/docs", "/openapi.json", "/v1/"))}

    assert {MODEL.sub("{model}", path) for path in own} - set(document["paths"]) == set()


def test_every_route_is_documented_once_under_one_base(document: dict[str, Any]) -> None:
    operations = [operation for item in document["paths"].values() for operation in item.values()]

    assert [operation["operationId"] for operation in operations if operation["tags"] == []] == []
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    known = {*WORDS, *(completion.operation for completion in COMPLETIONS.values()), "stream_again"}
    shown = {one.removesuffix("_legacy") for one in ids}
    assert shown == known
    assert {path for path in document["paths"] if path.startswith("/v1")} == set()
    assert {f"{BASE}{path}" for path in DECODERS} <= set(document["paths"])


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in document["tags"]}

    for item in document["paths"].values():
        for operation in item.values():
            assert operation["summary"]
            assert len(operation["description"]) > 12
            assert set(operation["tags"]) <= tags


def test_examples_belong_to_operations() -> None:
    assert set(EXAMPLES) <= {*WORDS, *(completion.operation for completion in COMPLETIONS.values())}


@pytest.mark.parametrize("name", BODY_EXAMPLES)
def test_the_bodies_that_the_page_fills_in_fit_their_schemas(name: str, schemas: dict[str, Any]) -> None:
    validator = jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    )

    for body in BODY_EXAMPLES[name].values():
        validator.validate(body)


def test_the_bodies_of_completions_have_the_fields_that_are_decoded(schemas: dict[str, Any]) -> None:
    assert set(schemas["ChatRequest"]["properties"]) == {*CHAT_CHECKS, *CONVERSATION, *REFUSED}
    assert set(schemas["CompletionRequest"]["properties"]) == {*COMPLETION_CHECKS, "prompt", *REFUSED}
    assert set(schemas["EmbeddingRequest"]["properties"]) == {*EMBEDDING_CHECKS, "input", *REFUSED}


def test_the_small_bodies_have_the_fields_that_are_read(schemas: dict[str, Any]) -> None:
    key = schemas["KeyRequest"]["properties"]

    assert set(key) == set(key_options._FIELDS)
    assert set(key["limits"]["properties"]) == set(key_options._LIMITS)
    assert set(schemas["CatalogueModelRequest"]["properties"]) == set(admin_models._CHECKS)


@pytest.mark.parametrize(
    ("documented", "taken"),
    [
        (queries.PAGE, PAGE_PARAMETERS),
        (queries.TRANSACTIONS, credits.FILTERS),
        (queries.USAGE, usage.FILTERS),
        (queries.SUMMARY, SUMMARY_PARAMETERS),
    ],
)
def test_the_query_parameters_are_those_that_routes_take(documented: Any, taken: Any) -> None:
    assert sorted(parameter["name"] for parameter in documented) == sorted(taken)


def test_every_refusal_of_the_table_is_documented_with_its_status(document: dict[str, Any]) -> None:
    told: dict[str, set[str]] = {}
    for item in document["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                for code in re.findall(r"`(\w+)`", response["description"]) if status >= "400" else ():
                    told.setdefault(code, set()).add(status)

    known = {code: {str(status)} for code, (status, _) in errors._KINDS.items()}
    assert {code: statuses for code, statuses in told.items() if known[code] != statuses} == {}
    assert set(known) - set(told) - EVENT_ONLY == {"method_not_allowed"}  # of paths, not of operations


def test_every_refusal_has_the_one_shape(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_what_needs_no_credentials_says_so(document: dict[str, Any]) -> None:
    opened = {
        operation["operationId"]
        for item in document["paths"].values()
        for operation in item.values()
        if "security" not in operation
    }

    assert opened == {
        "get_models", "get_model", "get_model_health", "register", "login", "receive_stripe_event", "get_live",
        "get_ready",
    }  # fmt: skip


def test_what_changes_something_by_a_session_needs_the_csrf_token(document: dict[str, Any]) -> None:
    for item in document["paths"].values():
        for method, operation in item.items():
            for requirement in operation.get("security", []):
                assert ("csrf" in requirement) == ("session" in requirement and method != "get")
