"""A model as everybody knows it: the catalogue lives in Postgres and is mirrored to Redis for the workers."""

import msgspec

from shared.pricing import Prices


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the catalogue. Token counts unless said otherwise."""

    id: str
    engine: str  # `llamacpp`, `simulator`, `tensorrt`
    context: int  # prompt and answer together
    prices: Prices
    batch_discount_percent: int = 50  # [0, 100] less for requests of the batch lane
    default_max_tokens: int = 4096
    template_tokens: int = 256  # of the empty chat template; measured by a worker at load
    message_tokens: int = 16  # that each message adds; measured likewise
    options: dict[str, str] = {}
    created_at: int = 0  # Unix seconds


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """All models, with a version that grows at each change."""

    version: int
    models: tuple[Model, ...]
