"""The catalogue of models. Its version grows at each change, so that mirrors know which one is newer."""

from typing import Final

import msgspec

from shared.catalogue import Catalogue, Model
from shared.connections import Connection
from shared.pricing import Prices

OPEN_SECONDS: Final = 10  # most requests are closed by then: who looks at open ones sees few


async def add_model(connection: Connection, model: Model) -> None:
    """Add a model, or replace everything but the measures of one that is there."""
    await connection.execute(
        """
        INSERT INTO models (id, engine, context, prompt_price, cached_price, completion_price, default_max_tokens,
                            template_tokens, message_tokens, options, batch_discount_percent)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::TEXT::JSONB, $11)
        ON CONFLICT (id) DO UPDATE
           SET engine = excluded.engine, context = excluded.context, prompt_price = excluded.prompt_price,
               cached_price = excluded.cached_price, completion_price = excluded.completion_price,
               default_max_tokens = excluded.default_max_tokens, options = excluded.options,
               batch_discount_percent = excluded.batch_discount_percent,
               version = nextval('catalogue_version')
        """,
        model.id,
        model.engine,
        model.context,
        model.prices.prompt,
        model.prices.cached,
        model.prices.completion,
        model.default_max_tokens,
        model.template_tokens,
        model.message_tokens,
        msgspec.json.encode(model.options).decode(),
        model.batch_discount_percent,
    )


async def remove_model(connection: Connection, model_id: str) -> bool:
    """Take a model out of the catalogue; False where there is none. Its open requests still end."""
    status = await connection.execute("DELETE FROM models WHERE id = $1", model_id)
    return bool(status == "DELETE 1")


async def list_models(connection: Connection) -> list[Model]:
    """Return every model, by id."""
    return list((await read_catalogue(connection)).models)


async def list_model_ids(connection: Connection) -> list[str]:
    """Return the id of every model that may have work in Redis.

    Also of one that has left the catalogue while requests of it were open, once these are OPEN_SECONDS old: else nobody
    would reap them, nor settle what they ended with.
    """
    rows = await connection.fetch(
        """
        SELECT id FROM models
         UNION
        SELECT r.model FROM open_requests o JOIN requests r ON r.request_id = o.request_id
         WHERE o.reserved_ms < extract(epoch FROM now()) * 1000 - $1::BIGINT
         ORDER BY id
        """,
        OPEN_SECONDS * 1000,
    )
    return [row["id"] for row in rows]


async def read_catalogue(connection: Connection) -> Catalogue:
    """Return every model and the version of the whole; version 0 where there is none."""
    rows = await connection.fetch(
        """
        SELECT id, engine, context, prompt_price, cached_price, completion_price, default_max_tokens, template_tokens,
               message_tokens, batch_discount_percent, options::TEXT AS options,
               extract(epoch FROM created_at)::BIGINT AS created_at, version
          FROM models ORDER BY id
        """
    )
    models = tuple(
        Model(
            id=row["id"],
            engine=row["engine"],
            context=row["context"],
            prices=Prices(row["prompt_price"], row["cached_price"], row["completion_price"]),
            batch_discount_percent=row["batch_discount_percent"],
            default_max_tokens=row["default_max_tokens"],
            template_tokens=row["template_tokens"],
            message_tokens=row["message_tokens"],
            options=msgspec.json.decode(row["options"], type=dict[str, str]),
            created_at=row["created_at"],
        )
        for row in rows
    )
    return Catalogue(version=max((row["version"] for row in rows), default=0), models=models)


async def remember_measures(
    connection: Connection, model_id: str, *, template_tokens: int, message_tokens: int
) -> bool:
    """Keep what a worker measured at load; True if that changed anything."""
    status = await connection.execute(
        """
        UPDATE models SET template_tokens = $2, message_tokens = $3, version = nextval('catalogue_version')
         WHERE id = $1 AND (template_tokens, message_tokens) IS DISTINCT FROM ($2, $3)
        """,
        model_id,
        template_tokens,
        message_tokens,
    )
    return bool(status == "UPDATE 1")
