"""What is asked of llama.cpp's server: the body of a completion and its HTTP request.

Only the samplers that have something to do are named, so that none of the engine's own defaults has an effect.
Source: tools/server/README.md and tools/server/server-schema.cpp of llama.cpp.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from workers.engines.base import EngineSampling

SEED_LIMIT: Final = 2**32 - 1  # the engine's own; the limit itself means "random"

_encode: Final = msgspec.json.Encoder().encode


def http_request(path: str, key: str, body: dict[str, Any]) -> bytes:
    """Return a whole POST, after which the engine closes the connection."""
    data = _encode(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


def completion_body(
    prompt_token_ids: Sequence[int], sampling: EngineSampling, *, emitted: int, context: int, grammar: str | None = None
) -> dict[str, Any]:
    """Return what `/completion` shall do; with a `grammar`, make the emitted tokens again: see `seeded`."""
    again = emitted if grammar is not None else 0
    body: dict[str, Any] = {
        "prompt": list(prompt_token_ids[: len(prompt_token_ids) - again]),
        "n_predict": sampling.max_tokens + again,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        "samplers": _samplers(sampling),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "response_fields": ["stop_type", "tokens_predicted"],
    }
    bias = dict(sampling.logit_bias)
    if _penalised(sampling):
        body["presence_penalty"] = sampling.presence_penalty
        body["frequency_penalty"] = sampling.frequency_penalty
        body["repeat_last_n"] = context
        _spare_prompt(bias, prompt_token_ids[: len(prompt_token_ids) - emitted], sampling)
    if bias:
        body["logit_bias"] = list(bias.items())
    if sampling.top_logprobs is not None:
        body["n_probs"] = max(1, sampling.top_logprobs)
    if grammar is not None:
        body["grammar"] = grammar
    if sampling.seed is not None:
        body["seed"] = sampling.seed % SEED_LIMIT
    return body


def seeded(request_id: str, sampling: EngineSampling) -> EngineSampling:
    """Return `sampling` with a seed: its own, or one that stands for the request.

    The engine knows no way to start a grammar in its midst. So a guided answer that another worker began is made again
    from its begin, compared with what was emitted, and told from there on: that needs the same draws.
    """
    if sampling.seed is not None:
        return sampling
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return msgspec.structs.replace(sampling, seed=int.from_bytes(digest, "big") >> 1)


def _samplers(sampling: EngineSampling) -> list[str]:
    penalties = ["penalties"] if _penalised(sampling) else []
    top_k = ["top_k"] if sampling.top_k else []
    min_p = ["min_p"] if sampling.min_p else []
    return [*penalties, "temperature", *top_k, "top_p", *min_p]


def _penalised(sampling: EngineSampling) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty) or sampling.repetition_penalty != 1


def _spare_prompt(bias: dict[int, float], prompt_token_ids: Sequence[int], sampling: EngineSampling) -> None:
    """Undo in `bias` what presence and frequency take from the prompt's own tokens.

    OpenAI counts only the tokens of the answer. The engine counts the prompt's too, which would forbid the end token
    after a few turns. A frequency is undone exactly; a presence also for those tokens of the prompt that the answer
    then repeats. Beside a repetition penalty, which counts the prompt everywhere and scales the logits in between,
    nothing is undone.
    """
    if sampling.repetition_penalty != 1:
        return
    for token_id, count in Counter(prompt_token_ids).items():
        undone = count * sampling.frequency_penalty + sampling.presence_penalty
        bias[token_id] = bias.get(token_id, 0.0) + undone
