"""The query parameters of lists and sums as OpenAPI parameters; a test holds their names to those that routes take."""

from typing import Final

from api.export import EXPORT_ROWS_MOST, FORMATS
from api.openapi.parts import Schema, array, choice, integer, text
from api.parameters import (
    ID_CHARACTERS_MOST,
    PAGE_DEFAULT,
    PAGE_MOST,
    SECONDS_MOST,
    TEXT_CHARACTERS_MOST,
    VALUES_MOST,
)
from api.summary import GROUPS, WIDTHS
from shared.database.transfers import TRANSFER_TYPES
from shared.database.usage import USAGE_STATUSES

_PRINTABLE: Final = "^[ -~]+$"


def _query(name: str, schema: Schema, *, required: bool = False) -> Schema:
    bare = {key: value for key, value in schema.items() if key != "description"}
    description = schema.get("description", "")
    given = {"name": name, "in": "query", "description": description, "required": required, "schema": bare}
    if schema["type"] == "array":
        given |= {"style": "form", "explode": True}
    return given


def _text(description: str, most: int = TEXT_CHARACTERS_MOST) -> Schema:
    return text(description, least=1, most=most, pattern=_PRINTABLE)


def _moment(description: str) -> Schema:
    return integer(f"{description} Unix seconds.", 0, SECONDS_MOST)


AFTER: Final = _query(
    "after", _text("The `last_id` of the page before; 404 where there is no such row.", ID_CHARACTERS_MOST)
)
_TIMES: Final = (
    _query("created_after", _moment("Only rows from this moment on.")),
    _query("created_before", _moment("Only rows before this moment.")),
)
PAGE: Final = (AFTER, _query("limit", integer("How many rows.", 1, PAGE_MOST, default=PAGE_DEFAULT)))
EXPORT: Final = (
    AFTER,
    _query(
        "limit",
        integer(
            f"How many rows: at most {PAGE_MOST} and by default {PAGE_DEFAULT} as JSON, all that are allowed as CSV.",
            1,
            EXPORT_ROWS_MOST,
        ),
    ),
    _query("format", choice("CSV also by the header `Accept: text/csv`.", *FORMATS, default="json")),
)
ACCOUNTS: Final = (*PAGE, _query("email", _text("Only the account of this address.")))
TRANSACTIONS: Final = (
    *EXPORT,
    _query("type", choice("Only this type.", *TRANSFER_TYPES)),
    *_TIMES,
    _query("request_id", _text("Only those of this request.")),
)
USAGE: Final = (
    *EXPORT,
    _query("model", _text("Only of this model.")),
    _query("api_key_id", _text("Only of this key.")),
    _query("status", choice("Only requests that ended so.", *USAGE_STATUSES)),
    *_TIMES,
)
SUMMARY: Final = (
    _query("start_time", _moment("Where the first bucket begins."), required=True),
    _query("end_time", _moment("Where the last bucket ends; now, if it is missing.")),
    _query("bucket_width", choice("", *WIDTHS, default="1d")),
    _query("group_by", array(choice("", *GROUPS), "Sum up for each of these apart.", most=VALUES_MOST)),
    _query("models", array(_text(""), "Only these models.", most=VALUES_MOST)),
    _query("api_key_ids", array(_text(""), "Only these keys.", most=VALUES_MOST)),
    _query(
        "limit",
        integer(
            "How many buckets; at most "
            + ", ".join(f"{width.buckets_most} of {name}" for name, width in WIDTHS.items())
            + ".",
            1,
            max(width.buckets_most for width in WIDTHS.values()),
        ),
    ),
    _query("page", text("The `next_page` of the page before.", pattern="^page_[0-9]+$", most=TEXT_CHARACTERS_MOST)),
)
