"""The simulator: a script is followed to the letter."""

import asyncio
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import EngineFailed, SettingsInvalid
from shared.wire import Message
from tests.contract.engines import collect, ids, opened, prompt, sampling
from workers.engines.base import Delta, Engine, EngineGuide, GuideForm
from workers.engines.simulator_script import Answer, Script
from workers.engines.simulator_words import SimulatorTokenizer
from workers.inference.prompt import PromptBuilder
from workers.inference.stops import TextStream

TOKENIZER = SimulatorTokenizer()


def text_of(engine: Engine, deltas: list[Delta]) -> str:
    """What a client would read."""
    stream = TextStream(engine.tokenizer)
    return "".join([*(stream.push(delta.token_ids, delta.text) for delta in deltas), stream.finish()])


async def ask(engine: Engine, text: str, max_tokens: int = 800) -> str:
    """Ask one thing and read the answer."""
    return text_of(engine, await collect(engine.generate("a", prompt(engine, text), sampling(max_tokens))))


async def test_an_answer_is_as_many_words_as_scripted() -> None:
    async with opened("simulator", tokens="5") as engine:
        deltas = await collect(engine.generate("a", prompt(engine), sampling(100)))

        assert len(ids(deltas)) == len(text_of(engine, deltas).split()) == 5
        assert deltas[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "text", ["hi", "", "   ", " a  b ", "é😀 <|im_end|> ﷽", "Say exactly: it", "line\nline\n", "\u202eabc\u0301"]
)
async def test_say_exactly_says_exactly_that(text: str) -> None:
    async with opened("simulator") as engine:
        assert await ask(engine, f"Say exactly: {text}") == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=60))
def test_whatever_is_to_be_said_is_the_answer(text: str) -> None:
    turn = TOKENIZER.encode("<|im_start|>user\nSay exactly: ", special=True) + TOKENIZER.encode(text, special=False)
    answer = Answer(turn + TOKENIZER.encode("<|im_end|>\n<|im_start|>assistant\n", special=True), Script())

    made = [answer.token_id(position) for position in range(answer.tokens)]

    assert b"".join(map(TOKENIZER.token_bytes, made)) == text.encode()


async def test_a_call_of_a_function_is_made_as_hermes_models_make_it() -> None:
    async with opened("simulator") as engine:
        answer = await ask(engine, 'Please.\nCall the function get_weather with {"city":"Z\u00fcrich"}')

        assert answer == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Z\u00fcrich"}}\n</tool_call>'


async def test_several_lines_make_several_calls() -> None:
    async with opened("simulator") as engine:
        answer = await ask(engine, "Call the function a.b with {}\nCall the function c-d with not JSON")

        assert answer.count("<tool_call>") == 2
        assert '{"name": "c-d", "arguments": not JSON}' in answer


async def test_a_guide_outweighs_the_script() -> None:
    guide = EngineGuide(forms=(GuideForm("", '{"enum": [7]}', ""),), param="response_format")
    async with opened("simulator") as engine:
        deltas = await collect(engine.generate("a", prompt(engine, "Say exactly: 9"), sampling(9, guide=guide)))

        assert text_of(engine, deltas) == "7"


async def test_what_is_scripted_is_said_where_the_guide_allows_it() -> None:
    guide = EngineGuide(forms=(GuideForm("", '{"type": "object"}', ""),), param="response_format")
    async with opened("simulator") as engine:
        asked = prompt(engine, 'Say exactly: {"a": [1, 2, {"b": "c d"}]}')
        deltas = await collect(engine.generate("a", asked, sampling(90, guide=guide)))

        assert text_of(engine, deltas) == '{"a": [1, 2, {"b": "c d"}]}'


async def test_only_the_last_user_turn_is_obeyed() -> None:
    async with opened("simulator") as engine:
        turns = [Message("user", "Say exactly: no"), Message("assistant", "no"), Message("user", "Say exactly: yes")]
        ids_ = PromptBuilder(engine).build([*turns, Message("assistant", "Say exactly: never")])

        assert text_of(engine, await collect(engine.generate("a", ids_, sampling(50)))) == "yes"


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.integers(1, 30))
def test_a_token_depends_on_the_prompt_and_the_position_alone(prompt_ids: list[int], tokens: int) -> None:
    first, second = Answer(prompt_ids, Script(tokens=tokens)), Answer(list(prompt_ids), Script(tokens=30))

    assert [first.token_id(at) for at in range(tokens)] == [second.token_id(at) for at in range(tokens)]


async def test_other_prompts_get_other_answers() -> None:
    async with opened("simulator") as engine:
        assert len({await ask(engine, f"question {number}") for number in range(20)}) == 20


async def test_stamps_are_monotonic_nanoseconds_of_receipt_and_of_each_token() -> None:
    async with opened("simulator", tokens="4", stamp_tokens="true") as engine:
        before = time.monotonic_ns()
        text = await ask(engine, "hello")
        after = time.monotonic_ns()

        received, *made = text.replace("@R", "").split("@S")
        stamps = [int(stamp, 16) for stamp in (received, *made)]
        assert len(made) == 4
        assert all(len(stamp) == 16 for stamp in (received, *made))
        assert [before, *stamps, after] == sorted([before, *stamps, after])


