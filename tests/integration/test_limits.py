"""Slots over several nodes, on a real Valkey; requests and tokens per minute are in test_rate_limits.py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import pytest

from shared import keys
from shared.connections import Redis, open_redis
from shared.errors import DependencyUnavailable, RateLimited
from shared.limits import Limit, Limiter, open_limiter
from shared.settings import QueueSettings, StoreSettings

SETTINGS = QueueSettings()


def slot(holder: str, most: int) -> Limit:
    return Limit(holder, concurrency=most)


async def takes(limiter: Limiter, request_id: str, limits: list[Limit]) -> bool:
    """Tell whether there was room."""
    try:
        await limiter.acquire(request_id, limits)
    except RateLimited as error:
        assert error.code == "concurrency_limit_exceeded"
        return False
    return True


@pytest.fixture
async def slots(redis: Redis) -> AsyncIterator[Limiter]:
    async with open_limiter(redis, SETTINGS) as node:
        yield node


async def test_a_burst_over_three_nodes_gets_exactly_its_slots(redis: Redis) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_limiter(redis, SETTINGS)) for _ in range(3)]

        granted = await asyncio.gather(
            *[takes(nodes[number % 3], f"r{number}", [slot("key_1", 16)]) for number in range(200)]
        )

        assert sum(granted) == 16
        assert sum(node.held for node in nodes) == 16


async def test_an_account_bounds_all_its_keys(slots: Limiter) -> None:
    granted = await asyncio.gather(
        *[takes(slots, f"r{number}", [slot(f"key_{number % 4}", 10), slot("acct_1", 12)]) for number in range(60)]
    )

    assert sum(granted) == 12


async def test_a_refused_request_holds_nothing(redis: Redis, slots: Limiter) -> None:
    assert await takes(slots, "r1", [slot("acct_1", 1)])

    assert not await takes(slots, "r2", [slot("key_2", 5), slot("acct_1", 1)])

    assert await redis.exists(keys.slots("key_2")) == 0
    assert slots.held == 1


async def test_a_released_slot_is_free_at_once_and_only_once(slots: Limiter) -> None:
    holders = [slot("key_1", 2)]
    assert await takes(slots, "r1", holders) and await takes(slots, "r2", holders)

    slots.release("r1", holders)
    slots.release("r1", holders)

    assert await takes(slots, "r3", holders)
    assert not await takes(slots, "r4", holders)


async def test_acquiring_again_under_the_same_id_takes_no_second_slot(slots: Limiter) -> None:
    assert await takes(slots, "r1", [slot("key_1", 1)])
    assert await takes(slots, "r1", [slot("key_1", 1)])

    slots.release("r1", [slot("key_1", 1)])

    assert await takes(slots, "r2", [slot("key_1", 1)])


async def test_no_bound_needs_no_redis(slots: Limiter, redis: Redis) -> None:
    await redis.config_resetstat()

    assert await takes(slots, "r1", [slot("key_1", 0), slot("acct_1", 0)])
    assert await takes(slots, "r2", [])
    slots.release("r1", [slot("key_1", 0)])

    assert "cmdstat_evalsha" not in await redis.info("commandstats")


async def test_a_batch_is_one_script_call(slots: Limiter, redis: Redis) -> None:
    await takes(slots, "r", [slot("key_0", 1)])
    await redis.config_resetstat()

    await asyncio.gather(*[takes(slots, f"r{number}", [slot("key_1", 100)]) for number in range(100)])

    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == 1


async def test_what_a_dead_node_held_is_free_after_its_lease(redis: Redis) -> None:
    short = msgspec.structs.replace(SETTINGS, node_lease_seconds=0.1)
    dead = Limiter(redis, short)  # never started: renews nothing
    assert await takes(dead, "r1", [slot("key_1", 1)])

    async with open_limiter(redis, SETTINGS) as alive:
        assert not await takes(alive, "r2", [slot("key_1", 1)])
        async with asyncio.timeout(5):
            while not await takes(alive, "r2", [slot("key_1", 1)]):
                await asyncio.sleep(0.01)
    await dead.close()


async def test_a_living_node_keeps_its_slots_beyond_their_lease(redis: Redis) -> None:
    brisk = msgspec.structs.replace(SETTINGS, node_lease_seconds=0.2, node_beat_seconds=0.02)
    async with open_limiter(redis, brisk) as node, open_limiter(redis, brisk) as other:
        assert await takes(node, "r1", [slot("key_1", 1)])
        until = asyncio.get_running_loop().time() + 0.6

        while asyncio.get_running_loop().time() < until:
            assert not await takes(other, "r2", [slot("key_1", 1)])
            await asyncio.sleep(0.01)

        assert node.held == 1


async def test_renewals_never_bring_back_what_was_released(redis: Redis) -> None:
    brisk = msgspec.structs.replace(SETTINGS, node_beat_seconds=0.001)
    async with open_limiter(redis, brisk) as node:
        for number in range(200):
            assert await takes(node, f"r{number}", [slot("key_1", 3)])
            node.release(f"r{number}", [slot("key_1", 3)])
        await node._batcher.flush()

        assert await redis.zcard(keys.slots("key_1")) == 0


async def test_a_waiter_that_left_leaves_no_slot(redis: Redis, slots: Limiter) -> None:
    waiting = [asyncio.ensure_future(takes(slots, f"r{number}", [slot("key_1", 50)])) for number in range(20)]
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    async with asyncio.timeout(5):
        while slots.held or await redis.zcard(keys.slots("key_1")):
            await asyncio.sleep(0.005)


async def test_a_waiter_that_is_cut_as_it_is_answered_leaves_no_slot(redis: Redis, slots: Limiter) -> None:
    waiting = asyncio.ensure_future(takes(slots, "r1", [slot("key_1", 1)]))
    while not slots.held:  # granted, and the waiter has not run yet
        await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert waiting.cancelled()
    assert await takes(slots, "r2", [slot("key_1", 1)])
    assert slots.held == 1


async def test_closing_a_node_gives_its_slots_back(redis: Redis) -> None:
    async with open_limiter(redis, SETTINGS) as node:
        await takes(node, "r1", [slot("key_1", 1), slot("acct_1", 1)])
        assert 0 < await redis.ttl(keys.slots("key_1")) <= 60

    assert await redis.exists(keys.slots("key_1"), keys.slots("acct_1")) == 0


async def test_without_redis_nobody_gets_a_slot() -> None:
    impatient = msgspec.structs.replace(SETTINGS, enqueue_retry_seconds=0.05)
    async with open_redis(StoreSettings(redis_url="redis://127.0.0.1:1/0"), role="test") as nowhere:
        node = Limiter(nowhere, impatient)

        with pytest.raises(DependencyUnavailable):
            await takes(node, "r1", [slot("key_1", 1)])

        assert node.held == 0
        node.release("r1", [slot("key_1", 1)])
        await node.close()
