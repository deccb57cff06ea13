"""Sessions as a browser has them: register, log in, carry on, log out."""

import asyncio
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest

from shared.connections import Database
from shared.settings import Settings
from tests.integration.session_rig import (
    AUTH,
    CSRF,
    MODEL_ID,
    PASSWORD,
    SESSION,
    Site,
    new_email,
    open_site,
    with_sessions,
)

CHAT = {"model": MODEL_ID, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}


@pytest.fixture
async def site(settings: Settings, database: Database) -> AsyncIterator[Site]:
    async with open_site(with_sessions(settings), database) as site:
        yield site


def set_cookies(response: httpx.Response) -> dict[str, str]:
    """Return name -> the whole header of each cookie, without its value."""
    found = {}
    for header in response.headers.get_list("set-cookie"):
        (name,) = SimpleCookie(header)
        found[name] = "; ".join(sorted(part.strip() for part in header.split(";")[1:]))
    return found


async def test_who_registers_is_logged_in_with_an_account_without_credits(site: Site) -> None:
    browser = site.browser()

    made = await browser.register("  Ann@Example.COM".strip())

    body = made.json()
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    assert sorted(body) == [
        "account_id",
        "admin",
        "created_at",
        "email",
        "id",
        "object",
        "session_expires_at",
    ]
    assert (body["object"], body["email"], body["admin"]) == ("user", "ann@example.com", False)
    assert (await browser.get("/v1/credits")).json()["balance"] == "0.000000000"
    assert (await browser.get(f"{AUTH}/me")).json() == body


async def test_the_flags_of_the_cookies_are_exact(site: Site) -> None:
    browser, _ = await site.user()

    plain = await browser.post(f"{AUTH}/refresh")
    elsewhere = await browser.post(
        f"{AUTH}/login", json={"email": "x@y.zz", "password": "x"}, headers={"host": "api.example.com"}
    )
    assert elsewhere.status_code == 403, "an origin of another host"
    made = await browser.post(
        f"{AUTH}/register",
        json={"email": new_email(), "password": PASSWORD},
        headers={"host": "api.example.com", "origin": "http://api.example.com"},
    )

    assert set_cookies(plain) == {
        SESSION: "HttpOnly; Max-Age=3600; Path=/; SameSite=Lax",
        CSRF: "Max-Age=3600; Path=/; SameSite=Lax",
    }
    assert set_cookies(made) == {
        f"__Host-{SESSION}": "HttpOnly; Max-Age=3600; Path=/; SameSite=Lax; Secure",
        CSRF: "Max-Age=3600; Path=/; SameSite=Lax; Secure",
    }


async def test_the_token_is_in_the_cookie_and_nowhere_else(site: Site) -> None:
    browser = site.browser()
    email = new_email()

    for response in (await browser.register(email), await browser.login(email), await browser.post(f"{AUTH}/refresh")):
        token = browser.token
        assert token.count(".") == 2
        others = [value for name, value in response.headers.multi_items() if name != "set-cookie"]
        assert not any(token in value or token.split(".")[2] in value for value in [*others, response.text])


async def test_unknown_address_and_wrong_password_are_the_same_401(site: Site) -> None:
    browser = site.browser()
    email = new_email()
    await browser.register(email)

    wrong, unknown = await browser.login(email, "wrong password"), await browser.login(new_email())

    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json() == unknown.json()
    assert wrong.json()["error"]["type"] == "authentication_error"
    assert "set-cookie" not in wrong.headers


async def test_an_address_is_registered_once_in_any_spelling(site: Site) -> None:
    first, second = await asyncio.gather(
        site.browser().register("bob@example.com"), site.browser().register("BOB@example.com")
    )

    assert sorted((first.status_code, second.status_code)) == [201, 409]
    assert "set-cookie" not in (first if first.status_code == 409 else second).headers


BAD_BODIES: list[tuple[Any, int]] = [
    ({}, 400),
    ({"email": "a@b.cc"}, 400),
    ({"email": "a@b.cc", "password": "short"}, 400),
    ({"email": "a@b.cc", "password": "x" * 257}, 400),
    ({"email": "a@b.cc", "password": 12345678}, 400),
    ({"email": "no address", "password": PASSWORD}, 400),
    ({"email": "a@b@c", "password": PASSWORD}, 400),
    ({"email": "a b@c.dd", "password": PASSWORD}, 400),
    ({"email": "x" * 250 + "@b.cc", "password": PASSWORD}, 400),
    ({"email": ["a@b.cc"], "password": PASSWORD}, 400),
    ([], 400),
]
SLIPPED_IN = ("admin", "role", "balance", "account_id", "id", "password_hash", "concurrency")


