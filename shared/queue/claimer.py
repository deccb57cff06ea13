"""Takes jobs from the queue for one worker: waits for a wake token and claims in the same round trip."""

import asyncio
from collections.abc import Collection, Sequence

import msgspec

from shared import keys
from shared.connections import Redis
from shared.queue.claims import Claim, ClaimReader
from shared.queue.keeper import Keeper
from shared.queue.line import Line
from shared.queue.room import Room
from shared.queue.scripts import Argument, Script, fair_keys, milliseconds
from shared.settings import QueueSettings

_CLAIM = Script("claim", "take")


class Claimed(msgspec.Struct, frozen=True):
    """What one call of claim.lua brought."""

    claims: list[Claim]
    more: bool  # jobs are left that this worker could claim at once
    batch_waits: bool  # nothing but batch jobs is left, and no spare slot for them
    suspects_wait: bool
    cleared: set[str]  # held suspects that proved harmless
    woken: str | None  # the list that gave a wake token


class Claimer:
    """The claiming half of a worker."""

    def __init__(self, redis: Redis, reader: ClaimReader, settings: QueueSettings, owner: str) -> None:
        self._redis = redis
        self._line = Line(redis)
        self._reader = reader
        self._settings = settings
        self._owner = owner

    async def claim(
        self,
        model: str,
        *,
        room: Room,
        held: Collection[str],
        wake: Sequence[str] = (),
        wait_seconds: float = 0.0,
    ) -> Claimed:
        """Claim jobs of `model` as `room` allows; where `wake` names lists, first wait for a token on one of them.

        BLPOP and EVALSHA go out as one write: Redis runs the second once the first was answered or timed out.
        """
        command = _CLAIM.command(fair_keys(model), self._arguments(model, room, held))
        before = (("BLPOP", *wake, str(wait_seconds)),) if wake else ()
        async with asyncio.timeout(wait_seconds + self._settings.lease_seconds / 2):
            *waited, (left, suspects, cleared, rows) = await self._line.run_all(_CLAIM, *before, command)
            claims = await self._reader.read(model, rows) if rows else []
        woken = waited[0][0].decode() if waited and waited[0] else None
        return Claimed(claims, left == 1, left == 2, bool(suspects), {held_id.decode() for held_id in cleared}, woken)

    async def return_strays(self, models: Sequence[str], *, known: Collection[str], keeper: Keeper) -> int:
        """Give back what Redis says this worker holds and the worker does not know: the reply of its claim was lost."""
        returned = 0
        for model in models:
            prefix = len(keys.job_id(model, ""))
            members = await self._redis.zrange(keys.leases(model), 0, -1)
            unknown = [name for member in members if (name := member.decode()[prefix:]) not in known]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for request_id in unknown:
                    pipeline.hmget(keys.state(model, request_id), ["owner", "attempt"])
                found = await pipeline.execute() if unknown else []
            strays = [
                (request_id, int(attempt))
                for request_id, (owner, attempt) in zip(unknown, found, strict=True)
                if owner is not None and owner.decode() == self._owner
            ]
            await keeper.release(model, strays)
            returned += len(strays)
        return returned

    async def close(self) -> None:
        """Close the connection."""
        await self._line.close()

    def _arguments(self, model: str, room: Room, held: Collection[str]) -> tuple[Argument, ...]:
        settings = self._settings
        return (
            keys.job_id(model, ""),
            self._owner,
            room.most,
            milliseconds(settings.lease_seconds),
            milliseconds(settings.run_seconds_most),
            milliseconds(settings.aged_seconds),
            room.spare_slots,
            *held,
        )
