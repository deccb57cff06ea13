"""The room of a worker: what one claim may take, and what batch jobs leave free."""

import pytest

from shared.queue.room import Room, reserved_slots, room_of
from shared.settings import QueueSettings


@pytest.mark.parametrize(("slots", "kept"), [(0, 0), (1, 0), (2, 1), (8, 1), (16, 2), (64, 8)])
def test_an_eighth_of_the_slots_is_kept_from_batch_jobs_but_never_the_only_one(slots: int, kept: int) -> None:
    assert reserved_slots(slots, -1) == kept


@pytest.mark.parametrize(("reserve", "kept"), [(0, 0), (3, 3), (8, 7), (100, 7)])
def test_a_reserve_that_is_set_leaves_at_least_one_slot_to_batch_jobs(reserve: int, kept: int) -> None:
    assert reserved_slots(8, reserve) == kept


def test_batch_jobs_have_no_room_once_only_the_reserve_is_free() -> None:
    rooms = [room_of(free, 16, QueueSettings(claim_most=4)) for free in (0, 1, 2, 3, 16)]

    assert rooms == [Room(0, 0), Room(1, 0), Room(2, 0), Room(3, 1), Room(4, 14)]
