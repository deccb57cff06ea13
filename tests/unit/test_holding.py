"""Which models a worker holds: by need, by turn, least recently used first, never one with work."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workers.inference.holding import Decision, Listed, decide

NOW = 1000.0


def choose(*models: Listed, most: int = 1, idle_seconds: float = 0.0) -> Decision:
    return decide(models, most=most, now=NOW, idle_seconds=idle_seconds, turn_seconds=10.0)


def held(model: str, **fields: Any) -> Listed:
    return Listed(model, held=True, **fields)


def needed(model: str, *, seconds: float = 0.0, **fields: Any) -> Listed:
    return Listed(model, waiting_since=NOW - seconds, **fields)


def test_what_fits_is_loaded_at_once() -> None:
    fresh = [Listed(name, fresh=True) for name in "abc"]

    assert choose(*fresh, most=0).load == ("a", "b", "c")
    assert choose(*fresh, most=3).load == ("a", "b", "c")
    assert choose(*fresh, most=2).load == ()


def test_who_waits_longest_is_loaded_first() -> None:
    assert choose(needed("a", seconds=1), needed("b", seconds=5), Listed("c", asked=True)).load == ("b",)


def test_a_job_takes_the_place_of_the_least_recently_used_idle_model() -> None:
    found = choose(held("old", used_at=1), held("new", used_at=9), needed("c"), most=2)

    assert found == Decision(close=("old",))


def test_who_only_asks_takes_nobodys_place() -> None:
    assert choose(held("a"), Listed("b", asked=True)) == Decision()
    assert choose(Listed("b", asked=True)).load == ("b",)


def test_a_busy_model_keeps_its_turn_then_claims_no_more_and_goes_when_it_is_empty() -> None:
    busy = held("a", running=3, loaded_at=NOW - 60)

    assert choose(busy, needed("b", seconds=5)) == Decision()
    assert choose(busy, needed("b", seconds=11)) == Decision(retire=frozenset({"a"}))
    assert choose(busy._replace(loaded_at=NOW - 5), needed("b", seconds=11)) == Decision()
    assert choose(busy._replace(running=0, waiting_since=NOW), needed("b", seconds=11)) == Decision(close=("a",))


def test_an_idle_model_is_closed_in_time_unless_somebody_polls_it() -> None:
    idle = held("a", used_at=NOW - 100)

    assert choose(idle, idle_seconds=60).close == ("a",)
    assert choose(idle._replace(asked=True), idle_seconds=60).close == ()
    assert choose(idle, idle_seconds=0).close == ()


def test_a_load_that_blocks_waits_until_nothing_runs() -> None:
    big = needed("big", blocks=True)

    assert choose(held("a", running=1), big, most=2) == Decision(pause=True)
    assert choose(held("a"), big, most=2).load == ("big",)


LISTED = st.builds(
    Listed,
    st.just(""),
    held=st.booleans(),
    running=st.integers(0, 2),
    used_at=st.floats(0, NOW),
    loaded_at=st.floats(0, NOW),
    waiting_since=st.none() | st.floats(0, NOW),
    asked=st.booleans(),
    fresh=st.booleans(),
)


@given(st.lists(LISTED, max_size=6), st.integers(1, 4), st.sampled_from([0.0, 60.0]))
def test_room_is_never_exceeded_and_work_never_cut(found: list[Listed], most: int, idle_seconds: float) -> None:
    models = [
        one._replace(model=str(index), running=one.running if one.held else 0, loading=False)
        for index, one in enumerate(found)
    ]

    decision = choose(*models, most=most, idle_seconds=idle_seconds)

    by_name = {one.model: one for one in models}
    assert all(by_name[name].held and not by_name[name].running for name in decision.close)
    assert not any(by_name[name].held for name in decision.load)
    if sum(one.held for one in models) <= most:
        assert sum(one.held for one in models) + len(decision.load) <= most
