"""A guided answer is what its guide says, on every engine: valid and whole, or cut by `max_tokens` alone."""

import asyncio
import json
from typing import Any

import pytest

from shared.errors import AnswerLost, EngineFailed, InvalidRequest
from tests.contract.engines import PATIENCE_SECONDS, collect, ids, opened, prompt, sampling, text
from workers.engines.base import Engine, EngineGuide, GuideForm

pytestmark = [
    pytest.mark.parametrize("name", ["simulator", "llamacpp", "tensorrt"]),
    pytest.mark.timeout(PATIENCE_SECONDS),
]
ENOUGH_TOKENS = 500
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "people": {"type": "integer", "minimum": 0, "maximum": 99999},
        "kind": {"enum": ["town", "port \u00e9\U0001f600", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "people", "kind", "tags"],
    "additionalProperties": False,
}
LIST: dict[str, Any] = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
    },
    "$ref": "#/$defs/node",
}


def of_schema(schema: Any) -> EngineGuide:
    """The whole answer is JSON of a schema."""
    return EngineGuide(forms=(GuideForm("", json.dumps(schema), ""),), param="response_format")


def of_calls(*names: str, **more: Any) -> EngineGuide:
    """Tool calls of the given names, as Hermes and Qwen write them."""
    forms = [
        GuideForm(f'<tool_call>\n{{"name": "{name}", "arguments": ', json.dumps(CITY), "}\n</tool_call>")
        for name in names
    ]
    return EngineGuide(forms=tuple(forms), param="tools", **more)


async def guided(
    engine: Engine, guide: EngineGuide, question: str = "Tell me a story.", *, temperature: float = 0.0
) -> str:
    """The whole answer's text."""
    asked = sampling(ENOUGH_TOKENS, guide=guide, temperature=temperature)
    deltas = await collect(engine.generate("a", prompt(engine, question), asked))
    assert deltas[-1].finish_reason == "stop"
    return text(engine, deltas)


def check_city(value: Any) -> None:
    """Hold `value` to the schema."""
    assert list(value) == ["city", "people", "kind", "tags"]
    assert isinstance(value["city"], str)
    assert len(value["city"]) <= 8
    assert 0 <= value["people"] <= 99999
    assert value["kind"] in CITY["properties"]["kind"]["enum"]
    assert all(isinstance(tag, bool) for tag in value["tags"])


def calls(answer: str) -> list[dict[str, Any]]:
    """The calls that a text is made of, and of nothing else."""
    parts = answer.split("<tool_call>\n")
    assert parts[0] == ""
    ends = [part.removesuffix("\n") for part in parts[1:]]
    assert all(end.endswith("\n</tool_call>") for end in ends)
    return [json.loads(end.removesuffix("\n</tool_call>")) for end in ends]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("question", ["Hello!", "Where is it?", "What is Inferbase?"])
async def test_an_answer_of_a_schema_is_valid_json_of_it(name: str, question: str, temperature: float) -> None:
    async with opened(name) as engine:
        check_city(json.loads(await guided(engine, of_schema(CITY), question, temperature=temperature)))


async def test_any_object_is_one_json_object(name: str) -> None:
    async with opened(name) as engine:
        guide = of_schema({"type": "object"})
        deltas = await collect(engine.generate("a", prompt(engine), sampling(ENOUGH_TOKENS, guide=guide)))

        answer = text(engine, deltas)
        assert answer.startswith("{")
        assert deltas[-1].finish_reason == "length" or isinstance(json.loads(answer), dict)


async def test_json_has_no_whitespace_that_could_go_on_for_ever(name: str) -> None:
    async with opened(name) as engine:
        answer = await guided(engine, of_schema(CITY))

        assert answer == json.dumps(json.loads(answer), ensure_ascii=False)


@pytest.mark.parametrize(
    "scalar",
    [{"enum": ["a", "b"]}, {"const": None}, {"type": "boolean"}, {"minimum": 3, "maximum": 4, "type": "integer"}],
)
async def test_a_schema_need_not_be_of_an_object(name: str, scalar: dict[str, Any]) -> None:
    async with opened(name) as engine:
        assert json.loads(await guided(engine, of_schema(scalar))) in ("a", "b", None, True, False, 3, 4)


