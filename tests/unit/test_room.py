"""The room of a worker: what one claim may take, and what batch jobs leave free."""

import pytest

from shared.queue.room import HALF_LIFE_SECONDS, Load, Room, reserved_slots, room_of
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


def test_batch_jobs_leave_what_interactive_ones_needed_lately() -> None:
    settings = QueueSettings(claim_most=4)

    assert room_of(16, 16, settings, peak=7).spare_slots == 7
    assert room_of(10, 16, settings, peak=7, batch=6).spare_slots == 1
    assert room_of(9, 16, settings, peak=7, batch=7).spare_slots == 0


def test_one_batch_job_always_may_run_in_a_spare_slot() -> None:
    assert room_of(3, 16, QueueSettings(), peak=16).spare_slots == 1
    assert room_of(3, 16, QueueSettings(), peak=16, batch=1).spare_slots == 0
    assert room_of(1, 1, QueueSettings(), peak=1).spare_slots == 1


def test_a_peak_is_forgotten_by_halves() -> None:
    load = Load()
    load.interactive = 8
    assert load.peak(100.0) == 8
    load.interactive = 1

    assert load.peak(100.0 + HALF_LIFE_SECONDS) == 4
    assert load.peak(100.0 + 10 * HALF_LIFE_SECONDS) == 1
