"""The runbooks name what exists: commands, files, settings, and each has its four parts."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from compose.cli import app
from tests.cluster import ROOT
from tests.house.settings_table import table

FOLDER = ROOT / "infra" / "runbooks"
RUNBOOKS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
PARTS = ["What one sees", "Find out", "Do", "Verify"]


@pytest.mark.parametrize("file", RUNBOOKS, ids=lambda file: file.name)
def test_a_runbook_says_what_one_sees_how_to_find_out_what_to_do_and_how_to_verify(file: Path) -> None:
    text = file.read_text()
    found = [title for title in re.findall(r"^## (.+)$", text, re.MULTILINE) if title in PARTS]

    assert found == PARTS or (file.name == "restore.md" and set(PARTS) - set(found) == {"Do"})
    assert f"({file.name})" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("file", [*RUNBOOKS, FOLDER / "README.md"], ids=lambda file: file.name)
def test_what_a_runbook_names_exists(file: Path) -> None:
    text = file.read_text()
    known = get_command(app).commands  # type: ignore[attr-defined]
    said = re.findall(r"^inferbase .*$", text, re.MULTILINE) + re.findall(r"`(inferbase [^`]+)`", text)
    named = [match.groups() for each in said if (match := re.match(r"inferbase ([a-z]+)(?: ([a-z][a-z-]*))?", each))]

    for name, verb in named:
        verbs = getattr(known[name], "commands", {})
        alone = verb is None and getattr(known[name], "invoke_without_command", False)
        assert not verbs or verb in verbs or alone, (name, verb)
    assert set(re.findall(r"`(INFERBASE_\w+)`", text)) <= set(re.findall(r"`(INFERBASE_\w+)`", table()))
    assert all((ROOT / path).exists() for path in re.findall(r"infra/[\w./-]+\w", text))
    sources = "".join(path.read_text() for name in ("workers", "shared") for path in (ROOT / name).rglob("*.py"))
    for event in re.findall(r"events? `(\w+)`|last event is `(\w+)`|log says `(\w+)`", text):
        assert f'"{"".join(event)}"' in sources, event
