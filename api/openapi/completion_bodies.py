"""What the bodies of chat completions, legacy completions and embeddings may be, as JSON schemas.

The words of `shared/openai/{decode,decode_prompts,sampling}.py`; a test holds each field's schema to its check. Every
optional field may be null, which is as good as absent.
"""

from typing import Final

from api.openapi.conversation import tools_schema
from api.openapi.parts import (
    Schema,
    array,
    boolean,
    choice,
    integer,
    nullable,
    number,
    object_,
    one_of,
    optional,
    reference,
    text,
)
from shared.openai import decode, decode_prompts, messages, sampling

_IGNORED: Final = "A field we do not know is ignored and named in the response header `x-inferbase-ignored`."
_PER_ENGINE: Final = " Refused with `unsupported_parameter` where the model's engine cannot do it."
_MODEL: Final = text(
    "The id of a model that `GET /models` lists.",
    least=1,
    most=decode.MODEL_CHARACTERS_MOST,
    examples=["inferbase/demo"],
)
_USER: Final = text("Your own name for the end user.", most=1024)


def body_schemas() -> dict[str, Schema]:
    """Return the component schemas of the three bodies by name."""
    return {"ChatRequest": _chat(), "CompletionRequest": _completion(), "EmbeddingRequest": _embedding()}


def _refused() -> dict[str, Schema]:
    return {name: {"type": "null", "description": "Refused by name."} for name in sorted(decode.REFUSED)}


def _sampling() -> dict[str, Schema]:
    stop = text(least=1, most=sampling.STOP_CHARACTERS_MOST)
    return {
        "temperature": number("How freely the model chooses; 0 takes the likeliest token.", 0, 2, default=1),
        "top_p": number("Only the likeliest tokens that make up this share.", 0, 1, above=True, default=1),
        "max_tokens": integer("At most so many tokens in the answer.", 1, sampling.MAX_TOKENS_MOST),
        "stop": one_of("The answer ends in front of any of these.", stop, array(stop, most=sampling.STOPS_MOST)),
        "seed": integer(
            "The same seed, prompt and settings give the same answer where the engine can." + _PER_ENGINE,
            -sampling.SEED_MODULUS,
            sampling.SEED_MODULUS - 1,
        ),
        "n": integer("How many answers.", 1, sampling.CHOICES_MOST, default=1),
        "presence_penalty": number("Against tokens that were there before." + _PER_ENGINE, -2, 2, default=0),
        "frequency_penalty": number("Against tokens, by how often they were there." + _PER_ENGINE, -2, 2, default=0),
        "logit_bias": object_(
            {},
            f"Token ids and what is added to their logits; at most {sampling.LOGIT_BIASES_MOST}." + _PER_ENGINE,
            closed=False,
            propertyNames={"pattern": "^[0-9]{1,10}$"},
            additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
            maxProperties=sampling.LOGIT_BIASES_MOST,
        ),
        "top_k": integer("Only the k likeliest tokens; 0 = all." + _PER_ENGINE, 0, sampling.TOP_K_MOST),
        "min_p": number("Only tokens at least so likely, against the likeliest." + _PER_ENGINE, 0, 1),
        "repetition_penalty": number(
            "Against tokens that were there before, as a factor." + _PER_ENGINE, 0, 2, above=True
        ),
    }


def _streaming() -> dict[str, Schema]:
    include = {"include_usage": nullable(boolean("End with an event that holds `usage`.", default=False))}
    return {
        "stream": boolean("Send the answer as server-sent events while it is made.", default=False),
        "stream_options": object_(include, "Only where `stream` is true.", closed=False),
        "user": _USER,
    }


