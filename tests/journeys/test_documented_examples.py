"""The examples of the documentation, as they stand there: only the key is a reader's own."""

import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from api.openapi.examples import EXAMPLES
from tests.cluster import ROOT, Cluster
from tests.journeys.local_product import quiet_environment
from tests.node import command as node_command

KEY = "inf_your_api_key"
RUN_SECONDS = 90


@pytest.fixture
async def examples(cluster: Cluster) -> dict[str, tuple[str, str, str]]:
    """Code of Python, Node.js and curl by operation, for a running product."""
    await cluster.add_model("inferbase/demo", tokens=4)
    cluster.start("api0", "api")
    cluster.start("worker0", "worker", engine="simulator")
    await cluster.wait_ready("inferbase/demo")
    _, key = await cluster.add_account()
    base = cluster.base_url()
    shown = httpx.get(base.replace("/api/v1/inference", "/openapi.json"), timeout=10).text
    assert f'base_url=\\"{base}\\"' in shown  # the document knows where it is served
    return {
        name: tuple(code.replace("{base}", base).replace(KEY, key) for code in codes)  # type: ignore[misc]
        for name, codes in EXAMPLES.items()
    }


async def test_every_example_in_every_language_gets_an_answer(
    examples: dict[str, tuple[str, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    for name, (python, node, _) in examples.items():
        (tmp_path / f"{name}.py").write_text(python)
        (tmp_path / f"{name}.mjs").write_text(f"{node}\n")
    every = [f"await import('./{name}.mjs'); console.log('\\n{name} answered');" for name in examples]
    (tmp_path / "every.mjs").write_text("\n".join(every))
    runs = "import runpy\n" + "\n".join(
        f"runpy.run_path({name + '.py'!r}); print('\\n{name} answered')" for name in examples
    )

    said = {
        "Python": _run([sys.executable, "-c", runs], tmp_path),
        "Node.js": _run([*node_command("node"), "every.mjs"], tmp_path),
    }
    statuses = {name: _curl(curl) for name, (_, _, curl) in examples.items()}

    for language, text in said.items():
        assert [name for name in examples if f"{name} answered" not in text] == [], language
    assert {name for name, status in statuses.items() if status not in (200, 201)} == set()


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _curl(line: str) -> int:
    """Carry out a curl line on a machine that may have no curl; any flag but those that we show is an error."""
    words = [word for word in shlex.split(line.replace("\\\n", " ")) if word != "-N"]
    assert words[0] == "curl"
    flags = list(zip(words[2::2], words[3::2], strict=True))
    assert {flag for flag, _ in flags} <= {"-H", "-d"}
    headers = dict(value.split(": ", 1) for flag, value in flags if flag == "-H")
    bodies = [value for flag, value in flags if flag == "-d"]
    method = "POST" if bodies else "GET"
    return httpx.request(method, words[1], headers=headers, content="".join(bodies), timeout=10).status_code
