"""The three operations that run a model: their routes speak ASGI themselves, so the framework knows nothing of them."""

from typing import Final

import msgspec

from api.openapi.answers import refusals, success
from api.openapi.body_examples import body_content
from api.openapi.examples import example_text
from api.openapi.operations import ATTACH, BEHIND, COMPLETION_CODES, RESUME, STREAM_CODES, WAIT, path_parameter
from api.openapi.parts import Schema, reference

IGNORED_HEADER: Final = ("x-inferbase-ignored", "The fields of the body that we do not know, or take without effect.")
QUOTA_HEADERS: Final = tuple(
    (f"x-ratelimit-{part}-{kind}", f"{what} of {kind} per minute, where such a limit applies.")
    for kind in ("requests", "tokens")
    for part, what in (
        ("limit", "The limit"),
        ("remaining", "What is left of the limit"),
        ("reset", "How long until nothing is used of the limit (`6m0s`)"),
    )
)
STREAM_NOTE: Final = (
    " Events end with `data: [DONE]`; lines that begin with a colon only keep the connection alive. What fails after "
    'the first event is one event whose data is `{"error": …}`, and the answer is not charged.'
)


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One of the operations; `events`: the shape of an event's data, empty where there is no stream."""

    operation: str
    summary: str
    description: str
    body: str
    answer: str
    events: str = ""


COMPLETIONS: Final = {
    "/chat/completions": Completion(
        operation="create_chat_completion",
        summary="Answer a conversation",
        description="Credits are held before any work and charged once, for what was delivered.",
        body="ChatRequest",
        answer="ChatCompletion",
        events="ChatCompletionChunk",
    ),
    "/completions": Completion(
        operation="create_completion",
        summary="Go on from a prompt",
        description="The legacy endpoint: no roles and no template, only text or token ids.",
        body="CompletionRequest",
        answer="TextCompletion",
        events="TextCompletion",
    ),
    "/embeddings": Completion(
        operation="create_embedding",
        summary="Embed texts",
        description="Vectors of texts or token ids; refused with `unsupported_parameter` where the engine cannot.",
        body="EmbeddingRequest",
        answer="EmbeddingList",
    ),
}


def completion_operation(completion: Completion, *, base: str, security: list[Schema], resumable: bool) -> Schema:
    """Return the OpenAPI operation of a completion; `base`: the address in its examples."""
    content = {"application/json": reference(completion.answer)}
    description = completion.description
    if completion.events:
        content["text/event-stream"] = _events(completion.events)
    return {
        "operationId": completion.operation,
        "tags": ["Completions"],
        "summary": completion.summary,
        "description": f"{description}\n\n{example_text(completion.operation, base)}",
        "security": security,
        "parameters": [WAIT, ATTACH, *((RESUME,) if resumable else ())],
        "requestBody": {"required": True, "content": body_content(completion.body)},
        "responses": {"200": success("The answer.", content, IGNORED_HEADER, *QUOTA_HEADERS)}
        | refusals(COMPLETION_CODES),
    }


def stream_operation(completion: Completion, *, security: list[Schema]) -> Schema:
    """Return the operation that reads the stream of an answer that was begun before."""
    answered = {"text/event-stream": _events(completion.events)}
    legacy = "_legacy" if completion.operation == "create_completion" else ""
    return {
        "operationId": f"stream_again{legacy}",
        "tags": ["Completions"],
        "summary": "Go on reading a stream",
        "description": "What is behind the event that you have, then what comes: on any node, until 15 minutes after "
        "the end. Each event carries its id.",
        "security": security,
        "parameters": [path_parameter("request_id"), *BEHIND],
        "responses": {"200": success("The answer.", answered)} | refusals(STREAM_CODES),
    }


def _events(shape: str) -> Schema:
    return {  # without a type: tools take the schema for that of the stream, or of each of its events
        "description": f"Events whose data is a `{shape}`.{STREAM_NOTE}",
        "contentMediaType": "text/event-stream",
        "contentSchema": reference(shape),
    }