def _chat() -> Schema:
    properties = {
        "model": _MODEL,
        "messages": array(reference("Message"), "The conversation.", least=1, most=messages.MESSAGES_MOST),
        **_sampling(),
        "max_completion_tokens": integer(
            "The newer name of `max_tokens`; where both are there they must agree.", 1, sampling.MAX_TOKENS_MOST
        ),
        **_streaming(),
        "tools": tools_schema(),
        "tool_choice": reference("ToolChoice"),
        "parallel_tool_calls": boolean("Whether one answer may hold several calls.", default=True),
        "response_format": _response_format(),
        "reasoning_effort": choice("How long to think, for models whose template knows it.", *decode.REASONING_EFFORTS),
        "logprobs": boolean("Tell the log probability of each token." + _PER_ENGINE, default=False),
        "top_logprobs": integer(
            "And those of so many others at its place; only where `logprobs` is true.", 0, decode.TOP_LOGPROBS_MOST
        ),
        "modalities": array(choice("", "text"), "Answers are text.", most=1),
        "metadata": object_(
            {},
            f"At most {decode.METADATA_PAIRS_MOST} pairs of your own. Accepted and not stored.",
            closed=False,
            propertyNames={"maxLength": decode.METADATA_KEY_CHARACTERS_MOST},
            additionalProperties=text(most=decode.METADATA_VALUE_CHARACTERS_MOST),
            maxProperties=decode.METADATA_PAIRS_MOST,
        ),
        "store": boolean("Accepted; nothing of an answer is kept.", default=False),
        "service_tier": choice(
            "`flex`: the batch lane, for less, in spare slots. The others are the same.", "auto", "default", "flex"
        ),
        "functions": array({}, "Deprecated: send `tools`. Only an empty array is taken.", most=0, deprecated=True),
        "function_call": choice("Deprecated: send `tool_choice`.", "none", "auto", deprecated=True),
    }
    fields = optional(properties, "model", "messages") | _refused()
    return object_(fields, _IGNORED, required=("model", "messages"), closed=False)


def _response_format() -> Schema:
    inner = {
        "name": text("A name for the schema.", least=1, most=decode.SCHEMA_NAME_CHARACTERS_MOST),
        "schema": nullable(
            {"type": "object", "description": "The JSON schema, at most 64 KiB; `$ref` may point into itself only."}
        ),
    }
    return one_of(
        "What the answer must look like." + _PER_ENGINE,
        object_({"type": choice("", "text")}, "Any text.", required=("type",), closed=False),
        object_({"type": choice("", "json_object")}, "A JSON object.", required=("type",), closed=False),
        object_(
            {"type": choice("", "json_schema"), "json_schema": object_(inner, required=("name",), closed=False)},
            "JSON that follows the schema.",
            required=("type", "json_schema"),
            closed=False,
        ),
    )


def _completion() -> Schema:
    properties = {
        "model": _MODEL,
        "prompt": _prompts("What to go on from", decode_prompts.PROMPTS_MOST),
        **_sampling(),
        **_streaming(),
        "max_tokens": integer(
            "At most so many tokens in each answer.",
            1,
            sampling.MAX_TOKENS_MOST,
            default=decode_prompts.MAX_TOKENS_DEFAULT,
        ),
        "logprobs": integer(
            "Tell the log probabilities of so many tokens at each place; not with `echo`." + _PER_ENGINE,
            0,
            decode_prompts.TOP_LOGPROBS_MOST,
        ),
        "best_of": integer("Only the same as `n`.", 1, sampling.CHOICES_MOST),
        "echo": boolean("Begin each answer with its prompt.", default=False),
        "suffix": text("Only the empty text.", most=0),
    }
    together = decode_prompts.CHOICES_TOGETHER_MOST
    return object_(
        optional(properties, "model", "prompt") | _refused(),
        f"{_IGNORED} At most {together} choices over all prompts.",
        required=("model", "prompt"),
        closed=False,
    )


def _embedding() -> Schema:
    properties = {
        "model": _MODEL,
        "input": _prompts("What to embed", decode_prompts.INPUTS_MOST),
        "encoding_format": choice("Numbers, or float32 bytes in base64.", "float", "base64", default="float"),
        "user": _USER,
    }
    dimensions = {"type": "null", "description": "A vector keeps the model's own length: any other value is refused."}
    return object_(
        optional(properties, "model", "input") | {"dimensions": dimensions} | _refused(),
        "A field we do not know is refused, unless it is null.",
        required=("model", "input"),
        closed=False,
        additionalProperties={"type": "null"},
    )


def _prompts(what: str, most: int) -> Schema:
    token = {"type": "integer", "minimum": 0, "maximum": sampling.TOKEN_ID_LIMIT - 1}
    tokens = array(token, least=1)
    return one_of(
        f"{what}: a text, token ids, or up to {most} of either.",
        text(least=1),
        tokens,
        array(one_of("", text(least=1), tokens), least=1, most=most),
    )
