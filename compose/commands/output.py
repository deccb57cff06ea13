"""How a command answers: JSON for programs, aligned text for people, one line on stderr when it fails."""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

AsJson = Annotated[
    bool | None,
    typer.Option(
        "--json/--text", help="How to print; by default text on a terminal and JSON elsewhere.", show_default=False
    ),
]


def print_one(fields: Mapping[str, Any], as_json: bool | None) -> None:
    """Print one object."""
    if wants_json(as_json):
        print(msgspec.json.encode(fields).decode(), flush=True)
        return
    shown = _for_people(fields)
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {value}")


def print_list(rows: Sequence[Mapping[str, Any]], as_json: bool | None) -> None:
    """Print rows of the same shape, as `{"data": […]}` or as a table."""
    if wants_json(as_json):
        print(msgspec.json.encode({"data": rows}).decode(), flush=True)
        return
    if not rows:
        print("(none)")
        return
    shown = [_for_people(row) for row in rows]
    table = [list(shown[0]), *(list(row.values()) for row in shown)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def wants_json(as_json: bool | None) -> bool:
    """Tell how to print: as asked, else as suits where the output goes."""
    return as_json if as_json is not None else not sys.stdout.isatty()


def unix_seconds(moment: datetime | None) -> int | None:
    """Return Unix seconds, as every time of the API."""
    return None if moment is None else int(moment.timestamp())


def _for_people(fields: Mapping[str, Any]) -> dict[str, str]:
    """Leave out what only programs need, and write moments as dates."""
    return {
        name: f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S}Z"
        if name.endswith("_at") and value
        else _text(value)
        for name, value in fields.items()
        if name != "object"
    }


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_text(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return str(value)
