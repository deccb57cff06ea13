"""Our own source files, parsed once for all rules of the house."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("api", "workers", "shared", "compose")


class Source(NamedTuple):
    """One Python file of a package of ours."""

    path: str  # from the root, with slashes
    module: str
    tree: ast.Module
    lines: int


class Import(NamedTuple):
    """One imported module, and whether only a type checker sees it."""

    module: str
    line: int


@cache
def sources() -> tuple[Source, ...]:
    return tuple(_parse(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that git tracks, or would if it were added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def imports(source: Source) -> Iterator[Import]:
    """Yield every import of a file, also those inside functions. Nothing here is relative."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.path}:{node.lineno} is a relative import"
            module = node.module or ""
            yield Import(module, node.lineno)
            yield from (Import(f"{module}.{alias.name}", node.lineno) for alias in node.names)


def functions(source: Source) -> Iterator[tuple[str, int]]:
    """Yield each function with its length in lines, decorators and docstring left out."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            begin = (first.end_lineno or first.lineno) if has_docstring else node.lineno
            yield f"{source.path}:{node.lineno} {node.name}", (node.end_lineno or begin) - begin + 1


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _parse(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    relative = path.relative_to(ROOT)
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    return Source(relative.as_posix(), module, ast.parse(text, str(path)), text.count("\n"))
