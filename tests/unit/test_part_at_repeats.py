"""Rows of one name never share a statement, and no row is lost or moved."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shared.database.repeats import part_at_repeats

ROWS = st.lists(st.lists(st.integers(0, 5), max_size=2))


@given(ROWS)
def test_the_parts_are_the_rows_in_order(rows: list[list[int]]) -> None:
    parts = list(part_at_repeats(rows, lambda row: row))

    assert [row for part in parts for row in part] == rows
    assert all(parts)


@given(ROWS)
def test_a_part_ends_where_a_name_comes_again_and_nowhere_else(rows: list[list[int]]) -> None:
    parts = list(part_at_repeats(rows, lambda row: set(row)))

    for part, following in itertools.pairwise(parts):
        assert {name for row in part for name in row} & set(following[0])
    for part in parts:
        names = [name for row in part for name in set(row)]
        assert len(names) == len(set(names))
