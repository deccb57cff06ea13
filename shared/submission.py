"""From a decoded request to what is reserved and what is queued: bounds, holds and deadlines. No I/O.

Called by shared/dispatch.py. The hold covers the dearest answer that the request allows (shared/pricing.py); a request
without max_tokens may be lowered to what the account has, one with it is all or nothing.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from shared import ids, pricing
from shared.catalogue import Model
from shared.database.requests import Reserve, ReserveVerdict
from shared.errors import InsufficientCredits, InvalidRequest, PermissionDenied, Refusal
from shared.settings import QueueSettings
from shared.wire import PLAIN_CHAT, VERSION, Job, Lane, Message, Sampling, Task, Tool

COMPLETION_TOKENS_MOST: Final = 4096  # where the client names none
NORMALIZED_CHARACTERS: Final = 64  # at once
PREFIX_TOKENS: Final = 4  # what a tokenizer puts around a bare prompt
TOOLS_TOKENS: Final = 1024  # what a template says before it lists the tools
TOOL_TOKENS: Final = 64  # and around each of them
INDENT_BYTES: Final = 8  # that a template may put beside each mark of a JSON text

NEW_ID: Final = {"chat": ids.new_chat_id, "completion": ids.new_completion_id, "embedding": ids.new_embedding_id}

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
    bounds = prompt_bounds(model, submission.messages, submission.task)
    bound = sum(bounds)
    most = max_tokens or min(model.default_max_tokens, COMPLETION_TOKENS_MOST, model.context)
    hold_full = _hold(submission, bounds, most)
    queue_deadline = now_ms + int(submission.patience_seconds * 1000)
    deadline = queue_deadline + int((settings.run_seconds_most + settings.deadline_grace_seconds) * 1000)
    job = Job(
        version=VERSION,
        request_id=NEW_ID[submission.task.kind](),
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
        hold_least=hold_full if max_tokens is not None else _hold(submission, bounds, 1),
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


def prompt_bounds(model: Model, messages: Iterable[Message], task: Task) -> list[int]:
    """Return for each prompt a number of tokens that it never exceeds: a token covers at least one byte of text."""
    if task.kind != "chat":
        return [PREFIX_TOKENS + (_bytes_most(p) if isinstance(p, str) else len(p)) for p in task.prompts]
    total = model.template_tokens
    for message in messages:
        text = message.content if message.name is None else message.content + message.name
        total += model.message_tokens + _bytes_most(text)
        if message.tool_calls or message.reasoning or message.tool_call_id:
            total += _turn_extras(message)
    if task is not PLAIN_CHAT and task.tool_use is not None:
        total += TOOLS_TOKENS + sum(_tool_bytes(tool) for tool in task.tool_use.tools)
    return [total]


def _turn_extras(message: Message) -> int:
    """Return the most tokens of what a turn has beside its text."""
    total = _bytes_most(message.reasoning or "") + _bytes_most(message.tool_call_id or "")
    for call in message.tool_calls:
        total += TOOL_TOKENS + _bytes_most(call.id) + len(call.name) + _json_bytes(call.arguments)
    return total


def _tool_bytes(tool: Tool) -> int:
    return TOOL_TOKENS + len(tool.name) + _json_bytes(tool.description or "") + _json_bytes(tool.parameters)


def _json_bytes(text: str) -> int:
    """Return the most bytes of JSON text once a template has written it anew, with its own spaces and escapes."""
    marks = sum(text.count(mark) for mark in ',:{}[]"\\\n')
    return _bytes_most(text) + INDENT_BYTES * marks


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


def _hold(submission: Submission, bounds: Sequence[int], max_tokens: int) -> int:
    """Return what the dearest answer costs: each prompt has its own context."""
    model = submission.model
    completion_tokens = 0 if submission.task.kind == "embedding" else max_tokens
    return sum(
        pricing.hold_for(
            model.prices,
            prompt_bound=bound,
            max_tokens=completion_tokens,
            choices=submission.sampling.choices,
            context=model.context,
        )
        for bound in bounds
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
