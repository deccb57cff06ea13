"""GET /usage."""

from litestar import get
from litestar.di import NamedDependency

from api.dependencies import KeyRequest, require_key
from api.node import Node
from api.shapes import list_body, page_of, usage_body
from shared.database.api_keys import Principal
from shared.database.usage import list_usage
from shared.openai.resources import ListBody, UsageBody


@get("/usage", guards=[require_key])
async def get_usage(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> ListBody[UsageBody]:
    """List what each request used and cost."""
    page = page_of(request)
    found = await node.ledger.query(
        lambda connection: list_usage(connection, principal.account_id, after=page.after, limit=page.limit)
    )
    return list_body(found, usage_body)
