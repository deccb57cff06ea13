"""The checkers of the test lock, and YAML as they read it."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster import ROOT

SCHEMAS: Final = Path(__file__).parent / "schemas"


def check(name: str, *arguments: object) -> None:
    """Run a checker of the environment and assert that it finds nothing."""
    command = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def documents(*paths: Path) -> list[dict[str, Any]]:
    """Return every document of these YAML files."""
    return [document for path in paths for document in yaml.safe_load_all(path.read_text()) if document]
