"""The documentation page in Debian's Chromium: its cookie logs in, calls and logs out, and its policy holds."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from api.passwords import hash_password
from shared.database import users
from tests.cluster import ROOT, Cluster
from tests.journeys.local_product import quiet_environment
from tests.node import command as node_command

EMAIL = "reader@example.com"
PASSWORD = "correct horse battery"
MODEL = "inferbase/demo"  # as in the body that the page fills in
CHROMIUM = Path("/usr/bin/chromium")
RUN_SECONDS = 90


@pytest.fixture
async def seen(cluster: Cluster) -> dict[str, Any]:
    """What the browser reported."""
    assert CHROMIUM.exists(), "run `sudo make system-packages`"
    await cluster.add_model(MODEL, tokens=4)
    cluster.start("api0", "api", jwt_key="jwt-key-of-the-tests-" * 2)
    cluster.start("worker0", "worker", engine="simulator")
    await cluster.wait_ready(MODEL)
    _, key = await cluster.add_account()
    async with cluster.database.acquire() as connection:
        await users.register(connection, email=EMAIL, password_hash=hash_password(PASSWORD))
    script = ROOT / "tests" / "journeys" / "docs_page.mjs"
    origin = f"http://127.0.0.1:{cluster.ports['api0']}"
    done = subprocess.run(
        [*node_command("node"), str(script), origin, EMAIL, PASSWORD, key],
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    reported: dict[str, Any] = json.loads(done.stdout)
    return reported


async def test_a_reader_logs_in_calls_and_logs_out_on_the_page_itself(seen: dict[str, Any]) -> None:
    assert seen["steps"] == {
        "a stranger asks": 401,
        "log in": 200,
        "call": 200,
        "change": 201,
        "log out": 204,
        "call again": 401,
        "call with a key": 200,
        "ask": 200,
    }
    assert [name for name, sent in seen["csrf"].items() if sent] == ["change", "log out"]
    assert {cookie["name"]: cookie["httpOnly"] for cookie in seen["cookies"]} == {
        "inferbase_session": True,
        "inferbase_csrf": False,
    }
    assert not seen["readable"]
    assert seen["title"] == "Inferbase API"
    assert seen["operations"] > 30
    assert seen["guarded"]
    # The policy let all of it work, and nothing was asked of anybody else.
    assert (seen["violations"], seen["elsewhere"], seen["errors"]) == ([], [], [])
