"""One completion, end to end, on real parts: what a person with an OpenAI SDK sees, and what the ledger shows."""

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError, NotFoundError, OpenAI

from shared import pricing
from tests.cluster import PRICES, Cluster
from tests.ledger import assert_clean, settled_usage


def _client(cluster: Cluster, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(api_key=key, base_url=cluster.base_url(), max_retries=0)


async def test_a_stream_is_answered_and_charged_exactly_what_its_usage_says(product: Cluster) -> None:
    account_id, key = await product.add_account("1")

    async with _client(product, key) as client:
        stream = await client.chat.completions.create(
            model="sim/plain",
            messages=[{"role": "user", "content": "Say exactly: one small step"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        events = [event async for event in stream]

    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    usage = events[-1].usage
    assert text == "one small step"
    assert usage is not None
    assert events[-2].choices[0].finish_reason == "stop"
    row = await settled_usage(product.database, events[0].id)
    assert (row.prompt_tokens, row.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    expected = usage.prompt_tokens * PRICES.prompt + usage.completion_tokens * PRICES.completion
    assert row.cost == expected
    await assert_clean(product.database, product.redis)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        credits = (await http.get(product.base_url() + "/credits")).json()
        transactions = (await http.get(product.base_url() + "/credits/transactions")).json()["data"]
    assert credits["balance"] == pricing.format_credits(10**9 - expected)
    assert credits["held"] == "0.000000000"
    assert transactions[0]["amount"] == "-" + pricing.format_credits(expected)
    assert transactions[0]["request_id"] == events[0].id
    assert account_id


async def test_a_fold_is_the_stream_in_one_piece(product: Cluster) -> None:
    _, key = await product.add_account()

    async with _client(product, key) as client:
        folded = await client.chat.completions.create(
            model="sim/plain", messages=[{"role": "user", "content": "tell me"}], max_tokens=9
        )
        stream = await client.chat.completions.create(
            model="sim/plain", messages=[{"role": "user", "content": "tell me"}], max_tokens=9, stream=True
        )
        text = "".join([event.choices[0].delta.content or "" async for event in stream])

    assert folded.choices[0].message.content == text
    assert folded.choices[0].finish_reason == "length"
    assert folded.usage is not None
    assert folded.usage.completion_tokens == 9


async def test_the_synchronous_sdk_works_unmodified(product: Cluster) -> None:
    _, key = await product.add_account()

    import asyncio

    def ask() -> str:
        with OpenAI(api_key=key, base_url=product.base_url()) as client:
            answer = client.chat.completions.create(
                model="sim/plain", messages=[{"role": "user", "content": "Say exactly: grüße 👋"}]
            )
            return answer.choices[0].message.content or ""

    assert await asyncio.to_thread(ask) == "grüße 👋"


async def test_wrong_key_and_unknown_model_raise_the_sdk_classes(product: Cluster) -> None:
    _, key = await product.add_account()
    messages = [{"role": "user", "content": "hi"}]

    async with _client(product, "inf_wrong") as client:
        with pytest.raises(AuthenticationError, match="Incorrect API key provided"):
            await client.chat.completions.create(model="sim/plain", messages=messages)
    async with _client(product, key) as client:
        with pytest.raises(NotFoundError, match="sim/plain"):
            await client.chat.completions.create(model="nobody/knows", messages=messages)
    await assert_clean(product.database, product.redis)


async def test_an_account_without_credit_is_refused_and_nothing_is_held(product: Cluster) -> None:
    _, key = await product.add_account("0")

    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        answer = await http.post(
            product.base_url() + "/chat/completions",
            json={"model": "sim/plain", "messages": [{"role": "user", "content": "hi"}]},
        )

    assert answer.status_code == 402
    assert answer.json()["error"]["code"] == "insufficient_credits"
    await assert_clean(product.database, product.redis)
