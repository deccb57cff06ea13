"""Every number that decides what the demo model becomes: shape, schedule, seeds, names and paths."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
FACTS: Final = HERE / "facts"
PROMPTS: Final = HERE / "prompts"
CHAT_TEMPLATE: Final = HERE / "chat_template.jinja"
GGUF: Final = HERE / "inferbase-demo.gguf"
CHECKSUMS: Final = HERE / "SHA256SUMS"

SHARPNESS: Final = 2.0
"""The file's logits are the trained ones times this, so that the API's default temperature of 1.0 acts as 0.5."""

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL_TOKENS: Final = (END_OF_TEXT, TURN_START, TURN_END)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network; Qwen2 with tied embeddings. Widths are multiples of 32, as Q8_0 needs."""

    vocabulary: int = 1536
    width: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    context_tokens: int = 2048
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6

    @property
    def parameters(self) -> int:
        """Number of weights, the embedding counted once."""
        attention = 4 * self.width**2 + 3 * self.width
        block = attention + 3 * self.width * self.feed_forward + 2 * self.width
        return self.vocabulary * self.width + self.layers * block + self.width


@dataclass(frozen=True)
class Mix:
    """How often each part of the corpus is drawn: weights of turns, and the share of chats with tools."""

    facts: int = 46
    refuse: int = 27
    count: int = 6
    spell: int = 9
    add: int = 5
    repeat: int = 5
    name: int = 4
    story: int = 3
    tool_share: float = 0.11


@dataclass(frozen=True)
class TrainingConfig:
    """Schedule of one phase; the same numbers on the same machine give the same file."""

    mix: Mix = Mix()
    steps: int = 14_000
    batch_tokens: int = 1_024
    longest_tokens: int = 768
    peak_rate: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.05
    seed: int = 20_260


PRACTICE: Final = Mix(facts=30, refuse=18, count=15, spell=12, add=3, repeat=15, name=7, story=3, tool_share=0.25)
REVISION: Final = Mix(facts=42, refuse=22, count=13, spell=7, add=3, repeat=7, name=4, story=3, tool_share=0.2)
PHASES: Final = (
    TrainingConfig(),
    TrainingConfig(mix=PRACTICE, steps=10_000, peak_rate=1.5e-3, warmup_steps=200, seed=20_270),
    TrainingConfig(mix=REVISION, steps=5_500, peak_rate=6e-4, warmup_steps=200, seed=20_280),
)
"""Phase 1 learns what there is to say, phase 2 practises what needs exactness, phase 3 evens both out."""


def fact_values(model: ModelConfig) -> dict[str, str]:
    """What the placeholders of the facts stand for, so that the model's words about itself stay true."""
    megabytes = model.parameters * 34 / 32 / 1e6
    return {
        "parameters": f"{model.parameters / 1e6:.1f}",
        "layers": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")[model.layers],
        "megabytes": f"{megabytes:.0f}",
        "context": str(model.context_tokens),
    }
