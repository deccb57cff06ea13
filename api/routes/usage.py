"""GET /usage, its sums, and the receipt of one request."""

from datetime import UTC, datetime

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Stream

from api.dependencies import KeyRequest, require_key
from api.export import EXPORT_ROWS_MOST, csv_response, wants_csv
from api.node import Node
from api.parameters import Page, Parameters
from api.scopes import require_scope
from api.shapes import list_body, receipt_body, usage_body
from api.summary import SUMMARY_PARAMETERS, summary_body, summary_page
from shared import ids
from shared.database.api_keys import Principal
from shared.database.usage import USAGE_STATUSES, UsageFilter, UsageRow, get_receipt, list_usage
from shared.database.usage_summary import summarize_usage
from shared.errors import NotFound
from shared.openai.resources import ListBody, ReceiptBody, UsageBody, UsageSummaryBody

FILTERS = ("after", "limit", "format", "model", "api_key_id", "status", "created_after", "created_before")


@get("/usage", guards=[require_key, require_scope("credits")])
async def get_usage(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> ListBody[UsageBody] | Stream:
    """List what each request used and cost, the last closed first, as JSON or as CSV."""
    parameters = Parameters(request, FILTERS)
    where = UsageFilter(
        model=parameters.one("model"),
        key_id=parameters.one("api_key_id"),
        status=parameters.choice("status", USAGE_STATUSES),
        created_after=parameters.moment("created_after"),
        created_before=parameters.moment("created_before"),
    )

    async def fetch(page: Page) -> tuple[list[UsageRow], bool]:
        return await node.ledger.query(
            lambda connection: list_usage(
                connection, principal.account_id, after=page.after, limit=page.limit, where=where
            )
        )

    if wants_csv(request, parameters):
        page = parameters.page(EXPORT_ROWS_MOST, EXPORT_ROWS_MOST)
        return await csv_response("usage", page, fetch, usage_body, UsageBody.__struct_fields__)
    rows, more = await fetch(parameters.page())
    return list_body([usage_body(row) for row in rows], more)


@get("/usage/summary", guards=[require_key, require_scope("credits")])
async def get_summary(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> UsageSummaryBody:
    """Sum up usage in buckets of a minute, an hour or a day."""
    page = summary_page(Parameters(request, SUMMARY_PARAMETERS), now=datetime.now(UTC))
    rows = await node.ledger.query(lambda connection: summarize_usage(connection, principal.account_id, page.query))
    return summary_body(page, rows)


@get("/usage/{request_id:str}", guards=[require_key, require_scope("credits")])
async def get_one_receipt(
    request_id: FromPath[str],
    request: KeyRequest,
    node: NamedDependency[Node],
    principal: NamedDependency[Principal],
) -> ReceiptBody:
    """Return the receipt of one request; there is one once the request is closed."""
    Parameters(request)
    found = None
    if ids.is_request_id(request_id):
        found = await node.ledger.query(lambda connection: get_receipt(connection, principal.account_id, request_id))
    if found is None:
        raise NotFound("There is no closed request of this id.")
    return receipt_body(found)
