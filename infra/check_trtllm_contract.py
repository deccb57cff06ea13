"""Hold the facts that the TensorRT-LLM adapter relies on against a wheel, a checkout or an installed package.

    python infra/check_trtllm_contract.py --source tensorrt_llm-1.2.1-cp312-cp312-linux_x86_64.whl
    python infra/check_trtllm_contract.py --source /usr/local/lib/python3.12/dist-packages

Reads the source by `ast` and imports nothing of it, so that it needs no GPU; and nothing but Python, so that it runs
while an image is built. Prints each fact that differs or is missing and how many hold; exit 1 where one does not.
"""

import argparse
import ast
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

FACTS_FILE: Final = Path(__file__).parents[1] / "tests" / "contract" / "trtllm_1_2_1.json"
UNCHECKED: Final = "*"  # a default that is not held
WORDS: Final = ("holds", "differs", "missing", "unchecked")
SIGNATURES: Final = ("export", "class", "fields", "method", "property", "attribute")

Fact = dict[str, Any]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Reader = Callable[[str], str | None]


class Verdict(NamedTuple):
    """What a source says of a fact."""

    word: str  # of WORDS
    detail: str = ""


class Missing(Exception):
    """The source has no such thing."""


class Differs(Exception):
    """The source has it otherwise."""


def main(arguments: list[str] | None = None) -> int:
    """Print what holds and what does not; return the exit status."""
    parser = argparse.ArgumentParser(description="Hold the facts of TensorRT-LLM against its real source.")
    parser.add_argument("--source", type=Path, required=True, help="a wheel, a checkout, or a site-packages folder")
    parser.add_argument("--facts", type=Path, default=FACTS_FILE)
    parser.add_argument("--signatures", action="store_true", help="hold names, parameters and defaults alone")
    parser.add_argument("--all", action="store_true", help="also print the facts that hold")
    chosen = parser.parse_args(arguments)
    facts: list[Fact] = json.loads(chosen.facts.read_text())["facts"]
    if chosen.signatures:
        facts = [fact for fact in facts if fact["kind"] in SIGNATURES]
    verdicts = check(facts, reader_of(chosen.source))
    for fact, verdict in zip(facts, verdicts, strict=True):
        if chosen.all or verdict.word in ("differs", "missing"):
            print(f"{verdict.word:9} {fact['id']}: {fact['file']} {fact['name']} {verdict.detail}".rstrip())
    counts = {word: sum(verdict.word == word for verdict in verdicts) for word in WORDS}
    print(", ".join(f"{count} {word}" for word, count in counts.items()) + f" of {len(facts)} facts")
    return 1 if counts["differs"] or counts["missing"] else 0


def reader_of(source: Path) -> Reader:
    """Return what reads a file of the source by its path in the repository; None where it is not there."""
    if source.is_dir():
        return lambda path: next((file.read_text(errors="replace") for file in sorted(source.glob(path))), None)
    archive = zipfile.ZipFile(source)
    names = archive.namelist()

    def read(path: str) -> str | None:
        pattern = re.compile(re.escape(path).replace(r"\*", "[^/]*"))
        name = next((name for name in names if pattern.fullmatch(name)), None)
        return None if name is None else archive.read(name).decode(errors="replace")

    return read


def check(facts: list[Fact], read: Reader) -> list[Verdict]:
    """Return the verdict on each of `facts`."""
    trees: dict[str, ast.Module | None] = {}
    verdicts = []
    for fact in facts:
        try:
            if fact["kind"] == "requirement":
                _check_requirement(fact, read)
            elif fact["kind"] == "reported":
                verdicts.append(Verdict("unchecked", fact["source"]))
                continue
            else:
                if fact["file"] not in trees:
                    text = read(fact["file"])
                    trees[fact["file"]] = None if text is None else ast.parse(text)
                tree = trees[fact["file"]]
                if tree is None:
                    raise Missing("the file")
                CHECKS[fact["kind"]](fact, tree)
            verdicts.append(Verdict("holds"))
        except Missing as error:
            verdicts.append(Verdict("missing", str(error)))
        except Differs as error:
            verdicts.append(Verdict("differs", str(error)))
    return verdicts


def _check_export(fact: Fact, tree: ast.Module) -> None:
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    if fact["name"] not in names and _class(tree, fact["name"]) is None:
        raise Missing("the name")


def _check_class(fact: Fact, tree: ast.Module) -> None:
    found = _needed_class(tree, fact["name"])
    bases = [ast.unparse(base) for base in found.bases]
    for base in fact.get("bases", ()):
        if base not in bases:
            raise Differs(f"its bases are {bases}")


