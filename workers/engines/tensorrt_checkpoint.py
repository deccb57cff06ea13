"""What we need to know from a checkpoint in Hugging Face's layout: its sizes, chat template and end ids. No weights.

Source: the files' own names and keys, as Hugging Face's transformers writes them: config.json, generation_config.json,
tokenizer_config.json, chat_template.jinja; and hf_quant_config.json, as NVIDIA's Model Optimizer writes it.
"""

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from shared.errors import SettingsInvalid

CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
DEFAULT_TEMPLATE: Final = "default"

Form = TypeVar("Form", bound=msgspec.Struct)


class _Config(msgspec.Struct):
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    max_seq_len: int | None = None
    seq_length: int | None = None
    eos_token_id: int | list[int] | None = None
    text_config: "_Config | None" = None  # of a model that also takes pictures


class _Generation(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


class _TokenText(msgspec.Struct):
    content: str


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None
    bos_token: str | _TokenText | None = None
    eos_token: str | _TokenText | None = None


class _Quantization(msgspec.Struct):
    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None


class _QuantizationFile(msgspec.Struct):
    quantization: _Quantization = msgspec.field(default_factory=_Quantization)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The head of one checkpoint folder."""

    path: Path
    vocabulary: int  # ids that the model has; the tokenizer may have fewer
    context: int | None  # tokens that the model was trained for
    chat_template: str
    bos_text: str
    eos_text: str
    end_ids: frozenset[int]  # of config.json and generation_config.json
    quantization: str  # of the weights, as the checkpoint names it; empty: none


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the head of the checkpoint in the folder `path`, or raise SettingsInvalid: missing, or of no use."""
    if not path.is_dir():
        raise SettingsInvalid(f"there is no checkpoint folder at {path}")
    config = _read(path / "config.json", _Config)
    if config is None:
        raise SettingsInvalid(f"{path} has no config.json")
    inner = config.text_config or _Config()
    vocabulary = config.vocab_size or inner.vocab_size
    if not vocabulary or vocabulary < 1:
        raise SettingsInvalid(f"{path / 'config.json'} tells no vocab_size")
    generation = _read(path / "generation_config.json", _Generation) or _Generation()
    tokenizer = _read(path / "tokenizer_config.json", _TokenizerConfig) or _TokenizerConfig()
    template = _template(path, tokenizer)
    if not template:
        raise SettingsInvalid(f"{path} has no chat template")
    quantization = (_read(path / "hf_quant_config.json", _QuantizationFile) or _QuantizationFile()).quantization
    return Checkpoint(
        path=path,
        vocabulary=vocabulary,
        context=_context(config) or _context(inner),
        chat_template=template,
        bos_text=_text(tokenizer.bos_token),
        eos_text=_text(tokenizer.eos_token),
        end_ids=frozenset((*_ids(config), *_ids(inner), *_ids(generation))),
        quantization=quantization.quant_algo or "",
    )


def _read(path: Path, form: type[Form]) -> Form | None:
    """Return a JSON file as a `form`; None where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=form)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{path} cannot be read: {error}") from None


def _template(path: Path, config: _TokenizerConfig) -> str:
    """Return the chat template: of its own file, where there is one, else of the tokenizer's."""
    try:
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    if isinstance(config.chat_template, str):
        return config.chat_template
    named = {one.name: one.template for one in config.chat_template or ()}
    return named.get(DEFAULT_TEMPLATE, "")


def _context(config: _Config) -> int | None:
    return next((value for key in CONTEXT_KEYS if (value := getattr(config, key))), None)


def _text(token: str | _TokenText | None) -> str:
    return token.content if isinstance(token, _TokenText) else token or ""


def _ids(config: _Config | _Generation) -> list[int]:
    ids = config.eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
