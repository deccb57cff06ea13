"""C10: passwords are hashed and large bodies decoded beside the event loop, which goes on serving."""

import asyncio
import http.client
import json
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from shared.connections import Database, Redis
from shared.database.audit import audit
from shared.settings import Settings
from tests.integration.session_rig import AUTH, MODEL_ID, PASSWORD, Site, new_email, open_site, with_sessions

TICK_SECONDS = 0.005
LOADED_SECONDS = 3.0
LAG_SECONDS_MOST = 0.05
BODY_BYTES = 1_900_000
LOGINS = 6  # clients at once
BODIES = 3


async def test_c10_the_event_loop_turns_while_passwords_are_hashed_and_large_bodies_decoded(
    settings: Settings, database: Database, redis: Redis
) -> None:
    unlimited = with_sessions(settings, api={"key_rpm": 0}, login_address_rpm=0, login_email_rpm=0)
    async with open_site(unlimited, database) as site:
        browser = site.browser()
        email = new_email()
        await browser.register(email)
        key = await site.key()  # of an account without credits: refused once its body is decoded and bounded
        credentials = json.dumps({"email": email, "password": PASSWORD}).encode()
        body = {
            "model": MODEL_ID,
            "messages": [{"role": "user", "content": "\u0958" * (BODY_BYTES // 3)}],
            "max_tokens": 5,
        }
        large = json.dumps(body, ensure_ascii=False).encode()
        same_site = {"origin": browser.origin, "sec-fetch-site": "same-origin"}
        statuses: dict[str, list[int]] = {"login": [], "body": []}

        def login() -> None:
            statuses["login"].append(_post(site, f"{AUTH}/login", credentials, same_site))

        def complete() -> None:
            sent = _post(site, "/v1/chat/completions", large, {"authorization": f"Bearer {key}"})
            statuses["body"].append(sent)

        async with _loaded(*[login] * LOGINS, *[complete] * BODIES):
            lags = await _lags(LOADED_SECONDS)
        served = (await browser.login(email)).status_code

    assert set(statuses["login"]) == {200} and len(statuses["login"]) >= 5
    assert set(statuses["body"]) <= {400, 402} and len(statuses["body"]) >= 5
    assert statistics.quantiles(lags, n=100)[98] < LAG_SECONDS_MOST
    assert served == 200
    async with database.acquire() as connection:
        assert await audit(connection, quiesced=True) == []
    assert await redis.ping()


async def _lags(seconds: float) -> list[float]:
    """Return by how much each tick came late through work of the event loop's own thread.

    The lesser of the delay and the CPU seconds of that thread: on a busy machine it is late without doing anything.
    """
    lags: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began, used = time.monotonic(), time.thread_time()
        await asyncio.sleep(TICK_SECONDS)
        late = time.monotonic() - began - TICK_SECONDS
        lags.append(max(0.0, min(late, time.thread_time() - used)))
    return lags


@asynccontextmanager
async def _loaded(*works: Callable[[], None]) -> AsyncIterator[None]:
    """Do each work over and over, in a thread of its own, until the block ends."""
    ended = threading.Event()

    def repeat(work: Callable[[], None]) -> None:
        while not ended.is_set():
            work()

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(len(works)) as pool:  # its own: the product may need the loop's
        tasks = [loop.run_in_executor(pool, repeat, work) for work in works]
        try:
            yield
        finally:
            ended.set()
            await asyncio.gather(*tasks)


def _post(site: Site, path: str, content: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", site.ports[0], timeout=20)
    try:
        connection.request("POST", path, content, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()
