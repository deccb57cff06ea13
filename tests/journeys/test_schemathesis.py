"""Schemathesis, from our own document against a real server: no 5xx, and no answer that is not documented.

The document is made stricter for it: a model that exists, accounts and keys that are not the test's own, and answers
with no field beside those that are described. Its seed is fixed, so it sends the same some 3,000 requests each time.
"""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from shared.database import api_keys
from tests.cluster import Cluster
from tests.journeys.local_product import quiet_environment

MODEL = "sim/plain"
BASE = "/api/v1/inference"
RUN_SECONDS = 110
EXAMPLES_MOST = 5  # random ones of each operation, beside those of every boundary of every field
CONFIGURATION = """
[generation]
allow-extra-parameters = false  # headers of its own invention are not ours to refuse; other tests have the queries
"""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)
OPTIONS = (
    *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES_MOST)),
    *("--seed", "1", "--generation-deterministic", "--no-shrink", "--continue-on-failure", "--warnings", "off"),
    "--no-color",
)


class Rig:
    """A running product and the files of one run of Schemathesis."""

    def __init__(self, origin: str, key: str, folder: Path) -> None:
        self.origin = origin
        self.key = key
        self._folder = folder
        self._report = folder / "report.har"
        (folder / "schemathesis.toml").write_text(CONFIGURATION)

    def run(self, document: dict[str, Any], *more: str) -> dict[str, Counter[int]]:
        """Send what Schemathesis makes of a document; return how often each operation got each status."""
        file = self._folder / "openapi.json"
        file.write_bytes(msgspec.json.encode(document))
        command = ["-m", "schemathesis.cli", "run", file.name, "--url", self.origin, *OPTIONS]
        done = subprocess.run(
            [sys.executable, *command, "--report-har-path", self._report.name, *more],
            cwd=self._folder,
            env=quiet_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
        found: dict[str, Counter[int]] = defaultdict(Counter)
        for entry in json.loads(self._report.read_bytes())["log"]["entries"]:
            path = urlsplit(entry["request"]["url"]).path
            found[f"{entry['request']['method']} {path}"][entry["response"]["status"]] += 1
        return found


@pytest.fixture
async def rig(cluster: Cluster, tmp_path: Path) -> Rig:
    await cluster.add_model(MODEL, tokens=4)
    secrets = {"jwt_key": "j" * 40, "stripe_webhook_secret": "whsec_of_the_tests"}
    cluster.start("api0", "api", login_address_rpm=0, login_email_rpm=0, **secrets)
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    await cluster.wait_ready()
    account_id, key = await cluster.add_account("1000000")
    async with cluster.database.acquire() as connection:
        (own,), _ = await api_keys.list_keys(connection, account_id, after=None, limit=1)
        assert await api_keys.make_admin(connection, own.id)
    return Rig(cluster.base_url().removesuffix(BASE), key, tmp_path)


async def test_no_5xx_and_no_undocumented_answer_to_a_key(rig: Rig, cluster: Cluster) -> None:
    other_account, _ = await cluster.add_account("1")
    with httpx.Client(base_url=rig.origin, headers={"authorization": f"Bearer {rig.key}"}, timeout=10) as mine:
        other_key = mine.post(f"{BASE}/keys").json()["id"]
        document = _stricter(mine.get("/openapi.json").json(), key_id=other_key, account_id=other_account)

        answers = rig.run(document, "-H", f"Authorization: Bearer {rig.key}", "--exclude-tag", "Sessions")

        assert mine.get(f"{BASE}/credits").status_code == 200, "the test's own key must live to its end"
    assert sum(sum(statuses.values()) for statuses in answers.values()) > 1000
    for path in ("/chat/completions", "/completions", "/embeddings"):
        assert answers[f"POST {BASE}{path}"][200] > 5
    assert max(status for statuses in answers.values() for status in statuses) < 500


async def test_no_5xx_and_no_undocumented_answer_to_a_session(rig: Rig) -> None:
    someone = {"email": "someone@example.com", "password": "correct horse battery"}
    with httpx.Client(base_url=rig.origin, timeout=10) as browser:
        document = _stricter(browser.get("/openapi.json").json())
        assert browser.post("/api/v1/auth/register", json=someone).status_code == 201
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        token = browser.cookies["inferbase_csrf"]
    headers = {"Cookie": cookies, "x-csrf-token": token, "Origin": rig.origin}
    shown = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    # Every request has the session, so that none can be found to do without.
    alike = ("--exclude-checks", "ignored_auth", "--generation-with-security-parameters", "false")

    answers = rig.run(document, *shown, "--include-tag", "Sessions", "--exclude-operation-id", "logout", *alike)

    assert answers["POST /api/v1/auth/refresh"][200] > 0
    assert answers["GET /api/v1/auth/me"][200] > 0
    assert max(status for statuses in answers.values() for status in statuses) < 500


def _stricter(document: dict[str, Any], **known: str) -> dict[str, Any]:
    """Return a document of which Schemathesis gets deeper into the server; `known`: path parameters."""
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            if "model" in schema["properties"]:
                schema["properties"]["model"] = {"type": "string", "enum": [MODEL]}
        elif schema.get("type") == "object" and not name.endswith("Turn"):
            schema.setdefault("additionalProperties", False)
    for path, item in document["paths"].items():
        for operation in item.values():
            # How long to wait for a worker, where no time at all is honestly a 502; and one name for many requests.
            unwanted = ("Inferbase-Wait", "Idempotency-Key") if path.startswith(BASE) else ()
            operation["parameters"] = [one for one in operation["parameters"] if one["name"] not in unwanted]
            for parameter in operation["parameters"]:
                if parameter["name"] in known:
                    parameter["schema"]["enum"] = [known[parameter["name"]], "unknown"]
    return document
