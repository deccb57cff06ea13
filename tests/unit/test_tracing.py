"""Spans: parents, sampling, what is sent, and that nothing is made while tracing is off."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from shared import tracing
from shared.errors import SettingsInvalid
from shared.settings import MonitoringSettings
from shared.tracing import NO_SPAN, NO_TRACER, Tracer, open_tracer
from tests.otlp import Collector

CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


def _ended(tracer: Tracer) -> list[dict[str, Any]]:
    return tracer.ended()


def test_a_request_goes_on_with_the_trace_of_its_client() -> None:
    tracer = Tracer(on=True)

    span = tracer.begin_request("request", CLIENT)
    span.end()

    [sent] = _ended(tracer)
    assert (sent["traceId"], sent["parentSpanId"]) == (CLIENT[3:35], CLIENT[36:52])
    assert sent["spanId"] != CLIENT[36:52]
    assert span.trace == f"00-{CLIENT[3:35]}-{sent['spanId']}-01"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        CLIENT.upper(),
        CLIENT[:-1],
        "ff" + CLIENT[2:],
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{CLIENT[3:35]}-{'0' * 16}-01",
    ],
)
def test_what_is_no_traceparent_begins_a_trace_of_ours(parent: str) -> None:
    tracer = Tracer(on=True)

    tracer.begin_request("request", parent).end()

    [sent] = _ended(tracer)
    assert sent["parentSpanId"] == ""
    assert sent["traceId"] not in parent


def test_a_client_cannot_ask_for_more_samples_and_children_follow_the_decision() -> None:
    tracer = Tracer(on=True, sample_ratio=0.0)

    span = tracer.begin_request("request", CLIENT)
    child = tracer.begin("run", span.trace)
    child.end()
    span.end()

    assert span.trace.endswith("-00")
    assert child is NO_SPAN
    assert _ended(tracer) == []


def test_without_tracing_there_are_no_spans() -> None:
    assert NO_TRACER.begin("run", CLIENT) is NO_SPAN
    assert Tracer(on=True).begin("run", "") is NO_SPAN
    assert tracing.current() == ""


def test_spans_that_wait_for_a_collector_are_bounded() -> None:
    tracer = Tracer(on=True)

    for number in range(tracing.SPANS_MOST + 5):
        tracer.take({"number": number})

    assert tracer.ended(1) == [{"number": 5}]


async def test_spans_reach_the_collector_when_the_process_ends(collector: Collector) -> None:
    async with open_tracer(MonitoringSettings(otel_endpoint=collector.url), role="worker") as tracer:
        span = tracer.begin("chat demo", CLIENT, started_ms=1_000)
        span.set({"count": 3, "ratio": 0.5, "name": "x", "reasons": ("stop",), "none": None})
        span.end(error="engine_error", ended_ms=2_000)

    [sent] = collector.spans
    assert (sent["path"], sent["service"], sent["name"]) == ("/v1/traces", "inferbase-worker", "chat demo")
    assert (sent["startTimeUnixNano"], sent["endTimeUnixNano"]) == ("1000000000", "2000000000")
    assert sent["status"] == {"code": 2}
    assert sent["attributes"] == [
        {"key": "count", "value": {"intValue": "3"}},
        {"key": "ratio", "value": {"doubleValue": 0.5}},
        {"key": "name", "value": {"stringValue": "x"}},
        {"key": "reasons", "value": {"arrayValue": {"values": [{"stringValue": "stop"}]}}},
        {"key": "error.type", "value": {"stringValue": "engine_error"}},
    ]


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(collector: Collector) -> None:
    collector.close()
    collector.close = lambda: None  # type: ignore[method-assign]

    async with asyncio.timeout(5), open_tracer(MonitoringSettings(otel_endpoint=collector.url), role="api") as tracer:
        tracer.begin_request("request", "").end()

    assert tracer.ended() == []


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://"])
async def test_an_endpoint_that_is_none_is_refused_at_the_start(endpoint: str) -> None:
    with pytest.raises(SettingsInvalid, match="INFERBASE_OTEL_ENDPOINT"):
        async with open_tracer(MonitoringSettings(otel_endpoint=endpoint), role="api"):
            pass


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
async def test_a_sample_ratio_that_is_none_is_refused_at_the_start(ratio: float) -> None:
    with pytest.raises(SettingsInvalid, match="INFERBASE_OTEL_SAMPLE_RATIO"):
        async with open_tracer(MonitoringSettings(otel_endpoint="http://c:1", otel_sample_ratio=ratio), role="api"):
            pass
