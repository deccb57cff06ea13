"""`inferbase settlement dead-letters …`, as an operator types it: no content is shown, nothing is charged twice."""

import asyncio
import re

import msgspec
import pytest

from shared import keys
from shared.catalogue import Model
from shared.connections import Database, Redis
from shared.crash_points import CrashPoints
from shared.database.models import add_model, remove_model
from shared.database.requests import Reserve, reserve_many
from shared.database.session import Session
from shared.queue.settlements import SettlementQueue
from shared.settings import Settings, SettlementSettings
from shared.wire import Seal, encode
from tests.integration.ledger_factories import (
    MODEL,
    PRICES,
    Customer,
    assert_clean,
    balance_of,
    make_customer,
    make_finish,
    make_reserve,
)
from tests.integration.test_account_commands import run
from workers.settlement.settle import Settler

LETTERS = ("settlement", "dead-letters")
OTHER_KEY = "a wire key that settlement was not told of"
OTHER_MODEL = "org/other"
CHARGED = 40  # nanocredits, of make_finish


@pytest.fixture
async def customer(database: Database) -> Customer:
    for model in (MODEL, OTHER_MODEL):
        await add_model(database, Model(id=model, engine="simulator", context=100, prices=PRICES))
    return await make_customer(database, credits=1_000)


async def settle(settings: Settings, database: Database, redis: Redis, *, previous: str | None = None) -> None:
    """Do what one settlement worker does, until its queues are empty."""
    queue = SettlementQueue(redis, SettlementSettings())
    session = Session(database)
    seal = Seal(settings.secrets.wire_key.encode(), previous.encode() if previous else None)
    settler = Settler(queue, session, seal, CrashPoints(), tries_most=5)
    while records := await queue.read([MODEL, OTHER_MODEL], "one", most=10, block_ms=1):
        await settler.settle(records)
    await session.close()


async def poison(
    settings: Settings, database: Database, redis: Redis, customer: Customer, *models: str
) -> list[Reserve]:
    """Let a record of each of `models` be set aside because of its wire key; return their requests."""
    rows = [make_reserve(customer, model=model) for model in models]
    await reserve_many(database, rows)
    for row in rows:
        sealed = Seal(OTHER_KEY.encode()).close(encode(make_finish(row)))
        await redis.xadd(keys.settlement(row.model), {"f": sealed})
    await settle(settings, database, redis)
    return rows


async def add_job(redis: Redis, *, model: str = MODEL) -> str:
    """Set a job aside as discard.lua does, and return the letter's id."""
    fields = {"f": b"the secret prompt", "kind": "job", "reason": "its seal is wrong\x1b[2J", "of": "chatcmpl-9"}
    return (await redis.xadd(keys.dead_letters(model), fields)).decode()


def told_of(settings: Settings, previous: str) -> Settings:
    return msgspec.structs.replace(
        settings, secrets=msgspec.structs.replace(settings.secrets, wire_key_previous=previous)
    )


