"""The documented bodies of completions are those that are decoded: what a schema forbids is refused, and no more."""

import re
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.openapi.completion_bodies import body_schemas
from api.openapi.conversation import conversation_schemas
from shared.errors import InvalidRequest
from shared.openai.decode import decode_chat
from shared.openai.decode_prompts import decode_completion, decode_embedding

SCHEMAS = body_schemas() | conversation_schemas()
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "m", "prompt": "Hi"}
EMBEDDING = {"model": "m", "input": "Hi"}

# What JSON Schema cannot say, and the descriptions do: rules between fields, and references.
BETWEEN_FIELDS = re.compile(
    r"is only allowed when|mean the same and disagree|beyond 'n'|over all prompts|together with 'echo'|asks for a "
    r"function|not in 'tools'|same name|no earlier message|\$ref|JSON schema of at most|is there twice|control char"
    r"|must be UTF-8|Missing required parameter: 'messages\[\d+\].content'|only allowed for the role"
    r"|patterns of at most"
)

TEXTS = [
    "", "a", "x" * 64, "x" * 65, "none", "auto", "required", "text", "default", "flex", "float", "base64", "low",
    "function", "user", "assistant", "tool", "system", "developer", "json_object", "json_schema",
]  # fmt: skip
NUMBERS = [
    0, 1, 2, 3, 4, 5, 6, 8, 9, 16, 20, 21, -1, -2, -3, -100, 100, 101, 0.5, 1.0, 1.5, 2.0, 2.5, -0.5, 2**24,
    2**24 + 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 1e300,
]  # fmt: skip
KEYS = [
    "type", "role", "content", "text", "name", "function", "arguments", "id", "mode", "tools", "tool_calls", "refusal",
    "json_schema", "schema", "allowed_tools", "include_usage", "12", "parameters", "strict", "audio",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
NAMED = st.fixed_dictionaries({"type": st.sampled_from(["function", "custom"]), "function": st.just({"name": "f"})})
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "function"])},
        optional={
            "content": VALUES
            | st.just([{"type": "text", "text": "a"}])
            | st.just([{"type": "refusal", "refusal": "a"}]),
            "name": VALUES,
            "tool_calls": VALUES | st.just([{"id": "c", "function": {"name": "f", "arguments": "{}"}}]),
            "tool_call_id": st.just("c") | VALUES,
            "reasoning_content": VALUES,
            "refusal": VALUES,
            "audio": VALUES,
            "other": VALUES,
        },
    ),
    max_size=3,
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function")},
        optional={"function": VALUES | st.fixed_dictionaries({"name": st.just("f")}, optional={"parameters": VALUES})},
    ),
    max_size=2,
)
OWN = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": NAMED}
CASES = {
    "ChatRequest": (CHAT, decode_chat),
    "CompletionRequest": (COMPLETION, decode_completion),
    "EmbeddingRequest": (EMBEDDING, decode_embedding),
}
FIELDS = [(name, field) for name in CASES for field in [*SCHEMAS[name]["properties"], "something_new"]]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_field_takes_what_its_schema_says(name: str, field: str) -> None:
    base, decode = CASES[name]
    validator = jsonschema_rs.validator_for(_schema(name))
    values = OWN[field] | VALUES if field in OWN else VALUES

    @settings(max_examples=40, derandomize=True, deadline=None, database=None)
    @given(values)
    def check(value: Any) -> None:
        body = {**base, field: value}
        refused = _refused(decode, body)
        if not validator.is_valid(body):
            assert refused is not None, f"forbidden by the document, and taken: {value!r}"
        elif refused is not None:
            assert BETWEEN_FIELDS.search(refused), f"allowed by the document, and refused: {value!r}: {refused}"

    check()


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_missed(name: str) -> None:
    base, decode = CASES[name]

    for field in SCHEMAS[name]["required"]:
        assert _refused(decode, {key: value for key, value in base.items() if key != field})


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}


def _refused(decode: Any, body: dict[str, Any]) -> str | None:
    """Return why a body is refused; None where it is not. Anything but a refusal is a bug."""
    try:
        decode(msgspec.json.encode(body))
    except InvalidRequest as error:
        return error.message
    return None
