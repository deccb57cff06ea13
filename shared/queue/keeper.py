"""Keeps what a worker claimed: renews the leases, and gives claims back without a death being counted."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from shared import keys
from shared.connections import Redis
from shared.queue.claims import Claim
from shared.queue.scripts import Argument, Script, milliseconds, script_keys
from shared.settings import QueueSettings

_BEAT = Script("beat")
_RELEASE = Script("release", "requeue")


class Beat(msgspec.Struct, frozen=True):
    """What Redis says of one running claim."""

    claim: Claim
    holds: bool  # the fence is still ours
    cancel: str | None
    reader: str


class Keeper:
    """The lease half of a worker."""

    def __init__(self, redis: Redis, settings: QueueSettings, owner: str) -> None:
        self._redis = redis
        self._settings = settings
        self._owner = owner

    async def beat(self, claims: Iterable[Claim]) -> list[Beat]:
        """Renew the leases of `claims`."""
        by_model: defaultdict[str, list[Claim]] = defaultdict(list)
        for claim in claims:
            by_model[claim.job.model].append(claim)
        beats = []
        for model, held in by_model.items():
            arguments: list[Argument] = [
                keys.job_id(model, ""),
                self._owner,
                milliseconds(self._settings.lease_seconds),
            ]
            for claim in held:
                arguments += (claim.job.request_id, claim.attempt)
            answers = await _BEAT.run(self._redis, script_keys(model), arguments)
            for index, claim in enumerate(held):
                holds, cancel, reader = answers[3 * index : 3 * index + 3]
                beats.append(Beat(claim, bool(holds), cancel.decode() or None, reader.decode()))
        return beats

    async def release(self, model: str, fences: Sequence[tuple[str, int]]) -> list[str]:
        """Give claimed jobs, as (request id, attempt), back to the queue's front: released, fenced or gone each."""
        if not fences:
            return []
        arguments: list[Argument] = [
            keys.job_id(model, ""),
            self._owner,
            milliseconds(self._settings.next_token_seconds),
        ]
        for fence in fences:
            arguments += fence
        answers = await _RELEASE.run(self._redis, script_keys(model), arguments)
        return [answer.decode() for answer in answers]

    async def release_claims(self, claims: Iterable[Claim]) -> int:
        """Give `claims` back; return how many were still ours."""
        by_model: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for claim in claims:
            by_model[claim.job.model].append((claim.job.request_id, claim.attempt))
        released = 0
        for model, fences in by_model.items():
            released += (await self.release(model, fences)).count("released")
        return released
