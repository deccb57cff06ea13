"""Lists as CSV: the columns of the JSON shape under a header row, streamed page by page, safe to open in a spreadsheet.

RFC 4180. At most EXPORT_ROWS_MOST rows; who wants more asks again with `after` = the id of the last row. The first page
is read before the status is sent, so a store that is down is 503 and not a broken file.
"""

import csv
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request
from litestar.response import Stream

from api.parameters import Page, Parameters

EXPORT_ROWS_MOST: Final = 100_000
PAGE_ROWS: Final = 500  # written between two turns of the event loop: some 2 ms
FORMATS: Final = ("json", "csv")

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # Source: OWASP, CSV injection
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")

RowT = TypeVar("RowT")
Fetch = Callable[[Page], Awaitable[tuple[Sequence[RowT], bool]]]  # a page -> its rows and whether more follow
Shape = Callable[[RowT], msgspec.Struct]  # with an `id`


def wants_csv(request: Request[Any, Any, Any], parameters: Parameters) -> bool:
    """Tell whether CSV is asked for: by `format`, else by the Accept header."""
    chosen = parameters.choice("format", FORMATS)
    if chosen is not None:
        return chosen == "csv"
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    return "text/csv" in accepted and "application/json" not in accepted


async def csv_response(name: str, page: Page, fetch: Fetch[RowT], shape: Shape[RowT], columns: Sequence[str]) -> Stream:
    """Return up to `page.limit` rows behind `page.after` as a file `name`.csv with these columns of `shape`."""
    first = await fetch(msgspec.structs.replace(page, limit=min(page.limit, PAGE_ROWS)))

    async def write() -> AsyncIterator[bytes]:
        yield _lines([columns])
        (rows, more), left = first, page.limit
        while rows:
            bodies: list[Any] = [shape(row) for row in rows]
            yield _lines([[_cell(getattr(body, column)) for column in columns] for body in bodies])
            left -= len(rows)
            if not more or left <= 0:
                return
            rows, more = await fetch(Page(bodies[-1].id, min(left, PAGE_ROWS)))

    return Stream(
        write(),
        headers={
            "content-type": "text/csv; charset=utf-8",  # a Stream's media_type gives way to that of its route
            "content-disposition": f'attachment; filename="{name}.csv"',
            "cache-control": "no-store",
        },
    )


def _lines(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """Return what stands in a cell: a text that a spreadsheet would run as a formula is marked as text."""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return "'" + value
    return value
