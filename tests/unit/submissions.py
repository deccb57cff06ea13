"""Submissions with keyword overrides, for tests of what is computed from them."""

from typing import Any

from shared.submission import Submission
from shared.wire import Message, Sampling
from tests.unit.test_dispatch import MODEL


def make_submission(*, content: str = "hi", max_tokens: int | None = 4, choices: int = 1, **changes: Any) -> Submission:
    values: dict[str, Any] = {
        "account_id": "acct_a",
        "key_id": "key_a",
        "model": MODEL,
        "messages": (Message("user", content),),
        "sampling": Sampling(max_tokens=max_tokens, choices=choices),
        "stream": True,
        "patience_seconds": 60,
    }
    return Submission(**(values | changes))
