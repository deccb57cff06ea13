"""The Kubernetes manifests: what their schemas say, and what every pod of ours keeps to."""

import re
from typing import Any

import pytest

from shared.settings import load_settings
from tests.cluster import ROOT
from tests.deploy.tools import SCHEMAS, check, documents
from tests.house.settings_table import table

FOLDER = ROOT / "infra" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
FOREIGN = {"kustomization.yaml", "autoscaling.yaml"}
ALL = documents(*FILES)
POLICIES = {each["metadata"]["name"]: each["spec"] for each in ALL if each["kind"] == "NetworkPolicy"}
PODS: dict[str, dict[str, Any]] = {
    each["metadata"]["name"]: each["spec"]["template"] for each in ALL if each["kind"] in ("Deployment", "Job")
}


@pytest.mark.filterwarnings("ignore")
def test_the_manifests_keep_to_their_schemas() -> None:
    check("kubernetes-validate", "--strict", "--quiet", *(file for file in FILES if file.name not in FOREIGN))


def test_the_autoscaler_keeps_to_the_schema_of_keda() -> None:
    check("check-jsonschema", "--schemafile", SCHEMAS / "keda_scaled_object.json", FOLDER / "autoscaling.yaml")


def test_the_autoscaler_goes_down_to_none_and_scales_what_has_no_count_of_its_own() -> None:
    (scaler,) = documents(FOLDER / "autoscaling.yaml")
    (worker,) = [each for each in ALL if each["kind"] == "Deployment" and each["metadata"]["name"] == "worker"]

    assert scaler["spec"]["minReplicaCount"] == 0
    assert scaler["spec"]["scaleTargetRef"]["name"] == "worker"
    assert "replicas" not in worker["spec"]


def test_kustomize_names_every_file_that_is_applied() -> None:
    (kustomization,) = documents(FOLDER / "kustomization.yaml")

    assert set(kustomization["resources"]) == {file.name for file in FILES} - {"kustomization.yaml", "secrets.yaml"}
    for made in kustomization["configMapGenerator"]:
        assert all((FOLDER / file).exists() for file in made["files"])


@pytest.mark.parametrize("name", PODS)
def test_a_pod_keeps_to_the_strictest_profile(name: str) -> None:
    spec = PODS[name]["spec"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])


@pytest.mark.parametrize("name", sorted(set(PODS) - {"migrate"}))
def test_a_process_is_asked_whether_it_lives_and_is_kept_through_disruptions(name: str) -> None:
    (container,) = PODS[name]["spec"]["containers"]
    budgets = {each["metadata"]["name"] for each in ALL if each["kind"] == "PodDisruptionBudget"}

    assert {"readinessProbe", "livenessProbe"} <= set(container)
    assert name in budgets


def test_the_drain_of_every_process_fits_its_grace_period() -> None:
    settings = load_settings({})
    seconds = {name: pod["spec"].get("terminationGracePeriodSeconds", 30) for name, pod in PODS.items()}

    assert seconds["api"] > 5 + settings.api.shutdown_seconds + settings.admission.flush_seconds
    assert seconds["worker"] > settings.worker.drain_seconds + 10
    assert seconds["settlement"] > settings.settlement.settle_drain_seconds + 10


def test_no_rule_leads_a_worker_to_postgres() -> None:
    ports: dict[str, set[int]] = {name: set() for name in PODS}
    for policy in POLICIES.values():
        for rule in policy.get("egress", []):
            for name in PODS:
                if _selects(policy["podSelector"], PODS[name]["metadata"]["labels"]):
                    ports[name] |= {port["port"] for port in rule["ports"]}

    assert POLICIES["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert ports == {
        "api": {53, 6379, 5432},
        "janitor": {53, 6379, 5432},
        "migrate": {53, 6379, 5432},
        "proxy": {53, 8000},
        "settlement": {53, 6379, 5432},
        "worker": {53, 6379},
    }


def test_a_worker_has_no_address_of_postgres_and_no_pepper() -> None:
    secrets = {each["metadata"]["name"]: set(each["stringData"]) for each in ALL if each["kind"] == "Secret"}
    sources = PODS["worker"]["spec"]["containers"][0]["envFrom"]

    assert [source["secretRef"]["name"] for source in sources if "secretRef" in source] == ["inferbase-worker"]
    assert secrets["inferbase-worker"] == {"INFERBASE_WIRE_KEY", "REDIS_URL"}


def test_every_variable_of_ours_is_a_setting() -> None:
    known = set(re.findall(r"`(INFERBASE_\w+)`", table()))
    named = {
        name
        for each in ALL
        if each["kind"] in ("ConfigMap", "Secret")
        for name in {**each.get("data", {}), **each.get("stringData", {})}
    }

    assert {name for name in named if name.startswith("INFERBASE_")} - known == set()


def test_the_template_of_secrets_holds_none() -> None:
    for each in ALL:
        if each["kind"] == "Secret":
            assert all("replace-me" in value for value in each["stringData"].values())


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
