"""The shape of `inferbase settlement`: a process by itself, a group of commands with `dead-letters`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from compose.cli import app
from compose.commands import dead_letters, processes

LETTER = "1764100000000-0"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What was started in the foreground: role and data folder."""
    found: list[tuple[str, Path]] = []
    monkeypatch.setattr(processes, "_run", lambda role, data_dir, serve: found.append((role, data_dir)))
    return found


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["settlement", *arguments])
    return result.exit_code, result.output


def test_settlement_alone_starts_the_process(started: list[tuple[str, Path]]) -> None:
    assert run()[0] == 0
    assert run("--data-dir", "elsewhere")[0] == 0

    assert started == [("settlement", processes.DATA_DIR), ("settlement", Path("elsewhere"))]


@pytest.mark.parametrize("arguments", [(), ("dead-letters",), ("dead-letters", "list"), ("dead-letters", "replay")])
def test_each_level_has_its_help_and_starts_nothing(
    arguments: tuple[str, ...], started: list[tuple[str, Path]]
) -> None:
    status, said = run(*arguments, "--help")

    assert status == 0
    assert said.startswith("Usage: ")
    assert started == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("elsewhere",),
        ("--data-dir", "elsewhere", "dead-letters", "list"),
        ("dead-letters", "forget"),
        ("dead-letters", "list", "--limit", "0"),
        ("dead-letters", "replay"),
        ("dead-letters", "replay", "--all", LETTER),
        ("dead-letters", "replay", LETTER.partition("-")[0]),
        ("dead-letters", "replay", LETTER, "-"),
        ("dead-letters", "replay", "99999999999999999999-0"),
    ],
)
def test_a_wrong_call_is_told_and_does_nothing(
    arguments: tuple[str, ...], started: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    monkeypatch.setattr(dead_letters, "with_target", lambda *given: reached.append(given))

    status, said = run(*arguments)

    assert status == 2
    assert "Error: " in said
    assert (started, reached) == ([], [])
