"""Copies the catalogue from Postgres to Redis, where workers read it, after every change made by hand."""

from shared.connections import Connection, Redis
from shared.database.models import read_catalogue
from shared.presence import write_catalogue


async def mirror_catalogue(connection: Connection, redis: Redis) -> None:
    """Write the mirror anew."""
    await write_catalogue(redis, await read_catalogue(connection))
