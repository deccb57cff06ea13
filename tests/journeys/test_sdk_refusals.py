"""What the whole product refuses, as an unmodified openai client sees it: the class, and no repetition in vain."""

import asyncio
import time
from typing import Any

import openai
import pytest

from tests.cluster import Cluster

MESSAGES: Any = [{"role": "user", "content": "Hello!"}]
RETRIES = 6  # would take 17 s
IN_VAIN_SECONDS_MOST = 5.0


async def refused(
    product: Cluster, key: str, *, retries: int = RETRIES, headers: dict[str, str] | None = None, **fields: Any
) -> openai.APIStatusError:
    """Ask with the SDK's own retries and return what it raises."""
    asked = {"model": "sim/plain", "messages": MESSAGES, "max_tokens": 4, **fields}
    async with openai.AsyncOpenAI(api_key=key, base_url=product.base_url(), max_retries=retries) as client:
        began = time.monotonic()
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(**asked, extra_headers=headers)
    assert time.monotonic() - began < IN_VAIN_SECONDS_MOST, "the SDK repeated what cannot succeed"
    return raised.value


def seen(error: openai.APIStatusError) -> tuple[str, int, str | None]:
    return type(error).__name__, error.status_code, error.code


async def test_what_cannot_succeed_is_refused_once(product: Cluster) -> None:
    _, key = await product.add_account()
    _, poor = await product.add_account("0")
    _, reader = await product.add_account(scopes=["credits"])
    _, bound = await product.add_account(allowed_models=["sim/other"])
    _, slow = await product.add_account(tpm=10)

    assert seen(await refused(product, key, temperature=3)) == ("BadRequestError", 400, "invalid_value")
    assert seen(await refused(product, "inf_nobody")) == ("AuthenticationError", 401, "invalid_api_key")
    assert seen(await refused(product, poor)) == ("APIStatusError", 402, "insufficient_credits")
    assert seen(await refused(product, reader)) == ("PermissionDeniedError", 403, "scope_missing")
    assert seen(await refused(product, bound)) == ("PermissionDeniedError", 403, "model_not_allowed")
    assert seen(await refused(product, key, model="no/such")) == ("NotFoundError", 404, "model_not_found")
    assert seen(await refused(product, slow, max_tokens=400)) == ("RateLimitError", 429, "rate_limit_exceeded")


async def test_an_idempotency_key_of_another_body_is_a_conflict_and_not_repeated(product: Cluster) -> None:
    _, key = await product.add_account()
    named = {"Idempotency-Key": "order-1"}
    async with openai.AsyncOpenAI(api_key=key, base_url=product.base_url(), max_retries=0) as client:
        ask = client.chat.completions.create
        first = await ask(model="sim/plain", messages=MESSAGES, max_tokens=4, extra_headers=named)
        again = await ask(model="sim/plain", messages=MESSAGES, max_tokens=4, extra_headers=named)

    assert first.id == again.id
    error = await refused(product, key, headers=named, max_tokens=5)
    assert seen(error) == ("ConflictError", 409, "idempotency_key_reused")


async def test_a_limit_says_when_to_come_again(product: Cluster) -> None:
    _, key = await product.add_account(rpm=1)
    async with openai.AsyncOpenAI(api_key=key, base_url=product.base_url(), max_retries=0) as client:
        await client.chat.completions.create(model="sim/plain", messages=MESSAGES, max_tokens=4)

    error = await refused(product, key, retries=0)

    assert seen(error) == ("RateLimitError", 429, "rate_limit_exceeded")
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_model_that_sleeps_is_502_and_says_how_long(product: Cluster) -> None:
    _, key = await product.add_account()
    await product.add_model("sim/slow", load_seconds=30)
    async with openai.AsyncOpenAI(api_key=key, base_url=product.base_url()) as client:
        while "sim/slow" not in [model.id async for model in client.models.list()]:  # a node reads them now and then
            await asyncio.sleep(0.02)

    error = await refused(product, key, retries=0, model="sim/slow", headers={"Inferbase-Wait": "0"})

    kind, status, code = seen(error)
    assert (kind, status) == ("InternalServerError", 502)
    assert code in ("model_loading", "model_unavailable")
    assert 1 <= int(error.response.headers["retry-after"]) <= 120
