"""The facts of TensorRT-LLM as written down, and a package made of them: it has what they tell of and nothing else.

Every signature is real Python, so an argument, a field or an attribute without a fact is refused by the language. What
the package does is in `fake_tensorrt_engine.py`; what has no behaviour there cannot be called.
"""

import builtins
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

FACTS_FILE = Path(__file__).with_name("trtllm_1_2_1.json")
Fact = dict[str, Any]


def read_facts() -> list[Fact]:
    """All facts."""
    return json.loads(FACTS_FILE.read_text())["facts"]


def sources_of(facts: list[Fact]) -> dict[str, str]:
    """The package's files by their paths: of `facts` alone."""
    by_file: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact["file"].endswith(".py"):
            by_file[fact["file"]].append(fact)
    homes = {fact["name"]: file for file, group in by_file.items() for fact in group if fact["kind"] in CLASS_KINDS}
    files = {file: _module(group, homes) for file, group in by_file.items()}
    for file in list(files):
        for parent in list(Path(file).parents)[:-1]:
            files.setdefault(f"{parent}/__init__.py", "")
    pins = [fact for fact in facts if fact["kind"] == "requirement"]
    files["requirements.txt"] = "".join(f"{fact['name']}{fact['version']}\n" for fact in pins)
    return files


def write_package(folder: Path, facts: list[Fact] | None = None) -> None:
    """Write the package into `folder`."""
    for path, text in sources_of(facts or read_facts()).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


CLASS_KINDS = ("class", "fields")
HEAD = """\
from dataclasses import dataclass, field
from typing import Any

from tests.contract.fake_tensorrt_engine import behave, behave_later
"""


def _module(facts: list[Fact], homes: dict[str, str]) -> str:
    own = facts[0]["file"]
    exports = [fact["name"] for fact in facts if fact["kind"] == "export"]
    classes: dict[str, list[Fact]] = defaultdict(list)
    lines = [HEAD]
    for fact in facts:
        if fact["kind"] == "export":
            continue
        owner, _, name = fact["name"].rpartition(".")
        if fact["kind"] in CLASS_KINDS:
            classes[fact["name"]].append(fact)
        elif owner:
            classes[owner].append(fact)
        else:
            lines += [f"def {name}(*args: Any, **keywords: Any) -> Any:", *_body(fact, fact["name"]), ""]
    bases = {base for group in classes.values() for fact in group for base in fact.get("bases", ())}
    needed = {*exports, *bases} | ({"KvCacheConfig"} if "KvCacheConfig()" in json.dumps(facts) else set())
    for name in sorted(needed - set(classes)):
        home = homes.get(name)
        if home is not None and home != own:
            lines.append(f"from {_dotted(home)} import {name}")
        elif not hasattr(builtins, name):  # there is no fact about this base
            lines.append(f"class {name}:\n    pass\n")
    for name in _base_first(classes):
        lines += _class(name, classes[name])
    lines.append(f"__all__ = {exports!r}")
    return "\n".join(lines) + "\n"


def _base_first(classes: dict[str, list[Fact]]) -> list[str]:
    order: list[str] = []

    def visit(name: str) -> None:
        for fact in classes[name]:
            for base in fact.get("bases", ()):
                if base in classes:
                    visit(base)
        if name not in order:
            order.append(name)

    for name in list(classes):
        visit(name)
    return order


def _class(name: str, facts: list[Fact]) -> list[str]:
    bases = next((fact["bases"] for fact in facts if fact.get("bases")), [])
    fields = [one for fact in facts if fact["kind"] == "fields" for one in fact["fields"]]
    keyword_only = any(fact.get("keyword_only") for fact in facts)
    lines = [f"@dataclass(slots=True, kw_only={keyword_only})"] if fields else []
    lines.append(f"class {name}({', '.join(bases)}):" if bases else f"class {name}:")
    lines += [f"    {one['name']}: Any" + _default(one) for one in fields]
    attributes = [fact for fact in facts if fact["kind"] == "attribute"]
    if attributes:
        lines.append("    def __init__(self) -> None:")
        lines += [f"        self.{fact['name'].rpartition('.')[2]} = {fact['default']}" for fact in attributes]
    methods: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact["kind"] in ("method", "property", "behaviour"):
            methods[fact["name"].rpartition(".")[2]].append(fact)
    if fields:
        methods.setdefault("__post_init__", [])
    for method, told in methods.items():
        if not (method == "__init__" and attributes):
            lines += _method(f"{name}.{method}", method, told)
    return [*lines, "    pass", ""]


def _method(full: str, method: str, facts: list[Fact]) -> list[str]:
    signature = next((fact for fact in facts if fact["kind"] == "method"), None)
    parameters = signature["parameters"] if signature else []
    later = bool(signature and signature.get("asynchronous"))
    lines = ["    @property"] if any(fact["kind"] == "property" for fact in facts) else []
    written = ["self", *(one["name"] + (f"={one['default']}" if "default" in one else "") for one in parameters)]
    names = [f"{one['name']}={one['name']}" for one in parameters]
    if signature and "keywords" in signature:
        written.append("**kwargs: Any")
        names.append("**kwargs")
    lines.append(f"    {'async ' if later else ''}def {method}({', '.join(written)}) -> Any:")
    said = "\n".join(text for fact in facts for text in fact.get("contains", ()))
    if said:
        lines.append(f"        '''{said}\n'''")
    call = f"({', '.join([repr(full), 'self', *names])})"
    returns = "" if method == "__init__" else "return "
    lines.append(f"        {returns}{'await behave_later' if later else 'behave'}{call}")
    return lines


def _body(fact: Fact, name: str) -> list[str]:
    said = "\n".join(fact.get("contains", ()))
    return [f"    '''{said}\n'''", f"    return behave({name!r}, *args, **keywords)"]


def _default(field: Fact) -> str:
    text = field.get("default")
    if text is None:
        return ""
    if text == "*":
        return " = None"
    return f" = field(default_factory={text[:-2]})" if text.endswith("()") else f" = {text}"


def _dotted(file: str | None) -> str:
    return str(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
