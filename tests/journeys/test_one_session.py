"""A person's way through the whole product: register, be given credits, ask, see what it cost, leave."""

import pytest

from shared.pricing import format_credits
from tests.cluster import PRICES, Cluster
from tests.integration.session_rig import ADMIN, AUTH, JWT_KEY, Browser, new_email
from tests.ledger import assert_clean, settled_usage


@pytest.fixture
async def product(cluster: Cluster) -> Cluster:
    """One of each process; the API node has sessions."""
    await cluster.add_model("sim/plain")
    cluster.start("api0", "api", jwt_key=JWT_KEY)
    cluster.start("worker0", "worker", engine="simulator")
    cluster.start("settlement0", "settlement")
    cluster.start("janitor0", "janitor")
    await cluster.wait_ready()
    return cluster


async def test_a_person_asks_and_pays_with_a_cookie_alone(product: Cluster) -> None:
    person, admin = (Browser(int(product.base_url().split(":")[2].split("/")[0])) for _ in range(2))
    account_id = (await person.register()).json()["account_id"]
    operator = new_email()
    await admin.register(operator)
    await product.database.execute("UPDATE users SET admin = TRUE WHERE email = $1", operator)
    paid = await admin.post(
        f"{ADMIN}/accounts/{account_id}/deposits", json={"amount": "1"}, headers={"idempotency-key": "welcome"}
    )
    assert paid.status_code == 201, paid.text

    answer = await person.post(
        "/v1/chat/completions",
        json={"model": "sim/plain", "messages": [{"role": "user", "content": "Say exactly: one small step"}]},
    )

    assert answer.json()["choices"][0]["message"]["content"] == "one small step"
    row = await settled_usage(product.database, answer.json()["id"])
    cost = row.prompt_tokens * PRICES.prompt + row.completion_tokens * PRICES.completion
    assert (row.account_id, row.cost) == (account_id, cost)
    (used,) = (await person.get("/v1/usage")).json()["data"]
    assert (used["api_key_id"], used["cost"]) == (None, format_credits(cost))
    assert (await person.get("/v1/credits")).json()["balance"] == format_credits(10**9 - cost)
    await assert_clean(product.database, product.redis)
    assert (await person.post(f"{AUTH}/logout")).status_code == 204
    assert (await person.get("/v1/usage")).status_code == 401
    for browser in (person, admin):
        await browser.client.aclose()
