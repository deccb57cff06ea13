"""Where a request stands in its model's queue, for whom its client asks to be told. Called by the API."""

from shared import keys
from shared.connections import Redis, redis_errors


async def place_of(redis: Redis, model: str, request_id: str) -> int | None:
    """Return the place from 1, counting what is claimed before it; None where it does not wait.

    Raises DependencyUnavailable.
    """
    job_id = keys.job_id(model, request_id)
    names = (keys.SUSPECTS, *keys.LANES)  # in the order in which they are claimed
    with redis_errors():
        async with redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.zrank(keys.queue(model, name), job_id)
                pipeline.zcard(keys.queue(model, name))
            found: list[int | None] = await pipeline.execute()
    before = 0
    for rank, depth in zip(found[::2], found[1::2], strict=True):
        if rank is not None:
            return before + rank + 1
        before += depth or 0
    return None
