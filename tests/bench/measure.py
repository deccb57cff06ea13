"""What processes cost, read from /proc: CPU seconds and memory of each role, its children included.

Source: proc(5): `stat` fields 14 to 17 (utime, stime, and those of waited-for children), `smaps_rollup` (Pss).
"""

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")

Roles = Mapping[str, Sequence[int]]  # role -> process ids; what they started belongs to them


def cpu_seconds(roles: Roles) -> dict[str, float]:
    """Return the CPU used so far by each role; a child that ended counts in the parent that waited for it."""
    roots = {pid for pids in roles.values() for pid in pids}
    children = _children(without=roots)  # a supervisor's children have roles of their own
    return {role: sum(_tree_ticks(pid, children) for pid in pids) / TICKS_PER_SECOND for role, pids in roles.items()}


def cpu_between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return the CPU seconds of each role between two readings."""
    return {role: after[role] - before[role] for role in after if role in before}


def pss_kib(roles: Roles) -> dict[str, int]:
    """Return the proportional set size of each role, shared pages divided among the processes that map them."""
    children = _children(without={pid for pids in roles.values() for pid in pids})
    return {role: sum(_pss(member) for pid in pids for member in _tree(pid, children)) for role, pids in roles.items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile; `nan` of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def _children(without: Set[int] = frozenset()) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) not in without:
            fields = _stat(int(entry.name))
            if fields:
                found.setdefault(int(fields[1]), []).append(int(entry.name))
    return found


def _tree(pid: int, children: Mapping[int, Sequence[int]]) -> list[int]:
    return [pid] + [member for child in children.get(pid, ()) for member in _tree(child, children)]


def _tree_ticks(pid: int, children: Mapping[int, Sequence[int]]) -> int:
    total = 0
    for member in _tree(pid, children):
        fields = _stat(member)
        total += sum(int(field) for field in fields[11:15])
    return total


def _stat(pid: int) -> list[str]:
    """Return the fields of `stat` from the state on; nothing where the process has gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _pss(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
