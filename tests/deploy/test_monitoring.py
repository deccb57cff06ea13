"""Prometheus with the shipped files, and every query that a dashboard, an alert or the autoscaler asks of it."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from shared import metrics
from tests.cluster import ROOT, free_port
from tests.deploy.proxy import tool
from tests.deploy.tools import SCHEMAS, check, documents

RULES = ROOT / "infra" / "prometheus"
GRAFANA = ROOT / "infra" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "inferbase.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in documents(RULES / "rules.yml")[0]["groups"] for rule in group["rules"]]
START_SECONDS = 20.0


def _queries() -> list[str]:
    """Return every query that ships, with a dashboard's variables filled in as Grafana would."""
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    asked += [rule["expr"] for rule in ALERTS]
    (scaler,) = documents(ROOT / "infra" / "kubernetes" / "autoscaling.yaml")
    asked += [trigger["metadata"]["query"] for trigger in scaler["spec"]["triggers"]]
    return [query.replace("$__rate_interval", "1m").replace("$model", ".*") for query in asked]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that runs the shipped configuration; its targets are not there."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={RULES / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()  # its data is thrown away: there is nothing to write out first
        process.wait(10)


def test_the_files_are_sound() -> None:
    for arguments in (("check", "config", RULES / "prometheus.yml"), ("test", "rules", RULES / "rules_test.yml")):
        done = subprocess.run([tool("promtool"), *arguments], capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_loads_with_all_its_rules(prometheus: str) -> None:
    loaded = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]

    assert sum(len(group["rules"]) for group in loaded) == len(ALERTS)
    jobs = httpx.get(f"{prometheus}/api/v1/status/config").json()["data"]["yaml"]
    assert set(re.findall(r"job_name: (\w+)", jobs)) == {"api", "worker", "settlement", "janitor"}


def test_every_query_is_understood(prometheus: str) -> None:
    now = time.time()
    with httpx.Client(base_url=prometheus) as client:
        for query in _queries():
            answer = client.get(
                "/api/v1/query_range", params={"query": query, "start": now - 600, "end": now, "step": 15}
            )
            assert (answer.status_code, answer.json()["status"]) == (200, "success"), (query, answer.text)


def test_every_metric_that_is_asked_for_is_one_of_ours() -> None:
    assert metrics
    families = {family.name: family.type for family in REGISTRY.collect()}
    known = {"up"}
    for name, kind in families.items():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(kind, ("",))
        known |= {name + suffix for suffix in suffixes}

    asked = {name for query in _queries() for name in re.findall(r"\b(?:inferbase|gen_ai)_\w+|\bup\b", _bare(query))}

    assert asked - known == set()


def test_the_dashboard_keeps_to_its_schema() -> None:
    check("check-jsonschema", "--schemafile", SCHEMAS / "grafana_dashboard.json", GRAFANA / "dashboards/inferbase.json")


def test_the_panels_lie_beside_each_other_and_have_ids_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at: dict[str, Any] = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not own & cells, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_asks_the_source_that_is_provisioned() -> None:
    (sources,) = documents(GRAFANA / "provisioning/datasources/prometheus.yaml")

    assert {panel["datasource"]["uid"] for panel in PANELS} == {sources["datasources"][0]["uid"]}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_runbook_that_tells_of_it(rule: dict[str, Any]) -> None:
    runbook = ROOT / rule["annotations"]["runbook"]

    assert rule["labels"]["severity"] in ("page", "ticket")
    assert f"`{rule['alert']}`" in runbook.read_text()


def _bare(query: str) -> str:
    """Return a query without its selectors and labels, whose words are no metrics."""
    return re.sub(r"\{[^}]*\}|\bby \([^)]*\)", "", query)


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
