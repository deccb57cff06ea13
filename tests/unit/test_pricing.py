"""Money arithmetic: exact, bounded, and never less held than an answer can cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import pricing
from shared.pricing import Prices

prices = st.builds(
    lambda prompt, cached, completion: Prices(prompt, min(cached, prompt), completion),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
)
amounts = st.integers(-(10**18), 10**18)


@pytest.mark.parametrize(
    ("text", "nanocredits"), [("0", 0), ("0.15", 150), ("2", 2_000), ("0.001", 1), ("1e1", 10_000)]
)
def test_a_price_per_million_is_whole_nanocredits_per_token(text: str, nanocredits: int) -> None:
    assert pricing.parse_price(text) == nanocredits


@pytest.mark.parametrize("text", ["0.0001", "-1", "NaN", "Infinity", "free", "", "1e30"])
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        pricing.parse_price(text)


@pytest.mark.parametrize("text", ["0.0000000001", "-0.1", "1e40", "--", "NaN"])
def test_an_amount_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        pricing.parse_credits(text)


@given(amounts)
def test_an_amount_survives_being_written_and_read(nanocredits: int) -> None:
    text = pricing.format_credits(nanocredits)

    assert len(text.rsplit(".", 1)[1]) == 9
    assert pricing.parse_credits(text.lstrip("-")) == abs(nanocredits)
    assert text.startswith("-") == (nanocredits < 0)


@given(st.integers(0, 10**15))
def test_a_price_survives_being_written_and_read(nanocredits: int) -> None:
    assert pricing.parse_price(pricing.format_price(nanocredits)) == nanocredits


@given(prices, st.data())
def test_no_answer_costs_more_than_its_hold(price: Prices, data: st.DataObject) -> None:
    context = data.draw(st.integers(1, 500), "context")
    choices = data.draw(st.integers(1, 4), "choices")
    bound = data.draw(st.integers(0, 600), "bound")
    max_tokens = data.draw(st.integers(1, 600), "max_tokens")
    hold = pricing.hold_for(price, prompt_bound=bound, max_tokens=max_tokens, choices=choices, context=context)

    prompt = data.draw(st.integers(0, min(bound, context)), "prompt")
    cached = data.draw(st.integers(0, prompt), "cached")
    completions = [data.draw(st.integers(0, min(max_tokens, context - prompt))) for _ in range(choices)]
    cost = pricing.cost(price, prompt_tokens=prompt, cached_tokens=cached, completion_tokens=sum(completions))

    assert 0 <= cost <= hold


@given(prices, st.integers(0, 10**6), st.integers(0, 500))
def test_what_a_hold_affords_fits_it_and_one_token_more_does_not(price: Prices, hold: int, prompt_tokens: int) -> None:
    tokens = pricing.affordable_completion_tokens(price, hold=hold, prompt_tokens=prompt_tokens)

    def cost(completion_tokens: int) -> int:
        return pricing.cost(price, prompt_tokens=prompt_tokens, cached_tokens=0, completion_tokens=completion_tokens)

    if tokens >= 0:
        assert cost(tokens) <= hold
        assert price.completion == 0 or cost(tokens + 1) > hold
    else:
        assert cost(0) > hold
