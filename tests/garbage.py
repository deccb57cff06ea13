"""Whether ended work is freed at once: reference cycles would leave it to collections that stop every other request."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector from running, so that what a cycle holds stays countable; what is older is not counted."""
    gc.collect()
    gc.freeze()  # other tests' parameters may hold an error, and so the frames that it went through
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def alive(*kinds: type) -> dict[str, int]:
    """Count the live objects of each of `kinds`, without those that have none."""
    found = [type(each).__name__ for each in gc.get_objects() if type(each) in kinds]
    return {name: found.count(name) for name in set(found)}
