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
"""Conversations that are drawn before batches are cut from them."""
SHAPE_STEP: Final = 32
"""Lengths are multiples of this: oneDNN compiles its kernels anew for every shape of a matrix."""
REPORT_STEPS: Final = 250
Sample = tuple[array, array, array]


def train(network: Network, training: TrainingConfig, tokenizer: Tokenizer, report: TextIO = sys.stderr) -> None:
    """Train the network for one phase, with an optimizer of its own; progress goes to `report`."""
    optimizer = open_optimizer(network, training)
    began, total, seen = time.monotonic(), 0.0, 0
    for step, batch in enumerate(batches(network.config, training, tokenizer), start=1):
        rate = learning_rate(step, training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = answer_loss(network, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total, seen = total + loss.item(), seen + batch[0].numel()
        if step % REPORT_STEPS == 0:
            seconds = time.monotonic() - began
            print(f"step {step} loss {total / REPORT_STEPS:.4f} rate {rate:.5f} seconds {seconds:.0f} "
                  f"tokens/s {seen / seconds:.0f}", file=report, flush=True)  # fmt: skip
            total = 0.0
        if step == training.steps:
            break


def open_optimizer(network: Network, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, with decay on matrices alone."""
    matrices = [weight for weight in network.parameters() if weight.dim() == 2]
    vectors = [weight for weight in network.parameters() if weight.dim() != 2]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.peak_rate, betas=(0.9, 0.99), fused=True)


def answer_loss(network: Network, token_ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean cross entropy over the tokens of answers, weighted; all (batch, tokens), target -1 is none."""
    places = (targets.flatten() >= 0).nonzero().squeeze(1)
    spare = -len(places) % (8 * SHAPE_STEP)
    places = torch.cat((places, places.new_zeros(spare)))
    weights = weights.flatten()[places]
    weights[len(places) - spare :] = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network.hidden(token_ids).flatten(0, 1)
        logits = functional.linear(hidden[places], network.embedding.weight)
    losses = functional.cross_entropy(logits.float(), targets.flatten()[places].clamp(min=0), reduction="none")
    return (losses * weights).sum() / weights.sum()


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to nothing."""
    if step <= training.warmup_steps:
        return training.peak_rate * step / training.warmup_steps
    done = (step - training.warmup_steps) / (training.steps - training.warmup_steps)
    return training.peak_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def batches(
    model: ModelConfig, training: TrainingConfig, tokenizer: Tokenizer
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches without end of about `batch_tokens` tokens, padding included."""
    dice = random.Random(training.seed)
    conversations = iter(Corpus(model, training.seed, training.mix))
    padding = tokenizer.token_to_id(END_OF_TEXT)
    waiting: dict[int, list[Sample]] = {}
    while True:
        pool = [
            encode(conversation, tokenizer, cut=dice.random() < 0.5)
            for conversation in itertools.islice(conversations, POOL)
        ]
        for sample in pool:
            length = -(-len(sample[0]) // SHAPE_STEP) * SHAPE_STEP
            if length <= training.longest_tokens:
                waiting.setdefault(length, []).append(sample)
        cut: list[tuple[int, list[Sample]]] = []
        for length, samples in waiting.items():
            rows = max(1, training.batch_tokens // length)
            while len(samples) >= rows:
                cut.append((length, samples[:rows]))
                del samples[:rows]
        dice.shuffle(cut)
        for length, samples in cut:
            ids, targets, weights = zip(*samples, strict=True)
            yield _padded(ids, length, padding), _padded(targets, length, -1), _padded(weights, length, 0.0)


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


def _padded(rows: Sequence[array], length: int, filler: float) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
