"""How often somebody may try: logins and registrations, counted over all API nodes in windows of a minute.

Called by `api/accounts.py`. A try counts before it is looked at, so that a burst is stopped while it runs. What cannot
be counted is not let through.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared import keys
from shared.connections import Redis, redis_errors
from shared.errors import RateLimited

WINDOW_SECONDS: Final = 60.0

_SCRIPT: Final = (Path(__file__).parent / "throttle.lua").read_text()

Caller = tuple[str, str, int]  # what is tried, by whom, and how often in a window; 0: no bound


async def count_try(redis: Redis, callers: Sequence[Caller]) -> None:
    """Count one try for each of `callers` until one has none left. Raises RateLimited and DependencyUnavailable."""
    bounded = [(_counter(what, who), most) for what, who, most in callers if most > 0]
    if not bounded:
        return
    with redis_errors():
        wait_ms = await redis.execute_command(  # type: ignore[no-untyped-call]
            "EVAL",
            _SCRIPT,
            len(bounded),
            *(counter for counter, _ in bounded),
            int(WINDOW_SECONDS * 1000),
            *(most for _, most in bounded),
        )
    if wait_ms:
        seconds = -(-int(wait_ms) // 1000)
        message = f"Rate limit reached: too many tries. Try again in {seconds} seconds."
        raise RateLimited(message, retry_after_seconds=seconds)


async def forget_tries(redis: Redis, what: str, who: str) -> None:
    """Give somebody all tries back. Raises DependencyUnavailable."""
    with redis_errors():
        await redis.delete(_counter(what, who))


def _counter(what: str, who: str) -> str:
    """Return the name of a counter; an e-mail address does not stand in it."""
    return keys.throttle(what, hashlib.sha256(who.encode()).hexdigest()[:32])
