"""The Qwen2 network in torch: RMS norm, rotary positions, biased q/k/v, SwiGLU, tied embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import ModelConfig


class Attention(nn.Module):
    """Causal self-attention with rotary positions (the halves form, as llama.cpp's NEOX type)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """hidden: (batch, tokens, width); cosine and sine: (tokens, head width)."""
        batch, tokens, width = hidden.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (part(hidden).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        mixed = _attend(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)).view(batch, self.heads, tokens, -1)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.gate = nn.Linear(config.width, config.feed_forward, bias=False)
        self.up = nn.Linear(config.width, config.feed_forward, bias=False)
        self.down = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """hidden: (batch, tokens, width)."""
        hidden = hidden + self.attention(self.attention_norm(hidden), cosine, sine)
        inner = self.feed_norm(hidden)
        return hidden + self.down(functional.silu(self.gate(inner)) * self.up(inner))


class Network(nn.Module):
    """Token ids in, logits out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = (2 * config.layers) ** -0.5 if name.endswith(("output.weight", "down.weight")) else 1.0
                nn.init.normal_(weight, std=scale * config.width**-0.5)
        cosine, sine = _rotations(config)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def hidden(self, token_ids: Tensor) -> Tensor:
        """(batch, tokens) -> (batch, tokens, width), normalised."""
        tokens = token_ids.shape[1]
        hidden = self.embedding(token_ids)
        for block in self.blocks:
            hidden = block(hidden, self.cosine[:tokens], self.sine[:tokens])
        return self.norm(hidden)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(batch, tokens) -> logits (batch, tokens, vocabulary)."""
        return functional.linear(self.hidden(token_ids), self.embedding.weight)


def _rotations(config: ModelConfig) -> tuple[Tensor, Tensor]:
    width = config.width // config.heads
    frequencies = config.rope_base ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(config.context_tokens).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return states * cosine.to(states.dtype) + turned * sine.to(states.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention over (batch * heads, tokens, head width).

    Plain products, since torch's fused attention has a backward pass four times slower than these on one CPU core.
    """
    tokens, width = query.shape[1:]
    future = torch.full((tokens, tokens), -1e4, dtype=query.dtype).triu(1).expand(query.shape[0], tokens, tokens)
    scores = torch.baddbmm(future, query, key.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1, dtype=query.dtype), value)
