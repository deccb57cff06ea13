"""Which models a worker holds: what to load, what to close and what to claim no more of. Decides, touches nothing.

    more models than room: load what jobs wait for, in the place of the least recently used model without work
    nobody without work:   the least recently used one that had its turn claims no more, and goes once it is empty
    somebody only asks:    load into free room, never in the place of another
    nobody asks for long:  close

Called each second by `models.py`. Source: DESIGN section 9.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Listed(NamedTuple):
    """A model that this worker may hold. Times are monotonic seconds; `waiting_since` None: no job waits for it."""

    model: str
    held: bool = False
    loading: bool = False  # or closing: it takes room either way
    running: int = 0
    used_at: float = 0.0  # when it last had work
    loaded_at: float = 0.0
    waiting_since: float | None = None
    asked: bool = False  # somebody polls its health
    fresh: bool = False  # never tried by this process
    blocks: bool = False  # the process stands still while it loads


class Decision(NamedTuple):
    """What to do now. `retire`: claim no more jobs of these; `pause`: of none, until a blocking load is over."""

    load: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    retire: frozenset[str] = frozenset()
    pause: bool = False


def decide(models: Sequence[Listed], *, most: int, now: float, idle_seconds: float, turn_seconds: float) -> Decision:
    """Return what to do. `most` models fit at once, 0: all; `idle_seconds` 0: an idle model stays for ever."""
    room = most or len(models)
    free = room - sum(one.held or one.loading for one in models)
    absent = [one for one in models if not one.held and not one.loading]
    needed = sorted((one for one in absent if one.waiting_since is not None), key=lambda one: one.waiting_since or 0.0)
    welcome = [
        one for one in absent if one.waiting_since is None and (one.asked or (one.fresh and len(models) <= room))
    ]
    load = [*needed, *welcome][: max(0, free)]
    unserved = [one for one in needed if one not in load]
    close, retire = _make_room(models, unserved, now=now, turn_seconds=turn_seconds)
    if idle_seconds:
        close += [
            one.model
            for one in models
            if _spare(one) and not one.asked and now - one.used_at >= idle_seconds and one.model not in close
        ]
    busy = any(one.running for one in models)
    if busy and any(one.blocks for one in load):
        load = [one for one in load if not one.blocks]
        return Decision(tuple(one.model for one in load), tuple(close), frozenset(retire), pause=True)
    return Decision(tuple(one.model for one in load), tuple(close), frozenset(retire))


def _make_room(
    models: Sequence[Listed], unserved: Sequence[Listed], *, now: float, turn_seconds: float
) -> tuple[list[str], list[str]]:
    """Return what to close, and what to claim no more of, for models whose jobs wait without room."""
    held = sorted((one for one in models if one.held), key=lambda one: one.used_at)
    spare = [one.model for one in held if _spare(one)]
    close = spare[: len(unserved)]
    late = [one for one in unserved[len(close) :] if now - (one.waiting_since or now) >= turn_seconds]
    had_turn = [one for one in held if one.model not in spare and now - one.loaded_at >= turn_seconds]
    chosen = had_turn[: len(late)]
    close += [one.model for one in chosen if not one.running]
    return close, [one.model for one in chosen if one.running]


def _spare(one: Listed) -> bool:
    return one.held and not one.running and one.waiting_since is None
