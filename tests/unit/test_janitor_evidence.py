"""What the janitor believes of a request that nobody closed."""

from typing import Any

from shared.database.requests import OpenRequest
from shared.wire import VERSION, Chunk, End, Usage
from workers.janitor.evidence import count, judge, make_finish


def make_request(**changes: Any) -> OpenRequest:
    values: dict[str, Any] = {
        "request_id": "chatcmpl-1",
        "account_id": "acct_1",
        "key_id": "key_1",
        "model": "org/model",
        "reserved_ms": 1_000,
        "deadline_ms": 9_000,
        "delivered_tokens": 0,
        "prompt_tokens": None,
        "ended": None,
    }
    return OpenRequest(**(values | changes))


def make_log(*, end: End | None = None) -> list[Chunk]:
    first = Chunk(VERSION, "chatcmpl-1", 1, 1, 0, "a", (5, 6), prompt_tokens=7, cached_tokens=2)
    last = Chunk(VERSION, "chatcmpl-1", 1, 2, 0, "b", (9,), "stop" if end else None, end=end)
    return [first, last]


def test_an_end_in_the_log_decides_whatever_was_witnessed() -> None:
    end = End("completed", Usage(7, 2, 3))

    judgement = judge(make_request(ended="client_left", delivered_tokens=1), make_log(end=end))

    assert (judgement.evidence, judgement.status, judgement.usage) == ("log", "completed", Usage(7, 2, 3))
    assert judgement.finish_reason == "stop"


def test_a_failure_in_the_log_stays_one() -> None:
    end = End("failed", Usage(7, 0, 3), "engine_error")

    judgement = judge(make_request(ended="finished"), make_log(end=end))

    assert (judgement.status, judgement.code) == ("failed", "engine_error")


def test_a_node_that_saw_the_end_is_believed_where_the_log_lost_it() -> None:
    request = make_request(ended="finished", delivered_tokens=4, prompt_tokens=7)

    for chunks in (make_log(), []):
        judgement = judge(request, chunks)

        assert (judgement.evidence, judgement.status, judgement.usage) == ("witness", "completed", Usage(7, 0, 4))


def test_a_client_that_left_pays_for_what_is_in_the_log() -> None:
    judgement = judge(make_request(ended="client_left", delivered_tokens=1), make_log())

    assert (judgement.evidence, judgement.status, judgement.usage) == ("log", "cancelled", Usage(7, 2, 3))
    assert judgement.prefill_began


def test_a_client_that_left_pays_for_what_it_got_where_the_log_is_gone() -> None:
    judgement = judge(make_request(ended="client_left", delivered_tokens=2, prompt_tokens=7), [])

    assert (judgement.evidence, judgement.status, judgement.usage) == ("witness", "cancelled", Usage(7, 0, 2))
    assert judgement.prefill_began


def test_a_client_that_left_before_the_first_chunk_pays_nothing() -> None:
    assert not judge(make_request(ended="client_left"), []).prefill_began


def test_a_log_without_an_end_is_an_answer_that_we_broke() -> None:
    for ended in (None, "failed", "lost"):
        judgement = judge(make_request(ended=ended), make_log())

        assert (judgement.status, judgement.code) == ("failed", "worker_lost")


def test_a_request_without_any_trace_never_ran() -> None:
    judgement = judge(make_request(), [])

    assert (judgement.evidence, judgement.status, judgement.code) == ("nothing", "failed", "not_run")


def test_cached_tokens_never_exceed_the_prompt() -> None:
    chunk = Chunk(VERSION, "chatcmpl-1", 1, 1, 0, "", (1,), prompt_tokens=3, cached_tokens=8)

    assert count([chunk]) == Usage(3, 3, 1)


def test_the_record_carries_who_pays_and_how_long_it_took() -> None:
    request = make_request()

    finish = make_finish(request, judge(request, make_log()), attempts=2, now_ms=5_000)

    assert (finish.account_id, finish.key_id, finish.model) == ("acct_1", "key_1", "org/model")
    assert (finish.attempts, finish.latency_ms, finish.queue_ms) == (2, 4_000, 0)
