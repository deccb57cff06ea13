"""The settlement queue: a record stays until it is acknowledged, whoever dies in between."""

import time
from collections.abc import AsyncIterator

import pytest

from compose.stores import free_port
from shared import keys
from shared.connections import Redis, open_redis
from shared.errors import DependencyUnavailable
from shared.queue.settlements import Record, SettlementQueue
from shared.settings import SettlementSettings, StoreSettings
from tests.integration.queue_rig import MODEL, Rig, open_rig

OTHER = "org/other"
AT_ONCE = SettlementSettings(settle_idle_ms=0)  # what anybody left is taken over by the next read


@pytest.fixture
def queue(redis: Redis) -> SettlementQueue:
    return SettlementQueue(redis, SettlementSettings())


@pytest.fixture
async def rig(redis: Redis) -> AsyncIterator[Rig]:
    async with open_rig(redis) as opened:
        yield opened


async def _read(queue: SettlementQueue, consumer: str = "one", *, most: int = 10) -> list[Record]:
    return await queue.read([MODEL, OTHER], consumer, most=most, block_ms=10)


async def _add(redis: Redis, *payloads: bytes, model: str = MODEL) -> None:
    for payload in payloads:
        await redis.xadd(keys.settlement(model), {"f": payload})


async def test_a_finished_request_is_read_as_its_sealed_record(queue: SettlementQueue, rig: Rig) -> None:
    await rig.enqueue()
    await rig.finish(await rig.claim_one())

    (record,) = await _read(queue)

    assert (record.model, record.deliveries) == (MODEL, 1)


