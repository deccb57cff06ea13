"""Crash points: one armed name, at its n-th time; nothing where none is armed."""

import os
import signal

import pytest

from shared.crash_points import CrashPoints


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    return killed


def test_an_armed_point_kills_when_it_is_reached_as_often_as_was_said(kills: list[tuple[int, int]]) -> None:
    first, third = CrashPoints("after_claim"), CrashPoints("after_append:3")

    first.reach("after_enqueue")
    for _ in range(2):
        third.reach("after_append")
    assert kills == []

    first.reach("after_claim")
    third.reach("after_append")
    assert kills == [(os.getpid(), signal.SIGKILL)] * 2


def test_no_point_kills_where_none_is_armed(kills: list[tuple[int, int]]) -> None:
    CrashPoints().reach("after_claim")

    assert kills == []


def test_an_unknown_point_is_refused() -> None:
    with pytest.raises(AssertionError):
        CrashPoints("after_lunch:2")
