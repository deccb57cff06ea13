"""What one run tells of itself: its metrics, and its spans in the request's trace. Never what was asked or answered.

The end of a request is measured once, by whoever wrote its end; steps by whoever made them.
"""

from typing import Final

from shared import metrics
from shared.queue.worker import Claim
from shared.tracing import NO_SPAN, Span, Tracer
from shared.wire import Finish


class RunMeasures:
    """Begins with the claim; `close` must follow, whatever happened in between."""

    def __init__(self, claim: Claim, tracer: Tracer) -> None:
        job = claim.job
        self._kind: Final = job.task.kind
        self._metrics: Final = metrics.of_run(job.model, job.task.kind)
        self._span: Span = NO_SPAN
        first = claim.attempt == 1 and claim.close is None
        if first:
            waited_ms = max(0, claim.first_claim_ms - job.reserved_ms)
            metrics.QUEUE_WAIT.labels(job.model, job.lane).observe(waited_ms / 1000)
        elif claim.seq > 0 and claim.close is None:
            self._metrics.resumed.inc()
        self.step: Final = self._metrics.inter_token.observe  # seconds between two steps of the engine
        self._trace_of_job: Final = job.trace
        if not job.trace:
            return
        if first:
            waiting = tracer.begin("queue", job.trace, started_ms=job.reserved_ms)
            waiting.set({"inferbase.lane": job.lane, "gen_ai.request.model": job.model})
            waiting.end(ended_ms=max(claim.first_claim_ms, job.reserved_ms))
        operation = metrics.OPERATIONS[job.task.kind]
        self._span = tracer.begin(f"{operation} {job.model}", job.trace, kind="consumer")
        self._span.set(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": metrics.PROVIDER,
                "gen_ai.request.model": job.model,
                "gen_ai.request.max_tokens": job.sampling.max_tokens,
                "gen_ai.request.choice.count": job.sampling.choices if job.sampling.choices > 1 else None,
                "gen_ai.response.id": job.request_id,
                "inferbase.attempt": claim.attempt,
                "inferbase.resumed_seq": claim.seq or None,
            }
        )

    @property
    def trace(self) -> str:
        """What a child of this run names as its parent; the request's span where this run is not recorded."""
        return self._span.trace or self._trace_of_job

    def ended(self, record: Finish) -> None:
        """Note the end of the request, once it is written."""
        usage, model = record.usage, record.model
        metrics.ended(model, record.status).inc()
        error = None if record.status == "completed" else record.code or record.status
        metrics.request_duration(model, self._kind, error).observe(record.latency_ms / 1000)
        bound = self._metrics
        bound.prompt.inc(usage.prompt_tokens)
        if usage.cached_tokens:
            bound.cached.inc(usage.cached_tokens)
        bound.completion.inc(usage.completion_tokens)
        if error is None:
            bound.input_tokens.observe(usage.prompt_tokens)
            bound.output_tokens.observe(usage.completion_tokens)
            if record.ttft_ms is not None:
                bound.first_token.observe(record.ttft_ms / 1000)
                if usage.completion_tokens > 1:
                    spread_ms = max(0, record.latency_ms - record.ttft_ms)
                    bound.next_token.observe(spread_ms / 1000 / (usage.completion_tokens - 1))
        if self._span is not NO_SPAN:
            self._end_span(record, error)

    def close(self) -> None:
        """End what did not end: the run was handed over, or another owner holds its request."""
        self._span.end(error="not_ended")
        self._span = NO_SPAN

    def _end_span(self, record: Finish, error: str | None) -> None:
        usage, reason = record.usage, record.finish_reason
        self._span.set(
            {
                "gen_ai.response.model": record.model,
                "gen_ai.response.finish_reasons": None if reason is None else (reason,),
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "inferbase.queue_ms": record.queue_ms,
                "inferbase.first_token_ms": record.ttft_ms,
            }
        )
        self._span.end(error=error)
        self._span = NO_SPAN
