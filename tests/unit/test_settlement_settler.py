"""What the settler does with each record, on a queue and a ledger in memory."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, get_args

import pytest
from prometheus_client import REGISTRY

from shared.crash_points import CrashPoints
from shared.database.settlements import Settled
from shared.errors import DependencyUnavailable, StatementFailed
from shared.queue.settlements import Record
from shared.wire import VERSION, Finish, Seal, Usage, encode
from workers.settlement import settle
from workers.settlement.settle import CLOSED, SET_ASIDE, Settler

SEAL = Seal(b"w" * 32)


class MemoryQueue:
    """The settlement queue's far end: what was acknowledged, and what was set aside by which reason."""

    def __init__(self) -> None:
        self.acknowledged: list[bytes] = []
        self.dead: dict[bytes, str] = {}

    async def acknowledge(self, records: Sequence[Record]) -> None:
        self.acknowledged += [record.entry_id for record in records]

    async def dead_letter(self, record: Record, reason: str) -> None:
        self.dead[record.entry_id] = reason


class MemoryLedger:
    """A session whose connection is itself; verdicts by request id, statements kept."""

    def __init__(self, verdicts: dict[str, str] | None = None, *, down: bool = False) -> None:
        self.verdicts = verdicts or {}
        self.down = down
        self.statements: list[list[str]] = []

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        if self.down:
            raise DependencyUnavailable
        return await work(self)

    async def settle_many(self, finishes: Sequence[Finish]) -> list[str]:
        self.statements.append([finish.request_id for finish in finishes])
        found = [self.verdicts.get(finish.request_id, "settled") for finish in finishes]
        if "raises" in found:
            raise StatementFailed
        return found


@pytest.fixture(autouse=True)
def ledger_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async def settle_many(connection: MemoryLedger, finishes: Sequence[Finish]) -> list[str]:
        return await connection.settle_many(finishes)

    monkeypatch.setattr(settle, "settle_many", settle_many)


def make_payload(request_id: str, *, version: int = VERSION) -> bytes:
    finish = Finish(
        version, request_id, "acct_1", "key_1", "m", "completed", None, "stop", Usage(1, 0, 1), True, 1, 0, 0, 0, 0
    )
    return SEAL.close(encode(finish))


def make_record(request_id: str, payload: bytes | None = None, *, deliveries: int = 1) -> Record:
    content = make_payload(request_id) if payload is None else payload
    return Record(model="m", entry_id=request_id.encode(), payload=content, deliveries=deliveries)


def make_settler(queue: MemoryQueue, ledger: MemoryLedger) -> Settler:
    return Settler(queue, ledger, SEAL, CrashPoints(), tries_most=5)  # type: ignore[arg-type]


async def test_settled_and_repeated_records_are_acknowledged() -> None:
    queue, ledger = MemoryQueue(), MemoryLedger({"b": "already"})

    await make_settler(queue, ledger).settle([make_record("a"), make_record("b")])

    assert queue.acknowledged == [b"a", b"b"]
    assert ledger.statements == [["a", "b"]]


async def test_records_that_are_no_charge_are_set_aside_and_the_others_go_on() -> None:
    queue = MemoryQueue()
    ledger = MemoryLedger({"c": "unknown", "d": "mismatch", "e": "too_costly"})
    records = [
        make_record("a", make_payload("a")[:-1] + b"x"),
        make_record("b", SEAL.close(b"\x91\x01")),
        *(make_record(name) for name in "cde"),
        make_record("f", make_payload("f", version=99)),
        make_record("g", b""),
        make_record("h", deliveries=6),
        make_record("i", deliveries=5),
    ]

    await make_settler(queue, ledger).settle(records)

    assert queue.acknowledged == [b"i"]
    assert queue.dead == {
        b"a": "invalid_seal",
        b"b": "undecodable",
        b"c": "unknown",
        b"d": "mismatch",
        b"e": "too_costly",
        b"f": "unknown_version",
        b"g": "invalid_seal",
        b"h": "delivered_too_often",
    }


async def test_a_batch_whose_statement_fails_is_halved_until_the_bad_record_stands_alone() -> None:
    queue, ledger = MemoryQueue(), MemoryLedger({"c": "raises"})

    await make_settler(queue, ledger).settle([make_record(name) for name in "abcd"])

    assert queue.acknowledged == [b"a", b"b", b"d"]
    assert queue.dead == {b"c": "invalid"}
    assert ledger.statements == [["a", "b", "c", "d"], ["a", "b"], ["c", "d"], ["c"], ["d"]]


async def test_nothing_is_acknowledged_while_the_database_is_down() -> None:
    queue, ledger = MemoryQueue(), MemoryLedger(down=True)

    with pytest.raises(DependencyUnavailable):
        await make_settler(queue, ledger).settle([make_record("a"), make_record("b", b"")])

    assert (queue.acknowledged, queue.dead) == ([], {})


def test_dead_letters_of_each_reason_are_counted_from_0_so_that_the_first_one_alerts() -> None:
    make_settler(MemoryQueue(), MemoryLedger())

    assert set(get_args(Settled)) - CLOSED < set(SET_ASIDE)
    for reason in SET_ASIDE:
        assert REGISTRY.get_sample_value("inferbase_dead_letters_records_total", {"reason": reason}) is not None
