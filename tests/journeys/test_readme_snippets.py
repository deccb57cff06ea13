"""The README's snippets, taken from the page and run as they stand against a real `up` with the demo model.

Only what a reader would replace is replaced: the base URL and the key.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.journeys.local_product import ROOT, LocalProduct, quiet_environment
from tests.node import command as node_command

BASE_URL = "http://127.0.0.1:8000/api/v1/inference"
KEY = "inf_your_api_key"
RUN_SECONDS = 60


@pytest.fixture(scope="module")
def product(store_folder: Path) -> Iterator[LocalProduct]:
    folder = store_folder / "readme"
    folder.mkdir(mode=0o711)
    product = LocalProduct(folder, "--no-self-check")
    try:
        yield product.wait(self_check=False)
    finally:
        product.stop()


def test_the_python_snippet_answers(product: LocalProduct, tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(_snippet("python", product))

    answer = _run([sys.executable, str(file)])

    assert len(answer.split()) > 3


def test_the_node_snippet_answers(product: LocalProduct, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    file = tmp_path / "snippet.mjs"
    file.write_text(_snippet("javascript", product))

    answer = _run([*node_command("node"), str(file)])

    assert len(answer.split()) > 3


def test_the_curl_snippet_streams(product: LocalProduct) -> None:
    command = _snippet("bash", product)

    events = (_run(["bash", "-c", command]) if shutil.which("curl") else _curl(command)).strip().split("\n\n")

    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1] if event.startswith("data: ")]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks).strip()
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("stop") == 1


def test_the_snippets_left_every_answer_in_the_books(product: LocalProduct) -> None:
    account = product.cli("account", "list")["data"][0]

    assert product.cli("audit") == {"clean": True, "violations": []}
    assert product.cli("credits", "show", account["id"])["object"] == "credit_balance"


def _snippet(language: str, product: LocalProduct) -> str:
    use = (ROOT / "README.md").read_text().partition("## Use it")[2].partition("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", use, re.DOTALL)
    assert len(found) == 1
    assert found[0].count(BASE_URL) == 1
    assert found[0].count(KEY) == 1
    return found[0].replace(BASE_URL, product.ready["base_url"]).replace(KEY, product.ready["api_key"])


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, env=quiet_environment(), capture_output=True, text=True, check=False, timeout=RUN_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _curl(line: str) -> str:
    """Carry out the snippet's curl line on a machine without curl; any flag but its own is an error."""
    words = shlex.split(line.replace("\\\n", " "))
    assert words[:4] == ["curl", "-N", "-X", "POST"]
    url, flags = words[4], words[5:]
    headers = dict(value.split(": ", 1) for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag == "-H")
    (body,) = (value for flag, value in zip(flags[::2], flags[1::2], strict=True) if flag == "-d")
    assert set(flags[::2]) == {"-H", "-d"}
    return httpx.post(url, headers=headers, content=body, timeout=RUN_SECONDS).raise_for_status().text
