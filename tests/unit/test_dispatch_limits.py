"""What a dispatcher takes of limits and gives back, and how a repeated request finds its run."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from shared.database.requests import PastRun, ReserveVerdict
from shared.dispatch import Dispatcher
from shared.errors import BackendFailed, Conflict, DependencyUnavailable, InsufficientCredits, RateLimited
from shared.limits import Grant, Limit
from shared.quota import Quota, Quotas
from shared.settings import Settings
from shared.submission import Idempotency, tokens_most
from shared.wire import Task, TokenHold
from tests.unit.submissions import make_submission
from tests.unit.test_dispatch import MODEL, Rig, last

LIMITS = (Limit("key_a", 60, 1000, 4), Limit("acct_a", 0, 0, 8))
QUOTAS = Quotas(Quota(60, 59, 1000), Quota(1000, 900, 6000))
ONCE = Idempotency("order 7", b"h" * 32)
RUN = PastRun(
    request_id="chatcmpl-first",
    account_id="acct_a",
    key_id="key_a",
    model=MODEL.id,
    reserved_ms=1_700_000_000_000,
    deadline_ms=9_999_999_999_999,
    body_hash=b"h" * 32,
    closed=False,
)


class FakeLimiter:
    """Grants, or refuses by what it is told; remembers all."""

    def __init__(self) -> None:
        self.refusal: RateLimited | None = None
        self.asked: list[tuple[str, Sequence[Limit], int]] = []
        self.released: list[str] = []
        self.given_back: list[tuple[TokenHold, int]] = []

    async def acquire(self, request_id: str, limits: Sequence[Limit], *, tokens: int = 0) -> Grant:
        self.asked.append((request_id, limits, tokens))
        if self.refusal is not None:
            raise self.refusal
        return Grant(QUOTAS, TokenHold(tokens, (("key_a", 1000, 7),)) if tokens else None)

    def release(self, request_id: str, limits: Sequence[Limit]) -> None:
        self.released.append(request_id)

    def give_back(self, hold: TokenHold, used: int) -> None:
        self.given_back.append((hold, used))


class FakePastRuns:
    """Finds what it is told, one after the other."""

    def __init__(self) -> None:
        self.runs: list[PastRun | None] = []

    async def find(self, submission: object) -> PastRun | None:
        return self.runs.pop(0)


class LimitedRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.limiter, self.past_runs = FakeLimiter(), FakePastRuns()
        parts: dict[str, Any] = {
            "admission": self.admission,
            "queue": self.queue,
            "reader": self.reader,
            "limiter": self.limiter,
            "past_runs": self.past_runs,
            "node_id": "node_a",
        }
        self.dispatcher = Dispatcher(Settings(), clock=self.dispatcher._clock, **parts)

    def refuse(self, *verdicts: str) -> None:
        """Let the ledger decide so, then reserve."""
        rows, reserve = list(verdicts), self.admission.reserve

        async def decide(row: Any) -> ReserveVerdict:
            return ReserveVerdict(cast(Any, rows.pop(0))) if rows else await reserve(row)

        self.admission.reserve = decide  # type: ignore[method-assign]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> LimitedRig:
    monkeypatch.setattr("shared.dispatch.CANCEL_RETRY_SECONDS", 0.01)
    return LimitedRig()


async def test_a_request_without_limits_asks_nobody(rig: LimitedRig) -> None:
    answer = await rig.submit()
    answer.close()

    assert rig.limiter.asked == [] and rig.limiter.released == []
    assert answer.quotas is None


async def test_an_admitted_request_carries_its_tokens_to_settlement_and_tells_what_is_left(rig: LimitedRig) -> None:
    answer = await rig.submit(limits=LIMITS)
    rig.reader.subscription.gives = [last("completed")]
    await answer.next(1)
    answer.close()

    ((request_id, limits, tokens),) = rig.limiter.asked
    assert (request_id, limits) == (answer.request_id, LIMITS)
    assert tokens > 4
    assert answer.job.token_hold == TokenHold(tokens, (("key_a", 1000, 7),))
    assert answer.quotas == QUOTAS
    assert rig.limiter.released == [answer.request_id]
    assert rig.limiter.given_back == []


async def test_a_request_that_is_not_reserved_gives_slots_and_tokens_back(rig: LimitedRig) -> None:
    rig.refuse("insufficient")

    with pytest.raises(InsufficientCredits) as caught:
        await rig.submit(limits=LIMITS)

    assert len(rig.limiter.released) == 1
    assert [used for _, used in rig.limiter.given_back] == [0]
    assert caught.value.quotas == QUOTAS


async def test_a_request_that_may_be_queued_gives_tokens_back_only_if_its_release_closed_it(rig: LimitedRig) -> None:
    rig.queue.enqueue_error = DependencyUnavailable("away")
    then = []
    rig.admission.release = lambda *_, **given: then.append(given["then"])  # type: ignore[method-assign]

    with pytest.raises(DependencyUnavailable):
        await rig.submit(limits=LIMITS)
    assert len(rig.limiter.released) == 1 and rig.limiter.given_back == []
    then[0]()

    assert [used for _, used in rig.limiter.given_back] == [0]


async def test_a_refused_request_reserves_nothing(rig: LimitedRig) -> None:
    rig.limiter.refusal = RateLimited("Rate limit reached.")
    rig.refuse("invalid")

    with pytest.raises(RateLimited):
        await rig.submit(limits=LIMITS)

    assert rig.limiter.released == [] and rig.dispatcher.live == 0


async def test_a_repeated_request_reads_the_first_run_and_takes_neither_tokens_nor_a_slot(rig: LimitedRig) -> None:
    rig.past_runs.runs = [RUN]

    answer = await rig.submit(limits=LIMITS, idempotency=ONCE)
    rig.reader.subscription.gives = [last("completed")]
    await answer.next(1)
    answer.close()

    assert (answer.request_id, answer.created) == (RUN.request_id, 1_700_000_000)
    assert rig.limiter.asked == [(RUN.request_id, [Limit("key_a", 60)], 0)]
    assert rig.limiter.released == [] and rig.limiter.given_back == []
    assert rig.admission.witnesses[0].ended == "finished"


async def test_who_loses_the_race_for_a_key_reads_the_winner_and_keeps_nothing(rig: LimitedRig) -> None:
    rig.past_runs.runs = [None, RUN]
    rig.refuse("duplicate")

    answer = await rig.submit(limits=LIMITS, idempotency=ONCE)

    assert answer.request_id == RUN.request_id
    assert len(rig.limiter.released) == len(rig.limiter.given_back) == 1


async def test_a_race_that_is_lost_again_and_again_ends(rig: LimitedRig) -> None:
    rig.past_runs.runs = [None] * 3
    rig.refuse(*["duplicate"] * 3)

    with pytest.raises(Conflict) as caught:
        await rig.submit(limits=LIMITS, idempotency=ONCE)

    assert caught.value.code == "idempotency_in_progress"


async def test_two_readers_of_one_run_count_as_two(rig: LimitedRig) -> None:
    rig.past_runs.runs = [RUN, RUN]
    answers = [await rig.submit(limits=LIMITS, idempotency=ONCE) for _ in range(2)]

    answers[0].close()

    assert rig.dispatcher.live == 1


async def test_a_run_that_its_client_left_is_followed_to_its_end(rig: LimitedRig) -> None:
    rig.past_runs.runs = [None]
    answer = await rig.submit(limits=LIMITS, idempotency=ONCE)
    assert answer.job.resumable
    ended = asyncio.Event()

    async def next_chunks(*_: object) -> Any:
        await ended.wait()
        return [last("completed")]

    rig.reader.subscription.next = next_chunks  # type: ignore[method-assign]
    answer.close()
    await asyncio.sleep(0)
    assert rig.queue.cancelled == [] and rig.limiter.released == []
    assert rig.dispatcher.live_keys() == {"key_a"}
    assert rig.admission.witnesses[0].ended == "lost"

    ended.set()
    async with asyncio.timeout(5):
        while not rig.limiter.released:
            await asyncio.sleep(0)

    assert rig.dispatcher.live_keys() == set()
    assert rig.reader.subscription.closed


async def test_a_followed_run_that_is_lost_frees_its_slot(rig: LimitedRig) -> None:
    rig.past_runs.runs = [None]
    answer = await rig.submit(limits=LIMITS, idempotency=ONCE)
    rig.reader.subscription.gives = BackendFailed("lost", code="worker_lost")

    answer.close()
    async with asyncio.timeout(5):
        while not rig.limiter.released:
            await asyncio.sleep(0)

    assert rig.reader.subscription.closed


async def test_revoking_a_key_cancels_the_runs_that_go_on_without_a_client(rig: LimitedRig) -> None:
    rig.past_runs.runs = [None]
    answer = await rig.submit(limits=LIMITS, idempotency=ONCE)
    rig.reader.subscription.next = lambda *_: asyncio.Event().wait()  # type: ignore[assignment, method-assign]
    answer.close()

    rig.dispatcher.cancel_keys(["key_a"])
    async with asyncio.timeout(5):
        while not rig.queue.cancelled:
            await asyncio.sleep(0.005)
    await rig.dispatcher.close()

    assert rig.queue.cancelled == [(answer.request_id, "key_revoked")]


async def test_who_reads_the_run_of_another_key_is_cut_when_its_own_key_is_revoked(rig: LimitedRig) -> None:
    rig.past_runs.runs = [msgspec.structs.replace(RUN, key_id="key_of_the_run")]
    failed = []
    rig.reader.subscription.fail = lambda *given: failed.append(given[1])  # type: ignore[attr-defined]
    await rig.submit(idempotency=ONCE)

    rig.dispatcher.cancel_keys(["key_of_the_run"])
    assert failed == []
    rig.dispatcher.cancel_keys(["key_a"])
    await rig.dispatcher.close()

    assert failed == ["key_revoked"]
    assert rig.queue.cancelled == []


async def test_all_choices_and_prompts_count_and_none_more_than_its_context(rig: LimitedRig) -> None:
    one = make_submission(limits=LIMITS, max_tokens=10, choices=1)
    three = make_submission(limits=LIMITS, max_tokens=10, choices=3)
    most = make_submission(limits=LIMITS, max_tokens=4000, choices=2, content="x" * 100_000)
    vectors = make_submission(limits=LIMITS, max_tokens=None, task=Task("embedding", ((1, 2, 3), (4, 5))))

    assert tokens_most(three) - tokens_most(one) == 20
    assert tokens_most(most) == 2 * MODEL.context
    assert tokens_most(vectors) < 20
    assert tokens_most(make_submission(limits=(Limit("key_a", 60),))) == 0
