"""What a client is told of its limits: the headers' names and OpenAI's form of durations."""

import pytest

from api.errors import http_error
from api.rate_limits import duration, quota_headers
from shared.errors import RateLimited
from shared.quota import Quota, Quotas


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (20, "20ms"),
        (999, "999ms"),
        (1000, "1s"),
        (8640, "8.64s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (90_500, "1m30.5s"),
        (360_000, "6m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


def test_only_limits_that_exist_are_told() -> None:
    assert quota_headers(Quotas(requests=Quota(60, 59, 1000))) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
    assert set(quota_headers(Quotas(tokens=Quota(60, 59, 1000)))) == {
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    }


def test_a_refusal_by_a_limit_says_when_to_come_again_and_what_is_left() -> None:
    refusal = RateLimited("Rate limit reached.", retry_after_seconds=42)
    refusal.quotas = Quotas(requests=Quota(60, 0, 42_000))

    answer = http_error(refusal)

    assert answer.status == 429
    assert answer.headers["retry-after"] == "42"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in answer.headers


def test_a_refusal_that_no_retry_can_mend_says_so() -> None:
    answer = http_error(RateLimited("This request alone asks for too much.", retryable=False))

    assert answer.status == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
