"""Make the demo model from nothing: `python -m infra.demo_model [--output FILE] [--from-weights FOLDER]`."""

import argparse
import hashlib
import os
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tokenizers import Tokenizer

from .config import CHECKSUMS, GGUF, PHASES, ModelConfig
from .network import Network
from .tokenizer import train_tokenizer
from .train import train
from .write_gguf import write_gguf


def main() -> None:
    """Corpus and tokenizer, weights, GGUF, checksum; prints how long each took."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo_model", description=__doc__)
    parser.add_argument("--output", type=Path, default=GGUF, help="where the GGUF goes")
    parser.add_argument("--weights", type=Path, help="also keep torch weights and tokenizer.json in this folder")
    parser.add_argument("--from-weights", type=Path, metavar="FOLDER",
                        help="weights and tokenizer of an earlier run with --weights, to go on from")  # fmt: skip
    parser.add_argument("--phase", type=int, choices=range(1, len(PHASES) + 1), action="append",
                        help="train this phase alone; may be given several times (default: all)")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.from_weights and not arguments.phase:
        parser.error("--from-weights needs --phase: which phases remain to be trained?")
    model, began = ModelConfig(), time.monotonic()
    torch.manual_seed(PHASES[0].seed)
    torch.set_num_threads(1)
    network = Network(model)
    if arguments.from_weights:
        tokenizer = Tokenizer.from_file(str(arguments.from_weights / "tokenizer.json"))
        network.load_state_dict(torch.load(arguments.from_weights / "weights.pt", weights_only=True))
    else:
        tokenizer = train_tokenizer(model, PHASES[0])
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.monotonic() - began:.0f} s", flush=True)
    for phase in arguments.phase or range(1, len(PHASES) + 1):
        train(network, PHASES[phase - 1], tokenizer)
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