async def test_a_later_attempt_does_not_stamp_the_receipt_again() -> None:
    async with opened("simulator", tokens="4", stamp_tokens="1") as engine:
        asked = prompt(engine)
        deltas = await collect(engine.generate("a", [*asked, 300, 301], sampling(9), emitted=2))

        assert text_of(engine, deltas).count("@S") == 2
        assert "@R" not in text_of(engine, deltas)


async def test_running_requests_advance_together() -> None:
    async with opened("simulator", slots=8, tokens="10", step_ms="2") as engine:
        asked = prompt(engine)

        await asyncio.gather(*(collect(engine.generate(str(number), asked, sampling(10))) for number in range(8)))

        assert 10 <= engine.steps() <= 12


async def test_a_step_takes_its_time_without_drift() -> None:
    async with opened("simulator", tokens="40", step_ms="5") as engine:
        started = time.monotonic()
        await ask(engine, "hello")

        assert 0.19 <= time.monotonic() - started < 0.6


async def test_a_prefill_delays_the_first_token_and_counts_as_steps() -> None:
    async with opened("simulator", prefill_ms="50") as engine:
        deltas = engine.generate("a", prompt(engine), sampling(1))
        started = time.monotonic()
        assert engine.steps() == 1

        await anext(deltas)

        assert time.monotonic() - started >= 0.045


async def test_loading_takes_its_time() -> None:
    started = time.monotonic()
    async with opened("simulator", load_seconds="0.05"):
        assert time.monotonic() - started >= 0.045


async def test_a_failure_before_the_first_token_sends_none() -> None:
    async with opened("simulator", fail_before_first_token="true") as engine:
        with pytest.raises(EngineFailed, match="told to fail"):
            await anext(engine.generate("a", prompt(engine), sampling(5)))
        await engine.warm_up()


async def test_a_failure_after_tokens_sends_exactly_these() -> None:
    async with opened("simulator", fail_after_tokens="3") as engine:
        made: list[int] = []
        with pytest.raises(EngineFailed):
            async for delta in engine.generate("a", prompt(engine), sampling(10)):
                made += delta.token_ids

        assert len(made) == 3


async def test_a_failed_request_frees_its_slot_and_its_neighbours_go_on() -> None:
    async with opened("simulator", slots=1, fail_after_tokens="3") as engine:
        failing = engine.generate("a", prompt(engine), sampling(10))
        waiting = engine.generate("b", prompt(engine), sampling(3))

        with pytest.raises(EngineFailed):
            await collect(failing)

        assert len(ids(await collect(waiting))) == 3


async def test_a_hang_stops_the_steps_of_all_and_closing_still_returns() -> None:
    async with opened("simulator", hang_after_tokens="2") as engine:
        hanging = engine.generate("a", prompt(engine), sampling(10))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await collect(hanging)
        steps = engine.steps()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine.warm_up()

        assert engine.steps() == steps


def test_running_out_of_memory_ends_the_process_as_the_kernel_does() -> None:
    code = (
        "import asyncio\n"
        "from tests.contract.engines import collect, opened, prompt, sampling\n"
        "async def main():\n"
        "    async with opened('simulator', exit_after_tokens='3') as engine:\n"
        "        await collect(engine.generate('a', prompt(engine), sampling(3)))\n"
        "        print('alive', flush=True)\n"
        "        await collect(engine.generate('a', prompt(engine), sampling(4)))\n"
        "asyncio.run(main())\n"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)

    assert ended.stdout == b"alive\n"
    assert ended.returncode == 137


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tokens", "0"),
        ("tokens", "many"),
        ("step_ms", "-1"),
        ("step_ms", "nan"),
        ("load_seconds", "inf"),
        ("prefill_ms", "-0.1"),
        ("stamp_tokens", "perhaps"),
        ("fail_after_tokens", "-1"),
    ],
)
async def test_a_value_out_of_range_is_refused_with_the_options_name(option: str, value: str) -> None:
    with pytest.raises(SettingsInvalid, match=option):
        async with opened("simulator", **{option: value}):
            pass


async def test_an_end_token_at_the_very_limit_is_a_stop() -> None:
    async with opened("simulator") as engine:
        asked = prompt(engine, "Say exactly: ab")

        at_limit = await collect(engine.generate("a", asked, sampling(3)))
        below = await collect(engine.generate("b", asked, sampling(2)))

        assert at_limit[-1].finish_reason == "stop"
        assert below[-1].finish_reason == "length"


async def test_an_answer_that_was_whole_before_the_hand_over_just_ends() -> None:
    async with opened("simulator", tokens="2") as engine:
        asked = prompt(engine)
        whole = ids(await collect(engine.generate("a", asked, sampling(9))))

        rest = await collect(engine.generate("b", asked + whole, sampling(7), emitted=2))

        assert [(delta.token_ids, delta.finish_reason) for delta in rest] == [((), "stop")]
