"""Make the demo model from nothing: `python -m infra.demo_model [--steps N] [--output FILE]`."""

import argparse
import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from .config import CHECKSUMS, GGUF, ModelConfig, TrainingConfig
from .tokenizer import train_tokenizer
from .train import train
from .write_gguf import write_gguf


def main() -> None:
    """Corpus and tokenizer, weights, GGUF, checksum; prints how long each took."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo_model", description=__doc__)
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps, help="training steps (fewer for a try)")
    parser.add_argument("--output", type=Path, default=GGUF, help="where the GGUF goes")
    parser.add_argument("--weights", type=Path, help="also keep torch weights and tokenizer.json in this folder")
    arguments = parser.parse_args()
    model, training = ModelConfig(), replace(TrainingConfig(), steps=arguments.steps)
    began = time.monotonic()
    tokenizer = train_tokenizer(model, training)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.monotonic() - began:.0f} s", flush=True)
    network = train(model, training, tokenizer)
    write_gguf(arguments.output, network, tokenizer)
    if arguments.weights:
        arguments.weights.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), arguments.weights / "weights.pt")
        tokenizer.save(str(arguments.weights / "tokenizer.json"))
    digest = hashlib.sha256(arguments.output.read_bytes()).hexdigest()
    if arguments.output == GGUF:
        CHECKSUMS.write_text(f"{digest}  {GGUF.name}\n")
    size = arguments.output.stat().st_size
    print(f"{arguments.output.name}: {model.parameters:,} parameters, {size:,} bytes, sha256 {digest}, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
