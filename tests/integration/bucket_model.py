"""A limit per minute that remembers every take and replays them all, and the script that must agree with it."""

from pathlib import Path
from types import TracebackType

import msgspec
import redis as redis_client

from shared import keys

UNIT = 60_000  # parts of a token: a limit of N per minute drains N parts per millisecond
SOURCE = (Path(__file__).parents[2] / "shared" / "limits.lua").read_text()
HOLDER = "key_model"


class BucketModel:
    """What is taken, with the moments; a correction changes the past. `now` is milliseconds."""

    def __init__(self, limit: int) -> None:
        self.now = 0
        self._limit = limit
        self._takes: list[list[int]] = []  # moment, tokens

    def level(self) -> int:
        """Return what has not drained, in parts: the takes replayed from the beginning."""
        level = at = 0
        for moment, tokens in self._takes:
            level = max(0, level - (moment - at) * self._limit) + tokens * UNIT
            at = moment
        return max(0, level - (self.now - at) * self._limit)

    def has_room(self, tokens: int) -> bool:
        return self.level() + tokens * UNIT <= self._limit * UNIT

    def take(self, tokens: int) -> int:
        self._takes.append([self.now, tokens])
        return len(self._takes) - 1

    def correct(self, index: int, tokens: int) -> None:
        self._takes[index][1] = tokens


class Script:
    """The real script on one holder; time passes by moving its bucket into the past."""

    def __init__(self, url: str, limit: int) -> None:
        self._client = redis_client.Redis.from_url(url)
        self._limit = limit
        self._name = keys.minute_tokens(HOLDER)
        self._frozen = SOURCE.replace("call('TIME')", "{ '1800000000', ARGV[5] }")
        assert self._frozen != SOURCE
        self._now_ms = 0

    def __enter__(self) -> "Script":
        self._client.delete(self._name)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.close()

    def pass_time(self, milliseconds: int) -> None:
        self._now_ms += milliseconds

    def take(self, tokens: int) -> tuple[int, int]:
        """Return the verdict and the mark."""
        answer = self._run([1, "request", tokens, HOLDER, 0, self._limit, 0])
        return answer[0], answer[-1]

    def give_back(self, tokens: int, mark: int) -> None:
        self._run([4, "", tokens, HOLDER, 0, self._limit, mark])

    def level(self) -> int:
        kept = self._client.get(self._name)
        if kept is None:
            return 0
        level, at = msgspec.msgpack.decode(kept)[:2]
        return max(0, int(level) - (1_800_000_000_000 + self._now_ms - int(at)) * self._limit)

    def _run(self, operation: list[str | int]) -> list[int]:
        answers = self._client.eval(
            self._frozen,
            4,
            keys.slots(""),
            keys.minute_requests(""),
            keys.minute_tokens(""),
            "unused",
            8000,
            60_000,
            "",
            msgspec.msgpack.encode([operation]),
            self._now_ms * 1000,
        )
        self._client.persist(self._name)
        return list(answers[0]) if isinstance(answers[0], list) else [answers[0]]
