"""Write the network, its tokenizer and its chat template as one GGUF file that llama.cpp reads as Qwen2."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from tokenizers import Tokenizer
from torch import Tensor

from .config import CHAT_TEMPLATE, END_OF_TEXT, SHARPNESS, SPECIAL_TOKENS, TURN_END, ModelConfig
from .network import Network
from .tokenizer import tokens_and_merges

DESCRIPTION = (
    "Synthetic demo model of Inferbase, made from nothing by infra/demo_model. It knows this product, small talk, "
    "counting, spelling and a few short stories, and refuses the rest. For first runs and tests only."
)


def write_gguf(path: Path, network: Network, tokenizer: Tokenizer) -> None:
    """Write everything to `path`; matrices as Q8_0, vectors as F32."""
    writer = GGUFWriter(str(path), "qwen2")
    _write_model(writer, network.config)
    _write_tokenizer(writer, tokenizer)
    for name, weight in _tensors(network):
        values = weight.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(values))
        else:
            quantized = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantized, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_model(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_name("Inferbase Demo")
    writer.add_basename("inferbase-demo")
    writer.add_author("The Inferbase project")
    writer.add_organization("Inferbase")
    writer.add_description(DESCRIPTION)
    writer.add_license("other")
    writer.add_license_name("The licence of the repository that this file comes with")
    writer.add_languages(["en"])
    writer.add_size_label(f"{config.parameters / 1e6:.1f}M")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config.context_tokens)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)


def _write_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    tokens, merges = tokens_and_merges(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL_TOKENS else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(TURN_END))
    writer.add_eot_token_id(tokens.index(TURN_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE.read_text())


def _tensors(network: Network) -> list[tuple[str, Tensor]]:
    named = [("token_embd.weight", network.embedding.weight), ("output_norm.weight", network.norm.weight * SHARPNESS)]
    for index, block in enumerate(network.blocks):
        attention = block.attention
        named += [
            (f"blk.{index}.{name}", weight)
            for name, weight in (
                ("attn_norm.weight", block.attention_norm.weight),
                ("attn_q.weight", attention.query.weight),
                ("attn_q.bias", attention.query.bias),
                ("attn_k.weight", attention.key.weight),
                ("attn_k.bias", attention.key.bias),
                ("attn_v.weight", attention.value.weight),
                ("attn_v.bias", attention.value.bias),
                ("attn_output.weight", attention.output.weight),
                ("ffn_norm.weight", block.feed_norm.weight),
                ("ffn_gate.weight", block.gate.weight),
                ("ffn_up.weight", block.up.weight),
                ("ffn_down.weight", block.down.weight),
            )
        ]
    return named
