"""GET /models, /models/{id} and /models/{id}/health, for everybody: ids hold slashes, raw or as %2F."""

from typing import Final

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from api.node import Node
from api.shapes import model_body
from shared.openai.resources import HealthBody, ListBody, ModelBody

HEALTH_SUFFIX: Final = "/health"


@get("/models")
async def get_models(node: NamedDependency[Node]) -> ListBody[ModelBody]:
    """List all models."""
    data = [model_body(model) for model in await node.catalogue.all()]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ListBody(data=data, first_id=first, last_id=last, has_more=False)


@get("/models/{rest:path}")
async def get_model(rest: FromPath[str], node: NamedDependency[Node]) -> Response[ModelBody | HealthBody]:
    """Return one model, or its health: a path parameter swallows the suffix, so it is split off here."""
    model_id = rest.removeprefix("/")
    if not model_id.endswith(HEALTH_SUFFIX):
        return Response(model_body(await node.catalogue.find(model_id)))
    model = await node.catalogue.find(model_id.removesuffix(HEALTH_SUFFIX))
    health = await node.health(model.id)
    body = HealthBody(
        model=model.id,
        status=health.status,
        eta_seconds=health.eta_seconds,
        queue_depth=health.queue_depth,
        workers=health.workers,
    )
    return Response(body, headers={"cache-control": "no-store"})
