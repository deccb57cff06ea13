"""Every error of ours, in one tree.

    InferbaseError
    ├── Refusal                      what a client is told: code, message, param, retry_after
    │   ├── InvalidRequest           400 family: the request itself is wrong
    │   ├── AuthenticationFailed     401
    │   ├── InsufficientCredits      402
    │   ├── PermissionDenied         403
    │   ├── NotFound                 404
    │   ├── Conflict                 409
    │   ├── RateLimited              429
    │   ├── BackendFailed            502: no worker, a worker lost, an engine error
    │   └── DependencyUnavailable    503: Postgres or Redis is down
    ├── SettingsInvalid              a process cannot start as configured
    ├── SealInvalid                  bytes from Redis that we did not write
    ├── StatementFailed              Postgres refuses these rows, now and later
    ├── FenceLost                    another owner holds the request now
    └── EngineFailed                 an engine could not answer one request
        ├── AnswerLost               it cannot go on with what another worker began
        └── EngineDead               the engine is lost with all its requests: the process must exit

The HTTP status, the OpenAI error type and the headers are decided in `api/errors.py` alone, by `code`.
"""

from typing import Final

from shared.quota import Quotas


class InferbaseError(Exception):
    """The product failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__class__.__doc__ or "").strip())

    @property
    def message(self) -> str:
        return str(self.args[0])


class Refusal(InferbaseError):
    """The request was refused."""

    default_code: str = "internal_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        request_id: str | None = None,
        retryable: bool = True,
    ) -> None:
        super().__init__(message)
        self.code: Final = code or self.default_code
        self.param: Final = param
        self.retry_after_seconds: Final = retry_after_seconds
        self.request_id = request_id
        self.retryable: Final = retryable  # False: the same request is refused again, however long it waits
        self.quotas: Quotas | None = None  # what is left of the limits that applied


class InvalidRequest(Refusal):
    """The request is not valid."""

    default_code = "invalid_value"


class AuthenticationFailed(Refusal):
    """Incorrect API key provided."""

    default_code = "invalid_api_key"


class InsufficientCredits(Refusal):
    """Insufficient credits: top up your account."""

    default_code = "insufficient_credits"


class PermissionDenied(Refusal):
    """This API key has been revoked."""

    default_code = "key_revoked"


class NotFound(Refusal):
    """There is nothing here."""

    default_code = "not_found"


class Conflict(Refusal):
    """The request conflicts with an earlier one."""

    default_code = "idempotency_key_reused"


class RateLimited(Refusal):
    """The rate limit was reached: slow down requests."""

    default_code = "rate_limit_exceeded"


class BackendFailed(Refusal):
    """The model's backend failed: retry."""

    default_code = "engine_error"


class DependencyUnavailable(Refusal):
    """A store that this request needs is unavailable: retry shortly."""

    default_code = "dependency_unavailable"


class SettingsInvalid(InferbaseError):
    """The settings do not allow this process to start."""


class SealInvalid(InferbaseError):
    """A record from the queue does not carry our seal."""


class StatementFailed(InferbaseError):
    """The database refused a statement for what is in it."""


class FenceLost(InferbaseError):
    """Another owner holds this request now."""


class EngineFailed(InferbaseError):
    """The engine failed to answer this request."""


class AnswerLost(EngineFailed):
    """The worker was lost and the answer could not be continued faithfully. You were not charged."""


class EngineDead(EngineFailed):
    """The engine is lost: this process must exit and be replaced."""
