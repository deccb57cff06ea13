"""What is asked of TensorRT-LLM, and what it tells of a token.

Source: tests/contract/trtllm_1_2_1.json. Only what its default sampler reads is asked for: it takes penalties, min_p
and a seed without a word, and draws without them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from shared.wire import TokenLogprob
from workers.engines.base import EngineSampling, Tokenizer

GREEDY_BELOW: Final = 1e-4  # temperatures below divide logits beyond what a float of 32 bits holds
LOGPROBS_ASKED: Final = 20  # the most that is told; a token beyond these has the logprob UNKNOWN, as OpenAI has it
UNKNOWN: Final = -9999.0


class Likely(Protocol):
    """A Logprob of the engine."""

    @property
    def logprob(self) -> float: ...


def sampling_fields(
    sampling: EngineSampling, *, end_ids: Sequence[int], vocabulary: int, guide: Any = None
) -> dict[str, Any]:
    """Return the fields of SamplingParams. `end_ids`, the tokenizer's own first: no guided answer ends with another."""
    fields: dict[str, Any] = {
        "end_id": end_ids[0],
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if sampling.temperature < GREEDY_BELOW else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "include_stop_str_in_output": True,  # else the end id of an answer is taken off again
        "detokenize": False,
    }
    if len(end_ids) > 1:
        fields["stop_token_ids"] = list(end_ids[1:])
    if sampling.logit_bias:
        bias = [0.0] * vocabulary
        for token_id, value in sampling.logit_bias:
            bias[token_id] = value
        fields["embedding_bias"] = bias
    if sampling.top_logprobs is not None:
        fields["logprobs"] = LOGPROBS_ASKED
    if guide is not None:
        fields["guided_decoding"] = guide
    return fields


def token_logprobs(
    token_ids: Sequence[int], known: Sequence[Mapping[int, Likely]], top_logprobs: int, tokenizer: Tokenizer
) -> tuple[TokenLogprob, ...]:
    """Return one for each of `token_ids`, of which `known` tells the likeliest at each place."""
    told = []
    for at, token_id in enumerate(token_ids):
        likely = known[at] if at < len(known) else {}
        ranked = sorted(likely.items(), key=lambda item: -item[1].logprob)
        own = likely.get(token_id)
        told.append(
            TokenLogprob(
                tokenizer.token_bytes(token_id),
                UNKNOWN if own is None else _bounded(own),
                tuple((tokenizer.token_bytes(other), _bounded(one)) for other, one in ranked[:top_logprobs]),
            )
        )
    return tuple(told)


def _bounded(one: Likely) -> float:
    return min(0.0, max(UNKNOWN, one.logprob))
