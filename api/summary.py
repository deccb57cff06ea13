"""GET /usage/summary: from its parameters to the range that is summed up, and from sums to buckets.

Names and defaults are those of OpenAI's organization usage endpoints. Buckets begin at whole minutes, hours and days of
UTC; the first one is cut at `start_time`, the last one at `end_time`. A page is bounded by its number of buckets, so
the rows that are read are those of at most 31 days.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

import msgspec

from api.parameters import SECONDS_MOST, Parameters
from api.shapes import result_body
from shared.database.usage_summary import GROUPS_MOST, SummaryQuery, SummaryRow
from shared.errors import InvalidRequest
from shared.openai import fields
from shared.openai.resources import UsageBucketBody, UsageSummaryBody

SUMMARY_PARAMETERS: Final = (
    "start_time", "end_time", "bucket_width", "group_by", "models", "api_key_ids", "limit", "page"
)  # fmt: skip
GROUPS: Final = ("model", "api_key_id")
PAGE_PREFIX: Final = "page_"


class Width(msgspec.Struct, frozen=True):
    """One width of buckets: how many a page has, and how many at most."""

    seconds: int
    buckets: int
    buckets_most: int


WIDTHS: Final = {"1m": Width(60, 60, 1440), "1h": Width(3600, 24, 168), "1d": Width(86400, 7, 31)}


class SummaryPage(msgspec.Struct, frozen=True):
    """One page of buckets. `end`: Unix seconds at which all pages end; that of `query` is the end of this one."""

    query: SummaryQuery
    end: int


def summary_page(parameters: Parameters, *, now: datetime) -> SummaryPage:
    """Return the page that is asked for; InvalidRequest for what cannot be."""
    start = parameters.integer("start_time", 0, SECONDS_MOST)
    if start is None:
        raise fields.missing("start_time")
    end = parameters.integer("end_time", 0, SECONDS_MOST)
    if end is None:
        end = int(now.timestamp()) + 1
    elif end <= start:
        raise fields.invalid("end_time", "a moment after start_time")
    width = WIDTHS[parameters.choice("bucket_width", tuple(WIDTHS)) or "1d"]
    limit = parameters.integer("limit", 1, width.buckets_most) or width.buckets
    groups = parameters.choices("group_by", GROUPS)
    first = _first(parameters.one("page"), start, end, width)
    last = min(end, (first // width.seconds + limit) * width.seconds)
    query = SummaryQuery(
        start=_moment(first),
        end=_moment(max(first, last)),
        width_seconds=width.seconds,
        by_model="model" in groups,
        by_key="api_key_id" in groups,
        models=parameters.many("models"),
        key_ids=parameters.many("api_key_ids"),
    )
    return SummaryPage(query, end)


def summary_body(page: SummaryPage, rows: Sequence[SummaryRow]) -> UsageSummaryBody:
    """Return the buckets of a page, also the empty ones; InvalidRequest where they hold too many groups."""
    if len(rows) > GROUPS_MOST:
        raise InvalidRequest(f"There are more than {GROUPS_MOST} results: ask for fewer buckets.", param="limit")
    width = page.query.width_seconds
    first, last = int(page.query.start.timestamp()), int(page.query.end.timestamp())
    found = {bucket: [result_body(row) for row in group] for bucket, group in groupby(rows, lambda row: row.bucket)}
    data = [
        UsageBucketBody(start_time=max(first, begin), end_time=min(last, begin + width), results=found.get(begin, []))
        for begin in range(first // width * width, last, width)
    ]
    more = last < page.end
    return UsageSummaryBody(data=data, has_more=more, next_page=f"{PAGE_PREFIX}{last}" if more else None)


def _first(page: str | None, start: int, end: int, width: Width) -> int:
    """Return where a page begins: at the start, or where `next_page` of the page before says."""
    if page is None:
        return start
    digits = page.removeprefix(PAGE_PREFIX)
    given = page.startswith(PAGE_PREFIX) and digits.isdigit() and len(digits) <= len(str(SECONDS_MOST))
    if not given or not start < int(digits) < end or int(digits) % width.seconds:
        raise fields.invalid("page", "the `next_page` of a page with the same parameters")
    return int(digits)


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
