"""What a key passes on to one that it makes, decided without a server."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.key_options import KeyOptions, key_options
from shared.database.api_keys import SCOPES, Principal
from shared.errors import Refusal
from shared.settings import ApiSettings
from tests.integration.api_edge import principal

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MODELS = ("org/a", "org/b", "org/c")


def options(asking: Principal, **given: Any) -> KeyOptions:
    return key_options(given, asking, models=MODELS, defaults=ApiSettings(), now=NOW)


def test_a_session_makes_keys_that_outlive_it_and_have_the_usual_room() -> None:
    asking = principal(session=True, expires_at=NOW + timedelta(hours=1), key_concurrency=4)

    made = options(asking)

    assert (made.expires_at, made.concurrency, made.scopes) == (None, 16, SCOPES)
    assert options(asking, limits={"concurrency": 0}).concurrency == 0


def test_a_key_that_names_no_limits_has_those_of_the_key_that_asks_or_else_the_usual_ones() -> None:
    assert (options(principal()).rpm, options(principal()).concurrency) == (60, 16)
    assert (options(principal(rpm=7)).rpm, options(principal(key_concurrency=3)).concurrency) == (7, 3)


def test_a_key_without_limits_may_make_one_without() -> None:
    made = options(principal(), limits={"requests_per_minute": 0, "tokens_per_minute": 5, "concurrency": 0})

    assert (made.rpm, made.tpm, made.concurrency) == (0, 5, 0)


def test_null_is_as_if_it_were_not_given() -> None:
    nothing = dict.fromkeys(("name", "expires_at", "scopes", "allowed_models", "limits", "budget"))

    assert options(principal(rpm=3), **nothing) == options(principal(rpm=3))
    assert options(principal(rpm=3), limits={"requests_per_minute": None}).rpm == 3


limits = st.integers(0, 5)
principals = st.builds(
    lambda days, scopes, models, rpm, tpm, concurrency, budget: principal(
        expires_at=None if days is None else NOW + timedelta(days=days),
        scopes=frozenset(scopes),
        allowed_models=tuple(models),
        rpm=rpm,
        tpm=tpm,
        key_concurrency=concurrency,
        budget=budget,
    ),
    st.none() | st.integers(1, 5),
    st.sets(st.sampled_from(SCOPES), min_size=1),
    st.lists(st.sampled_from(MODELS), unique=True),
    limits,
    limits,
    limits,
    st.none() | st.integers(1, 5).map(lambda credits: credits * 10**9),
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "expires_at": st.integers(1, 5).map(lambda days: int(NOW.timestamp()) + days * 86400),
        "scopes": st.lists(st.sampled_from(SCOPES), unique=True),
        "allowed_models": st.lists(st.sampled_from(MODELS), unique=True),
        "limits": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrency"), limits)
        ),
        "budget": st.integers(0, 5).map(str),
    },
)


@given(asking=principals, body=bodies)
def test_no_body_gives_more_room_than_the_asking_key_has(asking: Principal, body: dict[str, Any]) -> None:
    try:
        made = options(asking, **body)
    except Refusal:
        return

    assert set(made.scopes) <= asking.scopes and made.scopes
    assert not asking.allowed_models or set(made.allowed_models) <= set(asking.allowed_models) != set()
    assert not asking.allowed_models or made.allowed_models
    assert asking.expires_at is None or (made.expires_at is not None and made.expires_at <= asking.expires_at)
    assert asking.budget is None or (made.budget is not None and 0 < made.budget <= asking.budget)
    for room, most in ((made.rpm, asking.rpm), (made.tpm, asking.tpm), (made.concurrency, asking.key_concurrency)):
        assert not most or 0 < room <= most


@pytest.mark.parametrize("amount", ["12.5", "0.000000001", "999999999"])
def test_a_budget_is_a_decimal_string_of_credits(amount: str) -> None:
    made = options(principal(), budget=amount)

    assert made.budget == int(Decimal(amount) * 10**9)
