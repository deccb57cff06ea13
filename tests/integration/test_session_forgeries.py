"""Cookies that we did not set, and requests that our pages did not send: refused, and nothing changes."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.connections import Database
from shared.settings import Settings
from tests.integration.session_rig import (
    ADMIN,
    AUTH,
    CSRF,
    JWT_KEY,
    MODEL_ID,
    PASSWORD,
    SESSION,
    Browser,
    Site,
    new_email,
    open_site,
    with_sessions,
)

EVIL = "https://evil.example"


@pytest.fixture
async def site(settings: Settings, database: Database) -> AsyncIterator[Site]:
    async with open_site(with_sessions(settings), database) as site:
        yield site


def encode(part: Any) -> str:
    return (
        base64.urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode()).rstrip(b"=").decode()
    )


def sign(header: Any, payload: Any, *, key: str = JWT_KEY, algorithm: str = "sha256") -> str:
    """Return a token that says what it is told to, signed with HMAC."""
    signed = f"{encode(header)}.{encode(payload)}"
    return f"{signed}.{encode(hmac.digest(key.encode(), signed.encode(), algorithm))}"


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and payload of a token."""
    header, payload, _ = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
    return json.loads(header), json.loads(payload)


async def status_with(browser: Browser, token: str) -> tuple[int, str | None]:
    """Return what a request with this session cookie gets."""
    answer = await browser.client.get("/v1/credits", headers={"cookie": f"{SESSION}={token}"})
    return answer.status_code, None if answer.is_success else answer.json()["error"]["code"]


def forgeries(token: str) -> dict[str, str]:
    """Return tokens that are nearly this one."""
    header, payload = parts(token)
    first, second, third = token.split(".")
    now = int(time.time())
    without = {f"no {name}": sign(header, {k: v for k, v in payload.items() if k != name}) for name in payload}
    return without | {
        "alg none": f"{encode({'alg': 'none', 'typ': 'JWT'})}.{second}.",
        "alg None with the signature": f"{encode({'alg': 'None', 'typ': 'JWT'})}.{second}.{third}",
        "no alg": f"{encode({'typ': 'JWT'})}.{second}.{third}",
        "HS384": sign({"alg": "HS384", "typ": "JWT"}, payload, algorithm="sha384"),
        "HS512": sign({"alg": "HS512", "typ": "JWT"}, payload, algorithm="sha512"),
        "RS256 signed as HMAC": sign({"alg": "RS256", "typ": "JWT"}, payload),
        "ES256 signed as HMAC": sign({"alg": "ES256", "typ": "JWT"}, payload),
        "another key": sign(header, payload, key="another-key-" * 4),
        "an empty key": sign(header, payload, key=""),
        "kid": sign(header | {"kid": "../../../../dev/null"}, payload),
        "kid of an empty key": sign(header | {"kid": "/dev/null"}, payload, key=""),
        "jku": sign(header | {"jku": f"{EVIL}/keys"}, payload),
        "x5u": sign(header | {"x5u": f"{EVIL}/keys"}, payload),
        "jwk of its own": sign(header | {"jwk": {"kty": "oct", "k": encode(b"k" * 32)}}, payload, key="k" * 32),
        "crit": sign(header | {"crit": ["exp"]}, payload),
        "b64": sign(header | {"b64": False, "crit": ["b64"]}, payload),
        "another aud": sign(header, payload | {"aud": "inferbase"}),
        "a list of auds": sign(header, payload | {"aud": [payload["aud"], "other"]}),
        "another iss": sign(header, payload | {"iss": "evil"}),
        "exp as text": sign(header, payload | {"exp": "tomorrow"}),
        "exp null": sign(header, payload | {"exp": None}),
        "iat in the future": sign(header, payload | {"iat": now + 3600}),
        "another sub": sign(header, payload | {"sub": "user_other"}),
        "another jti": sign(header, payload | {"jti": "sess_other"}),
        "jti of a key": sign(header, payload | {"jti": "key_1"}),
        "a number as sub": sign(header, payload | {"sub": 1}),
        "a further claim": sign(header, payload | {"admin": True}),
        "payload changed": f"{first}.{encode(payload | {'exp': now + 10**6})}.{third}",
        "no signature": f"{first}.{second}.",
        "two parts": f"{first}.{second}",
        "four parts": f"{token}.{third}",
        "not base64": f"{first}.!!!.{third}",
        "payload is a list": sign(header, [payload]),
        "empty": "",
        "NUL": "a%00b.c.d",
        "8 kB": "a" * 8192,
        "SQL": "' OR 1=1 --",
        "twice": f"{token}; {SESSION}={token}x",
    }


async def test_no_forged_token_opens_anything(site: Site) -> None:
    browser, _ = await site.user()
    assert (await status_with(browser, browser.token))[0] == 200
    token = browser.token
    browser.client.cookies.clear()

    answers = {name: await status_with(browser, forged) for name, forged in forgeries(token).items()}

    assert {name: answer for name, answer in answers.items() if answer[0] != 401} == {}


async def test_an_expired_token_says_so(site: Site) -> None:
    browser, _ = await site.user()
    header, payload = parts(browser.token)
    browser.client.cookies.clear()
    now = int(time.time())

    answer = await status_with(browser, sign(header, payload | {"iat": now - 7200, "exp": now - 1}))

    assert answer == (401, "token_expired")


