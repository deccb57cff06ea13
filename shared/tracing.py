"""Traces: one per request, through API node, queue, worker and settlement, sent to a collector by OTLP over HTTP.

    API node    request          server span; its parent is the client's, where it sent `traceparent`
    worker      queue, run       children of the request: from the reservation to the claim, and from there to the end
    settlement  settle           child of the run, or of the request where nothing ran

Off unless `otel_endpoint` is set: then no span is made and nothing is carried. Spans never hold prompts or outputs. The
wire is OTLP's JSON, written here: the packages weigh 15 MB, and would have to agree with the protobuf and requests of
every engine's image. Sources: W3C Trace Context, section 3.2; OTLP specification 1.x, sections OTLP/HTTP and JSON
Protobuf Encoding; the attribute names from the semantic conventions for generative AI spans.
"""

import asyncio
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec

from shared import log
from shared.errors import SettingsInvalid
from shared.settings import MonitoringSettings

Value = str | int | float | tuple[str, ...] | None  # of an attribute; None: it is left out

HEADER: Final = b"traceparent"
KINDS: Final = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
SPANS_MOST: Final = 20_000  # that wait for the collector; the oldest go first
BATCH_MOST: Final = 512
SEND_SECONDS: Final = 1.0  # between two batches
TIMEOUT_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0  # for what is left, at the end

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_RATIO_BITS: Final = 56  # of a trace id that decide: its random end
_CURRENT: Final[ContextVar[str]] = ContextVar("trace", default="")

logger = log.get_logger("tracing")


def current() -> str:
    """Return the `traceparent` of the request that the running task answers; empty where it is not traced."""
    return _CURRENT.get()


class Span:
    """One timed step. `trace` is what its children name as their parent; empty: this one is not recorded."""

    __slots__ = ("_attributes", "_kind", "_name", "_parent", "_started_ns", "_tracer", "trace")

    def __init__(self, tracer: "Tracer", name: str, *, trace: str, parent: str, kind: str, started_ns: int) -> None:
        self.trace: Final = trace
        self._tracer = tracer
        self._name = name
        self._parent = parent
        self._kind = kind
        self._started_ns = started_ns
        self._attributes: dict[str, Value] = {}

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Note attributes."""
        self._attributes |= attributes

    def carry(self) -> None:
        """Let `current` of the running task, and of tasks that it starts, be this span."""
        _CURRENT.set(self.trace)

    def end(self, *, error: str | None = None, ended_ms: int | None = None) -> None:
        """Hand the span over; `error`: the code by which the step failed."""
        if not self.trace.endswith("01"):
            return
        _, trace_id, span_id, _ = self.trace.split("-")
        if error is not None:
            self._attributes["error.type"] = error
        self._tracer.take(
            {
                "traceId": trace_id,
                "spanId": span_id,
                "parentSpanId": self._parent,
                "flags": 1,
                "name": self._name,
                "kind": KINDS[self._kind],
                "startTimeUnixNano": str(self._started_ns),
                "endTimeUnixNano": str(time.time_ns() if ended_ms is None else ended_ms * 1_000_000),
                "attributes": _attributes(self._attributes),
                "status": {} if error is None else {"code": 2},
            }
        )


class Tracer:
    """Makes spans and keeps those that ended until they are sent."""

    def __init__(self, *, on: bool, sample_ratio: float = 1.0) -> None:
        self.on: Final = on
        self._sample_below: Final = int(sample_ratio * (1 << _RATIO_BITS))
        self._ended: deque[dict[str, Any]] = deque(maxlen=SPANS_MOST)

    def begin_request(self, name: str, parent: str) -> Span:
        """Return the first span of ours; `parent` is what a client sent, maybe nonsense. The sampling is ours."""
        match = _PARENT.fullmatch(parent)
        trace_id, parent_id = secrets.token_hex(16), ""
        if match is not None and match[1] != "ff" and int(match[2], 16) and int(match[3], 16):
            trace_id, parent_id = match[2], match[3]
        sampled = int(trace_id, 16) % (1 << _RATIO_BITS) < self._sample_below
        trace = f"00-{trace_id}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"
        return Span(self, name, trace=trace, parent=parent_id, kind="server", started_ns=time.time_ns())

    def begin(self, name: str, parent: str, *, kind: str = "internal", started_ms: int | None = None) -> Span:
        """Return a child of the span whose `trace` is `parent`; one that records nothing where that did not."""
        if not self.on or not parent.endswith("01"):
            return NO_SPAN
        _, trace_id, parent_id, flags = parent.split("-")
        started_ns = time.time_ns() if started_ms is None else started_ms * 1_000_000
        trace = f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
        return Span(self, name, trace=trace, parent=parent_id, kind=kind, started_ns=started_ns)

    def take(self, span: dict[str, Any]) -> None:
        """Keep a span that ended."""
        self._ended.append(span)

    def ended(self, most: int = BATCH_MOST) -> list[dict[str, Any]]:
        """Return up to `most` spans that ended, in OTLP's JSON form, and forget them."""
        return [self._ended.popleft() for _ in range(min(most, len(self._ended)))]


class _NoSpan(Span):
    __slots__ = ()

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Nothing is recorded."""


NO_TRACER: Final = Tracer(on=False)
NO_SPAN: Final = _NoSpan(NO_TRACER, "", trace="", parent="", kind="internal", started_ns=0)


@asynccontextmanager
async def open_tracer(settings: MonitoringSettings, *, role: str) -> AsyncIterator[Tracer]:
    """Yield a tracer that sends what ended each second, and what is left at the end.

    Raises SettingsInvalid for an endpoint or a ratio that is none. A collector that is away costs its spans alone.
    """
    if not settings.otel_endpoint:
        yield NO_TRACER
        return
    url = _traces_url(settings.otel_endpoint)
    if not 0 <= settings.otel_sample_ratio <= 1:
        raise SettingsInvalid("INFERBASE_OTEL_SAMPLE_RATIO must be a number from 0 to 1")
    tracer = Tracer(on=True, sample_ratio=settings.otel_sample_ratio)
    sending = asyncio.get_running_loop().create_task(_send_always(tracer, url, role))
    try:
        yield tracer
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while spans := tracer.ended():
                    await asyncio.to_thread(_post, url, _payload(spans, role))
        except (OSError, TimeoutError) as error:
            logger.warning("spans_lost", error=repr(error))


async def _send_always(tracer: Tracer, url: str, role: str) -> None:
    while True:
        await asyncio.sleep(SEND_SECONDS)
        while spans := tracer.ended():
            try:
                await asyncio.to_thread(_post, url, _payload(spans, role))
            except OSError as error:
                logger.warning("spans_lost", spans=len(spans), error=repr(error))


def _post(url: str, payload: bytes) -> None:
    """Send one batch; raises OSError, of which urllib's errors are kinds."""
    request = Request(url, data=payload, headers={"Content-Type": "application/json"})  # noqa: S310 checked when opened
    try:
        with urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            answer.read()
    except HTTPError as error:
        error.close()
        raise


def _payload(spans: Sequence[dict[str, Any]], role: str) -> bytes:
    resource = _attributes({"service.name": f"inferbase-{role}", "service.namespace": "inferbase"})
    scoped = [{"scope": {"name": "inferbase"}, "spans": spans}]
    return msgspec.json.encode({"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": scoped}]})


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: str | int | float | tuple[str, ...]) -> dict[str, Any]:
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [{"stringValue": one} for one in value]}}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64-bit integers are strings in Protobuf's JSON
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}


def _traces_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingsInvalid("INFERBASE_OTEL_ENDPOINT must be an address such as http://collector:4318")
    return endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
