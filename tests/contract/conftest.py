"""The contract suite's own fake of TensorRT-LLM: importable as `tensorrt_llm` for as long as the suite runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import engines
from tests.contract.checkpoint import write_checkpoint
from tests.contract.trtllm_facts import write_package


@pytest.fixture(scope="session", autouse=True)
def fake_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the package and a checkpoint for it, and take both back."""
    folder = tmp_path_factory.mktemp("tensorrt")
    write_package(folder)
    engines.CHECKPOINTS["tensorrt"] = write_checkpoint(folder / "checkpoint")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]