async def test_records_written_before_the_first_reader_are_not_lost(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1", b"2")

    assert [record.payload for record in await _read(queue)] == [b"1", b"2"]


async def test_records_of_every_model_come_in_one_read(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1")
    await _add(redis, b"2", model=OTHER)

    assert {(record.model, record.payload) for record in await _read(queue)} == {(MODEL, b"1"), (OTHER, b"2")}


async def test_a_read_without_records_ends_after_its_time(queue: SettlementQueue) -> None:
    assert await _read(queue) == []
    assert await queue.read([], "one", most=10, block_ms=10) == []


async def test_no_more_is_returned_than_asked_for_and_nothing_is_lost(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1", b"2", b"3")
    await _add(redis, b"4", b"5", b"6", model=OTHER)

    read = [await _read(queue, most=4), await _read(queue, most=4)]

    assert [len(records) for records in read] == [4, 2]
    assert {record.payload for records in read for record in records} == {b"1", b"2", b"3", b"4", b"5", b"6"}


async def test_an_acknowledged_record_is_gone_for_good(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1", b"2")
    await queue.acknowledge(await _read(queue))

    assert await queue.backlog([MODEL]) == 0
    assert await _read(SettlementQueue(redis, AT_ONCE), "two") == []


async def test_acknowledging_nothing_or_twice_is_harmless(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1")
    records = await _read(queue)

    await queue.acknowledge([])
    await queue.acknowledge(records)
    await queue.acknowledge(records)

    assert await queue.backlog([MODEL]) == 0


async def test_two_readers_do_not_share_a_record(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1", b"2")

    first = await _read(queue, "one", most=1)
    second = await _read(SettlementQueue(redis, SettlementSettings()), "two")

    assert [record.payload for record in (*first, *second)] == [b"1", b"2"]


async def test_what_a_dead_reader_left_is_taken_over_and_counted(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1")
    await _read(queue, "dead")

    (record,) = await _read(SettlementQueue(redis, AT_ONCE), "two")

    assert (record.payload, record.deliveries) == (b"1", 2)


async def test_a_record_that_is_never_acknowledged_counts_each_delivery(redis: Redis) -> None:
    await _add(redis, b"poison")

    deliveries = []
    for number in range(4):
        (record,) = await _read(SettlementQueue(redis, AT_ONCE), f"reader-{number}")
        deliveries.append(record.deliveries)

    assert deliveries == [1, 2, 3, 4]


async def test_a_fresh_record_is_not_taken_from_its_live_reader(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1")
    await _read(queue, "one")

    assert await _read(SettlementQueue(redis, SettlementSettings(settle_idle_ms=60_000)), "two") == []


async def test_what_was_read_when_the_answer_was_lost_comes_again(queue: SettlementQueue, redis: Redis) -> None:
    await _read(queue)
    await _add(redis, b"1", b"2", b"3")
    await redis.xreadgroup(keys.SETTLEMENT_GROUP, "one", {keys.settlement(MODEL): ">"}, count=2)  # nobody saw it

    restarted = SettlementQueue(redis, SettlementSettings())
    payloads = []
    while records := await _read(restarted, most=1):
        payloads += [record.payload for record in records]
        await restarted.acknowledge(records)

    assert payloads == [b"1", b"2", b"3"]


async def test_a_pending_record_that_was_deleted_is_passed_over(redis: Redis) -> None:
    await _add(redis, b"1", b"2")
    (first, _) = await _read(SettlementQueue(redis, SettlementSettings()), "one")
    await redis.xdel(keys.settlement(MODEL), first.entry_id)

    again = await _read(SettlementQueue(redis, SettlementSettings()), "one")

    assert [record.payload for record in again] == [b"2"]


async def test_the_group_is_made_again_after_redis_lost_its_data(queue: SettlementQueue, redis: Redis) -> None:
    await _read(queue)
    await redis.flushall()
    await _add(redis, b"1")

    first, second = await _read(queue), await _read(queue)

    assert [record.payload for record in (*first, *second)] == [b"1"]


async def test_backlog_counts_unread_and_unacknowledged(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1", b"2")
    await _read(queue)
    await _add(redis, b"3", model=OTHER)

    assert await queue.backlog([MODEL, OTHER, "org/none"]) == 3
    assert await queue.backlog([]) == 0


async def test_lag_is_the_age_of_the_oldest_record(queue: SettlementQueue, redis: Redis) -> None:
    assert await queue.lag_seconds([MODEL]) == 0.0
    an_hour_ago = int((time.time() - 3600) * 1000)
    await redis.xadd(keys.settlement(MODEL), {"f": b"old"}, id=f"{an_hour_ago}-0")
    await _add(redis, b"new", model=OTHER)

    assert 3599 < await queue.lag_seconds([MODEL, OTHER]) < 3660


async def test_a_dead_letter_leaves_the_queue_and_keeps_its_reason(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"poison", b"good")
    poison, good = await _read(queue)

    await queue.dead_letter(poison, "invalid_seal")

    (letter,) = await queue.dead_letters(MODEL)
    assert (letter.payload, letter.reason, letter.kind) == (b"poison", "invalid_seal", "finish")
    assert await queue.backlog([MODEL]) == 1
    await queue.acknowledge([good])
    assert await queue.backlog([MODEL]) == 0


async def test_a_replayed_dead_letter_is_read_again_once(queue: SettlementQueue, redis: Redis) -> None:
    await _add(redis, b"1")
    await queue.dead_letter((await _read(queue))[0], "unknown")
    (letter,) = await queue.dead_letters(MODEL)

    assert await queue.replay(MODEL, [letter.entry_id, letter.entry_id]) == 1

    assert [record.payload for record in await _read(queue)] == [b"1"]
    assert await queue.dead_letters(MODEL) == []


async def test_a_forged_job_is_never_replayed_into_settlement(queue: SettlementQueue, rig: Rig, redis: Redis) -> None:
    job = await rig.enqueue()
    await redis.set(keys.job(MODEL, job.request_id), b"forged")
    await rig.claim()
    (letter,) = await queue.dead_letters(MODEL)

    assert letter.kind == "job"
    assert await queue.replay(MODEL, [letter.entry_id]) == 0
    assert await queue.backlog([MODEL]) == 0


async def test_readers_that_died_are_removed_but_not_what_they_left(redis: Redis, monkeypatch) -> None:
    monkeypatch.setattr("shared.queue.settlements.IDLE_CONSUMERS", -1)  # a negative idle time: everybody is idle
    await _add(redis, b"1", b"2")
    await _read(SettlementQueue(redis, SettlementSettings()), "holds")
    await redis.xgroup_createconsumer(keys.settlement(MODEL), keys.SETTLEMENT_GROUP, "empty")

    await _read(SettlementQueue(redis, SettlementSettings()), "live")

    names = {each["name"] for each in await redis.xinfo_consumers(keys.settlement(MODEL), keys.SETTLEMENT_GROUP)}
    assert names == {b"holds", b"live"}


async def test_a_missing_redis_is_told_as_such() -> None:
    async with open_redis(StoreSettings(redis_url=f"redis://127.0.0.1:{free_port()}/0"), role="test") as nobody:
        queue = SettlementQueue(nobody, SettlementSettings())

        with pytest.raises(DependencyUnavailable):
            await _read(queue)
        with pytest.raises(DependencyUnavailable):
            await queue.backlog([MODEL])
