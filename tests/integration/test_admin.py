"""The routes of operators, and payments: who may, and that nothing happens twice."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import stripe

from shared import secrets
from shared.connections import Database, Redis
from shared.database import api_keys
from shared.presence import read_catalogue
from shared.settings import Settings
from tests.integration.ledger_factories import assert_clean
from tests.integration.session_rig import ADMIN, MODEL_ID, STRIPE_SECRET, Browser, Site, open_site, with_sessions

MODEL = {"engine": "simulator", "context": 2048, "prompt_price": "0.1", "completion_price": "0.4"}


@pytest.fixture
async def site(settings: Settings, database: Database) -> AsyncIterator[Site]:
    async with open_site(with_sessions(settings), database) as site:
        yield site


async def operator(site: Site) -> Browser:
    browser, _ = await site.user(admin=True)
    return browser


async def balance(site: Site, account_id: str) -> int:
    return int(await site.database.fetchval("SELECT balance FROM accounts WHERE id = $1", account_id))


ROUTES = [
    ("GET", "/accounts"),
    ("GET", "/accounts/acct_1"),
    ("POST", "/accounts/acct_1/deactivate"),
    ("POST", "/accounts/acct_1/activate"),
    ("PUT", "/accounts/acct_1/weight"),
    ("POST", "/accounts/acct_1/deposits"),
    ("GET", "/models"),
    ("GET", "/models/Org/m"),
    ("PUT", "/models/Org/m"),
    ("DELETE", "/models/Org/m"),
]


async def test_to_customers_there_are_no_operators_routes(site: Site) -> None:
    browser, account_id = await site.user("5")
    key = {"authorization": f"Bearer {await site.key(account_id)}"}

    for method, path in ROUTES:
        by_key = await site.browser().client.request(method, ADMIN + path, json={}, headers=key)
        by_session = await browser.send(method, ADMIN + path, json={})
        nobody = await site.browser().client.request(method, ADMIN + path, json={})
        assert (by_key.status_code, by_session.status_code, nobody.status_code) == (404, 404, 401), path
        assert by_key.json()["error"]["code"] == "not_found"
    assert (await browser.get("/v1/models/Org/m")).status_code == 200, "still there"


async def test_a_key_of_an_operator_opens_them(site: Site) -> None:
    key = await site.key()
    pepper = site.nodes[0].settings.secrets.key_pepper
    async with site.database.acquire() as connection:
        found = await api_keys.find_key(connection, secrets.digest(key, pepper))
        assert found is not None and await api_keys.make_admin(connection, found.key_id)

    bearer = {"authorization": f"Bearer {key}"}
    answer = await site.browser().client.get(f"{ADMIN}/accounts", headers=bearer)
    child = (await site.browser().client.post("/v1/keys", headers=bearer)).json()["key"]

    assert answer.status_code == 200
    by_child = await site.browser().client.get(f"{ADMIN}/accounts", headers={"authorization": f"Bearer {child}"})
    assert by_child.status_code == 404, "what a key makes is no operator's"


async def test_an_unknown_parameter_is_400_and_changes_nothing(site: Site) -> None:
    admin = await operator(site)
    _, account_id = await site.user()

    for method, path in ROUTES:
        where = f"{ADMIN}{path.replace('acct_1', account_id)}?force=1"
        body = None if method in ("GET", "DELETE") else {}
        refused = await admin.send(method, where, json=body, headers={"idempotency-key": "k"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "force"), path
    assert (await admin.get(f"{ADMIN}/models/{MODEL_ID}")).status_code == 200
    for verb in ("deactivate", "activate"):
        refused = await admin.post(f"{ADMIN}/accounts/{account_id}/{verb}", json={"balance": "1"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "balance")


async def test_accounts_are_listed_page_by_page(site: Site) -> None:
    admin = await operator(site)
    made = [(await site.user())[1] for _ in range(3)]

    first = (await admin.get(f"{ADMIN}/accounts?limit=2")).json()
    rest = (await admin.get(f"{ADMIN}/accounts?limit=2&after={first['last_id']}")).json()

    assert [row["id"] for row in first["data"]] == [made[2], made[1]]
    assert first["has_more"] and not rest["has_more"]
    assert rest["data"][0]["id"] == made[0]
    email = rest["data"][0]["email"]
    assert [row["id"] for row in (await admin.get(f"{ADMIN}/accounts?email={email}")).json()["data"]] == [made[0]]
    assert (await admin.get(f"{ADMIN}/accounts/{made[0]}")).json() == rest["data"][0]
    for path in ("/accounts?limit=0", "/accounts?role=admin", "/accounts?after=acct_0"):
        assert (await admin.get(ADMIN + path)).status_code in (400, 404)
    assert (await admin.get(f"{ADMIN}/accounts/acct_nobody")).status_code == 404


async def test_a_deactivated_account_is_refused_everywhere_and_can_come_back(
    settings: Settings, database: Database
) -> None:
    async with open_site(with_sessions(settings), database, nodes=2) as site:
        admin = await operator(site)
        browser, account_id = await site.user("5")
        key = {"authorization": f"Bearer {await site.key(account_id)}"}
        elsewhere = httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.ports[1]}", headers=key)
        body = {"model": MODEL_ID, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        waiting = asyncio.create_task(elsewhere.post("/v1/chat/completions", json=body, timeout=10))
        async with asyncio.timeout(5):
            while not site.nodes[1].dispatcher.live_keys():
                await asyncio.sleep(0.005)

        stopped = await admin.post(f"{ADMIN}/accounts/{account_id}/deactivate")

        assert (stopped.status_code, stopped.json()["active"]) == (200, False)
        assert (await asyncio.wait_for(waiting, 5)).status_code == 403
        async with asyncio.timeout(5):
            while (await elsewhere.get("/v1/credits")).status_code != 403:
                await asyncio.sleep(0.01)
            while (refused := await browser.get("/v1/credits")).status_code != 403:
                await asyncio.sleep(0.01)
        assert refused.json()["error"]["code"] == "account_deactivated"
        await admin.post(f"{ADMIN}/accounts/{account_id}/activate")
        async with asyncio.timeout(5):
            while (await browser.get("/v1/credits")).status_code != 200:
                await asyncio.sleep(0.01)
        await elsewhere.aclose()


async def test_the_weight_of_an_account_is_put_and_reaches_its_keys(site: Site) -> None:
    admin = await operator(site)
    _, account_id = await site.user()
    token = await site.key(account_id)

    put = await admin.send("PUT", f"{ADMIN}/accounts/{account_id}/weight", json={"weight": 40})

    assert (put.status_code, put.json()["weight"]) == (200, 40)
    assert (await admin.get(f"{ADMIN}/accounts/{account_id}")).json()["weight"] == 40
    async with site.database.acquire() as connection:
        pepper = site.nodes[0].settings.secrets.key_pepper
        found = await api_keys.find_key(connection, secrets.digest(token, pepper))
    assert found is not None and found.weight == 40


@pytest.mark.parametrize("weight", [0, -1, 1001, 1.5, "2", True])
async def test_a_bad_weight_is_400_and_changes_nothing(site: Site, weight: object) -> None:
    admin = await operator(site)
    _, account_id = await site.user()

    refused = await admin.send("PUT", f"{ADMIN}/accounts/{account_id}/weight", json={"weight": weight})

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "weight")
    assert (await admin.get(f"{ADMIN}/accounts/{account_id}")).json()["weight"] == 1


async def test_the_discount_of_the_batch_lane_is_put_with_the_prices(site: Site) -> None:
    admin = await operator(site)

    added = await admin.send("PUT", f"{ADMIN}/models/new/model", json=MODEL | {"batch_discount_percent": 25})
    refused = await admin.send("PUT", f"{ADMIN}/models/new/model", json={"batch_discount_percent": 101})

    assert added.json()["batch_discount_percent"] == 25
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "batch_discount_percent")
    assert (await admin.get(f"{ADMIN}/models/new/model")).json()["batch_discount_percent"] == 25


async def test_a_deposit_happens_once_per_key(site: Site) -> None:
    admin = await operator(site)
    _, account_id = await site.user()
    path, body = f"{ADMIN}/accounts/{account_id}/deposits", {"amount": "12.5", "description": "March"}

    made = await asyncio.gather(*(admin.post(path, json=body, headers={"idempotency-key": "march"}) for _ in range(5)))

    assert [one.status_code for one in made] == [201] * 5
    assert len({one.json()["id"] for one in made}) == 1
    assert made[0].json()["amount"] == "12.500000000"
    assert await balance(site, account_id) == 12_500_000_000
    await assert_clean(site.database)


async def test_a_key_that_named_another_deposit_is_409(site: Site) -> None:
    admin = await operator(site)
    (_, account_id), (_, other_id) = await site.user(), await site.user()
    path, key = f"{ADMIN}/accounts/{account_id}/deposits", {"idempotency-key": "k"}
    await admin.post(path, json={"amount": "1"}, headers=key)

    for where, body in (
        (path, {"amount": "2"}),
        (path, {"amount": "1", "description": "other"}),
        (f"{ADMIN}/accounts/{other_id}/deposits", {"amount": "1"}),
    ):
        refused = await admin.post(where, json=body, headers=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert refused.headers["x-should-retry"] == "false"
    assert (await balance(site, account_id), await balance(site, other_id)) == (1_000_000_000, 0)


async def test_a_key_sent_for_many_accounts_at_once_is_one_deposit(site: Site) -> None:
    admin = await operator(site)
    accounts = [(await site.user())[1] for _ in range(4)]

    for n in range(5):
        answers = await asyncio.gather(
            *(
                admin.post(
                    f"{ADMIN}/accounts/{one}/deposits", json={"amount": "1"}, headers={"idempotency-key": str(n)}
                )
                for one in accounts
            )
        )
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert sum([await balance(site, one) for one in accounts]) == 5_000_000_000
    await assert_clean(site.database)


BAD_DEPOSITS: list[Any] = [
    {},
    {"amount": 1},
    {"amount": 1.5},
    {"amount": "0"},
    {"amount": "-1"},
    {"amount": "1e3"},
    {"amount": "NaN"},
    {"amount": "0.0000000001"},
    {"amount": "1" * 30},
    {"amount": "1", "description": "a\nb"},
    {"amount": "1", "description": "x" * 201},
    {"amount": "1", "account_id": "acct_1"},
    {"amount": "1", "balance": "100"},
    {"amount": "1", "type": "adjustment"},
]


async def test_a_bad_deposit_is_400_and_moves_nothing(site: Site) -> None:
    admin = await operator(site)
    _, account_id = await site.user()
    path = f"{ADMIN}/accounts/{account_id}/deposits"

    for body in BAD_DEPOSITS:
        refused = await admin.post(path, json=body, headers={"idempotency-key": "k"})
        assert refused.status_code == 400, body
    for key in ("", "x" * 256, "a\tb"):
        refused = await admin.post(path, json={"amount": "1"}, headers={"idempotency-key": key})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key"), key
    assert await balance(site, account_id) == 0


async def test_more_than_an_account_can_hold_is_400(site: Site) -> None:
    admin = await operator(site)
    _, account_id = await site.user()
    path = f"{ADMIN}/accounts/{account_id}/deposits"

    answers = [
        await admin.post(path, json={"amount": "999999999"}, headers={"idempotency-key": str(n)}) for n in range(12)
    ]

    assert {answer.status_code for answer in answers} == {201, 400}
    await assert_clean(site.database)


async def test_models_and_prices_are_put_and_taken_out(site: Site, redis: Redis) -> None:
    admin = await operator(site)

    added = await admin.send("PUT", f"{ADMIN}/models/new/model", json=MODEL)
    dearer = await admin.send("PUT", f"{ADMIN}/models/new/model", json={"prompt_price": "0.25"})
    mirror = await read_catalogue(redis)
    removed = await admin.send("DELETE", f"{ADMIN}/models/new%2Fmodel")

    assert added.json() == {
        "id": "new/model",
        "object": "model",
        "engine": "simulator",
        "context": 2048,
        "prompt_price": "0.100",
        "cached_price": "0.100",
        "completion_price": "0.400",
        "batch_discount_percent": 50,
        "default_max_tokens": 4096,
        "options": {},
        "created_at": added.json()["created_at"],
    }
    assert dearer.json() == added.json() | {"prompt_price": "0.250"}
    assert mirror is not None and "new/model" in {model.id for model in mirror.models}
    assert removed.json() == {"id": "new/model", "object": "model.deleted", "deleted": True}
    assert (await admin.send("DELETE", f"{ADMIN}/models/new/model")).status_code == 404
    assert (await admin.get(f"{ADMIN}/models/new/model")).status_code == 404
    assert [row["id"] for row in (await admin.get(f"{ADMIN}/models")).json()["data"]] == [MODEL_ID]


BAD_MODELS: list[dict[str, Any]] = [
    {},
    MODEL | {"context": 0},
    MODEL | {"context": "2048"},
    MODEL | {"prompt_price": 0.1},
    MODEL | {"prompt_price": "0.0001"},
    MODEL | {"prompt_price": "-1"},
    MODEL | {"cached_price": "0.2"},
    MODEL | {"engine": "../../sh"},
    MODEL | {"options": {"path": 1}},
    MODEL | {"options": {"a b": "c"}},
    MODEL | {"version": 1},
]


async def test_a_bad_model_is_400_and_not_added(site: Site) -> None:
    admin = await operator(site)

    for body in BAD_MODELS:
        refused = await admin.send("PUT", f"{ADMIN}/models/bad", json=body)
        assert refused.status_code == 400, body
    for name in ("..", "a%20b", "a/health", "%7Ba%7D", "a%00"):
        refused = await admin.send("PUT", f"{ADMIN}/models/{name}", json=MODEL)
        assert refused.status_code in (400, 404), name
    assert [row["id"] for row in (await admin.get(f"{ADMIN}/models")).json()["data"]] == [MODEL_ID]


def event(kind: str = "checkout.session.completed", *, event_id: str = "evt_1", **fields: Any) -> bytes:
    paid = {"id": "cs_1", "object": "checkout.session", "currency": "usd", "payment_status": "paid"} | fields
    return json.dumps({"id": event_id, "object": "event", "type": kind, "data": {"object": paid}}).encode()


async def send_event(site: Site, body: bytes, **options: Any) -> httpx.Response:
    signature = stripe.WebhookSignature.generate_signature_header(
        body.decode("latin-1"), options.get("secret", STRIPE_SECRET), options.get("timestamp")
    )
    headers = {"stripe-signature": options.get("signature", signature), "content-type": "application/json"}
    return await site.browser().client.post("/webhooks/stripe", content=body, headers=headers)


async def test_a_payment_is_one_deposit_however_often_it_is_told(site: Site) -> None:
    _, account_id = await site.user()
    metadata = {"account_id": account_id}
    checkout = event(amount_total=2550, metadata=metadata, payment_intent="pi_1")
    intent = event("payment_intent.succeeded", event_id="evt_2", id="pi_1", amount_received=2550, metadata=metadata)

    answers = await asyncio.gather(*(send_event(site, body) for body in (checkout, checkout, intent, intent)))

    assert [answer.status_code for answer in answers] == [200] * 4
    assert await balance(site, account_id) == 25_500_000_000
    assert await site.database.fetchval("SELECT count(*) FROM transfers") == 1
    second = event(event_id="evt_3", amount_total=100, metadata=metadata, payment_intent="pi_2")
    assert (await send_event(site, second)).json() == {"status": "deposited"}
    assert (await send_event(site, second)).json() == {"status": "repeated"}
    assert await balance(site, account_id) == 26_500_000_000
    await assert_clean(site.database)


async def test_what_stripe_did_not_sign_is_400(site: Site) -> None:
    _, account_id = await site.user()
    body = event(amount_total=100, metadata={"account_id": account_id})

    for options in (
        {"secret": "whsec_other"},
        {"timestamp": int(time.time()) - 3600},
        {"signature": ""},
        {"signature": "t=1,v1="},
        {"signature": "nonsense"},
        {"signature": f"t={int(time.time())},v0=00"},
        {"signature": b"t=1,v1=\xff\xfe"},
    ):
        assert (await send_event(site, body, **options)).status_code == 400, options
    changed = await send_event(
        site, body, signature=stripe.WebhookSignature.generate_signature_header("{}", STRIPE_SECRET)
    )
    assert changed.status_code == 400
    assert await balance(site, account_id) == 0


async def test_events_that_are_no_deposit_are_ignored(site: Site) -> None:
    _, account_id = await site.user()
    metadata = {"account_id": account_id}

    for body in (
        event("customer.created"),
        event(amount_total=100, metadata={}),
        event(amount_total=100, metadata=None),
        event(amount_total=100, metadata=metadata, payment_status="unpaid"),
    ):
        answer = await send_event(site, body)
        assert (answer.status_code, answer.json()) == (200, {"status": "ignored"})
    assert await balance(site, account_id) == 0


async def test_a_payment_that_cannot_be_a_deposit_is_400(site: Site) -> None:
    _, account_id = await site.user()
    metadata = {"account_id": account_id}

    for body in (
        event(amount_total=100, metadata=metadata, currency="eur"),
        event(amount_total=0, metadata=metadata),
        event(amount_total=-5, metadata=metadata),
        event(amount_total=10**15, metadata=metadata),
        event(metadata=metadata),
        event(amount_total=1.5, metadata=metadata),
        event(amount_total=100, metadata={"account_id": "acct_nobody"}),
        event(amount_total=100, metadata={"account_id": "a\0b"}),
        b"[]",
        b"{",
        b"{}",
    ):
        assert (await send_event(site, body)).status_code == 400, body
    assert await site.database.fetchval("SELECT count(*) FROM transfers") == 0


async def test_without_a_secret_there_is_no_webhook(settings: Settings, database: Database) -> None:
    async with open_site(settings, database) as site:
        assert (await send_event(site, event())).status_code == 404
