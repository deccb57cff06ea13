"""What became of a request that nobody closed, judged from its log and from what its reader witnessed. Pure.

The log decides where it has an end. A log without one was cut, by a crash or by a Redis that lost its last second: then
an API node that saw the end, or saw its client leave, is believed. Nothing is charged for an answer that we broke, and
doubt is for the customer. Source: DESIGN section 5.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from shared.database.requests import OpenRequest
from shared.wire import VERSION, Chunk, Finish, FinishReason, Status, Usage

Evidence = Literal["log", "witness", "nothing"]


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """How to close a request, and what that is taken from."""

    evidence: Evidence
    status: Status
    usage: Usage = Usage()
    code: str | None = None
    finish_reason: FinishReason | None = None
    prefill_began: bool = False


def judge(request: OpenRequest, chunks: Sequence[Chunk]) -> Judgement:
    """Return what `request` and its whole log (empty where it is gone) prove."""
    end = chunks[-1].end if chunks else None
    if end is not None:
        return Judgement(
            evidence="log",
            status=end.status,
            usage=end.usage,
            code=end.code,
            finish_reason=next((chunk.finish_reason for chunk in reversed(chunks) if chunk.finish_reason), None),
            prefill_began=end.usage.completion_tokens > 0,
        )
    witnessed = Usage(request.prompt_tokens or 0, 0, request.delivered_tokens)
    if request.ended == "finished":
        return Judgement(evidence="witness", status="completed", usage=witnessed, prefill_began=True)
    if not chunks and request.ended is None:
        return Judgement(evidence="nothing", status="failed", code="not_run")
    left = request.ended == "client_left"
    return Judgement(
        evidence="log" if chunks else "witness",
        status="cancelled" if left else "failed",
        usage=count(chunks) if chunks else witnessed,
        code="request_cancelled" if left else "worker_lost",
        prefill_began=bool(chunks) or request.prompt_tokens is not None,
    )


def count(chunks: Sequence[Chunk]) -> Usage:
    """Return the tokens of a log; those of the prompt stand on the first chunk of an attempt."""
    prompt_tokens = next((chunk.prompt_tokens for chunk in chunks if chunk.prompt_tokens), 0)
    cached_tokens = next((chunk.cached_tokens for chunk in chunks if chunk.cached_tokens), 0)
    return Usage(prompt_tokens, min(cached_tokens, prompt_tokens), sum(len(chunk.token_ids) for chunk in chunks))


def make_finish(request: OpenRequest, judgement: Judgement, *, attempts: int, now_ms: int) -> Finish:
    """Return the record that closes `request` as judged."""
    age_ms = max(0, now_ms - request.reserved_ms)
    return Finish(
        version=VERSION,
        request_id=request.request_id,
        account_id=request.account_id,
        key_id=request.key_id,
        model=request.model,
        status=judgement.status,
        code=judgement.code,
        finish_reason=judgement.finish_reason,
        usage=judgement.usage,
        prefill_began=judgement.prefill_began,
        attempts=attempts,
        queue_ms=0 if judgement.prefill_began else age_ms,
        ttft_ms=None,
        latency_ms=age_ms,
        finished_ms=now_ms,
    )