def _check_fields(fact: Fact, tree: ast.Module) -> None:
    found = _needed_class(tree, fact["name"])
    fields = {
        node.target.id: node.value
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for field in fact["fields"]:
        if field["name"] not in fields:
            raise Differs(f"no field {field['name']}")
        _check_default(field, _field_default(fields[field["name"]]))


def _check_method(fact: Fact, tree: ast.Module) -> None:
    function = _function(tree, fact["name"])
    if fact.get("asynchronous", False) is not isinstance(function, ast.AsyncFunctionDef):
        raise Differs("awaited or not")
    defaults = dict(_parameters(function))
    for parameter in fact["parameters"]:
        if parameter["name"] not in defaults:
            raise Differs(f"no parameter {parameter['name']}")
        _check_default(parameter, defaults.pop(parameter["name"]))
    needed = [name for name, default in defaults.items() if default is None]
    if needed:
        raise Differs(f"also needs {needed}")
    if "keywords" in fact and function.args.kwarg is None:
        raise Differs("takes no further keywords")


def _check_property(fact: Fact, tree: ast.Module) -> None:
    function = _function(tree, fact["name"])
    if not any(ast.unparse(one) == "property" for one in function.decorator_list):
        raise Differs("no property")


def _check_attribute(fact: Fact, tree: ast.Module) -> None:
    owner, _, name = fact["name"].rpartition(".")
    for node in ast.walk(_function(tree, f"{owner}.__init__")):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(ast.unparse(target) == f"self.{name}" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            _check_default({"name": name, "default": fact["default"]}, node.value)
            return
    raise Missing("the attribute")


def _check_behaviour(fact: Fact, tree: ast.Module) -> None:
    text = _plain(ast.unparse(_function(tree, fact["name"])))
    for snippet in fact["contains"]:
        if _plain(snippet) not in text:
            raise Differs(f"without: {snippet}")


def _check_requirement(fact: Fact, read: Reader) -> None:
    """Hold a pin against requirements.txt of a checkout, or the metadata of what was built from it."""
    text = read("requirements.txt") or read("tensorrt_llm-*.dist-info/METADATA")
    if text is None:
        raise Missing("the file")
    found = re.search(rf"^(?:Requires-Dist: )?{re.escape(fact['name'])} ?\(?([=<>~!][^;)\s]*)", text, re.MULTILINE)
    if found is None:
        raise Missing("the requirement")
    if found[1] != fact["version"]:
        raise Differs(f"it is {found[1]}")


CHECKS: Final[dict[str, Callable[[Fact, ast.Module], None]]] = {
    "export": _check_export,
    "class": _check_class,
    "fields": _check_fields,
    "method": _check_method,
    "property": _check_property,
    "attribute": _check_attribute,
    "behaviour": _check_behaviour,
}


def _check_default(fact: Fact, found: ast.expr | None) -> None:
    expected = fact.get("default")
    if expected == UNCHECKED:
        return
    if expected is None and found is None:
        return
    if (
        expected is None
        or found is None
        or _plain(_unwrapped(ast.parse(expected, mode="eval").body)) != _plain(_unwrapped(found))
    ):
        told = "none" if found is None else ast.unparse(found)
        raise Differs(f"the default of {fact['name']} is {told}")


def _field_default(value: ast.expr | None) -> ast.expr | None:
    """Return the default of a field of a dataclass or a pydantic model, whose `Field(...)` may have none."""
    if not _is_field(value):
        return value
    assert isinstance(value, ast.Call)
    named = {keyword.arg: keyword.value for keyword in value.keywords}
    if "default" in named:
        return named["default"]
    if "default_factory" in named:
        return ast.Call(named["default_factory"], [], [])
    return value.args[0] if value.args else None


def _unwrapped(value: ast.expr) -> str:
    return ast.unparse(_field_default(value) or ast.Constant(None))


def _is_field(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "Field", "dataclasses.field")


def _parameters(function: Function) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield each parameter but self with its default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [*zip(positional, [*defaults, *arguments.defaults], strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in pairs:
        if argument.arg != "self":
            yield argument.arg, default


def _class(tree: ast.AST, name: str) -> ast.ClassDef | None:
    return next((node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name), None)


def _needed_class(tree: ast.AST, name: str) -> ast.ClassDef:
    found = _class(tree, name)
    if found is None:
        raise Missing("the class")
    return found


def _function(tree: ast.Module, full: str) -> Function:
    owner, _, name = full.rpartition(".")
    body = _needed_class(tree, owner).body if owner else tree.body
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    raise Missing("the function")


def _plain(text: str) -> str:
    """Return code without the differences that mean nothing: quotes and whitespace."""
    return " ".join(text.replace('"', "'").split())


if __name__ == "__main__":
    sys.exit(main())