async def test_the_database_holds_no_token_and_no_password(site: Site) -> None:
    browser, _ = await site.user()
    await browser.post("/v1/keys")

    rows = []
    for table in ("users", "sessions", "api_keys", "accounts", "payment_events"):
        rows += [str(tuple(row.values())) for row in await site.database.fetch(f"SELECT * FROM {table}")]

    dump = "\n".join(rows)
    assert "$argon2id$v=19$m=19456,t=2,p=1$" in dump
    for secret in (PASSWORD, browser.token, browser.token.split(".")[2], browser.client.cookies[CSRF]):
        assert secret not in dump
        assert hashlib.sha256(secret.encode()).hexdigest() not in dump


UNSAFE = [
    ("POST", "/v1/keys", {}),
    ("DELETE", "/v1/keys/key_1", None),
    ("POST", "/v1/chat/completions", {"model": MODEL_ID, "messages": [{"role": "user", "content": "Hi"}]}),
    ("POST", f"{AUTH}/logout", None),
    ("POST", f"{AUTH}/refresh", None),
    ("PUT", f"{ADMIN}/models/a", {}),
]


def attacks(browser: Browser) -> dict[str, dict[str, str]]:
    """Return headers that no page of ours sends; each lacks one thing."""
    own = browser.headers
    return {
        "no Origin": {name: value for name, value in own.items() if name != "origin"},
        "null Origin": own | {"origin": "null"},
        "another site": own | {"origin": EVIL},
        "another port": own | {"origin": "http://127.0.0.1:1"},
        "another scheme": own | {"origin": browser.origin.replace("http:", "https:")},
        "another spelling": own | {"origin": browser.origin + ".evil.example"},
        "cross-site": own | {"sec-fetch-site": "cross-site"},
        "same-site": own | {"sec-fetch-site": "same-site"},
        "no token": {name: value for name, value in own.items() if name != "x-csrf-token"},
        "empty token": own | {"x-csrf-token": ""},
        "another token": own | {"x-csrf-token": "0" * 64},
    }


async def test_what_another_site_sends_changes_nothing(site: Site) -> None:
    browser, _ = await site.user("5", admin=True)

    for method, path, body in UNSAFE:
        for name, headers in attacks(browser).items():
            answer = await browser.client.request(method, path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf_failed"), (path, name)

    assert (await browser.get(f"{AUTH}/me")).status_code == 200, "still logged in"
    assert await site.database.fetchval("SELECT count(*) FROM api_keys") == 0
    assert await site.database.fetchval("SELECT count(*) FROM requests") == 0


async def test_a_planted_token_is_of_no_use(site: Site) -> None:
    """A neighbouring site can set both cookie and header alike, but does not know the HMAC of the session."""
    browser, _ = await site.user()
    other, _ = await site.user()

    for planted in ("f" * 64, other.client.cookies[CSRF]):
        cookie = f"{SESSION}={browser.token}; {CSRF}={planted}"
        headers = browser.headers | {"cookie": cookie, "x-csrf-token": planted}
        answer = await browser.client.post("/v1/keys", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf_failed")


async def test_a_form_or_text_of_another_site_changes_nothing(site: Site) -> None:
    browser, _ = await site.user()

    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        for path in ("/v1/keys", f"{AUTH}/logout", f"{AUTH}/login", f"{AUTH}/register"):
            answer = await browser.client.post(
                path, content=b'{"name":"x"}', headers={"content-type": kind, "origin": EVIL}
            )
            assert answer.status_code == 403, (kind, path)
    assert (await browser.get(f"{AUTH}/me")).status_code == 200


async def test_another_site_logs_nobody_in(site: Site) -> None:
    browser = site.browser()
    email = new_email()
    await browser.register(email)

    for headers in ({"origin": EVIL}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        body = {"email": email, "password": PASSWORD}
        answer = await browser.client.post(f"{AUTH}/login", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf_failed")
        assert "set-cookie" not in answer.headers


async def test_reading_needs_no_token(site: Site) -> None:
    browser, _ = await site.user()

    answer = await browser.client.get("/v1/credits", headers={"origin": EVIL})

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")], "so no script reads it"


async def test_no_other_origin_is_told_that_it_may(site: Site) -> None:
    browser, _ = await site.user()
    asking = {"origin": EVIL, "access-control-request-method": "POST", "access-control-request-headers": "x-csrf-token"}

    for path in ("/v1/keys", "/v1/chat/completions", f"{AUTH}/login", f"{ADMIN}/accounts"):
        answer = await browser.client.options(path, headers=asking)
        assert not [name for name in answer.headers if name.startswith("access-control-")], path


async def test_the_plain_cookie_counts_only_on_this_machine(site: Site) -> None:
    browser, _ = await site.user()
    token = browser.token

    for host, name, status in (
        ("api.example.com", SESSION, 401),
        ("api.example.com", f"__Host-{SESSION}", 200),
        ("localhost:8000", SESSION, 200),
        ("localhost.evil.example", SESSION, 401),
        ("[::1]:8000", SESSION, 200),
    ):
        answer = await browser.client.get("/v1/credits", headers={"host": host, "cookie": f"{name}={token}"})
        assert answer.status_code == status, (host, name)
