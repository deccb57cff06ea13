"""Passwords: argon2id (RFC 9106) with OWASP's parameters, in threads of their own so that the event loop never waits.

One hash takes about 40 ms and 19 MiB. Its threads and its queue are bounded: whoever comes to a full queue is told to
slow down.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from shared.errors import RateLimited

PASSWORD_CHARACTERS_LEAST: Final = 8
PASSWORD_CHARACTERS_MOST: Final = 256
MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2
LANES: Final = 1

# Of no password: what is compared for an unknown e-mail address, so that it takes as long as for a known one.
NOBODYS_HASH: Final = f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${'A' * 22}${'A' * 43}"

_HASHER: Final = argon2.PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)

ResultT = TypeVar("ResultT")


class Passwords:
    """Hashes and compares; close it."""

    def __init__(self, *, threads: int, queue_most: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="password")
        self._most = threads + queue_most
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Return what is stored of a password. Raises RateLimited where too many wait."""
        return await self._run(lambda: hash_password(password))

    async def matches(self, password: str, password_hash: str | None) -> bool:
        """Tell whether it is the password of that hash; None: of nobody, which takes as long. Raises RateLimited."""
        same = await self._run(lambda: _verify(password, password_hash or NOBODYS_HASH))
        return same and password_hash is not None

    def close(self) -> None:
        """Let go of the threads; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        if self._waiting >= self._most:
            raise RateLimited("Rate limit reached: too many logins at once. Retry shortly.", retry_after_seconds=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1


def hash_password(password: str) -> str:
    """Return what is stored of a password; takes long, see above."""
    return _HASHER.hash(password)


def _verify(password: str, password_hash: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
