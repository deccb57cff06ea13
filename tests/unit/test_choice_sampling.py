"""What a choice asks of the engine when it goes on behind emitted tokens."""

from shared.wire import Sampling
from workers.engines.base import EngineGuide, GuideForm
from workers.engines.simulator_words import SimulatorTokenizer
from workers.inference.choice import Choice

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
