"""How the contract suite asks an engine: all engines through the same four verbs."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from shared.wire import Message
from workers.engines import open_engine
from workers.engines.base import Delta, Deltas, Engine, EngineOptions, EngineSampling
from workers.inference.prompt import PromptBuilder

CONTEXT = 1024
PATIENCE_SECONDS = 20
CHECKPOINTS: dict[str, Path] = {}  # of the engines that need one, filled in by conftest.py


def opened(name: str, *, slots: int = 2, context: int = CONTEXT, **script: str) -> AbstractAsyncContextManager[Engine]:
    """Open the simulator as scripted, the demo model with llamacpp, or the fake TensorRT-LLM: these take no script."""
    options = script if name == "simulator" else {}
    path = str(CHECKPOINTS.get(name, ""))
    return open_engine(
        name, EngineOptions(model="test/model", context=context, slots=slots, path=path, options=options)
    )


def sampling(
    max_tokens: int = 8, *, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None, **more: Any
) -> EngineSampling:
    """Greedy, unless told otherwise."""
    return EngineSampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, **more)


def prompt(engine: Engine, text: str = "Tell me a story.") -> list[int]:
    """The ids of one user turn."""
    return PromptBuilder(engine).build([Message("user", text)])


async def collect(deltas: Deltas) -> list[Delta]:
    """All deltas of an answer."""
    return [delta async for delta in deltas]


def text(engine: Engine, deltas: Sequence[Delta]) -> str:
    """The text of an answer."""
    return b"".join(map(engine.tokenizer.token_bytes, ids(deltas))).decode()


def ids(deltas: Sequence[Delta]) -> list[int]:
    """The tokens of an answer."""
    return [token_id for delta in deltas for token_id in delta.token_ids]