async def test_a_record_is_charged_once_after_its_cause_is_mended_however_often_it_is_replayed(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    await poison(settings, database, redis, customer, MODEL)
    _, listed = await run(settings, *LETTERS, "list")
    letter_id = listed["data"][0]["id"]
    kept = await redis.xrange(keys.dead_letters(MODEL))
    assert await balance_of(database, customer) == (1_000, 100)

    first = await run(settings, *LETTERS, "replay", letter_id)
    await settle(settings, database, redis, previous=OTHER_KEY)
    again = await run(settings, *LETTERS, "replay", letter_id)
    await redis.xadd(keys.dead_letters(MODEL), kept[0][1])  # Redis lost its last second: the letter is back
    third = await run(settings, *LETTERS, "replay", "--all")
    await settle(settings, database, redis, previous=OTHER_KEY)

    assert first == third == (0, {"object": "dead_letter_replay", "replayed": 1, "left": 0})
    assert again[0] == 1 and f"there is no dead letter {letter_id}" in again[1]
    assert await balance_of(database, customer) == (1_000 - CHARGED, 0)
    assert await redis.xlen(keys.dead_letters(MODEL)) == await redis.xlen(keys.settlement(MODEL)) == 0
    await assert_clean(database, quiesced=True)
    assert (await run(settings, "audit", "--quiesced"))[0] == 0


async def test_replays_at_the_same_time_put_a_record_back_once(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    await poison(settings, database, redis, customer, MODEL)
    (letter,) = await SettlementQueue(redis, SettlementSettings()).dead_letters(MODEL)

    queues = [SettlementQueue(redis, SettlementSettings()) for _ in range(8)]
    replayed = await asyncio.gather(*(queue.replay(MODEL, [letter.entry_id]) for queue in queues))

    assert sorted(replayed) == [0] * 7 + [1]
    assert await redis.xlen(keys.settlement(MODEL)) == 1


async def test_a_record_that_is_still_poison_is_set_aside_again_and_charges_nothing(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    await poison(settings, database, redis, customer, MODEL)

    assert (await run(settings, *LETTERS, "replay", "--all"))[1]["replayed"] == 1
    await settle(settings, database, redis)

    _, listed = await run(settings, *LETTERS, "list")
    assert [row["reason"] for row in listed["data"]] == ["invalid_seal"]
    assert await balance_of(database, customer) == (1_000, 100)
    await assert_clean(database)


async def test_the_list_tells_all_but_the_content(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    rows = await poison(settings, database, redis, customer, MODEL, OTHER_MODEL)
    await add_job(redis)

    _, untold = await run(settings, *LETTERS, "list")
    _, told = await run(told_of(settings, OTHER_KEY), *LETTERS, "list")
    _, of_other = await run(told_of(settings, OTHER_KEY), *LETTERS, "list", "--model", OTHER_MODEL)
    _, first = await run(settings, *LETTERS, "list", "--limit", "1")
    status, shown = await run(settings, *LETTERS, "list", "--model", "org/none")

    assert [row["request_id"] for row in untold["data"]] == [None, "chatcmpl-9", None]
    assert [row["request_id"] for row in told["data"]] == [rows[0].request_id, "chatcmpl-9", rows[1].request_id]
    record, job, _ = told["data"]
    assert (record["model"], record["kind"], record["reason"]) == (MODEL, "finish", "invalid_seal")
    assert (job["kind"], job["reason"], job["size_bytes"]) == ("job", "its seal is wrong?[2J", 17)
    assert 0 <= record["age_seconds"] < 60
    assert re.fullmatch(r"[0-9]+-[0-9]+", record["id"])
    assert not re.search("secret prompt|payload", str(told))
    assert [row["id"] for row in of_other["data"]] == [told["data"][2]["id"]]
    assert [row["id"] for row in first["data"]] == [record["id"]]
    assert status == 1 and "there is no model org/none" in shown


async def test_a_job_is_never_replayed(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    await poison(settings, database, redis, customer, MODEL)
    _, listed = await run(settings, *LETTERS, "list")
    job_id = await add_job(redis)

    named = await run(settings, *LETTERS, "replay", listed["data"][0]["id"], job_id)
    waiting = await redis.xlen(keys.settlement(MODEL))
    every = await run(settings, *LETTERS, "replay", "--all")

    assert named[0] == 1 and f"{job_id} is a job: only settlement records can be replayed" in named[1]
    assert waiting == 0  # all of what is named, or none
    assert every == (0, {"object": "dead_letter_replay", "replayed": 1, "left": 1})
    assert [entry_id.decode() for entry_id, _ in await redis.xrange(keys.dead_letters(MODEL))] == [job_id]


async def test_replay_keeps_to_the_model_that_is_named_and_asks_where_two_have_the_id(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    for model in (MODEL, OTHER_MODEL):
        await redis.xadd(keys.dead_letters(model), {"f": b"same", "kind": "finish", "reason": "invalid"}, id="7-0")

    status, said = await run(settings, *LETTERS, "replay", "7-0")
    named = await run(settings, *LETTERS, "replay", "7-0", "--model", OTHER_MODEL)

    assert status == 1 and "name one by --model" in said
    assert named[0] == 0
    assert [await redis.xlen(keys.settlement(model)) for model in (MODEL, OTHER_MODEL)] == [0, 1]


async def test_a_record_that_nobody_would_read_stays_a_dead_letter(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    await redis.xadd(keys.dead_letters(OTHER_MODEL), {"f": b"x", "kind": "finish", "reason": "unknown"}, id="7-0")
    await remove_model(database, OTHER_MODEL)

    named = await run(settings, *LETTERS, "replay", "7-0")
    every = await run(settings, *LETTERS, "replay", "--all")

    assert named[0] == 1 and f"nobody settles {OTHER_MODEL} any more" in named[1]
    assert every == (0, {"object": "dead_letter_replay", "replayed": 0, "left": 1})
    assert await redis.xlen(keys.settlement(OTHER_MODEL)) == 0


async def test_more_than_a_page_is_replayed_and_each_once(
    settings: Settings, database: Database, redis: Redis, customer: Customer
) -> None:
    for number in range(40):
        kind = "job" if number % 4 == 0 else "finish"
        await redis.xadd(keys.dead_letters(MODEL), {"f": str(number), "kind": kind, "reason": "invalid"})

    _, done = await run(settings, *LETTERS, "replay", "--all", "--model", MODEL)

    assert (done["replayed"], done["left"]) == (30, 10)
    back = [int(fields[b"f"]) for _, fields in await redis.xrange(keys.settlement(MODEL))]
    assert back == [number for number in range(40) if number % 4]
