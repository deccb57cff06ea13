"""CancelToken, the job's format, and who is taken for a reader that has gone."""

from typing import Any

import pytest

from shared import keys
from shared.errors import SealInvalid
from shared.queue.claims import CancelToken
from shared.queue.job_format import JobFormat
from shared.queue.readers import ReaderWatch
from shared.settings import QueueSettings
from shared.wire import SEAL_BYTES, Seal
from tests.integration.queue_rig import MODEL, SEAL, a_job


def test_a_token_starts_without_a_code() -> None:
    assert CancelToken().code is None


def test_the_first_code_wins_and_calls_back_once() -> None:
    token, heard = CancelToken(), []
    token.on_cancel(heard.append)

    token.set("request_cancelled")
    token.set("fence_lost")

    assert token.code == "request_cancelled"
    assert heard == ["request_cancelled"]


def test_a_callback_that_comes_late_is_called_at_once() -> None:
    token, heard = CancelToken(), []
    token.set("no_reader")

    token.on_cancel(heard.append)

    assert heard == ["no_reader"]


def test_a_job_is_read_as_it_was_written() -> None:
    job = a_job()
    job_format = JobFormat(SEAL)

    assert job_format.read(job_format.write(job), model=MODEL, request_id=job.request_id) == job


def test_any_changed_byte_breaks_the_seal() -> None:
    job = a_job()
    job_format = JobFormat(SEAL)
    sealed = job_format.write(job)

    for position in range(0, len(sealed), 7):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(SealInvalid):
            job_format.read(bytes(changed), model=MODEL, request_id=job.request_id)


@pytest.mark.parametrize("sealed", [b"", b"short", b"\0" * SEAL_BYTES, b"\x80\x04\x95" + b"\0" * 40])
def test_what_we_did_not_write_is_not_read(sealed: bytes) -> None:
    with pytest.raises(SealInvalid):
        JobFormat(SEAL).read(sealed, model=MODEL, request_id="chatcmpl-x")


@pytest.mark.parametrize("payload", [b"\xc0", b"\x90", b"\x80", b"\x81\xa1a\x90", b"\xc1"])
def test_sealed_nonsense_is_refused_without_another_error(payload: bytes) -> None:
    with pytest.raises(SealInvalid):
        JobFormat(SEAL).read(SEAL.close(payload), model=MODEL, request_id="chatcmpl-x")


def test_a_job_of_another_version_is_refused() -> None:
    job = a_job(version=2)

    with pytest.raises(SealInvalid, match="version"):
        JobFormat(SEAL).read(JobFormat(SEAL).write(job), model=MODEL, request_id=job.request_id)


def test_a_job_under_another_wire_key_is_refused() -> None:
    job = a_job()

    with pytest.raises(SealInvalid):
        JobFormat(SEAL).read(JobFormat(Seal(b"o" * 32)).write(job), model=MODEL, request_id=job.request_id)


class FakeClock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return int(self.now * 1000)


class FakeNodes:
    """A Redis that only knows how long the keys of nodes still live, in ms; -2 without a key."""

    def __init__(self) -> None:
        self.left_ms: dict[str, int] = {}
        self._asked: list[str] = []

    def pipeline(self, *, transaction: bool) -> "FakeNodes":
        self._asked = []
        return self

    async def __aenter__(self) -> "FakeNodes":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def pttl(self, name: str) -> None:
        self._asked.append(name)

    async def execute(self) -> list[int]:
        return [self.left_ms.get(name, -2) for name in self._asked]


class Watch:
    """A ReaderWatch over fakes: node lease 8 s, given up after 10 s."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.nodes = FakeNodes()
        fake: Any = self.nodes
        self._watch = ReaderWatch(fake, QueueSettings(), self.clock)

    async def look(self, *readers: str, left_ms: int = -2, after: float = 0.0) -> set[str]:
        self.clock.now += after
        self.nodes.left_ms = {keys.node(reader): left_ms for reader in readers}
        return await self._watch.look(set(readers))

    @property
    def seconds_to_limit(self) -> float:
        return self._watch.seconds_to_limit()

    def forget(self) -> None:
        self._watch.forget()


async def test_a_reader_with_a_key_is_alive() -> None:
    watch = Watch()

    assert await watch.look("node", left_ms=7000) == set()
    assert await watch.look("node", left_ms=1, after=100) == set()


async def test_a_reader_is_given_up_ten_seconds_after_its_last_sign_of_life() -> None:
    watch = Watch()
    await watch.look("node", left_ms=6500)  # refreshed 1.5 s ago

    assert await watch.look("node", after=8.4) == set()
    assert watch.seconds_to_limit == pytest.approx(0.1)
    assert await watch.look("node", after=0.2) == {"node"}


async def test_a_reader_that_was_never_seen_counts_from_the_first_look() -> None:
    watch = Watch()

    assert await watch.look("node") == set()
    assert await watch.look("node", after=9.9) == set()
    assert await watch.look("node", after=0.2) == {"node"}


async def test_a_reader_that_came_back_is_alive_again() -> None:
    watch = Watch()
    await watch.look("node")

    assert await watch.look("node", left_ms=8000, after=20) == set()
    assert await watch.look("node", after=9) == set()


async def test_nobody_is_given_up_for_the_time_that_redis_was_away() -> None:
    watch = Watch()
    await watch.look("node", left_ms=8000)

    watch.forget()

    assert await watch.look("node", after=60) == set()


async def test_readers_that_nobody_asks_for_are_forgotten() -> None:
    watch = Watch()
    await watch.look("one", "two")

    await watch.look("two", after=1)
    await watch.look()

    assert watch.seconds_to_limit == float("inf")
