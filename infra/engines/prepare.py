"""Make a folder that a TensorRT-LLM worker serves: a checkpoint as it is, or quantised, with a manifest.

    python infra/engines/prepare.py --checkpoint /models/Qwen3-8B --output /models/Qwen3-8B-fp8 \\
        --precision fp8 --context 32768 --tensor-parallel 1 --calibration prompts.txt
    python infra/engines/prepare.py --verify /models/Qwen3-8B-fp8

The PyTorch backend of 1.2.1, which our adapter uses, loads a checkpoint and needs no engine file: to build means to
quantise the weights, by NVIDIA's Model Optimizer, which its release container has. Run it in there, on a GPU that
holds the unquantised weights. `--dry-run` says what would be done and hashes the checkpoint; it needs no GPU.

Source: Model Optimizer's documentation, "Unified HuggingFace Checkpoint": quantise, then export_hf_checkpoint.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))  # called by its path, outside of our environment

from infra.engines import manifest
from infra.engines.manifest import Manifest, ManifestInvalid

TRTLLM_VERSION: Final = "1.2.1"
PRECISIONS: Final = {  # the precision -> its configuration in modelopt.torch.quantization
    "keep": None,
    "fp8": "FP8_DEFAULT_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
}
NEEDED: Final = ("config.json", "tokenizer.json")
CALIBRATION_LINES_MOST: Final = 512
CALIBRATION_TOKENS_MOST: Final = 2048  # of a line


class CannotPrepare(Exception):
    """The folder cannot be made; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, all of it checked."""

    checkpoint: Path
    output: Path
    precision: str
    context: int
    tensor_parallel_size: int
    calibration: tuple[str, ...]
    calibration_file: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or verify; return the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.verify is not None:
            made = manifest.verify(chosen.verify)
            print(f"{chosen.verify} is whole: {len(made.files)} files, {made.precision}, context {made.context}")
            return 0
        plan = plan_of(chosen)
        source_files = manifest.hashes(plan.checkpoint)
        if chosen.dry_run:
            print(json.dumps(_described(plan, source_files), indent=2))
            return 0
        prepare(plan, source_files)
    except (CannotPrepare, ManifestInvalid) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(f"{plan.output} is ready: model add … --engine tensorrt --option path={plan.output}")
    return 0


def plan_of(chosen: argparse.Namespace) -> Plan:
    """Return the plan, or raise CannotPrepare."""
    if chosen.checkpoint is None or chosen.output is None or chosen.context is None:
        raise CannotPrepare("--checkpoint, --output and --context are needed")
    checkpoint, output = chosen.checkpoint.resolve(), chosen.output.resolve()
    for name in NEEDED:
        if not (checkpoint / name).is_file():
            raise CannotPrepare(f"{checkpoint} has no {name}")
    if not list(checkpoint.glob("*.safetensors")):
        raise CannotPrepare(f"{checkpoint} has no weights in safetensors")
    if output.exists():
        raise CannotPrepare(f"{output} is there already")
    if output.is_relative_to(checkpoint):
        raise CannotPrepare("the output must not lie in the checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    trained = config.get("max_position_embeddings")
    if chosen.context < 1 or (trained is not None and chosen.context > trained):
        raise CannotPrepare(f"the context must be from 1 to {trained}, what the model was trained for")
    heads = config.get("num_attention_heads")
    if chosen.tensor_parallel < 1 or (heads is not None and heads % chosen.tensor_parallel):
        raise CannotPrepare(f"{heads} attention heads cannot be shared out among {chosen.tensor_parallel} GPUs")
    lines = _calibration(chosen.precision, chosen.calibration)
    return Plan(
        checkpoint=checkpoint,
        output=output,
        precision=chosen.precision,
        context=chosen.context,
        tensor_parallel_size=chosen.tensor_parallel,
        calibration=lines,
        calibration_file=chosen.calibration,
    )


def prepare(plan: Plan, source_files: dict[str, str]) -> None:
    """Make the folder beside its place, then move it there: whole or not at all."""
    draft = plan.output.with_name(f".{plan.output.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    if plan.precision == "keep":
        ignored = shutil.ignore_patterns(".*", manifest.NAME)
        shutil.copytree(plan.checkpoint, draft, ignore=ignored)
    else:
        _quantise(plan, draft)
    calibration = plan.calibration_file
    made = Manifest(
        precision=plan.precision,
        context=plan.context,
        tensor_parallel_size=plan.tensor_parallel_size,
        trtllm_version=TRTLLM_VERSION,
        source_files=source_files,
        calibration_sha256=None if calibration is None else manifest.sha256(calibration),
        files=manifest.hashes(draft),
    )
    manifest.write(draft, made)
    draft.rename(plan.output)


def _quantise(plan: Plan, output: Path) -> None:
    """Quantise by Model Optimizer; its packages are those of NVIDIA's container."""
    try:
        import torch
        import transformers
        from modelopt.torch import quantization
        from modelopt.torch.export import export_hf_checkpoint
    except ImportError as error:
        raise CannotPrepare(f"{error}: run this in NVIDIA's TensorRT-LLM container") from None
    tokenizer = transformers.AutoTokenizer.from_pretrained(plan.checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(plan.checkpoint, torch_dtype="auto", device_map="auto")

    def calibrate(quantised: Any) -> None:
        with torch.inference_mode():
            for line in plan.calibration:
                ids = tokenizer(
                    line, return_tensors="pt", truncation=True, max_length=CALIBRATION_TOKENS_MOST
                ).input_ids
                quantised(ids.to(quantised.device))

    configuration = getattr(quantization, str(PRECISIONS[plan.precision]))
    model = quantization.quantize(model, configuration, forward_loop=calibrate)
    export_hf_checkpoint(model, export_dir=str(output))
    tokenizer.save_pretrained(output)
    for name in ("generation_config.json", "chat_template.jinja"):
        if (plan.checkpoint / name).is_file():
            shutil.copy(plan.checkpoint / name, output / name)


def _calibration(precision: str, file: Path | None) -> tuple[str, ...]:
    if precision == "keep":
        return ()
    if file is None:
        raise CannotPrepare(f"{precision} needs --calibration: a text file with one typical prompt per line")
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CannotPrepare(f"{file} cannot be read: {error}") from None
    if not lines:
        raise CannotPrepare(f"{file} has no prompts")
    return tuple(lines[:CALIBRATION_LINES_MOST])


def _described(plan: Plan, source_files: dict[str, str]) -> dict[str, Any]:
    return {
        "checkpoint": str(plan.checkpoint),
        "output": str(plan.output),
        "precision": plan.precision,
        "configuration": PRECISIONS[plan.precision],
        "context": plan.context,
        "tensor_parallel_size": plan.tensor_parallel_size,
        "calibration_prompts": len(plan.calibration),
        "trtllm_version": TRTLLM_VERSION,
        "source_files": source_files,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make a folder that a TensorRT-LLM worker serves.")
    parser.add_argument("--checkpoint", type=Path, help="folder in Hugging Face's layout")
    parser.add_argument("--output", type=Path, help="folder to make")
    parser.add_argument("--precision", choices=PRECISIONS, default="keep")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer together")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share the model")
    parser.add_argument("--calibration", type=Path, help="text file, one typical prompt per line")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="hold a made folder against its manifest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
