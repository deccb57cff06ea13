"""Sizes are reported, and bounded where a reader would give up."""

import statistics

from tests.house.sources import functions, sources

FILE_LINES_MOST = 400
FUNCTION_LINES_MOST = 70


def test_files_and_functions_stay_within_what_one_can_read(capsys) -> None:
    files = sorted((source.lines, source.path) for source in sources())
    lengths = sorted((length, name) for source in sources() for name, length in functions(source))

    with capsys.disabled():
        print("\n" + _figure("files", [lines for lines, _ in files]) + f", longest {files[-1][1]}")
        print(_figure("functions", [lines for lines, _ in lengths]) + f", longest {lengths[-1][1]}")

    assert [name for lines, name in files if lines > FILE_LINES_MOST] == []
    assert [name for lines, name in lengths if lines > FUNCTION_LINES_MOST] == []


def _figure(what: str, lines: list[int]) -> str:
    cuts = statistics.quantiles(lines, n=10)
    return f"  {len(lines)} {what}: median {statistics.median(lines):.0f}, p90 {cuts[8]:.0f}, most {lines[-1]} lines"
