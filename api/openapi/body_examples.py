"""Bodies to begin with, by the name of their schema: what the page fills in, so that it works as it stands."""

from typing import Any, Final

from api.openapi.parts import Schema, reference

_QUESTION: Final = [{"role": "user", "content": "What is Inferbase?"}]
_WEATHER: Final = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_CITY: Final = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}

BODY_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "ChatRequest": {
        "A question": {"model": "inferbase/demo", "messages": _QUESTION},
        "A stream": {
            "model": "inferbase/demo",
            "messages": _QUESTION,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        "A function": {
            "model": "inferbase/demo",
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "tools": [{"type": "function", "function": _WEATHER}],
            "tool_choice": "required",
        },
        "JSON by a schema": {
            "model": "inferbase/demo",
            "messages": [{"role": "user", "content": "Name a city."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY}},
            "max_tokens": 64,
        },
    },
    "CompletionRequest": {
        "A text": {"model": "inferbase/demo", "prompt": "Inferbase is", "max_tokens": 32},
    },
    "EmbeddingRequest": {
        "Two texts": {"model": "inferbase/demo", "input": ["one text", "another"]},
    },
    "KeyRequest": {
        "As much as the asking key": {"name": "laptop"},
        "Little": {
            "name": "laptop",
            "scopes": ["completions"],
            "limits": {"requests_per_minute": 30, "concurrency": 2},
            "budget": "5",
        },
    },
    "RegisterRequest": {"A person": {"email": "you@example.com", "password": "correct horse battery"}},
    "LoginRequest": {"A person": {"email": "you@example.com", "password": "correct horse battery"}},
    "DepositRequest": {"A gift": {"amount": "25.50", "description": "gift"}},
    "CatalogueModelRequest": {
        "A new model": {
            "engine": "simulator",
            "context": 8192,
            "prompt_price": "0.10",
            "completion_price": "0.30",
        },
        "Another price": {"completion_price": "0.25"},
    },
}


def body_content(name: str) -> Schema:
    """Return the content of a request body whose schema has this name."""
    examples = {shown: {"summary": shown, "value": value} for shown, value in BODY_EXAMPLES.get(name, {}).items()}
    described: Schema = {"schema": reference(name)}
    return {"application/json": described | {"examples": examples} if examples else described}
