"""How `inferbase key create` is told what a key may do: the options' types, and what they mean."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from compose.errors import CommandFailed
from shared.pricing import parse_credits

UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PERIOD: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_UNIX_SECONDS: Final = re.compile(r"[0-9]{1,12}")

Rpm = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Requests per minute; 0: no limit. Default: INFERBASE_KEY_RPM, else 60.",
        show_default=False,
    ),
]
Tpm = Annotated[int, typer.Option(min=0, help="Tokens per minute; 0: no limit.")]
Concurrency = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Requests that may run at once; 0: no limit. Default: INFERBASE_KEY_CONCURRENCY, else 16.",
        show_default=False,
    ),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope", help="completions, keys or credits; repeat it for several. Default: all.", show_default=False
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model it may use; repeat it for several. Default: all.", show_default=False),
]
ExpiresIn = Annotated[
    str | None, typer.Option(help="How long it lives, such as 90m, 12h, 30d or 52w.", show_default=False)
]
ExpiresAt = Annotated[
    str | None,
    typer.Option(
        help="When it dies: a date, a moment (2030-01-31T12:00Z) or Unix seconds; UTC if no zone is named.",
        show_default=False,
    ),
]
Budget = Annotated[
    str | None, typer.Option(help="Credits that it may spend in its life, such as 12.5.", show_default=False)
]


def check_scopes(scopes: list[str] | None) -> tuple[str, ...]:
    """Return the scopes, all of them where none is named; CommandFailed for an unknown one."""
    from shared.database.api_keys import SCOPES

    for scope in scopes or ():
        if scope not in SCOPES:
            raise CommandFailed(f"{scope!r} is no scope: there are {', '.join(SCOPES)}")
    return tuple(scopes or SCOPES)


def moment_of(expires_in: str | None, expires_at: str | None, *, now: datetime) -> datetime | None:
    """Return when a key dies, or None; CommandFailed unless that is one moment in the future."""
    if expires_in is not None and expires_at is not None:
        raise CommandFailed("--expires-in and --expires-at exclude each other")
    try:
        moment = None
        if expires_in is not None:
            moment = now + _period(expires_in)
        elif expires_at is not None:
            moment = _moment(expires_at)
    except (ValueError, OverflowError):
        raise CommandFailed(
            f"{expires_in or expires_at!r} is no time: use 30d with --expires-in, 2030-01-31 with --expires-at"
        ) from None
    if moment is not None and moment <= now:
        raise CommandFailed(f"a key cannot expire in the past: {moment:%Y-%m-%d %H:%M:%S}Z")
    return moment


def nanocredits_of(budget: str | None) -> int | None:
    """Return a budget in nanocredits, or None; CommandFailed unless it is a number of credits of more than 0."""
    if budget is None:
        return None
    try:
        nanocredits = parse_credits(budget)
    except ValueError as error:
        raise CommandFailed(f"{budget!r} is no budget: {error}") from None
    if nanocredits == 0:
        raise CommandFailed("a budget must be more than 0: leave it out for none")
    return nanocredits


def _period(text: str) -> timedelta:
    found = _PERIOD.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def _moment(text: str) -> datetime:
    if _UNIX_SECONDS.fullmatch(text):
        return datetime.fromtimestamp(int(text), UTC)
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
