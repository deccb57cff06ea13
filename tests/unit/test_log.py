"""What a line of our logs holds, as JSON."""

import subprocess
import sys

import msgspec
import pytest

SAY = """
from shared.log import configure_logging, get_logger

configure_logging(role="api")
logger = get_logger("chat")
logger.debug("unheard")
logger.info("completion", tokens=8, code=None)
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("failed", of=ValueError)
"""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, object]]:
    done = subprocess.run([sys.executable, "-c", SAY], capture_output=True, check=True)
    return [msgspec.json.decode(line, type=dict[str, object]) for line in done.stderr.splitlines()]


def test_a_line_tells_its_event_its_source_its_role_and_its_level(lines: list[dict[str, object]]) -> None:
    said = {name: value for name, value in lines[0].items() if name != "timestamp"}

    assert said == {"event": "completion", "source": "chat", "role": "api", "level": "info", "tokens": 8, "code": None}
    assert isinstance(lines[0]["timestamp"], float)


def test_an_exception_is_an_error_with_its_traceback_and_every_value_is_text(lines: list[dict[str, object]]) -> None:
    assert len(lines) == 2  # debug is not heard
    assert (lines[1]["level"], lines[1]["of"]) == ("error", "<class 'ValueError'>")
    assert "ZeroDivisionError" in str(lines[1]["exception"])
