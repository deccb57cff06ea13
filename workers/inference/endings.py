"""How a request ends when the model does not end it: status, words for a person, and when to retry.

Source: DESIGN section 5 (table of endings) and section 10 (codes).
"""

from typing import Final

from shared.queue.worker import FENCE_LOST, HANDED_OVER
from shared.wire import Status

APPENDED: Final = frozenset({"appended", "finished", "already"})
HANDED_ON: Final = frozenset({FENCE_LOST, HANDED_OVER})  # another owner ends the request
RETRY_AFTER_SECONDS: Final = {
    "model_loading": 10,
    "model_unavailable": 10,
    "worker_lost": 1,
    "engine_error": 1,
    "first_token_timeout": 5,
    "stream_timeout": 5,
}

_CANCELLED: Final = frozenset({"request_cancelled", "no_reader"})
_MESSAGES: Final = {
    "request_cancelled": "The request was cancelled.",
    "no_reader": "The request was cancelled: nobody was reading its answer.",
    "key_revoked": "The API key of this request was revoked.",
    "model_unavailable": "No worker took the request in time: the model is unavailable. Retry later.",
    "model_loading": "The model is still loading. Retry later.",
    "worker_lost": "The worker was lost and the answer could not be continued faithfully. You were not charged.",
    "engine_error": "The engine failed. You were not charged.",
    "request_quarantined": "The request was stopped after it ended two workers. You were not charged.",
    "first_token_timeout": "The model gave no token in time. You were not charged.",
    "stream_timeout": "The model stopped giving tokens. You were not charged.",
}


def status(code: str, *, ran: bool) -> Status:
    """Return the usage status of an ending; `ran`: prefill had begun."""
    if code == "run_deadline":
        return "completed"
    if code in _CANCELLED or (code == "key_revoked" and ran):
        return "cancelled"
    return "failed"


def message(code: str) -> str:
    """Return what a person is told."""
    return _MESSAGES.get(code, "The request could not be finished. You were not charged.")
