"""Copies the catalogue from Postgres to Redis, where workers read it, after every change made by hand."""

from shared.catalogue import Catalogue
from shared.clock import SystemClock
from shared.connections import Connection, Redis
from shared.database.models import list_models
from shared.presence import write_catalogue


async def mirror_catalogue(connection: Connection, redis: Redis) -> None:
    """Write the mirror anew."""
    models = tuple(await list_models(connection))
    await write_catalogue(redis, Catalogue(version=SystemClock().unix_ms(), models=models))
