"""What a process tells of itself on its own port, and the histogram of the hot path."""

import asyncio
from collections.abc import Callable

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from compose.ports import free_port
from shared import metrics
from shared.errors import InferbaseError
from shared.histogram import Histogram
from shared.monitor import Pulse, open_monitor
from shared.settings import MonitoringSettings


def _settings() -> MonitoringSettings:
    return MonitoringSettings(metrics_port=free_port())


async def _get(settings: MonitoringSettings, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.metrics_port}") as client:
        return await client.get(path)


async def test_metrics_are_served_in_prometheus_text_with_those_of_the_process() -> None:
    settings = _settings()

    async with open_monitor(settings, role="tester", ready=lambda: True):
        answer = await _get(settings, "/metrics")

    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert answer.status_code == 200
    assert families["process_resident_memory_bytes"].samples[0].value > 0
    assert ("inferbase_process_info", {"role": "tester"}, 1.0) in [
        (sample.name, sample.labels, sample.value) for sample in families["inferbase_process_info"].samples
    ]


@pytest.mark.parametrize(("ready", "status"), [(lambda: True, 200), (lambda: False, 503)])
async def test_readyz_is_what_the_process_says(ready: Callable[[], bool], status: int) -> None:
    settings = _settings()

    async with open_monitor(settings, role="tester", ready=ready):
        answers = [(await _get(settings, path)).status_code for path in ("/readyz", "/livez", "/other")]

    assert answers == [status, 200, 404]


async def test_the_port_is_free_again_and_a_taken_one_is_named() -> None:
    settings = _settings()

    for _ in range(2):
        async with open_monitor(settings, role="tester", ready=lambda: True):
            with pytest.raises(InferbaseError, match=str(settings.metrics_port)):
                async with open_monitor(settings, role="tester", ready=lambda: True):
                    pass


async def test_without_a_port_nothing_listens_and_the_loop_is_measured() -> None:
    lag = metrics.LOOP_LAG.labels()
    before = lag.count

    async with open_monitor(MonitoringSettings(), role="tester", ready=lambda: True), asyncio.timeout(5):
        while lag.count == before:
            await asyncio.sleep(0.02)

    assert lag.count > before


def test_a_pulse_is_recent_only_after_a_beat_and_for_a_while() -> None:
    never, stale, fresh = Pulse(), Pulse(seconds_most=-1), Pulse()

    stale.beat()
    fresh.beat()

    assert (never.recent, stale.recent, fresh.recent) == (False, False, True)


def test_a_histogram_counts_each_value_in_the_bucket_whose_bound_is_not_below_it() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("wait_seconds", "How long.", ["model"], bounds=(0.1, 1.0), registry=registry)

    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.labels("a").observe(value)

    samples = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in generate_latest(registry).decode().splitlines()
        if not line.startswith("#")
    }
    assert samples == {
        'wait_seconds_bucket{le="0.1",model="a"}': 2,
        'wait_seconds_bucket{le="1.0",model="a"}': 3,
        'wait_seconds_bucket{le="+Inf",model="a"}': 4,
        'wait_seconds_count{model="a"}': 4,
        'wait_seconds_sum{model="a"}': 7.65,
    }


def test_the_settings_of_monitoring_are_off_by_default() -> None:
    assert msgspec.structs.astuple(MonitoringSettings())[1:3] == (0, "")
