"""Reads states and logs for many subscriptions at once: first every state, then only the logs that are ahead."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from redis import exceptions as redis_exceptions

from shared import keys
from shared.channel.log import PAGE_CHUNKS, LogEntries, parse_entries
from shared.channel.subscription import Subscription
from shared.connections import Redis
from shared.log import get_logger

ANSWER_SECONDS: Final = 5.0
SUBSCRIPTIONS_MOST: Final = 256  # in one pipeline

logger = get_logger("log_reader")


async def refill(redis: Redis, subscriptions: Sequence[Subscription]) -> bool:
    """Bring subscriptions up to their logs. Tells whether Redis answered; where not, they are as before."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            ahead = await _read_states(redis, subscriptions)
            if ahead:
                await _read_logs(redis, ahead)
    except (redis_exceptions.RedisError, OSError, TimeoutError) as error:
        logger.warning("log_read_failed", subscriptions=len(subscriptions), error=type(error).__name__)
        return False
    return True


async def _read_states(redis: Redis, subscriptions: Sequence[Subscription]) -> list[Subscription]:
    async with redis.pipeline(transaction=False) as pipeline:
        for subscription in subscriptions:
            pipeline.hget(keys.state(subscription.model, subscription.request_id), "status")
            pipeline.xlen(keys.log(subscription.model, subscription.request_id))
        answers: list[Any] = await pipeline.execute()
    return [
        subscription
        for subscription, status, seq in zip(subscriptions, answers[::2], answers[1::2], strict=True)
        if subscription.apply_state(status, seq)
    ]


async def _read_logs(redis: Redis, subscriptions: Sequence[Subscription]) -> None:
    counts = [min(PAGE_CHUNKS, subscription.room) + 1 for subscription in subscriptions]  # the last one seen again
    async with redis.pipeline(transaction=False) as pipeline:
        for subscription, count in zip(subscriptions, counts, strict=True):
            name = keys.log(subscription.model, subscription.request_id)
            pipeline.xrange(name, min=f"{subscription.tail}-0", count=count)
        answers: list[Any] = await pipeline.execute()
    for subscription, count, entries in zip(subscriptions, counts, answers, strict=True):
        _apply(subscription, entries, whole=len(entries) < count)


def _apply(subscription: Subscription, entries: LogEntries, *, whole: bool) -> None:
    try:
        chunks = parse_entries(entries)
    except (msgspec.DecodeError, KeyError):
        subscription.fail("The log is not readable.")
        return
    subscription.apply_log(chunks, whole=whole)
    subscription.again |= subscription.behind and subscription.room > 0