async def test_a_required_call_is_of_one_of_the_functions(name: str) -> None:
    async with opened(name) as engine:
        (call,) = calls(await guided(engine, of_calls("get_weather", "get_time")))

        assert call["name"] in ("get_weather", "get_time")
        check_city(call["arguments"])


async def test_a_named_call_is_of_that_function(name: str) -> None:
    async with opened(name) as engine:
        (call,) = calls(await guided(engine, of_calls("only_me")))

        assert call["name"] == "only_me"


async def test_parallel_calls_are_one_or_several(name: str) -> None:
    async with opened(name) as engine:
        made = calls(await guided(engine, of_calls("f", "g", separator="\n")))

        assert made
        for call in made:
            check_city(call["arguments"])


async def test_free_text_is_free_where_no_call_is_required(name: str) -> None:
    async with opened(name) as engine:
        free = await guided(engine, of_calls("f", trigger="<tool_call>", separator="\n"), "Hello!")

        assert "<tool_call>" not in free
        assert free


async def test_a_form_comes_behind_the_text_that_it_is_to_come_after(name: str) -> None:
    mark = "!" if name == "llamacpp" else "."  # what the demo model says to a greeting
    async with opened(name) as engine:
        guide = EngineGuide(forms=(GuideForm("", '{"enum": [1, 2]}', ""),), param="response_format", after=mark)

        before, after = (await guided(engine, guide, "Hello!")).split(mark)

        assert json.loads(after) in (1, 2)
        assert before or name == "simulator"


async def test_an_answer_goes_on_behind_what_another_worker_emitted_or_fails(name: str) -> None:
    async with opened(name) as engine:
        asked = prompt(engine, "Where is it?")
        if name == "tensorrt":  # its grammar starts where its generation starts, and its draws cannot be made again
            begun = asked + engine.tokenizer.encode("{", special=False)
            with pytest.raises(AnswerLost):
                await collect(engine.generate("a", begun, sampling(9, guide=of_schema(CITY)), emitted=1))
            return
        for guide, temperature, seed in (
            (of_schema(CITY), 0.0, None),
            (of_calls("f"), 0.9, None),
            (of_calls("f"), 0.9, 5),
        ):
            more = {"guide": guide, "temperature": temperature, "seed": seed}
            whole = ids(await collect(engine.generate("a", asked, sampling(200, **more))))
            for emitted in (1, len(whole) // 2, len(whole) - 1):
                rest = sampling(200 - emitted, **more)
                continued = await collect(engine.generate("a", asked + whole[:emitted], rest, emitted=emitted))

                assert ids(continued) == whole[emitted:]
                assert continued[-1].finish_reason == "stop"


async def test_emitted_tokens_against_the_guide_fail_the_request(name: str) -> None:
    async with opened(name) as engine:
        wrong = prompt(engine) + engine.tokenizer.encode("no JSON", special=False)
        emitted = len(wrong) - len(prompt(engine))

        with pytest.raises(EngineFailed):
            await collect(engine.generate("a", wrong, sampling(9, guide=of_schema(CITY)), emitted=emitted))


async def test_max_tokens_cut_a_guided_answer(name: str) -> None:
    async with opened(name) as engine:
        deltas = await collect(engine.generate("a", prompt(engine), sampling(4, guide=of_schema(CITY))))

        assert len(ids(deltas)) == 4
        assert deltas[-1].finish_reason == "length"
        assert text(engine, deltas).startswith("{")


DEEP: Any = {"type": "string"}
for _ in range(900):
    DEEP = {"type": "array", "items": DEEP}
REFUSED = {
    "not JSON": "{nojson",
    "no schema": "5",
    "false": "false",
    "an unknown type": '{"type": "nonsense"}',
    "properties of no kind": '{"properties": 5}',
    "an unfinished pattern": '{"type": "string", "pattern": "(["}',
    "a pattern that looks around": '{"type": "string", "pattern": "^(?=a)b$"}',
    "an unknown keyword": '{"not": {"type": "string"}}',
    "a loop": '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}',
    "itself": '{"$ref": "#"}',
    "a remote one": '{"$ref": "http://127.0.0.1:1/schema.json"}',
    "a file": '{"$ref": "file:///etc/passwd"}',
    "nothing allowed": '{"enum": []}',
    "a contradiction": '{"type": "integer", "minimum": 5, "maximum": 4}',
    "too deep": json.dumps(DEEP),
    "too many brackets": "[" * 100_000,
    "a megabyte": json.dumps({"enum": ["x" * 1_000_000]}),
    "a recursion without end": '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}',
    "a thousand optional properties": json.dumps(
        {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(1000)}}
    ),
    "a product of choices": json.dumps(
        {"allOf": [{"anyOf": [{"properties": {f"{a}{b}": {}}} for a in range(8)]} for b in range(12)]}
    ),
}


