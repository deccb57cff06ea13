"""The README's table of request fields, made by asking the decoders and the engines' own capabilities.

`python -m tests.house.fields_table` writes it anew. Each field has an example whose effect can be seen: what decodes to
another request works, what decodes to the same one is accepted, what is refused by name is refused. Source of the
names: OpenAI's schemas CreateChatCompletionRequest, CreateCompletionRequest, CreateEmbeddingRequest (openapi 2.3.0).
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from shared.errors import InvalidRequest
from shared.openai.decode import decode_chat
from shared.openai.decode_prompts import decode_completion, decode_embedding
from shared.openai.request import CompletionRequest
from tests.house.sources import ROOT
from workers.engines.base import Capabilities
from workers.engines.simulator import Simulator
from workers.engines.tensorrt import TensorRt
from workers.engines.validation import check_capabilities

README: Final = ROOT / "README.md"
BEGIN, END = "<!-- fields: begin -->\n", "<!-- fields: end -->\n"

Row = tuple[Any, str]  # an example that has an effect where the field has any; what there is to say

LLAMACPP: Final = Capabilities(  # each instance has its own; a test compares
    seed=True,
    logprobs=True,
    penalties=True,
    repetition_penalty=True,
    logit_bias=True,
    top_k=True,
    min_p=True,
    guided_decoding=True,
    embeddings=True,
)
ENGINES: Final = {
    "llamacpp": LLAMACPP,
    "simulator": Simulator.capabilities,
    "tensorrt": TensorRt.capabilities,
}
FUNCTION: Final = {"type": "function", "function": {"name": "f"}}
USER: Final = {"role": "user", "content": "Hi"}
SCHEMA: Final = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
OURS: Final = "an extension of ours, as in other engines"
ABUSE: Final = "no part of the answer; ignored and named"
CACHE: Final = "a matter of the engine; ignored and named"

SAMPLING: Final[dict[str, Row]] = {
    "temperature": (0.5, "0 to 2"),
    "top_p": (0.5, "more than 0, up to 1"),
    "max_tokens": (5, "1 or more; without it what the context, the model and the credits allow"),
    "n": (2, "1 to 8, each choice paid for"),
    "stop": (["x"], "up to 4 texts of up to 64 characters"),
    "seed": (5, "the same answer again on the same engine; a negative one is folded into the range of engines"),
    "presence_penalty": (1, "-2 to 2"),
    "frequency_penalty": (1, "-2 to 2"),
    "logit_bias": ({"5": 1}, "up to 1,024 tokens"),
    "stream": (True, ""),
    "stream_options": ({"include_usage": True}, "`include_usage`; other options are ignored and named"),
    "user": ("u", "not kept"),
    "top_k": (5, OURS),
    "min_p": (0.1, OURS),
    "repetition_penalty": (1.1, OURS),
}
CHAT: Final[dict[str, Row]] = {
    "model": ("other", "as in `GET /models`"),
    "messages": (
        [USER, USER],
        "system, developer, user, assistant, tool; text and text parts; images, sound and files are refused",
    ),
    **SAMPLING,
    "max_completion_tokens": (5, "the newer name of `max_tokens`"),
    "logprobs": (True, ""),
    "top_logprobs": (2, "up to 20, with `logprobs`"),
    "response_format": (SCHEMA, "`text`, `json_object`, `json_schema` of up to 64 KiB; enforced by a grammar"),
    "tools": ([FUNCTION], "up to 128 functions, where the model's template has a place for them; no custom tools"),
    "tool_choice": (
        {"type": "function", "function": {"name": "f"}},
        "`none`, `auto`, `required`, a function, `allowed_tools`; enforced by a grammar",
    ),
    "parallel_tool_calls": (False, "false: one call at most"),
    "reasoning_effort": ("low", "where the model's template knows it, else refused"),
    "service_tier": ("flex", "`auto`, `default`; `flex` is the batch lane"),
    "metadata": ({"a": "b"}, "checked, not kept"),
    "store": (True, "nothing of an answer is kept; named"),
    "modalities": (["text"], "`text` alone"),
    "audio": ({"voice": "alloy", "format": "mp3"}, "text alone"),
    "web_search_options": ({}, "nothing is fetched"),
    "moderation": ({}, "no moderation"),
    "functions": ([{"name": "f"}], "send `tools`"),
    "function_call": ({"name": "f"}, "send `tool_choice`"),
    "prediction": ({"type": "content", "content": "x"}, "only a matter of speed; ignored and named"),
    "verbosity": ("low", "no template knows it; ignored and named"),
    "prompt_cache_key": ("k", CACHE),
    "prompt_cache_options": ({}, CACHE),
    "prompt_cache_retention": ("24h", CACHE),
    "safety_identifier": ("s", ABUSE),
}
COMPLETION: Final[dict[str, Row]] = {
    "model": ("other", ""),
    "prompt": ("other", "a text, up to 32 texts, token ids"),
    **SAMPLING,
    "max_tokens": (5, "16 without it, as OpenAI has it"),
    "logprobs": (2, "up to 5; not together with `echo`"),
    "echo": (True, ""),
    "best_of": (1, "no more than `n`"),
    "suffix": ("x", "no model of ours fills in"),
}
EMBEDDING: Final[dict[str, Row]] = {
    "model": ("other", "a llamacpp model needs `--option embeddings=true`"),
    "input": ("other", "a text, up to 256 texts, token ids"),
    "encoding_format": ("base64", "`float` or `base64`"),
    "dimensions": (64, "vectors are given whole"),
    "user": ("u", "not kept"),
}
# Fields that mean nothing without another one.
BESIDES: Final[dict[str, dict[str, Any]]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [FUNCTION]},
    "parallel_tool_calls": {"tools": [FUNCTION]},
}
ROUTES: Final[dict[str, tuple[Callable[[bytes], CompletionRequest], dict[str, Any], dict[str, Row]]]] = {
    "chat/completions": (decode_chat, {"model": "m", "messages": [USER]}, CHAT),
    "completions": (decode_completion, {"model": "m", "prompt": "Hi"}, COMPLETION),
    "embeddings": (decode_embedding, {"model": "m", "input": "Hi"}, EMBEDDING),
}


def table() -> str:
    """Return the Markdown table, one row per field."""
    rows = ["| field | " + " | ".join(ENGINES) + " | |", "|---|" + "---|" * (len(ENGINES) + 1)]
    for route, (decode, base, fields) in ROUTES.items():
        rows.append(f"| **`POST /{route}`** |" + " |" * (len(ENGINES) + 1))
        for name, (example, remark) in fields.items():
            told = outcomes(decode, base, name, example)
            rows.append(f"| `{name}` | " + " | ".join(told.values()) + f" | {remark} |")
    return "\n".join(rows) + "\n"


def outcomes(
    decode: Callable[[bytes], CompletionRequest], base: dict[str, Any], name: str, example: Any
) -> dict[str, str]:
    """Return for each engine what becomes of a field: works, refused or accepted."""
    around = base | BESIDES.get(name, {})
    try:
        request = decode(msgspec.json.encode(around | {name: example}))
    except InvalidRequest as error:
        assert error.code == "unsupported_parameter", f"the example of {name} is bad: {error.message}"
        return dict.fromkeys(ENGINES, "refused")
    neutral = {"ignored": (), "user": None}
    without = decode(msgspec.json.encode(around))
    if msgspec.structs.replace(request, **neutral) == msgspec.structs.replace(without, **neutral):
        return dict.fromkeys(ENGINES, "accepted")
    return {engine: _of_engine(request, able) for engine, able in ENGINES.items()}


def _of_engine(request: CompletionRequest, able: Capabilities) -> str:
    try:
        check_capabilities(request.sampling, request.task, able)
    except InvalidRequest:
        return "refused"
    return "works"


def written() -> str:
    """Return the table as it stands in the README."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    README.write_text(head + BEGIN + table() + END + rest.partition(END)[2])
