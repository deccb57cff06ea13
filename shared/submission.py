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
from shared.database.api_keys import Principal
from shared.database.requests import Reserve, ReserveVerdict
from shared.errors import Conflict, InsufficientCredits, InvalidRequest, PermissionDenied, Refusal
from shared.limits import Limit, Limits
from shared.settings import QueueSettings
from shared.wire import PLAIN_CHAT, VERSION, Job, Lane, Message, Sampling, Task, Tool

COMPLETION_TOKENS_MOST: Final = 4096  # where the client names none
NORMALIZED_CHARACTERS: Final = 64  # at once
EXACT_CHARACTERS_MOST: Final = 131_072  # of a request that are normalised for its bound: 10 ms of the worst ones
EXPANSION_MOST: Final = 3  # of UTF-8 by NFC. Source: Unicode FAQ, Normalization, maximum expansion factors
PREFIX_TOKENS: Final = 4  # what a tokenizer puts around a bare prompt
TOOLS_TOKENS: Final = 1024  # what a template says before it lists the tools
TOOL_TOKENS: Final = 64  # and around each of them
INDENT_BYTES: Final = 8  # that a template may put beside each mark of a JSON text

NEW_ID: Final = {"chat": ids.new_chat_id, "completion": ids.new_completion_id, "embedding": ids.new_embedding_id}


class Idempotency(msgspec.Struct, frozen=True):
    """The client's name for a request, and what it asks for: the same name may not come with another body."""

    key: str
    body_hash: bytes


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded and authenticated request."""

    account_id: str
    key_id: str
    model: Model
    messages: tuple[Message, ...]
    sampling: Sampling
    stream: bool
    patience_seconds: float
    limits: Limits = ()
    lane: Lane = "interactive"
    weight: int = 1  # of the account in fair queueing
    resumable: bool = False  # runs on without a reader; with an idempotency key always
    idempotency: Idempotency | None = None
    task: Task = PLAIN_CHAT
    bounds: Sequence[int] = ()  # as of prompt_bounds, where they were found beside the event loop


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
    bounds = submission.bounds or prompt_bounds(model, submission.messages, submission.task)
    bound = sum(bounds)
    most = _completion_most(submission)
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
        prices=_prices(submission),
        hold=hold_full,
        default_max_tokens=min(model.default_max_tokens, COMPLETION_TOKENS_MOST),
        reader=node_id,
        resumable=submission.resumable or submission.idempotency is not None,
        lane=submission.lane,
        weight=submission.weight,
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
        idempotency_key=None if submission.idempotency is None else submission.idempotency.key,
        body_hash=None if submission.idempotency is None else submission.idempotency.body_hash,
    )
    return job, reserve


def limits_of(principal: Principal) -> Limits:
    """Return what a request of `principal` counts against; nothing where neither key nor account has a limit."""
    limits = []
    if principal.rpm or principal.tpm or principal.key_concurrency:
        limits.append(Limit(principal.key_id, principal.rpm, principal.tpm, principal.key_concurrency))
    if principal.account_rpm or principal.account_tpm or principal.account_concurrency:
        limits.append(
            Limit(principal.account_id, principal.account_rpm, principal.account_tpm, principal.account_concurrency)
        )
    return limits


def tokens_most(submission: Submission) -> int:
    """Return the most tokens that the answer may take of a limit, the prompts' included."""
    if not any(limit.tokens for limit in submission.limits):
        return 0
    model, sampling = submission.model, submission.sampling
    most = 0 if submission.task.kind == "embedding" else _completion_most(submission)
    bounds = submission.bounds or prompt_bounds(model, submission.messages, submission.task)
    return sum(min(bound + sampling.choices * most, sampling.choices * model.context) for bound in bounds)


def admit(job: Job, verdict: ReserveVerdict) -> Job:
    """Return the job with the hold it got, or raise the refusal of its verdict."""
    if verdict.verdict == "reserved":
        return job if verdict.hold == job.hold else msgspec.structs.replace(job, hold=verdict.hold)
    raise _refusal(verdict)


