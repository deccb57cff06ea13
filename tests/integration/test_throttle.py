"""How often somebody may try to log in, over all nodes; and that hashing is bounded and never on the event loop."""

import asyncio
import time

import pytest

from api.passwords import Passwords, hash_password
from shared.connections import Database, Redis, open_redis
from shared.errors import RateLimited
from shared.settings import Settings, StoreSettings
from shared.throttle import count_try, forget_tries
from tests.integration.session_rig import AUTH, PASSWORD, new_email, open_site, with_sessions


async def test_logins_of_an_address_are_bounded_over_all_nodes(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings, login_address_rpm=6), database, nodes=3) as site:
        browsers = [site.browser(node) for node in range(3)]

        answers = await asyncio.gather(*(browser.login(new_email()) for browser in browsers for _ in range(4)))

        assert sorted(answer.status_code for answer in answers) == [401] * 6 + [429] * 6
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "rate limit" in refused.json()["error"]["message"].lower()
        assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_guesses_at_one_address_are_bounded_wherever_they_come_from(
    settings: Settings, database: Database
) -> None:
    bounded = with_sessions(settings, login_email_rpm=3, trusted_proxies="127.0.0.1")
    async with open_site(bounded, database) as site:
        browser = site.browser()
        email = (await browser.register()).json()["email"]

        statuses = []
        for n in range(5):
            guess = await browser.post(
                f"{AUTH}/login",
                json={"email": email, "password": "a wrong guess"},
                headers={"x-forwarded-for": f"198.51.100.{n}"},
            )
            statuses.append(guess.status_code)

        assert statuses == [401, 401, 401, 429, 429]
        assert (await site.browser().login(new_email())).status_code == 401, "others are not held up"


async def test_a_forged_address_does_not_help(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings, login_address_rpm=2), database) as site:
        browser = site.browser()

        statuses = [
            (
                await browser.post(
                    f"{AUTH}/login",
                    json={"email": new_email(), "password": "guess"},
                    headers={"x-forwarded-for": f"198.51.100.{n}"},
                )
            ).status_code
            for n in range(4)
        ]

        assert statuses == [401, 401, 429, 429]


async def test_a_login_that_succeeds_gives_the_tries_back(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings, login_email_rpm=2), database) as site:
        browser = site.browser()
        email = (await browser.register()).json()["email"]

        assert [(await browser.login(email)).status_code for _ in range(5)] == [200] * 5


async def test_registrations_of_an_address_are_bounded(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings, login_address_rpm=2), database) as site:
        assert [(await site.browser().register()).status_code for _ in range(3)] == [201, 201, 429]


async def test_without_redis_nobody_logs_in(settings: Settings, database: Database) -> None:
    async with open_site(with_sessions(settings), database) as site:
        browser = site.browser()
        email = (await browser.register()).json()["email"]
        (node,) = site.nodes
        there = node.redis

        async with open_redis(StoreSettings(redis_url="redis://127.0.0.1:1/0"), role="test") as away:
            node.redis = away
            answer = await browser.login(email)
            node.redis = there

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "dependency_unavailable")


async def test_a_counter_names_nobody_and_ends(redis: Redis) -> None:
    await count_try(redis, [("login-as", "ann@example.com", 5)])

    (name,) = await redis.keys("throttle:*")

    assert b"ann" not in name
    assert 0 < await redis.pttl(name) <= 60_000
    await forget_tries(redis, "login-as", "ann@example.com")
    assert await redis.keys("throttle:*") == []


async def test_who_is_stopped_by_one_bound_uses_up_no_other(redis: Redis) -> None:
    for _ in range(3):
        with pytest.raises(RateLimited):
            for _ in range(3):
                await count_try(redis, [("login", "1.2.3.4", 1), ("login-as", "ann@example.com", 2)])

    await count_try(redis, [("login", "5.6.7.8", 1), ("login-as", "ann@example.com", 2)])


async def test_hashing_holds_up_nothing_and_is_bounded() -> None:
    passwords = Passwords(threads=1, queue_most=2)
    gaps, stop = [], asyncio.Event()

    async def watch() -> None:
        while not stop.is_set():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - before)

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(*(passwords.hash(PASSWORD) for _ in range(5)), return_exceptions=True)
    stop.set()
    await watching
    passwords.close()

    assert [isinstance(answer, RateLimited) for answer in answers] == [False] * 3 + [True] * 2
    assert sorted(gaps)[int(len(gaps) * 0.99)] < 0.05


async def test_a_password_matches_its_own_hash_only() -> None:
    passwords = Passwords(threads=1, queue_most=2)
    known = hash_password(PASSWORD)

    assert known.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.matches(PASSWORD, known)
    assert not await passwords.matches(PASSWORD + "x", known)
    assert not await passwords.matches(PASSWORD, None)
    assert not await passwords.matches(PASSWORD, "no hash at all")
    passwords.close()


async def test_nobody_takes_as_long_as_somebody() -> None:
    passwords = Passwords(threads=1, queue_most=2)
    known = hash_password(PASSWORD)
    took: dict[bool, list[float]] = {True: [], False: []}

    for _ in range(8):
        for there in (True, False):
            before = time.process_time()
            await passwords.matches("a wrong guess", known if there else None)
            took[there].append(time.process_time() - before)

    passwords.close()
    assert 0.5 < min(took[True]) / min(took[False]) < 2
