"""POST, GET and DELETE /keys: a key makes further keys of its account, never one with more room than itself."""

from datetime import UTC, datetime
from typing import Final

import msgspec
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from api.body import check_json
from api.dependencies import KeyRequest, require_key
from api.node import Node
from api.shapes import key_body, list_body, page_of
from shared import secrets
from shared.database import api_keys
from shared.database.api_keys import Principal
from shared.errors import InvalidRequest, NotFound
from shared.openai import fields
from shared.openai.bounded_json import parse_object
from shared.openai.resources import DeletedKeyBody, KeyBody, ListBody, NewKeyBody

NAME_CHARACTERS_MOST: Final = 100
DEFAULT_NAME: Final = "API key"


@post("/keys", guards=[require_key], status_code=201)
async def create_key(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> Response[NewKeyBody]:
    """Make a key; its secret is in this response and nowhere else."""
    name = _name(dict(request.scope["headers"]), await request.body())
    key = secrets.make_key()
    made = await node.ledger.query(
        lambda connection: api_keys.create_key(
            connection,
            account_id=principal.account_id,
            name=name,
            digest=secrets.digest(key, node.settings.secrets.key_pepper),
            prefix=secrets.prefix(key),
            rpm=principal.rpm,
            tpm=principal.tpm,
            concurrency=principal.key_concurrency or node.settings.api.key_concurrency,
        )
    )
    shown = msgspec.structs.asdict(key_body(made, datetime.now(UTC)))
    return Response(NewKeyBody(key=key, **shown), headers={"cache-control": "no-store"})


@get("/keys", guards=[require_key])
async def get_keys(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> ListBody[KeyBody]:
    """List the account's keys, the revoked ones too, without their secrets."""
    page, now = page_of(request), datetime.now(UTC)
    found = await node.ledger.query(
        lambda connection: api_keys.list_keys(connection, principal.account_id, after=page.after, limit=page.limit)
    )
    return list_body(found, lambda key: key_body(key, now))


@delete("/keys/{key_id:str}", guards=[require_key], status_code=200)
async def revoke_key(
    key_id: FromPath[str], node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> DeletedKeyBody:
    """Revoke a key for good: nothing starts with it any more, and what runs with it ends."""
    known = key_id.isascii() and key_id.isprintable()
    if not known or not await node.ledger.query(
        lambda connection: api_keys.revoke_key(connection, principal.account_id, key_id)
    ):
        raise NotFound("There is no such API key.")
    await node.revoke(key_id)
    return DeletedKeyBody(id=key_id)


def _name(headers: dict[bytes, bytes], body: bytes) -> str:
    if not body:
        return DEFAULT_NAME
    check_json(headers)
    given = parse_object(body)
    for field in given:
        if field != "name":
            shown = ascii(field[:64])[1:-1]
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unsupported_parameter", param=shown)
    if given.get("name") is None:
        return DEFAULT_NAME
    name: str = fields.text(1, NAME_CHARACTERS_MOST)("name", given["name"])
    if not name.isprintable():
        raise fields.invalid("name", "a string without control characters")
    return name