async def test_a_schema_of_no_use_is_refused_and_the_engine_goes_on(name: str) -> None:
    async with opened(name) as engine:
        asked = prompt(engine)
        for case, schema in REFUSED.items():
            bad = EngineGuide(forms=(GuideForm("", schema, ""),), param="response_format")

            with pytest.raises(InvalidRequest) as refused:
                await collect(engine.generate(case, asked, sampling(5, guide=bad)))

            assert refused.value.param == "response_format"
            assert len(refused.value.message) < 500
        assert ids(await collect(engine.generate("b", asked, sampling(2))))


HEAVY = {
    "a regex that backtracks elsewhere": {"type": "string", "pattern": "^(a+)+$", "maxLength": 9},
    "a regex with many states": {"type": "string", "pattern": "^(a|b)*a(a|b){25}$"},
    "repeats of repeats": {"type": "string", "pattern": "^((((a|b)?){1,100}){1,100}){1,100}$"},
    "a long string": {"type": "string", "minLength": 50_000},
    "a long array": {"type": "array", "items": {"type": "integer"}, "minItems": 100_000},
    "a recursion": LIST,
    "two hundred properties": {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(200)}},
}


async def test_a_heavy_schema_takes_bounded_time_and_holds_up_nobody(name: str) -> None:
    async with opened(name) as engine:
        asked = prompt(engine)
        for schema in HEAVY.values():
            heavy = collect(engine.generate("heavy", asked, sampling(60, guide=of_schema(schema))))
            plain = collect(engine.generate("plain", asked, sampling(20)))

            async with asyncio.timeout(5):
                answer, beside = await asyncio.gather(heavy, plain, return_exceptions=True)

            assert isinstance(answer, InvalidRequest | EngineFailed) or answer[-1].finish_reason is not None
            assert not isinstance(beside, BaseException)
            assert ids(beside)


async def test_a_guided_request_can_be_aborted_before_its_guide_is_read(name: str) -> None:
    async with opened(name, slots=1) as engine:
        aborted = engine.generate("a", prompt(engine), sampling(50, guide=of_schema(CITY)))

        await engine.abort("a")

        assert await collect(aborted) == []
        check_city(json.loads(await guided(engine, of_schema(CITY))))


async def test_many_guided_and_plain_requests_share_the_slots(name: str) -> None:
    async with opened(name, slots=2) as engine:
        asked = prompt(engine)
        schemas = [of_schema(CITY), None, of_schema({"type": "boolean"}), None, of_schema(CITY)]

        answers = await asyncio.gather(
            *(
                collect(engine.generate(str(number), asked, sampling(200, guide=guide)))
                for number, guide in enumerate(schemas)
            )
        )

        for answer, guide in zip(answers, schemas, strict=True):
            if guide is not None:
                json.loads(text(engine, answer))


async def test_closing_fails_a_guided_request(name: str) -> None:
    async with opened(name) as engine:
        running = engine.generate("a", prompt(engine), sampling(500, guide=of_schema({"type": "object"})))

        await engine.close()

        with pytest.raises(EngineFailed):
            await collect(running)
