"""Every metric of the product, so that names, units and labels are read in one place. Names end in a unit.

Labels are bounded: models are ids of the catalogue, everything else is a word of ours. Counters of repairs (janitor
closes, lost leases, refused appends, resumed requests, dead letters) are what a test of a fault asserts.

    what waits, per model and lane          the janitor, each second, for all models: take `max` where several run
    tokens, times, slots, repairs           each inference worker, for what it ran itself
    responses, refusals, running answers    each API node
    settled records                         each settlement worker

Source of the gen_ai_… names, labels and bounds: OpenTelemetry semantic conventions for generative AI metrics, with `.`
as `_` and the unit at the end, as OpenTelemetry's Prometheus exporters write them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from prometheus_client import Counter, Gauge

from shared.histogram import Buckets, Histogram

PROVIDER: Final = "inferbase"  # gen_ai.provider.name
OPERATIONS: Final = {"chat": "chat", "completion": "text_completion", "embedding": "embeddings"}  # by kind of task

_REQUEST_BOUNDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_BOUNDS: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_NEXT_BOUNDS: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKEN_BOUNDS: Final = tuple(4**power for power in range(14))  # 1 to 67,108,864
_WAIT_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 86400)
_STEP_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
_LOAD_BOUNDS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1200.0)
_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_GEN_AI: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

# Every process.
PROCESS: Final = Gauge("inferbase_process_info", "1, with the role of this process.", ["role"])
LOOP_LAG: Final = Histogram(
    "inferbase_event_loop_lag_seconds", "How much too late a timer of the event loop fired.", bounds=_LAG_BOUNDS
)

# API node.
RESPONSES: Final = Counter(
    "inferbase_http_responses", "Responses by route and status; 0: the client left before.", ["route", "status"]
)
REFUSED: Final = Counter(
    "inferbase_refused", "Requests refused, by the code of the error, rate limits included.", ["code"], unit="requests"
)
RUNNING_STREAMS: Final = Gauge("inferbase_running_streams", "Answers that clients of this node are reading.")
REVOKED_KEYS: Final = Counter(
    "inferbase_revoked", "Keys and sessions ended: told to this node, or seen in the ledger.", ["seen"], unit="keys"
)
RESERVATIONS: Final = Counter(
    "inferbase_reservations", "Reservations decided by this node, by verdict.", ["verdict"], unit="requests"
)
RELEASED: Final = Counter(
    "inferbase_released", "Reservations that were given back without a run, by reason.", ["code"], unit="requests"
)
OUTBOX_DROPPED: Final = Counter(
    "inferbase_outbox_dropped", "Releases and witnesses lost because the database was down too long.", unit="rows"
)

# Inference worker.
QUEUE_WAIT: Final = Histogram(
    "inferbase_queue_wait_seconds",
    "From the reservation to the first claim.",
    ["model", "lane"],
    bounds=_WAIT_BOUNDS,
)
FIRST_TOKEN: Final = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From the reservation to the first token, of completed requests.",
    _GEN_AI,
    bounds=_FIRST_BOUNDS,
)
NEXT_TOKEN: Final = Histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "Mean time of each further token of a completed request, one observation per request.",
    _GEN_AI,
    bounds=_NEXT_BOUNDS,
)
REQUEST_DURATION: Final = Histogram(
    "gen_ai_server_request_duration_seconds",
    "From the reservation to the end; error_type is empty for completed requests.",
    (*_GEN_AI, "error_type"),
    bounds=_REQUEST_BOUNDS,
)
TOKEN_USAGE: Final = Histogram(
    "gen_ai_client_token_usage",
    "Tokens per completed request, by gen_ai_token_type: input or output.",
    (*_GEN_AI, "gen_ai_token_type"),
    bounds=_TOKEN_BOUNDS,
)
INTER_TOKEN: Final = Histogram(
    "inferbase_inter_token_seconds",
    "Between two steps of the engine for the same request.",
    ["model"],
    bounds=_STEP_BOUNDS,
)
TOKENS: Final = Counter(
    "inferbase_tokens", "Tokens of ended requests: prompt, cached (of the prompt), completion.", ["model", "kind"]
)
ENDED: Final = Counter(
    "inferbase_ended", "Requests that this worker ended, by status.", ["model", "status"], unit="requests"
)
RESUMED: Final = Counter(
    "inferbase_resumed", "Requests taken up in the middle of their answer.", ["model"], unit="requests"
)
LEASES_LOST: Final = Counter("inferbase_leases_lost", "Runs stopped here since another owner may hold their request.")
LEASES_EXPIRED: Final = Counter("inferbase_leases_expired", "Claims of silent workers, found and requeued here.")
APPENDS_REFUSED: Final = Counter(
    "inferbase_refused_appends", "Chunks and ends that the log did not take, by verdict.", ["verdict"]
)
LOG_REFILLS: Final = Counter("inferbase_log_refills", "Logs of requests written again after Redis lost their end.")
SLOTS: Final = Gauge("inferbase_slots", "Choices that a loaded model can run at once.", ["model"])
SLOTS_FREE: Final = Gauge("inferbase_slots_free", "Choices that could start now.", ["model"])
LOAD_SECONDS: Final = Histogram(
    "inferbase_model_load_seconds", "How long loads took (cold starts).", ["model"], bounds=_LOAD_BOUNDS
)
LOADS: Final = Counter("inferbase_model_loads", "Loads, by outcome: loaded or failed.", ["model", "outcome"])
EVICTIONS: Final = Counter(
    "inferbase_model_evictions", "Models closed while listed: idle, or for another one.", ["model"]
)

# Settlement worker.
SETTLED: Final = Counter("inferbase_settled", "Settlement records read, by verdict.", ["verdict"], unit="records")
DEAD_LETTERS: Final = Counter(
    "inferbase_dead_letters", "Settlement records that could not be settled, by reason.", ["reason"], unit="records"
)

# Settlement worker and janitor, so that the lag is seen while no settlement worker lives.
SETTLEMENT_BACKLOG: Final = Gauge("inferbase_settlement_backlog", "Settlement records not yet settled.", unit="records")
SETTLEMENT_LAG: Final = Gauge("inferbase_settlement_lag", "Age of the oldest unsettled record.", unit="seconds")

# Janitor.
QUEUE_DEPTH: Final = Gauge(
    "inferbase_queue_depth", "Requests that wait, suspects as a lane of their own.", ["model", "lane"], unit="requests"
)
QUEUE_OLDEST: Final = Gauge(
    "inferbase_queue_oldest", "Age of the oldest request that waits; 0 without any.", ["model", "lane"], unit="seconds"
)
CLAIMED: Final = Gauge("inferbase_claimed", "Requests in the hands of workers.", ["model"], unit="requests")
MODEL_WORKERS: Final = Gauge("inferbase_model_workers", "Live workers that list a model, by state.", ["model", "state"])
MODELS_UNSERVED: Final = Gauge("inferbase_models_unserved", "Models of the catalogue that no live worker lists.")
DEAD_LETTERS_KEPT: Final = Gauge(
    "inferbase_dead_letters_kept", "Dead letters that wait for an operator.", ["model"], unit="records"
)
JANITOR_CLOSED: Final = Counter(
    "inferbase_janitor_closed", "Requests that nobody else closed, by the evidence used.", ["evidence"], unit="requests"
)
JANITOR_SKIPPED: Final = Counter(
    "inferbase_janitor_skipped", "Sweeps that closed nothing because they could not be sure.", ["reason"], unit="sweeps"
)


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """The label children of one model and kind of task, bound once: finding them costs more than to observe."""

    inter_token: Buckets
    first_token: Buckets
    next_token: Buckets
    input_tokens: Buckets
    output_tokens: Buckets
    prompt: Counter
    cached: Counter
    completion: Counter
    resumed: Counter


@lru_cache(maxsize=4096)
def of_run(model: str, kind: str) -> RunMetrics:
    """Return what a run of `model` observes; `kind` as of wire.Task."""
    labels = (OPERATIONS[kind], PROVIDER, model)
    return RunMetrics(
        inter_token=INTER_TOKEN.labels(model),
        first_token=FIRST_TOKEN.labels(*labels),
        next_token=NEXT_TOKEN.labels(*labels),
        input_tokens=TOKEN_USAGE.labels(*labels, "input"),
        output_tokens=TOKEN_USAGE.labels(*labels, "output"),
        prompt=TOKENS.labels(model, "prompt"),
        cached=TOKENS.labels(model, "cached"),
        completion=TOKENS.labels(model, "completion"),
        resumed=RESUMED.labels(model),
    )


@lru_cache(maxsize=4096)
def ended(model: str, status: str) -> Counter:
    """Return the counter of a model's requests that ended so."""
    return ENDED.labels(model, status)


@lru_cache(maxsize=256)
def refused(code: str) -> Counter:
    """Return the counter of requests refused by `code`."""
    return REFUSED.labels(code)


def request_duration(model: str, kind: str, code: str | None) -> Buckets:
    """Return where the duration of a request belongs that ended by `code`, None: completed."""
    return REQUEST_DURATION.labels(OPERATIONS[kind], PROVIDER, model, code or "")
