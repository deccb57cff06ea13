"""Images and compose files: what their own checkers say, and what every container of ours keeps to."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.settings import load_settings
from tests.cluster import ROOT
from tests.deploy.tools import check, documents

FOLDER = ROOT / "compose"
FILES = (FOLDER / "compose.yaml", FOLDER / "compose.gpu.yaml")
MAIN, GPU = (documents(file)[0] for file in FILES)
SERVICES: dict[str, dict[str, Any]] = {**MAIN["services"], **GPU["services"]}


def test_the_dockerfiles_are_sound() -> None:
    check("hadolint", *sorted(FOLDER.glob("*Dockerfile")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_compose_files_keep_to_the_specification(file: Path) -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert "memory" in service.get("deploy", {"resources": {"limits": {"memory": ""}}})["resources"]["limits"]
    assert not service.get("privileged")
    assert all(mount.endswith(":ro") for mount in service.get("volumes", []) if mount.startswith(".."))


def test_no_worker_is_on_the_network_of_postgres() -> None:
    for name in ("worker", "gpu-worker"):
        assert set(SERVICES[name]["networks"]) == {"queue", "watch"}
        assert {secret["source"] for secret in SERVICES[name]["secrets"]} == {"wire_key", "redis_url_worker"}
    on_ledger = {name for name, service in SERVICES.items() if "ledger" in service["networks"]}
    assert on_ledger == {"api0", "api1", "settlement", "janitor", "migrate", "grants", "operator", "demo", "postgres"}
    assert all(MAIN["networks"][name]["internal"] for name in ("front", "queue", "ledger", "watch"))


def test_only_the_proxy_and_grafana_can_be_reached_and_only_from_this_host() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert set(published) == {"proxy", "grafana"}
    assert all("127.0.0.1" in port for ports in published.values() for port in ports)


def test_each_process_has_secrets_of_its_own_user() -> None:
    for name in ("api0", "api1", "settlement", "janitor"):
        user = name.rstrip("01")
        sources = {secret["source"] for secret in SERVICES[name]["secrets"] if "_url_" in secret["source"]}
        assert sources == {f"redis_url_{user}", f"database_url_{user}"}


def test_every_secret_is_made_by_the_script(tmp_path: Path) -> None:
    subprocess.run([FOLDER / "make_secrets.sh", tmp_path], check=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    subprocess.run([FOLDER / "make_secrets.sh", tmp_path], check=True)

    assert {Path(secret["file"]).name for secret in MAIN["secrets"].values()} <= set(before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert tmp_path.stat().st_mode & 0o077 == 0
    assert len(before["wire_key"]) >= 32


def test_what_a_file_names_is_there() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            if mount.startswith(".."):
                assert (FOLDER / mount.split(":")[0]).exists(), mount
        for network in service["networks"]:
            assert network in MAIN["networks"]
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in MAIN["secrets"]


def test_the_drain_of_every_process_fits_its_grace_period() -> None:
    settings = load_settings({})
    seconds = {name: int(service.get("stop_grace_period", "10s").rstrip("s")) for name, service in SERVICES.items()}

    assert min(seconds["api0"], seconds["proxy"]) > settings.api.shutdown_seconds + settings.admission.flush_seconds
    assert min(seconds["worker"], seconds["gpu-worker"]) > settings.worker.drain_seconds + 10
    assert seconds["settlement"] > settings.settlement.settle_drain_seconds + 10


def test_every_variable_of_ours_is_a_setting() -> None:
    from tests.house.settings_table import table

    known = set(re.findall(r"`(INFERBASE_\w+)`", table()))
    used = {name for service in SERVICES.values() for name in service.get("environment", {})}
    used |= set(re.findall(r"(INFERBASE_\w+)[=:]", (FOLDER / "Dockerfile").read_text()))
    targets = {s["target"] for service in SERVICES.values() for s in service.get("secrets", []) if isinstance(s, dict)}

    assert {name for name in used | targets if name.startswith("INFERBASE_")} - known == set()


def test_the_entry_point_takes_secrets_out_of_files(tmp_path: Path) -> None:
    fake = tmp_path / "inferbase"
    fake.write_text('#!/bin/sh\necho "$@ $REDIS_URL ${OTHER:-none}"\n')
    fake.chmod(0o755)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "REDIS_URL").write_text("redis://here")
    (secrets / "OTHER").write_text("x")
    script = (FOLDER / "entrypoint.sh").read_text().replace("/run/secrets", str(secrets))

    said = subprocess.run(
        ["sh", "-s", "api", "--port", "1"],
        input=script,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout

    assert said == "api --port 1 redis://here none\n"
