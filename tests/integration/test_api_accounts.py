"""Keys, credits and usage over HTTP, on a real node, Postgres and Valkey."""

import asyncio
from typing import Any

import pytest

from shared import keys, secrets
from shared.connections import Database, Redis
from shared.database import accounts, api_keys
from tests.integration.account_product import Product


async def test_credits_are_decimal_strings(product: Product) -> None:
    _, headers = await product.customer("12.345678901")

    response = await product.client.get("/credits", headers=headers)

    assert response.status_code == 200
    assert response.json() == {
        "object": "credit_balance",
        "currency": "USD",
        "balance": "12.345678901",
        "held": "0.000000000",
        "available": "12.345678901",
        "lifetime": {"deposited": "12.345678901", "charged": "0.000000000"},
    }


async def test_a_deposit_is_a_transaction(product: Product) -> None:
    _, headers = await product.customer("5")

    listed = (await product.client.get("/credits/transactions", headers=headers)).json()

    (row,) = listed["data"]
    assert row.pop("id") == listed["first_id"] == listed["last_id"]
    assert isinstance(row.pop("created_at"), int)
    assert row == {
        "object": "credit_transaction",
        "type": "deposit",
        "amount": "5.000000000",
        "balance_after": "5.000000000",
        "request_id": None,
        "description": "first",
    }
    assert (listed["object"], listed["has_more"]) == ("list", False)


async def test_a_list_is_read_page_by_page_newest_first(product: Product) -> None:
    _, headers = await product.customer()
    made = [(await product.client.post("/keys", json={"name": str(n)}, headers=headers)).json()["id"] for n in range(4)]

    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await product.client.get("/keys", params=query, headers=headers)).json()
        seen += [row["id"] for row in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]

    assert seen[:4] == made[::-1]
    assert len(seen) == len(set(seen)) == 5


async def test_an_empty_list_has_no_ends(product: Product) -> None:
    _, headers = await product.customer()

    response = await product.client.get("/usage", headers=headers)

    assert response.json() == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


BAD_PAGES = ["limit=0", "limit=101", "limit=x", "limit=-1", "limit=1.0", "limit=", "after=", "after=a%00b", "foo=1"]


async def test_a_bad_page_is_400(product: Product) -> None:
    _, headers = await product.customer()

    for query in (*BAD_PAGES, "limit=99999999999999999999", "account_id=acct_1", "after=" + "x" * 65):
        for path in ("/usage", "/keys", "/credits/transactions"):
            response = await product.client.get(f"{path}?{query}", headers=headers)
            assert response.status_code == 400, (path, query)
            assert response.json()["error"]["code"] in ("invalid_value", "unsupported_parameter")


async def test_a_page_behind_an_id_of_nobody_or_of_others_is_404(product: Product) -> None:
    _, headers = await product.customer()
    _, others = await product.customer()
    other = (await product.client.get("/credits/transactions", headers=others)).json()["first_id"]

    for path in ("/usage", "/keys", "/credits/transactions"):
        for after in ("nobody", other):
            answer = await product.client.get(path, params={"after": after}, headers=headers)
            assert answer.status_code == 404, (path, after)


async def test_a_key_is_shown_once_and_works(product: Product) -> None:
    _, headers = await product.customer()

    made = await product.client.post("/keys", json={"name": "laptop"}, headers=headers)

    body = made.json()
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    assert " ".join(body) == (
        "id object name prefix created_at expires_at last_used_at status scopes allowed_models limits budget spent "
        "remaining key"
    )
    assert (body["object"], body["name"], body["status"]) == ("api_key", "laptop", "active")
    assert secrets.checksum_ok(body["key"]) and body["key"].startswith(body["prefix"])
    listed = await product.client.get("/keys", headers={"authorization": f"Bearer {body['key']}"})
    assert listed.json()["first_id"] == body["id"]
    assert "key" not in listed.json()["data"][0]
    assert body["key"] not in listed.text


async def test_a_key_needs_no_name(product: Product) -> None:
    _, headers = await product.customer()

    for content in (b"", b"{}", b'{"name":null}'):
        as_json = {**headers, "content-type": "application/json"}
        made = await product.client.post("/keys", content=content, headers=as_json)
        assert (made.status_code, made.json()["name"]) == (201, "API key")


BAD_KEYS = [
    (b'{"name":1}', 400),
    (b'{"name":""}', 400),
    (b'{"name":"a\\nb"}', 400),
    (b'{"name":"' + b"x" * 101 + b'"}', 400),
    (b'{"name":"a","account_id":"acct_1"}', 400),
    (b'{"role":"admin"}', 400),
    (b'{"balance":1}', 400),
    (b"[]", 400),
    (b"{", 400),
    (b'{"name":"' + b"x" * 20_000 + b'"}', 413),
]


async def test_a_bad_key_body_makes_nothing(product: Product) -> None:
    _, headers = await product.customer()

    for content, status in BAD_KEYS:
        as_json = {**headers, "content-type": "application/json"}
        made = await product.client.post("/keys", content=content, headers=as_json)
        assert made.status_code == status, content[:40]
        assert set(made.json()["error"]) == {"message", "type", "param", "code"}
    assert len((await product.client.get("/keys", headers=headers)).json()["data"]) == 1