async def test_a_bad_registration_is_refused_and_registers_nobody(site: Site) -> None:
    browser = site.browser()

    for body, status in BAD_BODIES:
        response = await browser.post(f"{AUTH}/register", json=body)
        assert response.status_code == status, body
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    for name in SLIPPED_IN:
        body = {"email": "eve@example.com", "password": PASSWORD, name: True}
        response = await browser.post(f"{AUTH}/register", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert await site.database.fetchval("SELECT count(*) FROM users") == 0


async def test_only_declared_json_logs_in(site: Site) -> None:
    browser = site.browser()
    content = b'{"email":"a@b.cc","password":"12345678"}'

    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await browser.post(f"{AUTH}/login", content=content, headers={"content-type": kind})
        assert answer.status_code == 415


async def test_a_session_takes_every_route_of_a_key(site: Site) -> None:
    browser, _ = await site.user("5")

    for path in ("/v1/credits", "/v1/credits/transactions", "/v1/usage", "/v1/keys", "/api/v1/inference/credits"):
        assert (await browser.get(path)).status_code == 200, path
    made = await browser.post("/v1/keys", json={"name": "from the dashboard"})
    assert made.status_code == 201
    deleted = await browser.send("DELETE", f"/v1/keys/{made.json()['id']}")
    assert deleted.status_code == 200


async def test_a_session_spends_from_its_account(site: Site) -> None:
    browser, account_id = await site.user("5")
    (node,) = site.nodes

    waiting = asyncio.create_task(browser.post("/v1/chat/completions", json=CHAT))
    async with asyncio.timeout(5):
        while not (live := node.dispatcher.live_keys()):
            await asyncio.sleep(0.005)
    (session_id,) = live
    row = await site.database.fetchrow("SELECT account_id, key_id, hold FROM requests")
    waiting.cancel()

    assert row is not None and row["hold"] > 0
    assert (row["account_id"], row["key_id"]) == (account_id, session_id)
    assert session_id.startswith("sess_")


async def test_without_credits_a_session_gets_402(site: Site) -> None:
    browser, _ = await site.user()

    response = await browser.post("/v1/chat/completions", json=CHAT)

    assert (response.status_code, response.json()["error"]["code"]) == (402, "insufficient_credits")


async def test_a_key_wins_over_a_cookie_and_needs_no_token(site: Site) -> None:
    browser, _ = await site.user("5")
    key = await site.key()

    with_key = await browser.client.post(
        "/v1/keys", json={"name": "k"}, headers={"authorization": f"Bearer {key}", "origin": "https://evil.example"}
    )
    bad_key = await browser.client.get("/v1/credits", headers={"authorization": "Bearer inf_nonsense"})

    assert with_key.status_code == 201
    assert bad_key.status_code == 401


async def test_a_refreshed_session_is_the_same_session(site: Site) -> None:
    browser, _ = await site.user()

    refreshed = await browser.post(f"{AUTH}/refresh")

    assert refreshed.status_code == 200
    assert await site.database.fetchval("SELECT count(*) FROM sessions") == 1


async def test_a_session_is_not_refreshed_beyond_its_end(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings, session_seconds_most=100.0), database) as site:
        browser, _ = await site.user()

        refreshed = await browser.post(f"{AUTH}/refresh")

        assert 90 <= int(set_cookies(refreshed)[SESSION].partition("Max-Age=")[2].partition(";")[0]) <= 100
        await site.database.execute("UPDATE sessions SET expires_at = now() - INTERVAL '1 second'")
        for _ in range(100):
            answer = await browser.post(f"{AUTH}/refresh")
            if answer.status_code == 401:
                break
            await asyncio.sleep(0.01)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_expired")


async def test_logging_out_kills_the_cookie_on_every_node(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings), database, nodes=3) as site:
        browser, _ = await site.user()
        others = [browser.as_seen_by(port) for port in site.ports]
        assert [(await other.get("/v1/credits")).status_code for other in others] == [200, 200, 200]

        left = await browser.post(f"{AUTH}/logout")

        assert left.status_code == 204
        assert set_cookies(left) == {
            SESSION: "HttpOnly; Max-Age=0; Path=/; SameSite=Lax",
            CSRF: "Max-Age=0; Path=/; SameSite=Lax",
        }
        assert (await others[0].get("/v1/credits")).status_code == 401, "here at once"
        async with asyncio.timeout(5):
            while [(await other.get("/v1/credits")).status_code for other in others] != [401, 401, 401]:
                await asyncio.sleep(0.01)
        for other in others:
            await other.client.aclose()


async def test_logging_out_elsewhere_ends_what_the_session_runs(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings), database, nodes=2) as site:
        browser, _ = await site.user("5")
        waiting = asyncio.create_task(browser.post("/v1/chat/completions", json=CHAT))
        async with asyncio.timeout(5):
            while not site.nodes[0].dispatcher.live_keys():
                await asyncio.sleep(0.005)
        elsewhere = browser.as_seen_by(site.ports[1])

        assert (await elsewhere.post(f"{AUTH}/logout")).status_code == 204

        response = await asyncio.wait_for(waiting, 5)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "key_revoked")
        await elsewhere.client.aclose()


async def test_registration_can_be_closed(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings, registration_open=False), database) as site:
        refused = await site.browser().register()

        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "registration_closed")


async def test_without_a_key_to_sign_with_there_are_no_sessions(settings: Settings, database: Database) -> None:
    async with open_site(settings, database) as site:
        browser = site.browser()
        browser.client.cookies.set(SESSION, "a.b.c")

        assert (await browser.register()).status_code == 404
        assert (await browser.get(f"{AUTH}/me")).status_code == 404
        refused = await browser.get("/v1/credits")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "missing_api_key")
