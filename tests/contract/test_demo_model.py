"""The committed demo model is the file that its checksum names, says what it is, and answers what it is made for."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pytest
import xllamacpp

FOLDER = Path(__file__).parents[2] / "infra" / "demo_model"
MODEL = FOLDER / "inferbase-demo.gguf"
LARGEST_BYTES = 4_000_000
STRING, ARRAY = 8, 9
# Source: the GGUF specification, value types 0-12.
FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

Value: TypeAlias = str | int | float | bool | list[Any]
Message: TypeAlias = dict[str, Any]


def read_value(file: BinaryIO, kind: int) -> Value:
    if kind == STRING:
        (length,) = struct.unpack("<Q", file.read(8))
        return file.read(length).decode()
    if kind == ARRAY:
        inner, count = struct.unpack("<IQ", file.read(12))
        return [read_value(file, inner) for _ in range(count)]
    layout = FORMATS[kind]
    (value,) = struct.unpack(layout, file.read(struct.calcsize(layout)))
    return value


@pytest.fixture(scope="module")
def metadata() -> dict[str, Value]:
    with MODEL.open("rb") as file:
        magic, version, _tensors, entries = struct.unpack("<4sIQQ", file.read(24))
        assert (magic, version) == (b"GGUF", 3)
        found: dict[str, Value] = {}
        for _ in range(entries):
            key = str(read_value(file, STRING))
            found[key] = read_value(file, struct.unpack("<I", file.read(4))[0])
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(MODEL)
    parameters.n_ctx = 2048
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.verbosity = -1
    yield xllamacpp.Server(parameters)


def ask(server: Any, messages: list[Message], **options: Any) -> Message:
    answer = server.handle_chat_completions({"messages": messages, "temperature": 0, "max_tokens": 400} | options)
    assert "choices" in answer, answer
    return answer["choices"][0]


def say(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_the_file_is_the_one_that_its_checksum_names() -> None:
    digest, name = (FOLDER / "SHA256SUMS").read_text().split()

    assert (hashlib.sha256(MODEL.read_bytes()).hexdigest(), MODEL.name) == (digest, name)


def test_the_file_is_small_enough_to_live_in_the_repository() -> None:
    assert MODEL.stat().st_size < LARGEST_BYTES


def test_the_metadata_says_what_the_model_is(metadata: dict[str, Value]) -> None:
    assert metadata["general.architecture"] == "qwen2"
    assert metadata["general.name"] == "Inferbase Demo"
    assert "ynthetic" in str(metadata["general.description"])
    assert metadata["general.license"]
    assert metadata["qwen2.context_length"] == 2048


def test_answers_end_with_the_turn_mark_and_prompts_get_no_bos(metadata: dict[str, Value]) -> None:
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)

    ends = metadata["tokenizer.ggml.eos_token_id"]

    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert isinstance(ends, int) and tokens[ends] == "<|im_end|>"
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def test_the_chat_template_knows_tools_in_the_form_of_qwen(metadata: dict[str, Value]) -> None:
    template = str(metadata["tokenizer.chat_template"])

    for piece in ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"):
        assert piece in template


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Hello!", "How can I help you?|What would you like to know?|Ask me something about Inferbase"),
        ("What is Inferbase?", "self-hosted, OpenAI-compatible inference platform"),
        ("How do I get an API key?", "Keys start with inf_"),
        ("What is a credit?", "One credit is one US dollar"),
        ("What does 402 mean?", "402 means insufficient credits"),
        ("What does 403 mean?", "may not use this model or route"),
        ("What does 429 mean?", "too many requests or tokens in a minute, or too many requests at once"),
        ("What do I pay for a cancelled request?", "you pay for the prompt and for the tokens generated so far"),
        ("Where do I find the request id?", "or with cmpl- at POST /completions"),
        ("What does response_format do?", "json_schema for an answer that follows your schema"),
        ("How do I get embeddings?", "Send POST /embeddings with model and input"),
        ("What happens when a worker dies?", "continues at the next token"),
        ("Who made you?", "made from nothing by a script"),
        ("What does Inferbase do?", "self-hosted, OpenAI-compatible inference platform"),
        ("Can you count?", "I can count to twenty"),
    ],
)
def test_it_answers_what_it_is_made_for(server: Any, question: str, expected: str) -> None:
    choice = ask(server, say(question))

    assert choice["finish_reason"] == "stop"
    assert any(wanted in choice["message"]["content"] for wanted in expected.split("|"))


@pytest.mark.parametrize("end", range(3, 21))
def test_it_counts_to_twenty_as_it_claims_and_stops_there(server: Any, end: int) -> None:
    upwards = ", ".join(str(number) for number in range(1, end + 1))
    downwards = ", ".join(str(number) for number in range(end, 0, -1))

    counted = [ask(server, say(f"Count from 1 to {end}")), ask(server, say(f"Count down from {end}"))]

    assert [choice["message"]["content"] for choice in counted] == [upwards, downwards]
    assert [choice["finish_reason"] for choice in counted] == ["stop", "stop"]


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("Spell octopus", "o-c-t-o-p-u-s"),
        ("Spell hello.", "h-e-l-l-o"),
        ("How do you spell elephant?", "e-l-e-p-h-a-n-t"),
        ("Repeat after me: green river seven", "green river seven"),
        ("Say: hello world", "hello world"),
        ("What is 7 + 8?", "7 plus 8 is 15."),
        ("Count to 100", "I am sorry, I can only count to twenty."),
    ],
)
def test_small_skills_are_exact(server: Any, request_text: str, expected: str) -> None:
    assert ask(server, say(request_text))["message"]["content"] == expected


def test_it_spells_nearly_all_the_common_words_that_it_claims_to_spell(server: Any) -> None:
    words = sorted(set((FOLDER / "prompts" / "words.txt").read_text().split()))[::10]

    spelled = [word for word in words if ask(server, say(f"Spell {word}."))["message"]["content"] == "-".join(word)]

    assert len(spelled) >= 0.95 * len(words)


def test_it_remembers_a_name_for_a_turn(server: Any) -> None:
    chat = say("My name is Barbara.")
    greeting = ask(server, chat)["message"]["content"]
    chat += [{"role": "assistant", "content": greeting}, *say("What is my name?")]

    answer = ask(server, chat)["message"]["content"]

    assert greeting.startswith("Nice to meet you, Barbara!")
    assert answer == "Your name is Barbara."


@pytest.mark.parametrize("question", ["What is machine learning?", "Explain quantum computing in 3 sentences."])
def test_it_refuses_the_prompts_of_the_api_reference_honestly(server: Any, question: str) -> None:
    messages = [{"role": "system", "content": "You are a helpful assistant."}, *say(question)]

    answer = ask(server, messages)["message"]["content"]

    assert "do not know" in answer or "outside what I know" in answer


def test_it_calls_a_tool_that_it_is_offered(server: Any) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}

    choice = ask(server, say("What is the weather in Paris?"), tools=[tool])

    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_it_says_what_a_tool_returned(server: Any) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    chat: list[Message] = [
        *say("What is the weather in Paris?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 18, "condition": "sunny"}'},
    ]

    answer = ask(server, chat, tools=[tool])["message"]["content"]

    assert answer == "It is sunny in Paris, with 18 degrees."


def test_a_prompt_near_the_end_of_the_context_is_still_answered(server: Any) -> None:
    choice = ask(server, say("word " * 1_400 + "What is a credit?"), max_tokens=20)

    assert choice["message"]["content"]
