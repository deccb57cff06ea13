"""Does llama.cpp compute what torch computes? `python -m infra.demo_model.compare FOLDER` (kept by --weights).

Both write greedily from the same chats; llama.cpp from the Q8_0 file, torch from the full weights.
"""

import argparse
import itertools
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer

from .chat import Conversation, render
from .config import GGUF, TURN_END, ModelConfig
from .corpus import Corpus
from .evaluate import EVALUATION_SEED, Demo
from .network import Network

CHATS: Final = 60
LONGEST_ANSWER_TOKENS: Final = 300


@torch.no_grad()
def write_greedily(network: Network, tokenizer: Tokenizer, conversation: Conversation) -> str:
    """The answer by torch, one token after the other."""
    ids: list[int] = tokenizer.encode(render(conversation, generation_prompt=True)).ids
    prompt_tokens, end = len(ids), tokenizer.token_to_id(TURN_END)
    while len(ids) < prompt_tokens + LONGEST_ANSWER_TOKENS:
        logits = network(torch.tensor([ids]))[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == end:
            break
    return tokenizer.decode(ids[prompt_tokens:])


def main() -> None:
    """Print every chat on which the two differ, then how many agree."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo_model.compare", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=GGUF)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = ModelConfig()
    network = Network(config)
    network.load_state_dict(torch.load(arguments.folder / "weights.pt", weights_only=True))
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    demo = Demo(arguments.model, config.context_tokens)
    drawn = (chat for chat in Corpus(config, EVALUATION_SEED + 1) if not chat.tools)
    same = 0
    for conversation in itertools.islice(drawn, CHATS):
        before = conversation.messages[:-1]
        by_torch = write_greedily(network, tokenizer, Conversation(before))
        by_llama = demo.ask(before, max_tokens=LONGEST_ANSWER_TOKENS)["content"]
        same += by_torch == by_llama
        if by_torch != by_llama:
            print(f"{before[-1]['content']!r}\n  torch: {by_torch!r}\n  llama: {by_llama!r}")
    print(f"{same} of {CHATS} answers are the same")


if __name__ == "__main__":
    main()
