"""POST, GET and DELETE /keys: a key makes further keys of its account, never one with more room than itself."""

from datetime import UTC, datetime

import msgspec
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from api.body import check_json
from api.dependencies import KeyRequest, require_key
from api.key_options import KeyOptions, key_options
from api.node import Node
from api.parameters import Parameters
from api.scopes import require_scope
from api.shapes import key_body, list_body, page_of
from shared import secrets
from shared.database import api_keys
from shared.database.api_keys import ApiKey, Principal
from shared.errors import NotFound
from shared.openai.bounded_json import parse_object
from shared.openai.resources import DeletedKeyBody, KeyBody, ListBody, NewKeyBody


@post("/keys", guards=[require_key, require_scope("keys")], status_code=201)
async def create_key(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> Response[NewKeyBody]:
    """Make a key; its secret is in this response and nowhere else."""
    Parameters(request)
    options = await _options(request, node, principal)
    key = secrets.make_key()
    made = await node.ledger.query(
        lambda connection: api_keys.create_key(
            connection,
            account_id=principal.account_id,
            digest=secrets.digest(key, node.settings.secrets.key_pepper),
            prefix=secrets.prefix(key),
            parent_id=None if principal.budget is None else principal.key_id,
            **msgspec.structs.asdict(options),
        )
    )
    shown = msgspec.structs.asdict(key_body(made, datetime.now(UTC)))
    return Response(NewKeyBody(key=key, **shown), headers={"cache-control": "no-store"})


@get("/keys", guards=[require_key, require_scope("keys")])
async def get_keys(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> ListBody[KeyBody]:
    """List the account's keys, the revoked ones too, without their secrets."""
    page, now = page_of(request), datetime.now(UTC)
    keys, more = await node.ledger.query(
        lambda connection: api_keys.list_keys(connection, principal.account_id, after=page.after, limit=page.limit)
    )
    return list_body([key_body(key, now) for key in keys], more)


@get("/keys/{key_id:str}", guards=[require_key, require_scope("keys")])
async def get_one_key(
    key_id: FromPath[str], request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> KeyBody:
    """Return one key of the account, without its secret."""
    Parameters(request)
    found: ApiKey | None = None
    if _could_exist(key_id):
        found = await node.ledger.query(lambda connection: api_keys.get_key(connection, principal.account_id, key_id))
    if found is None:
        raise NotFound("There is no such API key.")
    return key_body(found, datetime.now(UTC))


@delete("/keys/{key_id:str}", guards=[require_key, require_scope("keys")], status_code=200)
async def revoke_key(
    key_id: FromPath[str], request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> DeletedKeyBody:
    """Revoke a key for good: nothing starts with it any more, and what runs with it ends."""
    Parameters(request)
    if not _could_exist(key_id) or not await node.ledger.query(
        lambda connection: api_keys.revoke_key(connection, principal.account_id, key_id)
    ):
        raise NotFound("There is no such API key.")
    await node.revoke(key_id)
    return DeletedKeyBody(id=key_id)


async def _options(request: KeyRequest, node: Node, principal: Principal) -> KeyOptions:
    body = await request.body()
    if body:
        check_json(dict(request.scope["headers"]))
    return key_options(
        parse_object(body) if body else {},
        principal,
        models={model.id for model in await node.catalogue.all()},
        defaults=node.settings.api,
        now=datetime.now(UTC),
    )


def _could_exist(key_id: str) -> bool:
    return key_id.isascii() and key_id.isprintable()
