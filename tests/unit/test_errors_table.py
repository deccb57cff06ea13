"""Errors as clients see them: the table, the headers and the wording of the public API."""

from typing import Any

import msgspec
import pytest

from api.errors import ending_error, error_event, http_error
from shared.errors import (
    AuthenticationFailed,
    BackendFailed,
    Conflict,
    DependencyUnavailable,
    InsufficientCredits,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    Refusal,
)
from shared.wire import End, Usage

TABLE = [
    (400, "invalid_request_error", "invalid_json invalid_value missing_required_parameter unsupported_parameter"),
    (400, "invalid_request_error", "context_length_exceeded"),
    (401, "authentication_error", "invalid_api_key missing_api_key token_expired"),
    (402, "insufficient_quota", "insufficient_credits"),
    (403, "permission_error", "key_revoked account_deactivated model_not_allowed scope_missing csrf_failed"),
    (404, "invalid_request_error", "model_not_found not_found"),
    (405, "invalid_request_error", "method_not_allowed"),
    (409, "invalid_request_error", "idempotency_key_reused idempotency_in_progress"),
    (413, "invalid_request_error", "request_too_large"),
    (415, "invalid_request_error", "unsupported_media_type"),
    (429, "rate_limit_error", "rate_limit_exceeded concurrency_limit_exceeded"),
    (500, "server_error", "internal_error"),
    (502, "server_error", "model_loading model_unavailable queue_full worker_lost engine_error request_quarantined"),
    (502, "server_error", "first_token_timeout stream_timeout"),
    (503, "server_error", "dependency_unavailable"),
]
CODES = [(status, kind, code) for status, kind, codes in TABLE for code in codes.split()]


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = msgspec.json.decode(body)["error"]
    return error


@pytest.mark.parametrize(("status", "kind", "code"), CODES)
def test_every_code_has_its_status_type_and_headers(status: int, kind: str, code: str) -> None:
    answer = http_error(Refusal("Message.", code=code, param="p"))

    assert answer.status == status
    assert error_of(answer.body) == {"message": "Message.", "type": kind, "param": "p", "code": code}
    assert ("retry-after" in answer.headers) == (status in (429, 502, 503))
    assert ("www-authenticate" in answer.headers) == (status == 401)
    hopeless = status == 409 or code == "request_quarantined"
    assert answer.headers.get("x-should-retry") == ("false" if hopeless else None)
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (InvalidRequest(), 400),
        (AuthenticationFailed(), 401),
        (InsufficientCredits(), 402),
        (PermissionDenied(), 403),
        (NotFound(), 404),
        (Conflict(), 409),
        (RateLimited(), 429),
        (BackendFailed(), 502),
        (DependencyUnavailable(), 503),
    ],
)
def test_every_branch_of_the_error_tree_has_its_status(refusal: Refusal, status: int) -> None:
    assert http_error(refusal).status == status


def test_words_that_clients_match_on_stand_only_where_they_mean_it() -> None:
    assert "Incorrect API key provided" in AuthenticationFailed().message
    assert "Insufficient credits" in InsufficientCredits().message
    assert "rate limit" in RateLimited().message
    others = (InvalidRequest, AuthenticationFailed, InsufficientCredits, PermissionDenied, NotFound, Conflict)
    assert not any("rate limit" in error().message.lower() for error in (*others, BackendFailed, DependencyUnavailable))


@pytest.mark.parametrize(("asked", "told"), [(None, "5"), (0, "5"), (1, "1"), (60, "60"), (600, "120")])
def test_retry_after_is_one_to_120_seconds(asked: int | None, told: str) -> None:
    answer = http_error(BackendFailed(code="model_loading", retry_after_seconds=asked))

    assert answer.headers["retry-after"] == told


def test_an_error_of_a_request_carries_its_id() -> None:
    assert http_error(BackendFailed(request_id="chatcmpl-1")).headers["x-request-id"] == "chatcmpl-1"


def test_an_unknown_code_is_a_server_error() -> None:
    assert http_error(Refusal(code="something_new")).status == 500


def test_an_event_tells_when_to_retry() -> None:
    loading = BackendFailed("Loading.", code="model_loading", retry_after_seconds=42)

    assert msgspec.json.decode(error_event(loading)) == {
        "error": {
            "message": "Loading.",
            "type": "server_error",
            "param": None,
            "code": "model_loading",
            "retry_after": 42,
        }
    }
    assert "retry_after" not in error_of(error_event(PermissionDenied()))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("context_length_exceeded", 400),
        ("key_revoked", 403),
        ("request_cancelled", 409),
        ("worker_lost", 502),
        ("no_reader", 409),
        ("never_heard_of", 502),
        (None, 502),
    ],
)
def test_how_an_answer_ended_decides_its_error(code: str | None, status: int) -> None:
    refusal = ending_error(End("failed", Usage(), code, "Why.", 7), "chatcmpl-1")

    assert http_error(refusal).status == status
    assert (refusal.message, refusal.retry_after_seconds, refusal.request_id) == ("Why.", 7, "chatcmpl-1")
