"""What no file of ours does: read the environment, hold a connection at module level, swallow every error."""

import ast
from collections import Counter

from tests.house.sources import Source, sources

ENVIRONMENT_READER = "shared/settings.py"
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb", "putenv"}

# Every broad `except`, with its reason: the loops that must go on whatever happens, and those that only carry an error
# from where it happened to who waits for it.
BROAD = {
    "workers/inference/run.py": (1, "worker loop: one bad request must not end the others"),
    "shared/queue/running.py": (1, "worker loop: one failed run must not end the others"),
    "api/errors.py": (1, "HTTP edge: whatever fails is answered in OpenAI's shape"),
    "api/routes/chat.py": (1, "HTTP edge: whatever fails is an error body, or one event after the status line"),
    "api/routes/answers.py": (1, "HTTP edge: whatever fails is an error body, or one event after the status line"),
    "api/respond.py": (1, "HTTP edge: whatever fails is an error body, or one event after the status line"),
    "workers/janitor/worker.py": (1, "upkeep loop: one failed sweep must not end the next"),
    "shared/batcher.py": (1, "carries the error of a batch to each of its waiters"),
    "shared/channel/subscription.py": (1, "carries the error of a push to who waits for the chunks"),
    "workers/engines/delta_queue.py": (1, "carries the error of who takes a delta to who waits for the deltas"),
    "workers/engines/tensorrt.py": (2, "whatever the engine raises beyond one request's error is its end"),
    "workers/engines/tensorrt_tokenizer.py": (1, "the package raises nothing more definite of a file of no use"),
    "compose/stopping.py": (1, "carries the error of a helper thread to the thread that waits"),
}
BROAD_NAMES = {"Exception", "BaseException"}

OPENERS = {"create_pool", "from_url", "Redis", "connect", "Client", "AsyncClient"}


def test_only_the_settings_read_the_environment() -> None:
    found = [
        f"{source.path}:{node.lineno}"
        for source in sources()
        if source.path != ENVIRONMENT_READER
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT_NAMES)
        or (isinstance(node, ast.alias) and node.name in ENVIRONMENT_NAMES)
    ]

    assert found == []


def test_broad_excepts_are_the_listed_ones() -> None:
    found = Counter(
        source.path
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _only_raises_again(node)
    )

    assert {path: count for path, count in found.items() if count > BROAD.get(path, (0, ""))[0]} == {}


def test_nothing_is_global_and_nothing_is_opened_at_import() -> None:
    found = []
    for source in sources():
        found += [
            f"{source.path}:{node.lineno} global" for node in ast.walk(source.tree) if isinstance(node, ast.Global)
        ]
        found += [f"{source.path}:{node.lineno} opens" for node in _calls_at_import(source) if _name(node) in OPENERS]

    assert found == []


def test_no_sql_is_put_together_by_formatting() -> None:
    """Settings of a session, which take no parameters and no input, are the exception."""
    words = ("SELECT ", "INSERT ", "UPDATE ", "DELETE ")
    found = [
        f"{source.path}:{node.lineno}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.JoinedStr)
        and isinstance(head := node.values[0] if node.values else None, ast.Constant)
        and str(head.value).lstrip().startswith(words)
    ]

    assert found == []


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in BROAD_NAMES for kind in kinds)


def _only_raises_again(handler: ast.ExceptHandler) -> bool:
    """Tidying up and raising the same error again hides nothing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _calls_at_import(source: Source) -> list[ast.Call]:
    statements = [node for node in source.tree.body if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr)]
    return [node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Call)]


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
