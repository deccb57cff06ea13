"""Train the network on the corpus: a fixed number of steps, one thread, loss on answers alone."""

import itertools
import math
import random
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, TextIO

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .chat import BORDER, Conversation, mark_borders, render, render_plain, split_answers
from .config import END_OF_TEXT, ModelConfig, TrainingConfig
from .corpus import Corpus
from .network import Network

POOL: Final = 4_096
"""Conversations that are sorted by length together, so that a batch has little padding."""
REPORT_STEPS: Final = 50
Sample = tuple[array, array, array]


def train(model: ModelConfig, training: TrainingConfig, tokenizer: Tokenizer, report: TextIO = sys.stderr) -> Network:
    """Train from nothing and return the network; progress goes to `report`."""
    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    network = Network(model)
    optimizers = open_optimizers(network, training)
    began, total, seen = time.monotonic(), 0.0, 0
    for step, batch in enumerate(batches(model, training, tokenizer), start=1):
        share = rate_share(step, training)
        loss = answer_loss(network, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak_rate"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total, seen = total + loss.item(), seen + batch[0].numel()
        if step % REPORT_STEPS == 0:
            seconds = time.monotonic() - began
            print(f"step {step} loss {total / REPORT_STEPS:.4f} rate {share:.3f} seconds {seconds:.0f} "
                  f"tokens/s {seen / seconds:.0f}", file=report, flush=True)  # fmt: skip
            total = 0.0
        if step == training.steps:
            break
    return network


def open_optimizers(network: Network, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest.

    Copying (spelling, names, tool arguments) shows after a few hundred steps with Muon; AdamW alone had none at 700.
    """
    matrices = [weight for weight in network.blocks.parameters() if weight.dim() == 2]
    vectors = [weight for weight in network.parameters() if weight.dim() != 2]
    rest = [
        {"params": [network.embedding.weight], "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(rest, lr=training.adam_rate, betas=(0.9, 0.97), fused=True)
    muon = torch.optim.Muon(
        matrices, lr=training.muon_rate, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    for optimizer, rate in ((adam, training.adam_rate), (muon, training.muon_rate)):
        for group in optimizer.param_groups:
            group["peak_rate"] = rate
    return [adam, muon]


def answer_loss(network: Network, token_ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean cross entropy over the tokens of answers, weighted; all (batch, tokens), target -1 is none."""
    wanted = targets >= 0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network.hidden(token_ids)
        logits = functional.linear(hidden[wanted], network.embedding.weight)
    losses = functional.cross_entropy(logits.float(), targets[wanted], reduction="none")
    return (losses * weights[wanted]).sum() / weights[wanted].sum()


def rate_share(step: int, training: TrainingConfig) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to nothing."""
    if step <= training.warmup_steps:
        return step / training.warmup_steps
    done = (step - training.warmup_steps) / (training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def batches(
    model: ModelConfig, training: TrainingConfig, tokenizer: Tokenizer
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches without end of about `batch_tokens` tokens, padding included."""
    dice = random.Random(training.seed)
    conversations = iter(Corpus(model, training.seed))
    padding = tokenizer.token_to_id(END_OF_TEXT)
    while True:
        pool = [
            encode(conversation, tokenizer, cut=dice.random() < 0.5)
            for conversation in itertools.islice(conversations, POOL)
        ]
        pool = sorted((sample for sample in pool if len(sample[0]) <= training.longest_tokens), key=lambda s: len(s[0]))
        cut: list[list[Sample]] = [[]]
        for sample in pool:
            if (len(cut[-1]) + 1) * len(sample[0]) > training.batch_tokens:
                cut.append([])
            cut[-1].append(sample)
        dice.shuffle(cut)
        for samples in cut:
            ids, targets, weights = zip(*samples, strict=True)
            yield _padded(ids, padding), _padded(targets, -1), _padded(weights, 0.0)


def encode(conversation: Conversation, tokenizer: Tokenizer, *, cut: bool = False) -> Sample:
    """Token ids, beside each the next token where that belongs to an answer, else -1, and the weight of its loss.

    A token of a long answer weighs less, so that stories learned by heart do not drown names and numbers.

    With `cut`, what a user wrote becomes tokens apart from the template around it, as careful servers do it.
    """
    shown = mark_borders(conversation) if cut else conversation
    text = render(shown) if conversation.tools else render_plain(shown)
    ids, answers, weights = array("i"), array("i"), array("f")
    for piece, is_answer in split_answers(text):
        parts = [piece.replace(BORDER, "")] if is_answer else piece.split(BORDER)
        encoded = [token for part in parts for token in tokenizer.encode(part).ids]
        ids.extend(encoded)
        answers.extend(encoded if is_answer else [-1] * len(encoded))
        weights.extend([(len(encoded) or 1) ** -0.5] * len(encoded))
    return ids[:-1], answers[1:], weights[1:]


def _padded(rows: Sequence[array], filler: float) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
