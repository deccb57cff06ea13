"""The official SDKs raise their matching class for each refusal, and repeat only what can succeed, when they were told.

A real server with the real edge; behind it a dispatcher that refuses as the question says. What the whole product does
refuse is in `test_sdk_refusals.py`.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Never

import openai
import pytest

from shared.errors import Refusal
from shared.submission import Submission
from tests.integration.api_edge import MODEL, Edge, open_edge
from tests.journeys.local_product import ROOT, quiet_environment
from tests.node import command as node_command

RETRY_AFTER_SECONDS = 1
# code -> status, the class of both SDKs, how many requests one retry makes of it
CODES: dict[str, tuple[int, str, int]] = {
    "invalid_value": (400, "BadRequestError", 1),
    "context_length_exceeded": (400, "BadRequestError", 1),
    "invalid_api_key": (401, "AuthenticationError", 1),
    "insufficient_credits": (402, "", 1),  # neither SDK has a class of its own
    "key_revoked": (403, "PermissionDeniedError", 1),
    "model_not_found": (404, "NotFoundError", 1),
    "request_too_large": (413, "", 1),
    "idempotency_key_reused": (409, "ConflictError", 1),
    "rate_limit_exceeded": (429, "RateLimitError", 2),
    "hopeless": (429, "RateLimitError", 1),
    "internal_error": (500, "InternalServerError", 2),
    "model_loading": (502, "InternalServerError", 2),
    "worker_lost": (502, "InternalServerError", 2),
    "request_quarantined": (502, "InternalServerError", 1),  # it kills workers: once is enough
    "dependency_unavailable": (503, "InternalServerError", 2),
}


class Refuser:
    """Refuses each submission as its content says, and keeps when it came."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = defaultdict(list)

    async def submit(self, submission: Submission) -> Never:
        content = submission.messages[0].content
        self.seen[content].append(time.monotonic())
        code = content.partition(":")[2]
        if code == "hopeless":
            raise Refusal("This request alone is over the rate limit.", code="rate_limit_exceeded", retryable=False)
        raise Refusal("No.", code=code, retry_after_seconds=RETRY_AFTER_SECONDS)

    def live_keys(self) -> set[str]:
        return set()


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge() as edge:
        yield edge


@pytest.fixture
def refuser(edge: Edge) -> Refuser:
    refuser = Refuser()
    edge.dispatcher.submit = refuser.submit  # type: ignore[method-assign, assignment]
    return refuser


def check(told: dict[str, dict[str, Any]], refuser: Refuser, client: str, base: str) -> None:
    for code, (status, kind, requests) in CODES.items():
        known = "rate_limit_exceeded" if code == "hopeless" else code
        assert {name: told[code][name] for name in ("kind", "status", "code")} == {
            "kind": kind or base,
            "status": status,
            "code": known,
        }
        assert told[code]["type"]
        assert told[code]["id"]
        came = refuser.seen[f"{client}:{code}"]
        assert (code, len(came)) == (code, requests)
        if requests == 2 and status in (429, 502, 503):
            assert came[1] - came[0] >= RETRY_AFTER_SECONDS, f"{code} was repeated before Retry-After"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_asynchronous_python_sdk_raises_and_retries(edge: Edge, refuser: Refuser, stream: bool) -> None:
    async with openai.AsyncOpenAI(api_key=edge.key, base_url=edge.base_url, max_retries=1) as client:

        async def refused(code: str) -> dict[str, Any]:
            with pytest.raises(openai.APIStatusError) as raised:
                await client.chat.completions.create(
                    model=MODEL.id, messages=[{"role": "user", "content": f"async:{code}"}], stream=stream
                )
            return _told(raised.value)

        told = dict(zip(CODES, await asyncio.gather(*map(refused, CODES)), strict=True))

    check(told, refuser, "async", "APIStatusError")


async def test_the_synchronous_python_sdk_raises_and_retries(edge: Edge, refuser: Refuser) -> None:
    with openai.OpenAI(api_key=edge.key, base_url=edge.base_url, max_retries=1) as client:

        def refused(code: str) -> dict[str, Any]:
            with pytest.raises(openai.APIStatusError) as raised:
                client.chat.completions.create(model=MODEL.id, messages=[{"role": "user", "content": f"sync:{code}"}])
            return _told(raised.value)

        told = await asyncio.gather(*(asyncio.to_thread(refused, code) for code in CODES))

    check(dict(zip(CODES, told, strict=True)), refuser, "sync", "APIStatusError")


async def test_the_node_sdk_raises_and_retries(edge: Edge, refuser: Refuser) -> None:
    script = str(ROOT / "tests" / "journeys" / "sdk_errors.mjs")
    process = await asyncio.create_subprocess_exec(
        *node_command("node"),
        *(script, edge.base_url, edge.key, MODEL.id, json.dumps(list(CODES))),
        env=quiet_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    told = json.loads(said)

    for way in ("whole", "stream"):
        check({code: told[f"{way}:{code}"] for code in CODES}, refuser, f"node-{way}", "APIError")


async def test_a_bad_key_is_never_repeated(edge: Edge, refuser: Refuser) -> None:
    async with openai.AsyncOpenAI(api_key="inf_wrong", base_url=edge.base_url, max_retries=3) as client:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
            await client.chat.completions.create(model=MODEL.id, messages=[{"role": "user", "content": "x"}])

    assert refuser.seen == {}


def _told(error: openai.APIStatusError) -> dict[str, Any]:
    kind = type(error).__name__
    return {
        "kind": kind,
        "status": error.status_code,
        "code": error.code,
        "type": error.type,
        "id": error.request_id,
    }
