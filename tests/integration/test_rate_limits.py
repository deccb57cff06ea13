"""Requests and tokens per minute over several nodes, on a real Valkey, and against a model that forgets nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared import keys
from shared.connections import Redis, open_redis
from shared.errors import DependencyUnavailable, RateLimited
from shared.limits import UNLIMITED, Grant, Limit, Limiter, open_limiter
from shared.settings import QueueSettings, StoreSettings
from shared.wire import TokenHold
from tests.integration.bucket_model import UNIT, BucketModel, Script

SETTINGS = QueueSettings()


@pytest.fixture
async def limiter(redis: Redis) -> AsyncIterator[Limiter]:
    async with open_limiter(redis, SETTINGS) as node:
        yield node


async def burst(nodes: list[Limiter], count: int, limits: list[Limit], tokens: int = 0) -> list[Grant | BaseException]:
    """Ask `count` times at once, node by node in turn."""
    asking = [nodes[number % len(nodes)].acquire(f"r{number}", limits, tokens=tokens) for number in range(count)]
    return await asyncio.gather(*asking, return_exceptions=True)


def granted(outcomes: list[Grant | BaseException]) -> list[Grant]:
    assert all(isinstance(one, Grant | RateLimited) for one in outcomes)
    return [one for one in outcomes if isinstance(one, Grant)]


async def refused(limiter: Limiter, limits: list[Limit], tokens: int = 0) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        await limiter.acquire("refused", limits, tokens=tokens)
    return caught.value


async def test_a_burst_over_three_nodes_admits_exactly_the_requests_of_a_minute(redis: Redis) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_limiter(redis, SETTINGS)) for _ in range(3)]

        outcomes = await burst(nodes, 300, [Limit("key_1", requests=7), Limit("acct_1", requests=100)])

    assert len(granted(outcomes)) == 7


async def test_a_burst_over_three_nodes_admits_exactly_the_tokens_of_a_minute(redis: Redis) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_limiter(redis, SETTINGS)) for _ in range(3)]

        outcomes = await burst(nodes, 200, [Limit("key_1", tokens=100), Limit("acct_1", tokens=45)], tokens=3)

    assert len(granted(outcomes)) == 15


async def test_an_account_bounds_the_requests_and_tokens_of_all_its_keys(redis: Redis) -> None:
    account = Limit("acct_1", requests=20, tokens=45)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_limiter(redis, SETTINGS)) for _ in range(3)]

        outcomes = await asyncio.gather(
            *(
                nodes[number % 3].acquire(
                    f"r{number}", [Limit(f"key_{number % 7}", requests=10), account], tokens=tokens
                )
                for number, tokens in enumerate([1] * 60 + [5] * 60)
            ),
            return_exceptions=True,
        )

    assert len(granted(outcomes)) == 20


async def test_all_limits_of_a_request_are_one_script_call(limiter: Limiter, redis: Redis) -> None:
    await limiter.acquire("r", [Limit("key_0", 1, 1, 1)], tokens=1)
    await redis.config_resetstat()

    await limiter.acquire("r1", [Limit("key_1", 60, 1000, 16), Limit("acct_1", 600, 10_000, 32)], tokens=10)

    assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == 1


async def test_a_request_without_limits_needs_no_redis(limiter: Limiter, redis: Redis) -> None:
    await redis.config_resetstat()

    assert await limiter.acquire("r1", [Limit("key_1"), Limit("acct_1")], tokens=10) is UNLIMITED

    assert "cmdstat_evalsha" not in await redis.info("commandstats")


async def test_a_refused_request_takes_nothing_of_any_limit(limiter: Limiter, redis: Redis) -> None:
    await limiter.acquire("r1", [Limit("acct_1", requests=1)])

    await refused(limiter, [Limit("key_1", 5, 50, 2), Limit("acct_1", requests=1)], tokens=10)
    grant = await limiter.acquire("r2", [Limit("key_1", 5, 50, 2)], tokens=10)

    assert grant.quotas is not None and grant.quotas.requests is not None and grant.quotas.tokens is not None
    assert (grant.quotas.requests.remaining, grant.quotas.tokens.remaining) == (4, 40)
    assert await redis.zcard(keys.slots("key_1")) == 1


async def test_a_refusal_says_what_was_reached_and_when_it_can_succeed(limiter: Limiter) -> None:
    limits = [Limit("key_1", requests=2, tokens=1000)]
    await burst([limiter], 2, limits, tokens=10)

    error = await refused(limiter, limits, tokens=10)

    assert error.code == "rate_limit_exceeded"
    assert error.message == "Rate limit reached for requests per min: limit 2. Please try again in 30 seconds."
    assert error.retry_after_seconds == 30
    assert error.retryable
    assert error.quotas is not None and error.quotas.requests is not None
    assert error.quotas.requests.remaining == 0
    assert 59_000 < error.quotas.requests.reset_ms <= 60_000


async def test_the_longer_wait_decides_what_a_refusal_says(limiter: Limiter) -> None:
    limits = [Limit("key_1", requests=60, tokens=60)]
    await limiter.acquire("r0", limits, tokens=60)

    error = await refused(limiter, limits, tokens=20)

    assert error.message.startswith("Rate limit reached for tokens per min: limit 60, requested 20.")
    assert error.retry_after_seconds == 20


async def test_a_request_above_the_whole_limit_is_refused_for_good(limiter: Limiter) -> None:
    error = await refused(limiter, [Limit("key_1", tokens=100)], tokens=101)

    assert not error.retryable and error.retry_after_seconds is None
    assert "this request alone asks for 101 tokens" in error.message
    assert (await limiter.acquire("r", [Limit("key_1", tokens=100)], tokens=100)).hold is not None


async def test_the_tightest_limit_is_the_one_that_is_told(limiter: Limiter) -> None:
    grant = await limiter.acquire("r1", [Limit("key_1", requests=60), Limit("acct_1", requests=3)])

    assert grant.quotas is not None and grant.quotas.requests is not None
    assert (grant.quotas.requests.limit, grant.quotas.requests.remaining) == (3, 2)
    assert grant.quotas.tokens is None


async def test_requests_come_back_one_by_one(limiter: Limiter) -> None:
    limits = [Limit("key_1", requests=3000)]  # one in 20 ms
    assert len(granted(await burst([limiter], 3000, limits))) >= 3000
    started = time.monotonic()

    admitted = 0
    while (seconds := time.monotonic() - started) < 0.5:
        admitted += len(granted(await burst([limiter], 5, limits)))

    assert admitted <= 50 * seconds + 20  # what drained while the burst itself was asked for
    assert admitted >= 20


async def test_unused_tokens_come_back(limiter: Limiter) -> None:
    limits = [Limit("key_1", tokens=100), Limit("acct_1", tokens=1000)]
    grant = await limiter.acquire("r1", limits, tokens=100)
    assert grant.hold == TokenHold(100, tuple((one[0], one[1], one[2]) for one in grant.hold.holders))
    await refused(limiter, limits, tokens=50)

    limiter.give_back(grant.hold, 40)

    assert (await limiter.acquire("r2", limits, tokens=60)).hold is not None
    await refused(limiter, limits, tokens=10)


async def test_what_drained_meanwhile_is_not_given_back_again(redis: Redis, limiter: Limiter) -> None:
    limits = [Limit("key_1", tokens=100)]
    grant = await limiter.acquire("r1", limits, tokens=100)
    assert grant.hold is not None
    await age(redis, "key_1", seconds=60)
    await limiter.acquire("r2", limits, tokens=100)

    limiter.give_back(grant.hold, 0)

    await refused(limiter, limits, tokens=10)


async def test_a_lost_correction_heals_in_a_minute(redis: Redis, limiter: Limiter) -> None:
    limits = [Limit("key_1", tokens=100)]
    await limiter.acquire("r1", limits, tokens=100)

    await age(redis, "key_1", seconds=60)

    assert (await limiter.acquire("r2", limits, tokens=100)).hold is not None


async def test_nothing_is_kept_of_a_limit_that_has_drained(redis: Redis, limiter: Limiter) -> None:
    await limiter.acquire("r1", [Limit("key_1", requests=60_000, tokens=60_000)], tokens=10)

    names = (keys.minute_requests("key_1"), keys.minute_tokens("key_1"))
    assert [0 < await redis.pttl(name) <= 2000 for name in names] == [True, True]


async def test_a_call_whose_answer_was_lost_counts_once(redis: Redis, limiter: Limiter) -> None:
    limits = [Limit("key_1", requests=10, tokens=100)]
    run, lost = limiter._pipeline.run, []

    async def run_twice(calls: Any) -> Any:
        lost.append(await run(calls))
        return await run(calls)

    limiter._pipeline.run = run_twice  # type: ignore[method-assign]
    grant = await limiter.acquire("r1", limits, tokens=10)
    assert grant.hold is not None
    limiter.give_back(grant.hold, 9)
    second = await limiter.acquire("r2", limits, tokens=10)

    assert len(lost) >= 2
    assert second.quotas is not None and second.quotas.requests is not None and second.quotas.tokens is not None
    assert (second.quotas.requests.remaining, second.quotas.tokens.remaining) == (8, 81)


async def test_a_waiter_that_left_leaves_its_tokens_and_slots(redis: Redis, limiter: Limiter) -> None:
    limits = [Limit("key_1", tokens=100, concurrency=5)]
    waiting = [asyncio.ensure_future(limiter.acquire(f"r{number}", limits, tokens=20)) for number in range(5)]
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    await limiter._batcher.flush()
    await limiter._batcher.flush()

    assert (await limiter.acquire("r", limits, tokens=100)).hold is not None
    assert limiter.held == 1


async def test_without_redis_nobody_is_let_through() -> None:
    impatient = msgspec.structs.replace(SETTINGS, enqueue_retry_seconds=0.05)
    async with open_redis(StoreSettings(redis_url="redis://127.0.0.1:1/0"), role="test") as nowhere:
        limiter = Limiter(nowhere, impatient)

        with pytest.raises(DependencyUnavailable):
            await limiter.acquire("r1", [Limit("key_1", requests=60)])
        limiter.give_back(TokenHold(5, (("key_1", 10, 1),)), 0)
        await limiter.close()


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 40_000)),
        st.tuples(st.just("take"), st.integers(1, 120)),
        st.tuples(st.just("correct"), st.integers(0, 200)),
    ),
    max_size=60,
)


@given(limit=st.integers(1, 100), steps=_STEPS)
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_corrected_bucket_is_as_if_the_right_amount_had_been_taken(
    redis_url: str, limit: int, steps: list[tuple[str, int]]
) -> None:
    model = BucketModel(limit)
    with Script(redis_url, limit) as script:
        open_takes: list[tuple[int, int, int]] = []  # index in the model, mark, amount
        for what, amount in steps:
            if what == "pass":
                model.now += amount
                script.pass_time(amount)
            elif what == "take":
                verdict, mark = script.take(amount)
                assert (verdict == 1) == model.has_room(amount)
                if verdict == 1:
                    open_takes.append((model.take(amount), mark, amount))
            elif open_takes:
                index, mark, taken = open_takes.pop(amount % len(open_takes))
                used = amount % (taken + 1)
                model.correct(index, used)
                script.give_back(taken - used, mark)
            assert script.level() == model.level()


async def age(redis: Redis, holder: str, *, seconds: float) -> None:
    """Let a bucket be as if time had passed: what Redis would do, had we waited."""
    kept = await redis.get(keys.minute_tokens(holder))
    assert kept is not None
    bucket = msgspec.msgpack.decode(kept)
    bucket[1] -= int(seconds * 1000)
    await redis.set(keys.minute_tokens(holder), msgspec.msgpack.encode(bucket))
    assert UNIT == 60_000
