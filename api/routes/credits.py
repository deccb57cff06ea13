"""GET /credits and /credits/transactions."""

from litestar import get
from litestar.di import NamedDependency

from api.dependencies import KeyRequest, require_key
from api.node import Node
from api.shapes import credits_body, list_body, page_of, transaction_body
from shared.database.accounts import credit_balance
from shared.database.api_keys import Principal
from shared.database.transfers import list_transactions
from shared.errors import NotFound
from shared.openai.resources import CreditBalanceBody, ListBody, TransactionBody


@get("/credits", guards=[require_key])
async def get_credits(node: NamedDependency[Node], principal: NamedDependency[Principal]) -> CreditBalanceBody:
    """Return what the account has, holds and may spend."""
    found = await node.ledger.query(lambda connection: credit_balance(connection, principal.account_id))
    if found is None:
        raise NotFound
    return credits_body(found)


@get("/credits/transactions", guards=[require_key])
async def get_transactions(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> ListBody[TransactionBody]:
    """List deposits and deductions."""
    page = page_of(request)
    found = await node.ledger.query(
        lambda connection: list_transactions(connection, principal.account_id, after=page.after, limit=page.limit)
    )
    return list_body(found, transaction_body)