def prompt_bounds(model: Model, messages: Iterable[Message], task: Task) -> list[int]:
    """Return for each prompt a number of tokens that it never exceeds: a token covers at least one byte of text."""
    bytes_most = _BytesMost()
    if task.kind != "chat":
        return [PREFIX_TOKENS + (bytes_most.of(p) if isinstance(p, str) else len(p)) for p in task.prompts]
    total = model.template_tokens
    for message in messages:
        text = message.content if message.name is None else message.content + message.name
        total += model.message_tokens + bytes_most.of(text)
        if message.tool_calls or message.reasoning or message.tool_call_id:
            total += _turn_extras(message, bytes_most)
    if task is not PLAIN_CHAT and task.tool_use is not None:
        total += TOOLS_TOKENS + sum(_tool_bytes(tool, bytes_most) for tool in task.tool_use.tools)
    return [total]


class _BytesMost:
    """The most bytes of the texts of one request, each as it is or in NFC, in time linear in their length.

    Slice by slice: normalising sorts a run of combining marks in quadratic time, 3 s for 80,000 of them. The sum is
    still a bound, since no composition across a seam has more bytes than its parts. What lies beyond
    EXACT_CHARACTERS_MOST gets a bound that takes no time: 2 MiB of marks would hold the interpreter for 100 ms.
    """

    def __init__(self) -> None:
        self._exact_left = EXACT_CHARACTERS_MOST

    def of(self, text: str) -> int:
        """Return the most bytes of one text."""
        if text.isascii():
            return len(text)
        exact = min(len(text), self._exact_left)
        self._exact_left -= exact
        total = EXPANSION_MOST * len(text[exact:].encode())
        for start in range(0, exact, NORMALIZED_CHARACTERS):
            part = text[start : min(start + NORMALIZED_CHARACTERS, exact)]
            total += max(len(part.encode()), len(unicodedata.normalize("NFC", part).encode()))
        return total


def _prices(submission: Submission) -> pricing.Prices:
    """Return the prices of the lane."""
    model = submission.model
    if submission.lane == "interactive":
        return model.prices
    return pricing.discounted(model.prices, model.batch_discount_percent)


def _completion_most(submission: Submission) -> int:
    model = submission.model
    return submission.sampling.max_tokens or min(model.default_max_tokens, COMPLETION_TOKENS_MOST, model.context)


def _turn_extras(message: Message, bytes_most: _BytesMost) -> int:
    """Return the most tokens of what a turn has beside its text."""
    total = bytes_most.of(message.reasoning or "") + bytes_most.of(message.tool_call_id or "")
    for call in message.tool_calls:
        total += TOOL_TOKENS + bytes_most.of(call.id) + len(call.name) + _json_bytes(call.arguments, bytes_most)
    return total


def _tool_bytes(tool: Tool, bytes_most: _BytesMost) -> int:
    described = _json_bytes(tool.description or "", bytes_most)
    return TOOL_TOKENS + len(tool.name) + described + _json_bytes(tool.parameters, bytes_most)


def _json_bytes(text: str, bytes_most: _BytesMost) -> int:
    """Return the most bytes of JSON text once a template has written it anew, with its own spaces and escapes."""
    marks = sum(text.count(mark) for mark in ',:{}[]"\\\n')
    return bytes_most.of(text) + INDENT_BYTES * marks


def _hold(submission: Submission, bounds: Sequence[int], max_tokens: int) -> int:
    """Return what the dearest answer costs: each prompt has its own context."""
    model, prices = submission.model, _prices(submission)
    completion_tokens = 0 if submission.task.kind == "embedding" else max_tokens
    return sum(
        pricing.hold_for(
            prices,
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
        case "duplicate":
            return Conflict("A request with this Idempotency-Key was made just now.", code="idempotency_in_progress")
        case _:
            return InvalidRequest(f"The request could not be reserved: {verdict.verdict}.")
