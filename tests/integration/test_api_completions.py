"""Completions as a client on a socket sees them; behind the edge stands a scripted dispatcher."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from shared.errors import (
    BackendFailed,
    DependencyUnavailable,
    InsufficientCredits,
    InvalidRequest,
    RateLimited,
)
from shared.wire import Message
from tests.integration.api_edge import MODEL, Edge, body, chunk, end, events, open_edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge(ping_seconds=0.05, status_hold_seconds=0.05, slow_reader_seconds=0.2) as edge:
        yield edge


async def test_a_whole_answer_is_the_fold_of_its_chunks(edge: Edge) -> None:
    response = await edge.complete()

    (answer,) = edge.dispatcher.answers
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == response.json()["id"] == answer.request_id
    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    assert (answer.told, answer.closed) == ([(4, 3)], 1)


async def test_what_was_decoded_is_what_is_submitted(edge: Edge) -> None:
    await edge.complete(temperature=0, max_tokens=5, stop="x", stream=True)

    (submission,) = edge.dispatcher.submissions
    assert submission.messages == (Message("user", "Hi"),)
    assert (submission.model, submission.stream, submission.account_id) == (MODEL, True, "acct_1")
    assert (submission.sampling.temperature, submission.sampling.max_tokens) == (0, 5)
    assert submission.patience_seconds == edge.node.settings.api.stream_patience_seconds


async def test_stream_and_whole_say_the_same(edge: Edge) -> None:
    whole = (await edge.complete()).json()

    *chunks, usage, _ = events((await edge.complete(stream=True, stream_options={"include_usage": True})).text)

    assert "".join(e["choices"][0]["delta"].get("content", "") for e in chunks) == "Hello"
    assert usage["usage"] == whole["usage"]


@pytest.mark.parametrize("stream", [False, True])
async def test_ignored_fields_are_named_in_a_header(edge: Edge, stream: bool) -> None:
    response = await edge.complete(stream=stream, zeta=1, ignore_eos=True, **{"bad\r\nname": 1})

    assert response.status_code == 200
    assert response.headers["x-inferbase-ignored"] == "ignore_eos, zeta"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [("context_length_exceeded", 400), ("key_revoked", 403), ("model_unavailable", 502), ("model_loading", 502)],
)
async def test_what_fails_before_the_first_token_is_a_real_status(
    edge: Edge, stream: bool, code: str, status: int
) -> None:
    edge.dispatcher.script = [0.01, end(1, status="failed", code=code, message="Why.", retry_after_seconds=9)]

    response = await edge.complete(stream=stream)

    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers.get("retry-after") == ("9" if status == 502 else None)
    assert response.headers["x-request-id"] == edge.dispatcher.answers[0].request_id
    assert edge.dispatcher.answers[0].closed == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (InsufficientCredits(), 402),
        (InvalidRequest(code="context_length_exceeded"), 400),
        (RateLimited(code="concurrency_limit_exceeded"), 429),
        (BackendFailed(code="queue_full"), 502),
        (DependencyUnavailable(), 503),
    ],
)
async def test_a_refused_submission_is_a_real_status(edge: Edge, stream: bool, refusal: Exception, status: int) -> None:
    edge.dispatcher.refusal = refusal

    assert (await edge.complete(stream=stream)).status_code == status


async def test_a_whole_answer_that_breaks_is_a_real_status(edge: Edge) -> None:
    edge.dispatcher.script = [chunk(1, "a"), 0.01, end(2, status="failed", code="worker_lost")]

    response = await edge.complete()

    assert response.status_code == 502
    assert edge.dispatcher.answers[0].told == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_500_and_tells_nothing(edge: Edge, stream: bool) -> None:
    edge.dispatcher.refusal = ZeroDivisionError("secret detail")

    response = await edge.complete(stream=stream)

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("wait", "status", "patience"), [("0", 200, 0), ("600", 200, 600), ("601", 400, 0), ("-1", 400, 0), ("x", 400, 0)]
)
async def test_a_client_may_say_how_long_it_waits(edge: Edge, wait: str, status: int, patience: float) -> None:
    response = await edge.post(body(), inferbase_wait=wait)

    assert response.status_code == status
    if status == 200:
        assert edge.dispatcher.submissions[-1].patience_seconds == patience


async def test_openais_client_streams_and_folds(edge: Edge) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    async with openai.AsyncOpenAI(api_key=edge.key, base_url=edge.base_url) as client:
        whole = await client.chat.completions.create(model=MODEL.id, messages=messages)
        stream = await client.chat.completions.create(
            model=MODEL.id, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [one async for one in stream]

    assert whole.choices[0].message.content == "Hello"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 10
