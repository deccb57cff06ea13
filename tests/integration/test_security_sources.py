"""What no file of ours does, however convenient: run what it reads, or build a command or a query out of text."""

import ast

from tests.house.sources import imports, inside, sources

UNSAFE_MODULES = ("pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle", "joblib", "yaml")
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "mktemp"}
UNSAFE_KEYWORDS = {"shell", "trust_remote_code", "use_pickle", "allow_pickle", "weights_only"}
COMPILES = {"re"}  # re.compile
QUERIES = {"fetch", "fetchval", "fetchrow", "execute", "executemany", "cursor"}
SESSION_WORDS = ("SET ", "SELECT set_config(", "LISTEN ", "CREATE ROLE", "GRANT ")


def calls() -> list[tuple[str, ast.Call]]:
    return [
        (f"{source.path}:{node.lineno}", node)
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
    ]


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def owner_of(call: ast.Call) -> str:
    return getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""


def test_nothing_that_is_read_can_run() -> None:
    found = [
        f"{source.path}:{one.line} {one.module}"
        for source in sources()
        for one in imports(source)
        if any(inside(one.module, unsafe) for unsafe in UNSAFE_MODULES)
    ]
    found += [
        f"{place} {name_of(call)}"
        for place, call in calls()
        if name_of(call) in UNSAFE_CALLS and owner_of(call) not in COMPILES
    ]

    assert found == []


def test_no_call_opens_a_shell_or_trusts_what_was_downloaded() -> None:
    found = [
        f"{place} {keyword.arg}"
        for place, call in calls()
        for keyword in call.keywords
        if keyword.arg in UNSAFE_KEYWORDS and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
    ]

    assert found == []


def test_no_query_is_text_put_together() -> None:
    found = [
        place for place, call in calls() if name_of(call) in QUERIES and call.args and _is_put_together(call.args[0])
    ]

    assert found == []


def _is_put_together(node: ast.expr) -> bool:
    if isinstance(node, ast.JoinedStr):
        head = node.values[0]
        return not (isinstance(head, ast.Constant) and str(head.value).startswith(SESSION_WORDS))
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Mod | ast.Add)
    return isinstance(node, ast.Call) and name_of(node) in {"format", "join"}
