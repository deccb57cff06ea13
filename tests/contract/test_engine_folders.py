"""Folders that infra/engines/ makes for TensorRT-LLM workers, and their manifests; no GPU is needed for any of it."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infra.engines import manifest
from infra.engines.manifest import ManifestInvalid, verify
from infra.engines.prepare import main
from tests.contract.checkpoint import write_checkpoint
from tests.contract.engines import collect, ids, prompt, sampling
from workers.engines import open_engine
from workers.engines.base import EngineOptions


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with weights of no meaning."""
    folder = write_checkpoint(tmp_path / "checkpoint", num_attention_heads=8)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "junk").write_text("x")
    return folder


def asked(checkpoint: Path, *more: str) -> list[str]:
    """The arguments that make `engine` beside the checkpoint."""
    output = str(checkpoint.parent / "engine")
    return ["--checkpoint", str(checkpoint), "--output", output, "--context", "1024", *more]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint.parent / "prompts.txt").write_text("One.\n\nTwo.\n")
    more = ("--precision", "fp8", "--tensor-parallel", "2", "--calibration", str(checkpoint.parent / "prompts.txt"))

    assert main(asked(checkpoint, *more, "--dry-run")) == 0

    plan = json.loads(capsys.readouterr().out)
    assert (plan["precision"], plan["configuration"], plan["calibration_prompts"]) == ("fp8", "FP8_DEFAULT_CFG", 2)
    assert (plan["context"], plan["tensor_parallel_size"], plan["trtllm_version"]) == (1024, 2, "1.2.1")
    assert plan["source_files"]["model.safetensors"] == manifest.sha256(checkpoint / "model.safetensors")
    assert not (checkpoint.parent / "engine").exists()


async def test_a_kept_checkpoint_is_whole_verified_and_served(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_folder = checkpoint.parent / "engine"

    assert main(asked(checkpoint)) == 0
    assert main(["--verify", str(engine_folder)]) == 0

    made = verify(engine_folder)
    assert made.source_files == made.files == manifest.hashes(checkpoint)
    assert not (engine_folder / ".cache").exists()
    assert "is whole" in capsys.readouterr().out
    options = EngineOptions(model="m", context=made.context, path=str(engine_folder))
    async with open_engine("tensorrt", options) as engine:
        assert ids(await collect(engine.generate("a", prompt(engine), sampling(3))))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"other"), "model.safetensors is changed"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "extra.bin").write_bytes(b"x"), "extra.bin is new"),
        (lambda folder: (folder / manifest.NAME).unlink(), "no usable manifest"),
        (lambda folder: (folder / manifest.NAME).write_text('{"format": 9}'), "format 9"),
        (lambda folder: (folder / manifest.NAME).write_text('{"format": 1}'), "no usable manifest"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says_is_refused(checkpoint: Path, change: Any, named: str) -> None:
    main(asked(checkpoint))
    engine_folder = checkpoint.parent / "engine"
    change(engine_folder)

    with pytest.raises(ManifestInvalid, match=named):
        verify(engine_folder)
    assert main(["--verify", str(engine_folder)]) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--context", "9999"), "trained for"),
        (("--context", "0"), "trained for"),
        (("--tensor-parallel", "3"), "8 attention heads"),
        (("--precision", "fp8"), "needs --calibration"),
        (("--precision", "fp8", "--calibration", "/nowhere.txt"), "cannot be read"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_done(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    assert main(asked(checkpoint, *arguments)) == 1

    assert named in capsys.readouterr().err
    assert not (checkpoint.parent / "engine").exists()


def test_a_folder_that_is_there_is_left_alone(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(asked(checkpoint))

    assert main(asked(checkpoint)) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_something_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (checkpoint / missing).unlink()

    assert main(asked(checkpoint)) == 1
    assert "has no" in capsys.readouterr().err


def test_quantising_calibrates_on_every_prompt_and_takes_the_template_along(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint.parent / "prompts.txt").write_text("One.\nTwo.\n")
    seen: list[str] = []
    for name, module in _fake_optimizer(seen).items():
        monkeypatch.setitem(sys.modules, name, module)

    more = ("--precision", "nvfp4", "--calibration", str(checkpoint.parent / "prompts.txt"))
    assert main(asked(checkpoint, *more)) == 0

    made = verify(checkpoint.parent / "engine")
    assert seen == ["One.", "Two."]
    assert made.precision == "nvfp4"
    assert made.calibration_sha256 == manifest.sha256(checkpoint.parent / "prompts.txt")
    assert set(made.files) == {"config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"}


def test_a_machine_without_the_optimizer_is_told_where_to_go(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint.parent / "prompts.txt").write_text("One.\n")
    monkeypatch.setitem(sys.modules, "modelopt", None)

    assert main(asked(checkpoint, "--precision", "fp8", "--calibration", str(checkpoint.parent / "prompts.txt"))) == 1
    assert "container" in capsys.readouterr().err
    assert not (checkpoint.parent / "engine").exists()


def _fake_optimizer(seen: list[str]) -> dict[str, Any]:
    """What `prepare` calls of torch, transformers and Model Optimizer."""

    class Ids(str):
        def to(self, device: str) -> "Ids":
            return self

    class Tokenizer:
        def __call__(self, text: str, **options: Any) -> Any:
            return SimpleNamespace(input_ids=Ids(text))

        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    class Model:
        device = "cuda"

        def __call__(self, ids_: str) -> None:
            seen.append(ids_)

    def quantize(model: Any, configuration: Any, *, forward_loop: Any) -> Any:
        assert configuration == "the nvfp4 configuration"
        forward_loop(model)
        return model

    def export(model: Any, *, export_dir: str) -> None:
        Path(export_dir).mkdir()
        (Path(export_dir) / "config.json").write_text("{}")

    class Quiet:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    made = {name: ModuleType(name) for name in ("torch", "transformers", "modelopt", "modelopt.torch")}
    made["modelopt.torch.quantization"] = ModuleType("quantization")
    made["modelopt.torch.export"] = ModuleType("export")
    fakes: dict[str, Any] = made
    fakes["torch"].inference_mode = Quiet
    fakes["transformers"].AutoTokenizer = SimpleNamespace(from_pretrained=lambda path: Tokenizer())
    fakes["transformers"].AutoModelForCausalLM = SimpleNamespace(from_pretrained=lambda path, **options: Model())
    fakes["modelopt.torch.quantization"].NVFP4_DEFAULT_CFG = "the nvfp4 configuration"
    fakes["modelopt.torch.quantization"].quantize = quantize
    fakes["modelopt.torch.export"].export_hf_checkpoint = export
    fakes["modelopt"].torch = fakes["modelopt.torch"]
    fakes["modelopt.torch"].quantization = fakes["modelopt.torch.quantization"]
    return fakes
