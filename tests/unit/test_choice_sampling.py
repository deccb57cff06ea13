"""What a choice asks of the engine when it goes on behind emitted tokens, and whether it may end before the engine."""

import pytest

from shared.wire import Sampling
from workers.engines.base import EngineGuide, GuideForm
from workers.engines.simulator_words import SimulatorTokenizer
from workers.inference.choice import Choice
from workers.inference.tool_calls import BARE_JSON, HERMES, ToolCallStream, ToolForm

GUIDE = EngineGuide(forms=(GuideForm("", "{}", ""),), param="response_format")


def choice(*emitted: int, index: int = 0) -> Choice:
    """A choice that an earlier attempt began."""
    made = Choice(index, [1], max_tokens=9, tokenizer=SimulatorTokenizer(), stops=())
    made.emitted.extend(emitted)
    return made


def test_the_same_draws_are_not_made_twice() -> None:
    assert choice().sampling(Sampling(seed=5), None).seed == 5
    assert choice(7, 8).sampling(Sampling(seed=5), None).seed != 5


def test_a_guided_answer_keeps_its_seed_since_it_may_be_made_again() -> None:
    for index in (0, 1):
        begun, resumed = choice(index=index), choice(7, 8, index=index)

        assert begun.sampling(Sampling(seed=5), GUIDE).seed == resumed.sampling(Sampling(seed=5), GUIDE).seed


def test_choices_draw_differently() -> None:
    assert choice().sampling(Sampling(seed=5), None).seed != choice(index=1).sampling(Sampling(seed=5), None).seed


@pytest.mark.parametrize(
    ("form", "parallel", "ends"), [(HERMES, True, False), (HERMES, False, True), (BARE_JSON, True, True)]
)
def test_each_token_is_looked_at_where_the_first_call_ends_the_answer(
    form: ToolForm, parallel: bool, ends: bool
) -> None:
    tools = ToolCallStream(form, request_id="chatcmpl-1", choice=0, parallel=parallel)

    made = Choice(0, [1], max_tokens=9, tokenizer=SimulatorTokenizer(), stops=(), tools=tools)

    assert made.may_stop == ends
