"""A checkpoint folder without weights: what the adapter reads of one, with a byte-level BPE tokenizer and ChatML."""

import json
from pathlib import Path
from typing import Any

from workers.engines.llamacpp_tokenizer import _BYTE_OF
from workers.engines.simulator import CHAT_TEMPLATE

MERGES = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n"), ("in", "g")]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 4096


def write_checkpoint(folder: Path, **config: Any) -> Path:
    """Write the folder; `config` goes into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*sorted(_BYTE_OF), *("".join(pair) for pair in MERGES)]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    added = {text: len(pieces) + at for at, text in enumerate(SPECIAL)}
    _write(folder / "tokenizer.json", _tokenizer(vocab, added))
    sizes = {"vocab_size": len(pieces) + 16, "max_position_embeddings": CONTEXT}
    ends = {"bos_token_id": added["<|im_start|>"], "eos_token_id": added["<|im_end|>"]}
    _write(folder / "config.json", sizes | ends | config)
    _write(folder / "generation_config.json", {"eos_token_id": [added["<|im_end|>"], added["<|endoftext|>"]]})
    _write(folder / "tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}, "bos_token": None})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def _tokenizer(vocab: dict[str, int], added: dict[str, int]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": text, **flags} for text, token_id in added.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in MERGES],
        },
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))
