"""GET /credits and /credits/transactions."""

from typing import cast

from litestar import get
from litestar.di import NamedDependency
from litestar.response import Stream

from api.dependencies import KeyRequest, require_key
from api.export import EXPORT_ROWS_MOST, csv_response, wants_csv
from api.node import Node
from api.parameters import Page, Parameters
from api.scopes import require_scope
from api.shapes import credits_body, list_body, transaction_body
from shared.database.accounts import credit_balance
from shared.database.api_keys import Principal
from shared.database.transfers import TRANSFER_TYPES, Transaction, TransferFilter, TransferType, list_transactions
from shared.errors import NotFound
from shared.openai.resources import CreditBalanceBody, ListBody, TransactionBody

FILTERS = ("after", "limit", "format", "type", "created_after", "created_before", "request_id")


@get("/credits", guards=[require_key, require_scope("credits")])
async def get_credits(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> CreditBalanceBody:
    """Return what the account has, holds and may spend."""
    Parameters(request)
    found = await node.ledger.query(lambda connection: credit_balance(connection, principal.account_id))
    if found is None:
        raise NotFound
    return credits_body(found)


@get("/credits/transactions", guards=[require_key, require_scope("credits")])
async def get_transactions(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> ListBody[TransactionBody] | Stream:
    """List deposits and deductions, the newest first, as JSON or as CSV."""
    parameters = Parameters(request, FILTERS)
    where = TransferFilter(
        type=cast(TransferType | None, parameters.choice("type", TRANSFER_TYPES)),
        request_id=parameters.one("request_id"),
        created_after=parameters.moment("created_after"),
        created_before=parameters.moment("created_before"),
    )

    async def fetch(page: Page) -> tuple[list[Transaction], bool]:
        return await node.ledger.query(
            lambda connection: list_transactions(
                connection, principal.account_id, after=page.after, limit=page.limit, where=where
            )
        )

    if wants_csv(request, parameters):
        page = parameters.page(EXPORT_ROWS_MOST, EXPORT_ROWS_MOST)
        return await csv_response("transactions", page, fetch, transaction_body, TransactionBody.__struct_fields__)
    rows, more = await fetch(parameters.page())
    return list_body([transaction_body(row) for row in rows], more)
