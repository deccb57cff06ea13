"""What a key may do, over HTTP: options are shown, passed on no further than they go, and enforced."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from shared import secrets
from shared.connections import Database
from shared.database import accounts, api_keys
from tests.integration.account_product import Product

Headers = dict[str, str]


async def make(product: Product, headers: Headers, **options: Any) -> httpx.Response:
    return await product.client.post("/keys", json=options, headers=headers)


async def key_with(product: Product, headers: Headers, **options: Any) -> Headers:
    """Return the headers of a new key."""
    made = await make(product, headers, **options)
    assert made.status_code == 201, made.text
    return {"authorization": f"Bearer {made.json()['key']}"}


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


async def chat(product: Product, headers: Headers, **fields: Any) -> httpx.Response:
    body = {"model": "Org/m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, **fields}
    return await product.client.post("/chat/completions", json=body, headers=headers)


async def assert_runs(product: Product, headers: Headers, **fields: Any) -> None:
    """Assert that a completion is admitted; no worker answers it here."""
    (node,) = product.nodes
    running = asyncio.create_task(chat(product, headers, **fields))
    async with asyncio.timeout(5):
        while not node.dispatcher.live_keys():
            await asyncio.sleep(0.005)
            assert not running.done(), running.result().text
    running.cancel()
    async with asyncio.timeout(5):
        while node.dispatcher.live_keys():
            await asyncio.sleep(0.005)


async def test_all_options_of_a_key_are_shown(product: Product) -> None:
    _, headers = await product.customer()
    expires_at = int(time.time()) + 3600
    options = {
        "name": "ci",
        "expires_at": expires_at,
        "scopes": ["credits", "completions"],
        "allowed_models": ["Org/m"],
        "limits": {"requests_per_minute": 3, "tokens_per_minute": 400, "concurrency": 2},
        "budget": "1.5",
    }

    made = (await make(product, headers, **options)).json()
    shown = (await product.client.get(f"/keys/{made['id']}", headers=headers)).json()

    assert made.pop("key").startswith(made["prefix"])
    assert shown == made
    for field, value in options.items():
        assert field in ("scopes", "budget") or shown[field] == value
    assert shown["scopes"] == ["completions", "credits"]
    assert (shown["budget"], shown["spent"], shown["remaining"]) == ("1.500000000", "0.000000000", "1.500000000")


async def test_a_key_without_options_may_all_that_its_maker_may(product: Product) -> None:
    _, headers = await product.customer(rpm=7, tpm=0, concurrency=3)
    narrow = await key_with(
        product, headers, scopes=["keys"], allowed_models=["Org/m"], expires_at=int(time.time()) + 900, budget="2"
    )

    plain = (await make(product, headers)).json()
    child = (await make(product, narrow, budget="2", allowed_models=[])).json()

    assert plain["limits"] == {"requests_per_minute": 7, "tokens_per_minute": 0, "concurrency": 3}
    assert (plain["scopes"], plain["allowed_models"]) == (["completions", "keys", "credits"], [])
    assert (plain["expires_at"], plain["budget"], plain["spent"], plain["remaining"]) == (None, None, None, None)
    assert (child["scopes"], child["allowed_models"]) == (["keys"], ["Org/m"])
    assert time.time() < child["expires_at"] <= time.time() + 900


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"expires_in_days": 3}, "expires_in_days"),
    ({"rpm": 1}, "rpm"),
    ({"expires_at": 1}, "expires_at"),
    ({"expires_at": "2030-01-01"}, "expires_at"),
    ({"expires_at": 10**12}, "expires_at"),
    ({"expires_at": True}, "expires_at"),
    ({"scopes": []}, "scopes"),
    ({"scopes": "keys"}, "scopes"),
    ({"scopes": ["admin"]}, "scopes"),
    ({"scopes": ["keys", "keys"]}, "scopes"),
    ({"scopes": [1]}, "scopes"),
    ({"allowed_models": ["Org/none"]}, "allowed_models"),
    ({"allowed_models": "Org/m"}, "allowed_models"),
    ({"allowed_models": [None]}, "allowed_models"),
    ({"allowed_models": [f"Org/{n}" for n in range(101)]}, "allowed_models"),
    ({"limits": 5}, "limits"),
    ({"limits": {"rpm": 5}}, "limits.rpm"),
    ({"limits": {"concurrency": -1}}, "limits.concurrency"),
    ({"limits": {"concurrency": "5"}}, "limits.concurrency"),
    ({"limits": {"tokens_per_minute": 10**10}}, "limits.tokens_per_minute"),
    ({"budget": "0"}, "budget"),
    ({"budget": "-1"}, "budget"),
    ({"budget": 5}, "budget"),
    ({"budget": "1e3"}, "budget"),
    ({"budget": "0.0000000001"}, "budget"),
    ({"budget": "NaN"}, "budget"),
    ({"budget": "٣"}, "budget"),
]


async def test_a_bad_option_is_400_and_named(product: Product) -> None:
    _, headers = await product.customer()

    for options, param in BAD_OPTIONS:
        made = await make(product, headers, **options)
        assert made.status_code == 400, options
        assert made.json()["error"]["param"] == param, made.text
    assert len((await product.client.get("/keys", headers=headers)).json()["data"]) == 1


MORE_ROOM: list[tuple[dict[str, Any], tuple[int, str, str]]] = [
    ({"expires_at": int(time.time()) + 9_000}, (400, "invalid_value", "expires_at")),
    ({"scopes": ["keys", "credits"]}, (403, "scope_missing", "scopes")),
    ({"allowed_models": ["Org/other"]}, (403, "model_not_allowed", "allowed_models")),
    ({"limits": {"requests_per_minute": 6}}, (400, "invalid_value", "limits.requests_per_minute")),
    ({"limits": {"tokens_per_minute": 0}}, (400, "invalid_value", "limits.tokens_per_minute")),
    ({"limits": {"concurrency": 0}}, (400, "invalid_value", "limits.concurrency")),
    ({"budget": "2.1"}, (400, "invalid_value", "budget")),
    ({"budget": "1.6"}, (400, "invalid_value", "budget")),
    ({"budget": None}, (400, "invalid_value", "budget")),
]


async def test_no_option_gives_more_room_than_the_asking_key_has(product: Product) -> None:
    await product.add_model("Org/other")
    _, headers = await product.customer()
    narrow = await key_with(
        product,
        headers,
        expires_at=int(time.time()) + 3600,
        scopes=["keys", "completions"],
        allowed_models=["Org/m"],
        limits={"requests_per_minute": 5, "tokens_per_minute": 100, "concurrency": 2},
        budget="2",
    )
    await key_with(product, narrow, budget="0.5")

    for options, expected in MORE_ROOM:
        made = await make(product, narrow, **({"budget": "0.1"} | options))
        assert error_of(made) == expected, made.text


SCOPED = [
    ("GET", "/keys", "keys"),
    ("POST", "/keys", "keys"),
    ("GET", "/keys/key_x", "keys"),
    ("DELETE", "/keys/key_x", "keys"),
    ("GET", "/credits", "credits"),
    ("GET", "/credits/transactions", "credits"),
    ("GET", "/usage", "credits"),
    ("GET", "/usage/summary", "credits"),
    ("GET", "/usage/chatcmpl-x", "credits"),
]


async def test_a_route_beyond_the_scopes_of_a_key_is_403_and_names_the_scope(product: Product) -> None:
    _, headers = await product.customer()
    lacking = {
        "keys": await key_with(product, headers, scopes=["completions", "credits"]),
        "credits": await key_with(product, headers, scopes=["completions", "keys"]),
        "completions": await key_with(product, headers, scopes=["keys", "credits"]),
    }

    for method, path, scope in SCOPED:
        refused = await product.client.request(method, path, headers=lacking[scope])
        assert error_of(refused) == (403, "scope_missing", None), path
        assert f"'{scope}'" in refused.json()["error"]["message"]
        others = [key for name, key in lacking.items() if name != scope]
        for key in others:
            assert (await product.client.request(method, path, headers=key)).status_code in (200, 201, 400, 404)
    assert error_of(await chat(product, lacking["completions"])) == (403, "scope_missing", None)


async def test_a_key_runs_only_its_models(product: Product) -> None:
    await product.add_model("Org/other")
    _, headers = await product.customer()
    narrow = await key_with(product, headers, allowed_models=["Org/other"])

    refused = await chat(product, narrow)

    assert error_of(refused) == (403, "model_not_allowed", "model")
    await assert_runs(product, narrow, model="Org/other")
    assert (await chat(product, narrow, model="Org/none")).status_code == 404
    listed = await product.client.get("/models", headers=narrow)
    assert [row["id"] for row in listed.json()["data"]] == ["Org/m", "Org/other"]


async def test_a_used_up_budget_is_402_while_the_account_has_credits(product: Product) -> None:
    _, headers = await product.customer("10")
    poor = await key_with(product, headers, budget="0.000000001")

    refused = await chat(product, poor)

    assert error_of(refused) == (402, "insufficient_credits", None)
    assert "budget of this API key" in refused.json()["error"]["message"]
    assert "Insufficient credits" in refused.json()["error"]["message"]
    await assert_runs(product, headers)


async def test_an_expired_key_is_401_at_once_and_listed_so(product: Product) -> None:
    _, headers = await product.customer()
    made = (await make(product, headers, expires_at=int(time.time()) + 2)).json()
    mine = {"authorization": f"Bearer {made['key']}"}
    assert (await product.client.get("/credits", headers=mine)).status_code == 200
    product.clock_ahead(seconds=3)

    refused = await product.client.get("/credits", headers=mine)

    assert error_of(refused) == (401, "token_expired", None)


async def test_the_key_of_others_is_404_as_that_of_nobody(product: Product) -> None:
    _, headers = await product.customer()
    _, others = await product.customer()
    other = (await product.client.get("/keys", headers=others)).json()["first_id"]

    for key_id in (other, "key_nobody", "a%00b"):
        answer = await product.client.get(f"/keys/{key_id}", headers=headers)
        assert error_of(answer) == (404, "not_found", None)
        assert answer.json()["error"]["message"] == "There is no such API key."


async def test_keys_and_credits_take_no_unknown_parameter(product: Product) -> None:
    _, headers = await product.customer()
    key_id = (await product.client.get("/keys", headers=headers)).json()["first_id"]

    for method, path in (("GET", f"/keys/{key_id}"), ("DELETE", f"/keys/{key_id}"), ("GET", "/credits")):
        answer = await product.client.request(method, f"{path}?account_id=x", headers=headers)
        assert error_of(answer) == (400, "unsupported_parameter", "account_id")
    assert (await product.client.get("/credits", headers=headers)).status_code == 200


@pytest.mark.parametrize("limits", [{"rpm": 3, "tpm": 40, "concurrency": 5}, {}])
async def test_an_accounts_limits_reach_the_principal(database: Database, limits: dict[str, int]) -> None:
    account = await accounts.create_account(database, email="a@example.com", **limits)
    digest = secrets.digest(secrets.make_key(), "p" * 32)
    await api_keys.create_key(database, account_id=account.id, name="", digest=digest, prefix="inf_")

    found = await api_keys.find_key(database, digest)

    assert found is not None
    expected = tuple(limits.get(name, 0) for name in ("rpm", "tpm", "concurrency"))
    assert (found.account_rpm, found.account_tpm, found.account_concurrency) == expected
