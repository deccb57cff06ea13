"""Byte-level BPE over the corpus, split as Qwen2 splits, with the ChatML marks as special tokens."""

import itertools
import json
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .chat import render
from .config import SPECIAL_TOKENS, ModelConfig, TrainingConfig
from .corpus import Corpus

SAMPLE_CONVERSATIONS: Final = 4_000
# Source: Qwen2's published tokenizer.json; llama.cpp knows it as the pre-tokenizer "qwen2".
QWEN2_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(model: ModelConfig, training: TrainingConfig) -> Tokenizer:
    """Train on a sample of the corpus; the vocabulary always holds all 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sample = itertools.islice(Corpus(model, training.seed + 1), SAMPLE_CONVERSATIONS)
    tokenizer.train_from_iterator((_without_marks(render(conversation)) for conversation in sample), trainer)
    return tokenizer


def tokens_and_merges(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Tokens in order of their ids and merges in order of their rank, as GGUF wants them."""
    saved = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(saved["vocab"], key=saved["vocab"].__getitem__)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in saved["merges"]]
    return tokens, merges


def _without_marks(text: str) -> str:
    for mark in SPECIAL_TOKENS:
        text = text.replace(mark, "\n")
    return text
