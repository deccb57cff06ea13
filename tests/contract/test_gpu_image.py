"""The GPU worker's image, as far as it can be held without Docker: its file, and what it installs beside NVIDIA's."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contract.trtllm_facts import FACTS_FILE, read_facts

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "compose" / "gpu.Dockerfile"
LISTED = [
    Requirement(line)
    for line in (ROOT / "compose" / "gpu-requirements.txt").read_text().splitlines()
    if not line.startswith("#")
]
OURS = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
}
PINS = {fact["name"]: fact["version"].removeprefix("==") for fact in read_facts() if fact["kind"] == "requirement"}
IMPORTS = """
import sys, json, importlib.metadata
import compose.cli, compose.commands.processes, workers.inference.worker, workers.engines
import workers.engines.tensorrt, workers.engines.tensorrt_tokenizer
owners = importlib.metadata.packages_distributions()
tops = {name.split(".")[0] for name in sys.modules}
print(json.dumps(sorted({owner for top in tops for owner in owners.get(top, ())})))
"""


def instructions(name: str) -> list[str]:
    """What follows each instruction of a name, with its continued lines as one."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", IMAGE.read_text(), flags=re.MULTILINE))
    return re.findall(rf"^{name} (.*)$", text, flags=re.MULTILINE)


def closure(requirements: list[Requirement]) -> set[str]:
    """The distributions of `requirements` and all that these require, as installed here."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        extras = ["", *requirement.extras]
        for one in map(Requirement, importlib.metadata.requires(name) or ()):
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(one)
    return found


def test_hadolint_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")

    done = subprocess.run([linter, "--no-color", IMAGE], check=False, capture_output=True, text=True)

    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_the_release_of_the_container_is_the_one_of_the_facts() -> None:
    assert instructions("FROM") == [
        f"nvcr.io/nvidia/tensorrt-llm/release:{json.loads(FACTS_FILE.read_text())['version']}"
    ]


def test_the_worker_is_no_root_listens_nowhere_and_is_watched() -> None:
    assert instructions("USER")[-1].isdigit()
    assert int(instructions("USER")[-1]) > 0
    assert instructions("EXPOSE") == []
    assert instructions("HEALTHCHECK")
    assert instructions("ENTRYPOINT") == ['["inferbase", "worker", "--engine", "tensorrt"]']


def test_everything_that_is_copied_is_there() -> None:
    for copied in instructions("COPY"):
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists(), source


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    lines = IMAGE.with_name(f"{IMAGE.name}.dockerignore").read_text().splitlines()

    sent = {line[1:] for line in lines if line.startswith("!")}
    needed = {source.rstrip("./") for copied in instructions("COPY") for source in copied.split()[:-1]}
    assert lines[1] == "*"
    assert sent == {name for name in needed if not name.startswith("compose/")}


def test_the_facts_are_held_against_the_container_while_the_image_is_built() -> None:
    (checked,) = [line for line in instructions("RUN") if "check_trtllm_contract.py" in line]

    assert "find_spec" in checked
    assert any("trtllm_1_2_1.json" in line for line in instructions("COPY"))


@pytest.mark.parametrize("requirement", LISTED, ids=str)
def test_a_requirement_of_the_image_agrees_with_the_lock_and_with_the_containers_pins(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)

    assert requirement.specifier.contains(importlib.metadata.version(name))
    assert str(requirement.specifier) == str(OURS[name].specifier)
    if name in PINS:
        assert requirement.specifier.contains(PINS[name])


def test_the_image_installs_all_that_a_worker_imports() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}

    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )

    imported = {canonicalize_name(name) for name in json.loads(done.stdout)} - {"inferbase", "setuptools"}
    assert imported - closure(LISTED) - OPTIONAL == set()


OPTIONAL = {"pyjwt", "attrs"}  # redis-py and rich import them where they happen to be there