async def test_a_key_body_must_be_declared_as_json(product: Product) -> None:
    _, headers = await product.customer()

    made = await product.client.post("/keys", content=b"name=x", headers={**headers, "content-type": "text/plain"})

    assert (made.status_code, made.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_key_makes_no_key_with_more_room_than_itself(product: Product, database: Database) -> None:
    account_id, headers = await product.customer(concurrency=2, rpm=5, tpm=100)

    made = (await product.client.post("/keys", headers=headers)).json()

    async with database.acquire() as connection:
        key = await api_keys.get_key(connection, account_id, made["id"])
    assert key is not None
    assert (key.concurrency, key.rpm, key.tpm) == (2, 5, 100)


async def test_a_revoked_key_is_403_at_once_and_stays_listed(product: Product, redis: Redis) -> None:
    _, headers = await product.customer()
    made = (await product.client.post("/keys", headers=headers)).json()
    mine = {"authorization": f"Bearer {made['key']}"}
    assert (await product.client.get("/credits", headers=mine)).status_code == 200

    for _ in range(2):
        deleted = await product.client.delete(f"/keys/{made['id']}", headers=headers)
        assert deleted.status_code == 200
        assert deleted.json() == {"id": made["id"], "object": "api_key.deleted", "deleted": True}

    refused = await product.client.get("/credits", headers=mine)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_revoked")
    listed = (await product.client.get("/keys", headers=headers)).json()["data"]
    assert {row["id"]: row["status"] for row in listed}[made["id"]] == "revoked"
    assert await redis.exists(keys.revoked("Org/m", made["id"]))


async def test_a_key_of_nobody_is_404(product: Product) -> None:
    _, headers = await product.customer()

    for key_id in ("key_nobody", "a%00b", "%ff"):
        assert (await product.client.delete(f"/keys/{key_id}", headers=headers)).status_code == 404


async def test_a_key_of_others_is_404_and_stays(product: Product) -> None:
    _, headers = await product.customer()
    _, others = await product.customer()
    other = (await product.client.get("/keys", headers=others)).json()["first_id"]

    assert (await product.client.delete(f"/keys/{other}", headers=headers)).status_code == 404
    assert (await product.client.get("/credits", headers=others)).status_code == 200


async def test_a_deactivated_account_is_403(product: Product, database: Database) -> None:
    account_id, headers = await product.customer()
    async with database.acquire() as connection:
        await accounts.set_active(connection, account_id, active=False)

    refused = await product.client.get("/credits", headers=headers)

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "account_deactivated")


STOPS = {
    "revoked": "UPDATE api_keys SET revoked_at = now() WHERE account_id = $1",
    "expired": "UPDATE api_keys SET expires_at = now() WHERE account_id = $1",
    "deactivated": "UPDATE accounts SET active = FALSE WHERE id = $1",
}


@pytest.mark.parametrize("stop", STOPS)
async def test_a_key_that_dies_elsewhere_ends_its_queued_answer(
    product: Product, database: Database, stop: str
) -> None:
    account_id, headers = await product.customer()
    (node,) = product.nodes
    waiting = asyncio.create_task(
        product.client.post(
            "/chat/completions",
            json={"model": "Org/m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
            headers=headers,
        )
    )
    async with asyncio.timeout(5):
        while not node.dispatcher.live_keys():
            await asyncio.sleep(0.005)
    await database.execute(STOPS[stop], account_id)

    response = await asyncio.wait_for(waiting, node.settings.api.key_check_seconds + 2)

    assert (response.status_code, response.json()["error"]["code"]) == (403, "key_revoked")
    assert response.headers["x-request-id"].startswith("chatcmpl-")
    async with asyncio.timeout(node.settings.api.auth_cache_seconds + 1):
        while (await product.client.get("/credits", headers=headers)).status_code == 200:
            await asyncio.sleep(0.02)


async def test_without_credit_there_is_402_and_no_work(product: Product) -> None:
    _, headers = await product.customer("0.000000001")

    response = await product.client.post(
        "/chat/completions",
        json={"model": "Org/m", "messages": [{"role": "user", "content": "Hi"}], "stream": True},
        headers=headers,
    )

    assert response.status_code == 402
    assert response.json()["error"]["code"] == "insufficient_credits"
    assert "Insufficient credits" in response.json()["error"]["message"]


async def test_a_cold_model_is_unavailable_to_health_and_not_unknown(product: Product) -> None:
    response = await product.client.get("/models/Org%2Fm/health")

    assert response.status_code == 200
    assert response.json() == {
        "model": "Org/m",
        "status": "unavailable",
        "eta_seconds": None,
        "queue_depth": 0,
        "workers": 0,
    }


async def test_a_node_notes_which_keys_are_used(product: Product, database: Database) -> None:
    account_id, headers = await product.customer()
    (node,) = product.nodes
    await product.client.get("/credits", headers=headers)

    await node.ledger.touch_keys(node.authenticator.take_used())

    async with database.acquire() as connection:
        (key,), _ = await api_keys.list_keys(connection, account_id)
    assert key.last_used_at is not None
