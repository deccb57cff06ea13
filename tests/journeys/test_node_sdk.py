"""The official Node SDK against a real `up`: stream, whole answer, errors, models; and what the books say of it."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.local_product import ROOT, LocalProduct, quiet_environment
from tests.node import command as node_command

SETTLED_SECONDS = 15.0
TEXT = "naïve 東京 🙂"


@pytest.fixture(scope="module")
def product(store_folder: Path) -> Iterator[LocalProduct]:
    folder = store_folder / "node"
    folder.mkdir(mode=0o711)
    product = LocalProduct(folder, "--engine", "simulator", "--no-self-check")
    try:
        yield product.wait(self_check=False)
    finally:
        product.stop()


@pytest.fixture(scope="module")
def seen(product: LocalProduct) -> dict[str, Any]:
    """What the SDK reported."""
    script = ROOT / "tests" / "journeys" / "node_client.mjs"
    arguments = [product.ready["base_url"], product.ready["api_key"], product.ready["model"]]
    done = subprocess.run(
        [*node_command("node"), str(script), *arguments],
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    reported: dict[str, Any] = json.loads(done.stdout)
    return reported


def test_a_stream_arrives_whole_with_one_role_one_finish_and_usage(seen: dict[str, Any]) -> None:
    streamed = seen["streamed"]

    assert (streamed["text"], streamed["roles"], streamed["finish"]) == (TEXT, ["assistant"], ["stop"])
    assert streamed["usage"]["total_tokens"] == (
        streamed["usage"]["prompt_tokens"] + streamed["usage"]["completion_tokens"]
    )


def test_the_whole_answer_is_the_fold_of_the_stream(seen: dict[str, Any]) -> None:
    whole, streamed = seen["whole"], seen["streamed"]

    assert whole["choices"][0]["message"]["content"] == streamed["text"]
    assert whole["usage"] == streamed["usage"]
    assert whole["id"] != streamed["id"]


def test_errors_arrive_as_the_classes_of_the_sdk(seen: dict[str, Any]) -> None:
    assert seen["refused"] == {
        "key": {"kind": "AuthenticationError", "status": 401, "code": "invalid_api_key"},
        "model": {"kind": "NotFoundError", "status": 404, "code": "model_not_found"},
        "value": {"kind": "BadRequestError", "status": 400, "code": "invalid_value"},
    }


def test_the_models_can_be_listed(seen: dict[str, Any], product: LocalProduct) -> None:
    assert seen["models"] == [product.ready["model"]]


def test_usage_transaction_and_stream_say_the_same(seen: dict[str, Any], product: LocalProduct) -> None:
    streamed = seen["streamed"]

    give_up = time.monotonic() + SETTLED_SECONDS
    while not (rows := [row for row in _list(product, "/usage") if row["request_id"] == streamed["id"]]):
        assert time.monotonic() < give_up
    (used,) = rows
    deducted = [row for row in _list(product, "/credits/transactions") if row["request_id"] == streamed["id"]]

    assert {name: used[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        name: streamed["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    assert [(row["type"], row["amount"]) for row in deducted] == [("deduction", f"-{used['cost']}")]
    assert product.cli("audit") == {"clean": True, "violations": []}


def _list(product: LocalProduct, path: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {product.ready['api_key']}"}
    answer = httpx.get(f"{product.ready['base_url']}{path}", headers=headers, params={"limit": 100}, timeout=10)
    rows: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
    return rows
