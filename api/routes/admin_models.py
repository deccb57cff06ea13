"""/api/v1/admin/models/…: the catalogue and its prices, for operators."""

import re
from typing import Any, Final

import msgspec
from litestar import Response, delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath

from api.bodies import decimal, read_fields, read_nothing
from api.dependencies import KeyRequest, require_admin
from api.node import Node
from api.parameters import Parameters
from api.routes.sessions import NO_STORE
from shared.catalogue import Model
from shared.connections import Connection
from shared.database import models
from shared.errors import InvalidRequest, NotFound
from shared.model_ids import check_model_id
from shared.openai import fields
from shared.openai.resources import ListBody
from shared.presence import write_catalogue
from shared.pricing import Prices, format_price, parse_price

CONTEXT_TOKENS_MOST: Final = 10_000_000
OPTIONS_MOST: Final = 32
OPTION_CHARACTERS_MOST: Final = 4096

_PRICE: Final = decimal(parse_price, 'credits per million tokens as a decimal string, such as "0.10"')
_ENGINE: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_NEEDED: Final = ("engine", "context", "prompt_price", "completion_price")


class CatalogueModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """A model with what it costs: credits per million tokens, as decimal strings."""

    id: str
    object: str = "model"
    engine: str
    context: int
    prompt_price: str
    cached_price: str
    completion_price: str
    batch_discount_percent: int
    default_max_tokens: int
    options: dict[str, str]
    created_at: int


class RemovedModelBody(msgspec.Struct, frozen=True, kw_only=True):
    """What DELETE answers."""

    id: str
    object: str = "model.deleted"
    deleted: bool = True


@get("/models", guards=[require_admin])
async def get_catalogue(request: KeyRequest, node: NamedDependency[Node]) -> Response[ListBody[CatalogueModelBody]]:
    """List all models with their prices and options."""
    Parameters(request)
    data = [_model_body(model) for model in await node.ledger.list_models()]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return Response(ListBody(data=data, first_id=first, last_id=last, has_more=False), headers=NO_STORE)


@get("/models/{model_path:path}", guards=[require_admin])
async def get_catalogue_model(
    model_path: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[CatalogueModelBody]:
    """Return one model with its prices and options."""
    Parameters(request)
    model_id = _model_id(model_path)
    found = await _find(node, model_id)
    if found is None:
        raise _unknown(model_id)
    return Response(_model_body(found), headers=NO_STORE)


@put("/models/{model_path:path}", guards=[require_admin])
async def put_catalogue_model(
    model_path: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[CatalogueModelBody]:
    """Add a model, or change what the body names of one that is there; workers and API nodes know within seconds."""
    model_id = _model_id(model_path)
    given = await read_fields(request, _CHECKS, optional=frozenset(_CHECKS))
    model = _changed(await _find(node, model_id), model_id, given)

    async def work(connection: Connection) -> None:
        await models.add_model(connection, model)

    await node.ledger.query(work)
    await _mirror(node)
    kept = await _find(node, model_id)
    if kept is None:  # taken out meanwhile
        raise _unknown(model_id)
    return Response(_model_body(kept), headers=NO_STORE)


@delete("/models/{model_path:path}", guards=[require_admin], status_code=200)
async def delete_catalogue_model(
    model_path: FromPath[str], request: KeyRequest, node: NamedDependency[Node]
) -> Response[RemovedModelBody]:
    """Take a model out; what runs of it ends by itself."""
    await read_nothing(request)
    model_id = _model_id(model_path)
    if not await node.ledger.query(lambda connection: models.remove_model(connection, model_id)):
        raise _unknown(model_id)
    await _mirror(node)
    return Response(RemovedModelBody(id=model_id), headers=NO_STORE)


async def _find(node: Node, model_id: str) -> Model | None:
    return next((model for model in await node.ledger.list_models() if model.id == model_id), None)


async def _mirror(node: Node) -> None:
    await write_catalogue(node.redis, await node.ledger.query(models.read_catalogue))


def _changed(old: Model | None, model_id: str, given: dict[str, Any]) -> Model:
    """Return the model that a body makes of the old one, or of none."""
    if old is None:
        missing = next((name for name in _NEEDED if name not in given), None)
        if missing is not None:
            raise fields.missing(missing)
        old = Model(id=model_id, engine="", context=1, prices=Prices(0, 0, 0))
        given = {"cached_price": given["prompt_price"]} | given
    prices = Prices(
        prompt=given.get("prompt_price", old.prices.prompt),
        cached=given.get("cached_price", old.prices.cached),
        completion=given.get("completion_price", old.prices.completion),
    )
    if prices.cached > prices.prompt:
        raise InvalidRequest("The cached_price must not be higher than the prompt_price.", param="cached_price")
    others = {name: value for name, value in given.items() if not name.endswith("_price")}
    return msgspec.structs.replace(old, prices=prices, **others)


def _model_id(model_path: str) -> str:
    try:
        return check_model_id(model_path.removeprefix("/"))
    except ValueError as error:
        raise InvalidRequest(f"{str(error).capitalize()}.", param="id") from None


def _unknown(model_id: str) -> NotFound:
    return NotFound(f"There is no model `{model_id}`.", code="model_not_found", param="id")


def _engine(name: str, value: Any) -> str:
    text: str = fields.text(1, 32)(name, value)
    if not _ENGINE.fullmatch(text):
        raise fields.invalid(name, "the name of an engine")
    return text


def _options(name: str, value: Any) -> dict[str, str]:
    given = fields.object_(name, value)
    if len(given) > OPTIONS_MOST:
        raise fields.invalid(name, f"at most {OPTIONS_MOST} options")
    for key, text in given.items():
        if not key.isidentifier() or type(text) is not str or len(text) > OPTION_CHARACTERS_MOST:
            raise fields.invalid(name, "names and their values, all of them strings")
    return given


def _model_body(model: Model) -> CatalogueModelBody:
    return CatalogueModelBody(
        id=model.id,
        engine=model.engine,
        context=model.context,
        prompt_price=format_price(model.prices.prompt),
        cached_price=format_price(model.prices.cached),
        completion_price=format_price(model.prices.completion),
        batch_discount_percent=model.batch_discount_percent,
        default_max_tokens=model.default_max_tokens,
        options=model.options,
        created_at=model.created_at,
    )


_CHECKS: Final[dict[str, fields.Check]] = {
    "engine": _engine,
    "context": fields.integer(1, CONTEXT_TOKENS_MOST),
    "prompt_price": _PRICE,
    "cached_price": _PRICE,
    "completion_price": _PRICE,
    "batch_discount_percent": fields.integer(0, 100),
    "default_max_tokens": fields.integer(1, CONTEXT_TOKENS_MOST),
    "options": _options,
}
