"""What the bench prints: one line per row of DESIGN section 12, and under it where the cost lies."""

import math
from collections.abc import Mapping
from typing import Literal

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. `most`/`least`: its budget; neither: it is only told. `floor`: the bare shape's figure."""

    name: str
    measured: float
    unit: str
    most: float | None = None
    least: float | None = None
    floor: float | None = None
    by_role: Mapping[str, float] = {}
    floor_by_role: Mapping[str, float] = {}
    note: str = ""

    @property
    def verdict(self) -> Literal["ok", "MISSED", "told"]:
        if self.most is None and self.least is None:
            return "told"
        within = (self.most is None or self.measured <= self.most) and (
            self.least is None or self.measured >= self.least
        )
        return "ok" if within else "MISSED"


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    head = f"{'what':<58} {'measured':>10} {'budget':>10} {'verdict':>8} {'floor':>9} {'ratio':>6}  unit"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.name:<58} {_number(row.measured):>10} {_budget(row):>10} {row.verdict:>8} "
            f"{_number(row.floor):>9} {_ratio(row):>6}  {row.unit}"
        )
        for label, by_role in (("", row.by_role), ("floor: ", row.floor_by_role)):
            if by_role:
                parts = sorted(by_role.items(), key=lambda part: -part[1])
                lines.append("    " + label + " · ".join(f"{role} {_number(value)}" for role, value in parts))
        if row.note:
            lines.append(f"    {row.note}")
    return "\n".join(lines)


def _budget(row: Row) -> str:
    if row.most is not None:
        return f"<= {row.most:,g}"
    return f">= {row.least:,g}" if row.least is not None else "-"


def _ratio(row: Row) -> str:
    if not row.floor or math.isnan(row.floor):
        return "-"
    return f"{row.measured / row.floor:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isnan(value):
        return "none"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
