"""From a decoded request to what is reserved and what is queued: bounds, holds and deadlines. No I/O.

Called by shared/dispatch.py. The hold covers the dearest answer that the request allows (shared/pricing.py); a request
without max_tokens may be lowered to what the account has, one with it is all or nothing.
"""

import unicodedata
from collections.abc import Iterable
from typing import Final

import msgspec

from shared import ids, pricing
from shared.catalogue import Model
from shared.database.requests import Reserve, ReserveVerdict
from shared.errors import InsufficientCredits, InvalidRequest, PermissionDenied, Refusal
from shared.settings import QueueSettings
from shared.wire import PLAIN_CHAT, VERSION, Job, Lane, Message, Sampling, Task

COMPLETION_TOKENS_MOST: Final = 4096  # where the client names none
NORMALIZED_CHARACTERS: Final = 64  # at once

Holders = list[tuple[str, int]]  # whose concurrency a request counts against, and their bounds


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded and authenticated request. Concurrency bounds: 0 = none."""

    account_id: str
    key_id: str
    model: Model
    messages: tuple[Message, ...]
    sampling: Sampling
    stream: bool
    patience_seconds: float
    key_concurrency: int
    account_concurrency: int
    lane: Lane = "interactive"
    resumable: bool = False
    task: Task = PLAIN_CHAT


def prepare(submission: Submission, settings: QueueSettings, *, node_id: str, now_ms: int) -> tuple[Job, Reserve]:
    """Return the job and the reservation of a submission; InvalidRequest where max_tokens alone exceeds the context."""
    model, sampling = submission.model, submission.sampling
    max_tokens = sampling.max_tokens
    if max_tokens is not None and max_tokens >= model.context:
        raise InvalidRequest(
            f"This model's maximum context length is {model.context} tokens. However, you requested "
            f"{max_tokens} tokens for the completion. Please reduce max_tokens.",
            code="context_length_exceeded",
            param="max_tokens",
        )
    bound = prompt_bound(model, submission.messages)
    most = max_tokens or min(model.default_max_tokens, COMPLETION_TOKENS_MOST, model.context)
    hold_full = _hold(submission, bound, most)
    queue_deadline = now_ms + int(submission.patience_seconds * 1000)
    deadline = queue_deadline + int((settings.run_seconds_most + settings.deadline_grace_seconds) * 1000)
    job = Job(
        version=VERSION,
        request_id=ids.new_chat_id(),
        account_id=submission.account_id,
        key_id=submission.key_id,
        model=model.id,
        messages=submission.messages,
        sampling=sampling,
        prices=model.prices,
        hold=hold_full,
        default_max_tokens=min(model.default_max_tokens, COMPLETION_TOKENS_MOST),
        reader=node_id,
        resumable=submission.resumable,
        lane=submission.lane,
        weight=1,
        cost_tokens=bound + most,
        reserved_ms=now_ms,
        queue_deadline_ms=queue_deadline,
        deadline_ms=deadline,
        task=submission.task,
    )
    reserve = Reserve(
        request_id=job.request_id,
        account_id=job.account_id,
        key_id=job.key_id,
        model=job.model,
        stream=submission.stream,
        lane=job.lane,
        resumable=job.resumable,
        prices=job.prices,
        prompt_bound=bound,
        max_tokens=max_tokens,
        hold_full=hold_full,
        hold_least=hold_full if max_tokens is not None else _hold(submission, bound, 1),
        reserved_ms=now_ms,
        queue_deadline_ms=queue_deadline,
        deadline_ms=deadline,
        idempotency_key=None,
        body_hash=None,
    )
    return job, reserve


def holders_of(submission: Submission) -> Holders:
    """Return whose concurrency the request counts against; nobody's where there is no bound."""
    bounds = ((submission.key_id, submission.key_concurrency), (submission.account_id, submission.account_concurrency))
    return [(holder, most) for holder, most in bounds if most]


def admit(job: Job, verdict: ReserveVerdict) -> Job:
    """Return the job with the hold it got, or raise the refusal of its verdict."""
    if verdict.verdict == "reserved":
        return job if verdict.hold == job.hold else msgspec.structs.replace(job, hold=verdict.hold)
    raise _refusal(verdict)


def prompt_bound(model: Model, messages: Iterable[Message]) -> int:
    """Return a number of tokens that the rendered prompt never exceeds: a token covers at least one byte of text."""
    total = model.template_tokens
    for message in messages:
        text = message.content if message.name is None else message.content + message.name
        total += model.message_tokens + _bytes_most(text)
    return total


def _bytes_most(text: str) -> int:
    """Return the most bytes of `text`, as it is or in NFC, in time linear in its length.

    Slice by slice: normalising sorts a run of combining marks in quadratic time, 3 s for 80,000 of them. The sum is
    still a bound, since no composition across a seam has more bytes than its parts.
    """
    if text.isascii():
        return len(text)
    total = 0
    for start in range(0, len(text), NORMALIZED_CHARACTERS):
        part = text[start : start + NORMALIZED_CHARACTERS]
        total += max(len(part.encode()), len(unicodedata.normalize("NFC", part).encode()))
    return total


def _hold(submission: Submission, bound: int, max_tokens: int) -> int:
    return pricing.hold_for(
        submission.model.prices,
        prompt_bound=bound,
        max_tokens=max_tokens,
        choices=submission.sampling.choices,
        context=submission.model.context,
    )


def _refusal(verdict: ReserveVerdict) -> Refusal:
    match verdict.verdict:
        case "insufficient":
            available = pricing.format_credits(verdict.available)
            return InsufficientCredits(f"Insufficient credits: {available} available. Top up your account.")
        case "account_inactive":
            return PermissionDenied("This account is deactivated.", code="account_deactivated")
        case "key_revoked":
            return PermissionDenied()
        case "budget_exceeded":
            return InsufficientCredits("Insufficient credits: the budget of this API key is used up.")
        case _:
            return InvalidRequest(f"The request could not be reserved: {verdict.verdict}.")
