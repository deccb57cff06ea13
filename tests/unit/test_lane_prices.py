"""What the batch lane changes of a job: its prices, its hold and its place; and what an account's weight changes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.pricing import Prices, cost, discounted
from shared.settings import QueueSettings
from shared.submission import prepare
from shared.wire import Job
from tests.unit.submissions import make_submission
from tests.unit.test_dispatch import MODEL


def prepared(**changes: object) -> Job:
    return prepare(make_submission(**changes), QueueSettings(), node_id="node_a", now_ms=0)[0]


def test_a_batch_job_has_the_prices_less_the_discount_of_its_model() -> None:
    model = msgspec.structs.replace(MODEL, prices=Prices(100, 50, 301), batch_discount_percent=40)

    job, reserve = prepare(make_submission(model=model, lane="batch"), QueueSettings(), node_id="node_a", now_ms=0)

    assert job.prices == reserve.prices == Prices(60, 30, 181)
    assert (job.lane, reserve.lane) == ("batch", "batch")
    assert prepared(model=model).prices == model.prices


def test_a_batch_job_holds_what_its_own_prices_can_cost() -> None:
    model = msgspec.structs.replace(MODEL, prices=Prices(100, 50, 300))
    whole, half = prepared(model=model), prepared(model=model, lane="batch")

    assert whole.hold == 2 * half.hold


@pytest.mark.parametrize(("percent", "prices"), [(0, Prices(3, 1, 5)), (50, Prices(2, 1, 3)), (100, Prices(0, 0, 0))])
def test_a_discounted_price_is_rounded_up_to_whole_nanocredits(percent: int, prices: Prices) -> None:
    assert discounted(Prices(3, 1, 5), percent) == prices


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 100))
def test_a_discount_never_makes_an_answer_dearer_nor_cached_tokens_dearer_than_others(
    prompt: int, cached: int, completion: int, percent: int
) -> None:
    full = Prices(max(prompt, cached), min(prompt, cached), completion)

    less = discounted(full, percent)

    counts = {"prompt_tokens": 7, "cached_tokens": 3, "completion_tokens": 5}
    assert 0 <= less.cached <= less.prompt
    assert cost(less, **counts) <= cost(full, **counts)


def test_the_weight_of_an_account_reaches_its_job() -> None:
    assert prepared(weight=7).weight == 7
