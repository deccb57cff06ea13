"""The README says what is so."""

import re

from tests.house import settings_table
from tests.house.sources import ROOT

README = ROOT / "README.md"


def test_the_settings_table_is_that_of_the_settings() -> None:
    """Write it anew with `python -m tests.house.settings_table`."""
    assert settings_table.written() == settings_table.table()


def test_every_folder_has_its_line() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()} | {"infra"}
    named = set(re.findall(r"^\| `(\w+)/` \|", README.read_text(), re.MULTILINE))

    assert folders - named == set()


def test_every_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README.read_text())

    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_every_command_that_is_named_exists() -> None:
    from typer.main import get_command

    from compose.cli import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    said = "\n".join(re.findall(r"`(inferbase [^`]+)`", README.read_text()))
    named = re.findall(r"inferbase ([a-z]+)(?: ([a-z][a-z-]*)(?: ([a-z]+))?)?", said)

    for name, *verbs in named:
        assert name in known
        command = known[name]
        for verb in filter(None, verbs):
            known_verbs = getattr(command, "commands", {})
            assert not known_verbs or verb in known_verbs
            command = known_verbs.get(verb)
