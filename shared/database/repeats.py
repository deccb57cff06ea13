"""Rows that a statement may not see together: two of one name would be decided as if neither knew of the other."""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import TypeVar

RowT = TypeVar("RowT")


def part_at_repeats(rows: Sequence[RowT], names: Callable[[RowT], Collection[Hashable]]) -> Iterator[Sequence[RowT]]:
    """Yield `rows` in order, cut before each row that shares a name with an earlier one of the same part."""
    seen: set[Hashable] = set()
    start = 0
    for position, row in enumerate(rows):
        own = names(row)
        if not seen.isdisjoint(own):
            yield rows[start:position]
            start = position
            seen.clear()
        seen.update(own)
    if start < len(rows):
        yield rows[start:]
