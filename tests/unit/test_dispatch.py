"""What a dispatcher leaves behind an answer, however it ended: the cancel, its code, and the witness."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from shared.admission import Admission
from shared.answer import Answer
from shared.catalogue import Model
from shared.channel import LogReader
from shared.clock import SystemClock
from shared.database.requests import Reserve, ReserveVerdict, Witness
from shared.dispatch import Dispatcher
from shared.errors import BackendFailed, DependencyUnavailable
from shared.idempotency import PastRuns
from shared.limits import Limiter
from shared.pricing import Prices
from shared.queue.client import CancelTarget, QueueClient
from shared.settings import Settings
from shared.submission import Submission
from shared.wire import Chunk, End, Job, Message, Sampling, Usage

MODEL = Model(id="sim/plain", engine="simulator", context=4096, prices=Prices(1, 1, 1))


class FakeAdmission:
    """Grants everything, and remembers what it was told."""

    def __init__(self) -> None:
        self.released: list[tuple[str, str]] = []
        self.witnesses: list[Witness] = []

    async def reserve(self, row: Reserve) -> ReserveVerdict:
        return ReserveVerdict("reserved", row.hold_full)

    def release(self, request_id: str, code: str = "not_queued", *, then: Callable[[], None] | None = None) -> None:
        self.released.append((request_id, code))

    def witness(self, witness: Witness) -> None:
        self.witnesses.append(witness)


class FakeQueue:
    """Takes jobs; `cancel` fails as often as told, as where Redis is away."""

    def __init__(self) -> None:
        self.failures = 0
        self.enqueue_error: Exception | None = None
        self.cancelled: list[tuple[str, str]] = []
        self.tries = 0

    async def seconds_until_room(self, model: str, lane: str) -> int:
        return 7

    async def enqueue(self, job: Job) -> str:
        await asyncio.sleep(0)
        if self.enqueue_error is not None:
            raise self.enqueue_error
        return "queued"

    async def cancel(self, target: CancelTarget, *, code: str, reader: str | None) -> str:
        self.tries += 1
        await asyncio.sleep(0)
        if self.tries <= self.failures:
            raise DependencyUnavailable("away")
        self.cancelled.append((target.request_id, code))
        return "flagged"


class FakeSubscription:
    """Gives what it was made with, or raises it."""

    def __init__(self) -> None:
        self.gives: list[Chunk] | Exception | None = None
        self.closed = False

    def enqueued(self) -> None:
        pass

    async def next(self, timeout_seconds: float, push: object = None) -> list[Chunk] | None:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives

    def close(self) -> None:
        self.closed = True


class FakeReader:
    def __init__(self) -> None:
        self.subscription = FakeSubscription()

    def subscribe(self, model: str, request_id: str) -> FakeSubscription:
        return self.subscription


class Rig:
    def __init__(self) -> None:
        self.admission, self.queue, self.reader = FakeAdmission(), FakeQueue(), FakeReader()
        self.dispatcher = Dispatcher(
            Settings(),
            admission=cast(Admission, self.admission),
            queue=cast(QueueClient, self.queue),
            reader=cast(LogReader, self.reader),
            limiter=cast(Limiter, None),
            past_runs=cast(PastRuns, None),
            clock=SystemClock(),
            node_id="node_a",
        )

    async def submit(self, **changes: Any) -> Answer:
        return await self.dispatcher.submit(
            Submission(
                account_id="acct_a",
                key_id="key_a",
                model=MODEL,
                messages=(Message("user", "hi"),),
                sampling=Sampling(max_tokens=4),
                stream=True,
                patience_seconds=60,
                **changes,
            )
        )


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr("shared.dispatch.CANCEL_RETRY_SECONDS", 0.01)
    opened = Rig()
    yield opened
    await opened.dispatcher.close()


def last(status: Any) -> Chunk:
    return Chunk(1, "r", 1, 1, 0, "", (), "stop", end=End(status, Usage(1, 0, 1)))


async def settled(rig: Rig) -> None:
    async with asyncio.timeout(5):
        while not rig.queue.cancelled:
            await asyncio.sleep(0.005)


async def test_an_answer_that_was_lost_is_cancelled_as_lost_and_not_as_left_by_its_client(rig: Rig) -> None:
    answer = await rig.submit()
    rig.reader.subscription.gives = BackendFailed("lost", code="worker_lost")
    with pytest.raises(BackendFailed):
        await answer.next(1)

    answer.close()
    await settled(rig)

    assert rig.queue.cancelled == [(answer.request_id, "worker_lost")]
    assert rig.admission.witnesses[0].ended == "failed"


async def test_an_answer_that_the_node_broke_off_is_cancelled_by_that_code(rig: Rig) -> None:
    answer = await rig.submit()

    answer.fail("internal_error")
    answer.close()
    await settled(rig)

    assert rig.queue.cancelled == [(answer.request_id, "internal_error")]
    assert rig.admission.witnesses[0].ended == "failed"


async def test_a_client_that_leaves_is_witnessed_as_such(rig: Rig) -> None:
    answer = await rig.submit()

    answer.close()
    await settled(rig)

    assert rig.queue.cancelled == [(answer.request_id, "request_cancelled")]
    assert rig.admission.witnesses[0].ended == "client_left"


@pytest.mark.parametrize(("status", "ended"), [("completed", "finished"), ("failed", "failed")])
async def test_an_answer_that_ended_is_not_cancelled(rig: Rig, status: str, ended: str) -> None:
    answer = await rig.submit()
    rig.reader.subscription.gives = [last(status)]
    await answer.next(1)

    answer.fail("internal_error")  # what goes wrong after the end changes nothing
    answer.close()
    await rig.dispatcher.close()

    assert rig.queue.cancelled == []
    assert rig.admission.witnesses[0].ended == ended


async def test_a_cancel_outlasts_a_redis_that_is_away(rig: Rig) -> None:
    rig.queue.failures = 3
    answer = await rig.submit()

    answer.close()
    await settled(rig)

    assert rig.queue.tries == 4
    assert rig.queue.cancelled == [(answer.request_id, "request_cancelled")]


async def test_a_request_that_may_be_queued_is_released_and_cancelled_until_redis_hears_it(rig: Rig) -> None:
    rig.queue.enqueue_error, rig.queue.failures = DependencyUnavailable("away"), 2
    with pytest.raises(DependencyUnavailable):
        await rig.submit()
    await settled(rig)

    ((request_id, code),) = rig.queue.cancelled
    assert code == "request_cancelled"
    assert rig.admission.released == [(request_id, "not_queued")]
    assert rig.reader.subscription.closed
    assert rig.dispatcher.live == 0


async def test_a_client_that_leaves_while_its_request_is_queued_cancels_it(rig: Rig) -> None:
    submitting = asyncio.create_task(rig.submit())
    while not rig.dispatcher.live:
        await asyncio.sleep(0)

    submitting.cancel()
    await asyncio.wait({submitting})
    await settled(rig)

    assert rig.admission.released == rig.queue.cancelled
    assert [code for _, code in rig.queue.cancelled] == ["request_cancelled"]
    assert rig.dispatcher.live == 0


async def test_a_node_that_stops_does_not_wait_for_redis_for_ever(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.dispatch.CANCEL_FLUSH_SECONDS", 0.1)
    rig.queue.failures = 1_000_000
    answer = await rig.submit()
    answer.close()

    async with asyncio.timeout(2):
        await rig.dispatcher.close()

    assert rig.queue.cancelled == []
