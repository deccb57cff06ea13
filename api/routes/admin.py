"""/api/v1/admin/accounts/…: what operators see and change of accounts, and the deposits that they make.

Operators are users with the admin flag, by their session, and keys that `inferbase key create --admin` made. To every
other key or session these routes do not exist.
"""

from typing import Any, Final

import msgspec
from litestar import Response, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath

from api.bodies import decimal, printable, read_fields, read_nothing
from api.dependencies import KeyRequest, require_admin
from api.node import Node
from api.parameters import Parameters
from api.routes.sessions import NO_STORE
from api.shapes import list_body, transaction_body
from shared import log
from shared.database import accounts
from shared.database.accounts import Account
from shared.database.deposits import deposit_by_key
from shared.errors import InvalidRequest, NotFound
from shared.openai import fields
from shared.openai.resources import ListBody, TransactionBody
from shared.pricing import format_credits, parse_credits

ADMIN_BASE: Final = "/api/v1/admin"
DESCRIPTION_CHARACTERS_MOST: Final = 200
IDEMPOTENCY_KEY_CHARACTERS_MOST: Final = 255
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"

_CREDITS: Final = decimal(parse_credits, 'credits as a decimal string, such as "25.50"')

logger = log.get_logger("admin")


class AccountBody(msgspec.Struct, frozen=True, kw_only=True):
    """An account as operators see it. Credits are decimal strings; limits over all its keys, 0 = none."""

    id: str
    object: str = "account"
    email: str
    active: bool
    balance: str
    held: str
    available: str
    rpm: int
    tpm: int
    concurrency: int
    weight: int
    created_at: int


@get("/accounts", guards=[require_admin])
async def get_accounts(request: KeyRequest, node: NamedDependency[Node]) -> Response[ListBody[AccountBody]]:
    """List accounts, newest first."""
    parameters = Parameters(request, ("after", "limit", "email"))
    page, email = parameters.page(), parameters.one("email")
    rows, has_more = await node.ledger.query(
        lambda connection: accounts.page_accounts(connection, email=email, after=page.after, limit=page.limit)
    )
    return Response(list_body([_account_body(row) for row in rows], has_more), headers=NO_STORE)


@get("/accounts/{account_id:str}", guards=[require_admin])
async def get_account(
    account_id: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[AccountBody]:
    """Return one account."""
    Parameters(request)
    return Response(_account_body(await _account(node, account_id)), headers=NO_STORE)


@post("/accounts/{account_id:str}/deactivate", guards=[require_admin], status_code=200)
async def deactivate(
    account_id: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[AccountBody]:
    """Stop an account: within five seconds all its keys and sessions are refused, and what they run is cancelled."""
    return await _set_active(node, request, account_id, active=False)


@post("/accounts/{account_id:str}/activate", guards=[require_admin], status_code=200)
async def activate(
    account_id: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[AccountBody]:
    """Let an account go on."""
    return await _set_active(node, request, account_id, active=True)


@post("/accounts/{account_id:str}/deposits", guards=[require_admin], status_code=201)
async def create_deposit(
    account_id: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[TransactionBody]:
    """Give credits to an account, once per Idempotency-Key."""
    key = _idempotency_key(request)
    checks = {"amount": _amount, "description": printable(1, DESCRIPTION_CHARACTERS_MOST)}
    given = await read_fields(request, checks, optional=frozenset({"description"}))
    account = await _account(node, account_id)
    row = await node.ledger.query(
        lambda connection: deposit_by_key(
            connection,
            key=key,
            account_id=account.id,
            amount=given["amount"],
            description=given.get("description", "deposit"),
        )
    )
    logger.info("deposit", account_id=account.id, transfer_id=row.id, by=request.auth.key_id)
    return Response(transaction_body(row), status_code=201, headers=NO_STORE)


@put("/accounts/{account_id:str}/weight", guards=[require_admin])
async def put_weight(
    account_id: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[AccountBody]:
    """Change an account's share of a busy queue; its requests get it within five seconds."""
    given = await read_fields(request, {"weight": fields.integer(1, accounts.WEIGHT_MOST)})
    account, weight = await _account(node, account_id), given["weight"]
    await node.ledger.query(lambda connection: accounts.set_weight(connection, account.id, weight))
    logger.info("account_changed", account_id=account.id, weight=weight, by=request.auth.key_id)
    return Response(_account_body(msgspec.structs.replace(account, weight=weight)), headers=NO_STORE)


async def _set_active(node: Node, request: KeyRequest, account_id: str, *, active: bool) -> Response[AccountBody]:
    await read_nothing(request)
    account = await _account(node, account_id)
    await node.ledger.query(lambda connection: accounts.set_active(connection, account.id, active=active))
    logger.info("account_changed", account_id=account.id, active=active, by=request.auth.key_id)
    return Response(_account_body(msgspec.structs.replace(account, active=active)), headers=NO_STORE)


async def _account(node: Node, account_id: str) -> Account:
    known = account_id.isascii() and account_id.isprintable()
    found = await node.ledger.query(lambda connection: accounts.get_account(connection, account_id)) if known else None
    if found is None:
        raise NotFound("There is no such account.")
    return found


def _idempotency_key(request: KeyRequest) -> str:
    key = request.headers.get(IDEMPOTENCY_HEADER, "")
    if not (0 < len(key) <= IDEMPOTENCY_KEY_CHARACTERS_MOST and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"The header {IDEMPOTENCY_HEADER} is needed: 1 to {IDEMPOTENCY_KEY_CHARACTERS_MOST} printable characters.",
            code="missing_required_parameter" if not key else None,
            param=IDEMPOTENCY_HEADER,
        )
    return key


def _amount(name: str, value: Any) -> int:
    amount: int = _CREDITS(name, value)
    if amount == 0:
        raise fields.invalid(name, "more than 0 credits")
    return amount


def _account_body(account: Account) -> AccountBody:
    return AccountBody(
        id=account.id,
        email=account.email,
        active=account.active,
        balance=format_credits(account.balance),
        held=format_credits(account.held),
        available=format_credits(account.balance - account.held),
        rpm=account.rpm,
        tpm=account.tpm,
        concurrency=account.concurrency,
        weight=account.weight,
        created_at=int(account.created_at.timestamp()),
    )
