"""One account learns nothing of another, and no client chooses what is ours to choose."""

import contextlib
import re
from typing import Any

import httpx
import pytest

from shared import ids
from tests.integration.account_product import Product
from tests.unit.test_openai_bounded_json import INVALID, NOT_JSON

BASE = "/v1"
QUERIES = ("/keys?after={key_id}", "/usage?after={request_id}", "/credits/transactions?after={transfer_id}")
FILTERS = ("/usage?api_key_id={key_id}", "/credits/transactions?request_id={request_id}")
OURS = ("role", "admin", "is_admin", "balance", "credits", "account_id", "user_id", "key", "id", "status", "digest")


async def ids_of(product: Product, account_id: str, headers: dict[str, str]) -> dict[str, str]:
    """Return ids that exist, of an account that used the product."""
    async with product.database.acquire() as connection:
        key_id = await connection.fetchval("SELECT id FROM api_keys WHERE account_id = $1", account_id)
        transfer_id = await connection.fetchval("SELECT id FROM transfers WHERE account_id = $1", account_id)
    body = {"model": "Org/m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with contextlib.suppress(httpx.ReadTimeout):  # no worker: it is queued until its client leaves
        await product.client.post("/chat/completions", headers=headers, json=body, timeout=0.5)
    async with product.database.acquire() as connection:
        request_id = await connection.fetchval("SELECT request_id FROM requests WHERE account_id = $1", account_id)
    return {"key_id": key_id, "transfer_id": transfer_id, "request_id": request_id}


def random_ids() -> dict[str, str]:
    return {
        "key_id": ids.new_id("key"),
        "transfer_id": ids.new_transfer_id(),
        "request_id": ids.new_chat_id(),
    }


def comparable(answer: httpx.Response, named: dict[str, str]) -> tuple[Any, ...]:
    """Return an answer without what is different each time."""
    text = answer.text
    for name, value in named.items():
        text = text.replace(value, name)
    headers = {name for name in answer.headers if not name.startswith("x-ratelimit")}
    return answer.status_code, text, headers


async def routes_with_an_id(product: Product) -> list[tuple[str, str]]:
    """Return every documented route of customers that takes an id; one of a new kind fails where it is used."""
    document = (await product.client.get(f"http://127.0.0.1:{product.port}/openapi.json")).json()
    found = set()
    for path, methods in document["paths"].items():
        for base in ("/api/v1/inference", BASE):
            if path.startswith(base + "/") and "{" in path and not path.startswith(f"{base}/models/"):
                found |= {(method.upper(), path.removeprefix(base)) for method in methods if method != "parameters"}
    return sorted(found)


async def test_an_id_of_another_account_is_answered_as_one_of_nobody(product: Product) -> None:
    account_id, theirs = await product.customer()
    _, ours = await product.customer()
    existing, missing = await ids_of(product, account_id, theirs), random_ids()

    routes = [*await routes_with_an_id(product), ("GET", "/chat/completions/{request_id}/stream")]
    assert ("DELETE", "/keys/{key_id}") in routes
    for method, path in (*routes, *(("GET", path) for path in QUERIES)):
        answers = [
            comparable(await product.client.request(method, path.format(**named), headers=ours), named)
            for named in (existing, missing)
        ]

        assert answers[0] == answers[1], path
        assert answers[0][0] == 404, path
    for path in FILTERS:
        told = (await product.client.get(path.format(**existing), headers=ours)).json()
        assert told["data"] == [], path
    assert (await product.client.get(f"/keys/{existing['key_id']}", headers=theirs)).json()["status"] == "active"


@pytest.mark.parametrize("field", OURS)
async def test_no_field_of_ours_can_be_slipped_into_a_key(product: Product, field: str) -> None:
    account_id, headers = await product.customer()

    answer = await product.client.post("/keys", headers=headers, json={"name": "x", field: "acct_other"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert answer.json()["error"]["param"] == field
    async with product.database.acquire() as connection:
        made = await connection.fetchval("SELECT count(*) FROM api_keys WHERE account_id = $1", account_id)
    assert made == 1


async def test_bad_bodies_of_ordinary_routes_are_refused_as_those_of_completions(product: Product) -> None:
    _, headers = await product.customer()
    wrong = {}
    for code, bodies in (("invalid_json", NOT_JSON), ("invalid_value", INVALID)):
        for name, content in bodies.items():
            if not content:  # POST /keys takes none
                continue
            answer = await product.client.post(
                "/keys", headers={**headers, "content-type": "application/json"}, content=content
            )
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            expected = (413, "request_too_large") if len(content) > 16 * 1024 else (400, code)
            if (answer.status_code, error["code"]) != expected:
                wrong[name] = answer.status_code, error

    assert wrong == {}


async def test_request_ids_are_ours_whatever_a_client_sends(product: Product) -> None:
    _, headers = await product.customer()
    theirs = {"x-request-id": "chatcmpl-mine", "x-client-request-id": "mine", "request-id": "mine"}
    paths = ("/models", "/keys", "/usage", "/nothing", "/keys/key_x", "/models/none")

    answers = [await product.client.get(path, headers=headers | theirs) for path in paths]
    answers += [await product.client.get(path, headers=theirs) for path in paths]
    answers.append(await product.client.post("/chat/completions", headers=headers | theirs, json={}))

    found = [answer.headers["x-request-id"] for answer in answers]
    assert all(re.fullmatch(r"req_[0-9a-v]{26}", one) for one in found), found
    assert len(set(found)) == len(found)
    assert not [answer for answer in answers if "mine" in answer.text]


@pytest.mark.parametrize("path", ["/models", "/keys", "/chat/completions", "/usage", "/credits", "/nothing"])
async def test_no_page_of_another_origin_may_ask(product: Product, path: str) -> None:
    _, headers = await product.customer()
    asking = {"origin": "https://evil.example", "access-control-request-method": "POST"}

    for method in ("OPTIONS", "GET", "POST"):
        answer = await product.client.request(method, path, headers=headers | asking)

        assert not [name for name in answer.headers if name.startswith("access-control-")]
