"""The one place where an error becomes HTTP: status, type, headers and the body that OpenAI's clients know.

Everything raises `shared.errors.Refusal` (or a framework error, translated here); the code decides the rest by the
table of DESIGN section 10. Clients match on words before they look at the status, hence the wording rules there.
"""

import http
from typing import Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, SerializationException

from api.rate_limits import quota_headers
from shared import ids, log, metrics
from shared.errors import InvalidRequest, NotFound, Refusal
from shared.wire import End

RETRY_AFTER_MOST_SECONDS: Final = 120  # openai-python does not retry beyond

_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"
_KINDS: Final[dict[str, tuple[int, str]]] = {
    "invalid_json": (400, _INVALID),
    "invalid_value": (400, _INVALID),
    "missing_required_parameter": (400, _INVALID),
    "unsupported_parameter": (400, _INVALID),
    "context_length_exceeded": (400, _INVALID),
    "invalid_api_key": (401, "authentication_error"),
    "missing_api_key": (401, "authentication_error"),
    "token_expired": (401, "authentication_error"),
    "invalid_credentials": (401, "authentication_error"),
    "insufficient_credits": (402, "insufficient_quota"),
    "key_revoked": (403, "permission_error"),
    "account_deactivated": (403, "permission_error"),
    "model_not_allowed": (403, "permission_error"),
    "scope_missing": (403, "permission_error"),
    "csrf_failed": (403, "permission_error"),
    "registration_closed": (403, "permission_error"),
    "model_not_found": (404, _INVALID),
    "not_found": (404, _INVALID),
    "method_not_allowed": (405, _INVALID),
    "idempotency_key_reused": (409, _INVALID),
    "idempotency_in_progress": (409, _INVALID),
    "request_running": (409, _INVALID),
    "request_cancelled": (409, _INVALID),
    "account_exists": (409, _INVALID),
    "transfer_exists": (409, _INVALID),
    "request_too_large": (413, _INVALID),
    "unsupported_media_type": (415, _INVALID),
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "concurrency_limit_exceeded": (429, "rate_limit_error"),
    "internal_error": (500, _SERVER),
    "model_loading": (502, _SERVER),
    "model_unavailable": (502, _SERVER),
    "queue_full": (502, _SERVER),
    "worker_lost": (502, _SERVER),
    "engine_error": (502, _SERVER),
    "request_quarantined": (502, _SERVER),
    "first_token_timeout": (502, _SERVER),
    "stream_timeout": (502, _SERVER),
    "dependency_unavailable": (503, _SERVER),
}
_RETRY_AFTER_SECONDS: Final = {429: 1, 502: 5, 503: 2}  # where the error itself does not say
_NEVER_AGAIN: Final = frozenset({"request_quarantined"})  # an SDK that repeats it takes more workers down
_FRAMEWORK_CODES: Final = {405: "method_not_allowed", 413: "request_too_large", 415: "unsupported_media_type"}

logger = log.get_logger("errors")


class ErrorObject(msgspec.Struct, frozen=True):
    """What stands under `error`, always with all four keys."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every response that is not a success, and of the error event of a stream."""

    error: ErrorObject


class EventError(ErrorObject, frozen=True):
    """The error of a stream whose status is already sent; `retry_after` in seconds, where a retry may help."""

    retry_after: int | msgspec.UnsetType = msgspec.UNSET


class HttpError(msgspec.Struct, frozen=True):
    """A refusal as the wire sees it."""

    status: int
    headers: dict[str, str]
    body: bytes


def http_error(refusal: Refusal, *, allow: str = "") -> HttpError:
    """Return the whole response of a refusal; `allow` names the methods a 405 could have been."""
    status, kind = _KINDS.get(refusal.code, (500, _SERVER))
    metrics.refused(refusal.code if refusal.code in _KINDS else "internal_error").inc()
    body = msgspec.json.encode(ErrorBody(ErrorObject(refusal.message, kind, refusal.param, refusal.code)))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": refusal.request_id or ids.new_http_id(),
    }
    retry_after = _retry_after_seconds(status, refusal)
    if refusal.quotas is not None:
        headers |= quota_headers(refusal.quotas)
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 409 or refusal.code in _NEVER_AGAIN or not refusal.retryable:
        headers["x-should-retry"] = "false"
    if allow:
        headers["allow"] = allow
    return HttpError(status, headers, body)


def error_event(refusal: Refusal) -> bytes:
    """Return the JSON of the error event of a refusal that came after the status."""
    status, kind = _KINDS.get(refusal.code, (500, _SERVER))
    retry_after = _retry_after_seconds(status, refusal)
    later = msgspec.UNSET if retry_after is None else retry_after
    error = EventError(refusal.message, kind, refusal.param, refusal.code, later)
    return msgspec.json.encode({"error": error})


def ending_error(end: End, request_id: str) -> Refusal:
    """Return the refusal that tells a client why its answer did not complete."""
    assert end.status != "completed"
    code = "request_cancelled" if end.code == "no_reader" else end.code
    if code not in _KINDS:
        code = "engine_error"
    return Refusal(
        end.message or f"The request ended early: {code}.",
        code=code,
        retry_after_seconds=end.retry_after_seconds,
        request_id=request_id,
    )


def internal_error(error: BaseException) -> Refusal:
    """Return what a client is told of a bug; the traceback goes to the log."""
    refusal = Refusal("The server had an error while processing your request.", request_id=ids.new_http_id())
    logger.error("unhandled_error", request_id=refusal.request_id, exc_info=error)
    return refusal


def handle_error(request: Request, error: Exception) -> Response[bytes]:  # type: ignore[type-arg]
    """Answer any exception of an ordinary route or of the router itself; Litestar's one exception handler."""
    answer = http_error(_translate(request, error), allow=_allowed(error))
    return Response(answer.body, status_code=answer.status, headers=answer.headers, media_type="application/json")


def _translate(request: Request, error: Exception) -> Refusal:  # type: ignore[type-arg]
    if isinstance(error, Refusal):
        return error
    if isinstance(error, SerializationException):
        return InvalidRequest("The request body is not valid JSON.", code="invalid_json")
    if not isinstance(error, HTTPException) or error.status_code >= 500:
        return internal_error(error)
    path = ascii(request.scope["path"])[1:-1][:200]
    if error.status_code == 404:
        return NotFound(f"Unknown URL: {request.method} {path}. The API is served under /v1 and /api/v1/inference.")
    code = _FRAMEWORK_CODES.get(error.status_code, "invalid_value")
    return Refusal(f"{http.HTTPStatus(error.status_code).phrase}: {request.method} {path}.", code=code)


def _allowed(error: Exception) -> str:
    headers = getattr(error, "headers", None) or {}
    return next((value for name, value in headers.items() if name.lower() == "allow"), "")


def _retry_after_seconds(status: int, refusal: Refusal) -> int | None:
    least = _RETRY_AFTER_SECONDS.get(status)
    if least is None or not refusal.retryable:
        return None
    return max(1, min(refusal.retry_after_seconds or least, RETRY_AFTER_MOST_SECONDS))
