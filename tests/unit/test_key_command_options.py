"""What the options of `inferbase key create` mean."""

from datetime import UTC, datetime, timedelta

import pytest

from compose.commands.key_options import check_scopes, moment_of, nanocredits_of
from compose.errors import CommandFailed

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", timedelta(seconds=90)),
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("52w", timedelta(weeks=52)),
    ],
)
def test_a_key_lives_as_long_as_is_said(text: str, expected: timedelta) -> None:
    assert moment_of(text, None, now=NOW) == NOW + expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-31", datetime(2030, 1, 31, tzinfo=UTC)),
        ("2030-01-31T12:00Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31T12:00+02:00", datetime(2030, 1, 31, 10, tzinfo=UTC)),
        ("1893456000", datetime(2030, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_key_dies_when_it_is_said(text: str, expected: datetime) -> None:
    assert moment_of(None, text, now=NOW) == expected


@pytest.mark.parametrize(
    ("expires_in", "expires_at"),
    [
        ("30", None),
        ("-3d", None),
        ("0d", None),
        ("999999w", None),
        ("1y", None),
        (None, "tomorrow"),
        (None, "2020-01-01"),
        (None, "1"),
        (None, "999999999999"),
        ("1d", "2030-01-01"),
    ],
)
def test_no_time_or_one_that_is_over_is_refused(expires_in: str | None, expires_at: str | None) -> None:
    with pytest.raises(CommandFailed):
        moment_of(expires_in, expires_at, now=NOW)


def test_without_options_a_key_never_dies_and_has_all_scopes_and_no_budget() -> None:
    assert moment_of(None, None, now=NOW) is None
    assert check_scopes(None) == ("completions", "keys", "credits")
    assert nanocredits_of(None) is None


@pytest.mark.parametrize("budget", ["0", "-1", "x", "1.0000000001", "NaN"])
def test_a_bad_budget_is_refused(budget: str) -> None:
    with pytest.raises(CommandFailed):
        nanocredits_of(budget)


def test_an_unknown_scope_is_refused_and_told_what_there_is() -> None:
    with pytest.raises(CommandFailed, match="completions, keys, credits"):
        check_scopes(["keys", "admin"])
