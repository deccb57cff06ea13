"""Marks in Redis that a key is dead, so that its queued jobs do not run.

The ledger is the truth; the mark is what workers see. Written where a key is revoked, read by the
claim and reap scripts (shared/queue) under the same names.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from shared import keys
from shared.connections import Redis, redis_errors

MARK_SECONDS: Final = 24 * 3600  # no queued job waits longer


async def mark_revoked(redis: Redis, models: Iterable[str], key_id: str) -> None:
    """Mark a key for every model, since each model's scripts see only their own shard. Raises DependencyUnavailable."""
    with redis_errors():
        async with redis.pipeline(transaction=False) as pipeline:
            for model in models:
                pipeline.set(keys.revoked(model, key_id), b"1", ex=MARK_SECONDS)
            await pipeline.execute()


async def find_revoked(redis: Redis, model: str, key_ids: Sequence[str]) -> set[str]:
    """Return those of `key_ids` that are marked for a model. Raises DependencyUnavailable."""
    if not key_ids:
        return set()
    with redis_errors():
        marks: list[bytes | None] = await redis.mget([keys.revoked(model, key_id) for key_id in key_ids])
    return {key_id for key_id, mark in zip(key_ids, marks, strict=True) if mark is not None}
