"""The supervisor's decisions, on servers that are told when to die."""

from pathlib import Path

import pytest

from compose import supervisor as module
from compose.errors import StartFailed
from compose.supervisor import BACKOFF_SECONDS_MOST, Supervised, Supervisor


class PuppetServer:
    """Runs until told otherwise."""

    def __init__(self) -> None:
        self.pid = 100
        self.running = False
        self.exit_code: int | None = None
        self.starts = 0
        self.refuses = False
        self.stopped: list[str] = []

    def start(self) -> None:
        if self.refuses:
            raise StartFailed("no")
        self.starts += 1
        self.pid += 1
        self.running, self.exit_code = True, None

    def die(self, exit_code: int = -9) -> None:
        self.running, self.exit_code = False, exit_code

    def stop(self) -> bool:
        self.running = False
        return True


class PuppetTime:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> PuppetTime:
    puppet = PuppetTime()
    monkeypatch.setattr(module, "time", puppet)
    return puppet


class Stage:
    """A supervisor with one server, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.changes = 0
        self.server = PuppetServer()
        self.supervisor = Supervisor(changed=self._count, say=self.said.append)
        self.supervised = Supervised("worker", 0, self.server, log=folder / "logs" / "worker-0.log")
        self.supervisor.start(self.supervised)

    def _count(self) -> None:
        self.changes += 1


@pytest.fixture
def stage(tmp_path: Path, time: PuppetTime) -> Stage:
    return Stage(tmp_path)


def test_a_living_server_is_left_alone(stage: Stage, time: PuppetTime) -> None:
    for _ in range(5):
        time.now += 60
        stage.supervisor.tick()

    assert (stage.server.starts, stage.said, stage.changes) == (1, [], 0)


def test_a_dead_server_starts_again_and_says_what_ended_it(stage: Stage, time: PuppetTime) -> None:
    stage.server.die(-9)
    stage.supervisor.tick()
    time.now += module.BACKOFF_SECONDS
    stage.supervisor.tick()

    assert (stage.server.starts, stage.server.running, stage.changes) == (2, True, 1)
    assert "worker-0 was ended by SIGKILL" in stage.said[0]


def test_each_death_in_a_row_waits_twice_as_long_up_to_a_most(stage: Stage, time: PuppetTime) -> None:
    delays = []
    for _ in range(9):
        stage.server.die(1)
        stage.supervisor.tick()
        assert stage.supervised.start_again_at is not None
        delays.append(round(stage.supervised.start_again_at - time.now, 6))
        time.now = stage.supervised.start_again_at
        stage.supervisor.tick()

    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, BACKOFF_SECONDS_MOST, BACKOFF_SECONDS_MOST, BACKOFF_SECONDS_MOST]


def test_a_steady_life_forgets_earlier_deaths(stage: Stage, time: PuppetTime) -> None:
    stage.server.die()
    stage.supervisor.tick()
    time.now += 1
    stage.supervisor.tick()
    time.now += module.STEADY_SECONDS
    stage.supervisor.tick()

    assert stage.supervised.deaths == 0


def test_a_start_that_fails_is_tried_again(stage: Stage, time: PuppetTime) -> None:
    stage.server.die()
    stage.supervisor.tick()
    stage.server.refuses = True
    time.now += 1
    stage.supervisor.tick()
    stage.server.refuses = False
    time.now += BACKOFF_SECONDS_MOST
    stage.supervisor.tick()

    assert stage.server.running
    assert stage.said[1] == "worker-0: no"


def test_a_stopped_role_is_not_started_again(stage: Stage, time: PuppetTime) -> None:
    stage.supervisor.stop("worker")
    time.now += 100
    stage.supervisor.tick()

    assert (stage.server.starts, list(stage.supervisor.all)) == (1, [])


def test_a_first_start_that_fails_reaches_the_caller(tmp_path: Path) -> None:
    server = PuppetServer()
    server.refuses = True
    supervisor = Supervisor(changed=lambda: None, say=lambda _: None)

    with pytest.raises(StartFailed):
        supervisor.start(Supervised("api", 0, server, log=tmp_path / "api.log"))
    assert list(supervisor.all) == []


def test_a_log_that_grew_too_long_is_cut_and_kept_once(
    stage: Stage, time: PuppetTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_BYTES_MOST", 10)
    log = stage.supervised.log
    with log.open("ab") as writer:
        writer.write(b"0123456789ABC")
        writer.flush()

        time.now += module.LOG_CHECK_SECONDS
        stage.supervisor.tick()
        writer.write(b"later")

    assert (log.read_bytes(), log.with_suffix(".1.log").read_bytes()) == (b"later", b"0123456789ABC")
