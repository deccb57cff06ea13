"""The settlement queue: one stream of sealed Finish records per model, read by a group, kept until acknowledged.

Called by the settlement worker, and by operators for the dead letters. A record may be delivered more than once:
settling is idempotent by request id.
"""

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
from redis import exceptions as redis_exceptions

from shared import keys, log
from shared.connections import Redis, redis_errors
from shared.queue.scripts import Script, script_keys
from shared.settings import SettlementSettings

DEAD_LETTERS_MOST: Final = 10_000
PRUNE_SECONDS: Final = 60.0
IDLE_CONSUMERS: Final = 20  # times `settle_idle_ms` after which a consumer with nothing pending is removed

_REPLAY: Final = Script("replay")

logger = log.get_logger("settlements")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One sealed Finish."""

    model: str
    entry_id: bytes
    payload: bytes
    deliveries: int  # from 1


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that could not be settled (`kind` finish) or run (`kind` job)."""

    model: str
    entry_id: bytes
    payload: bytes
    kind: str
    reason: str
    of: str  # a job's request id, a record's entry id in the settlement queue
    dead_ms: int  # Unix milliseconds


class SettlementQueue:
    """One reader; its consumer name is new at each start, so what a dead one left is taken over once idle."""

    # Invariant: `_held` was delivered to this consumer, is unacknowledged and was not yet returned by `read`.

    def __init__(self, redis: Redis, settings: SettlementSettings) -> None:
        self._redis = redis
        self._settings = settings
        self._held: deque[Record] = deque()
        self._grouped: set[str] = set()
        self._own_pending_first = True  # a reply that was lost left records to this consumer
        self._take_over_at = 0.0
        self._prune_at = 0.0

    async def read(self, models: Sequence[str], consumer: str, *, most: int, block_ms: int) -> list[Record]:
        """Return up to `most` records, waiting `block_ms` for the first; empty where there are none.

        Raises DependencyUnavailable; then what was on its way is read again first.
        """
        if not models:
            return []
        if not self._held:
            try:
                with redis_errors():
                    await self._fill(models, consumer, most=most, block_ms=block_ms)
            except BaseException:
                self._own_pending_first = True
                raise
        return [self._held.popleft() for _ in range(min(most, len(self._held)))]

    async def acknowledge(self, records: Sequence[Record]) -> None:
        """Forget settled records. Raises DependencyUnavailable; then they come again."""
        if not records:
            return
        by_model: defaultdict[str, list[bytes]] = defaultdict(list)
        for record in records:
            by_model[record.model].append(record.entry_id)
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for model, entry_ids in by_model.items():
                    pipeline.xack(keys.settlement(model), keys.SETTLEMENT_GROUP, *entry_ids)
                    pipeline.xdel(keys.settlement(model), *entry_ids)
                await pipeline.execute()

    async def dead_letter(self, record: Record, reason: str) -> None:
        """Put a record that cannot be settled aside, in one step. Raises DependencyUnavailable."""
        logger.error("dead_letter", model=record.model, reason=reason, deliveries=record.deliveries)
        stream = keys.settlement(record.model)
        fields = {"f": record.payload, "kind": "finish", "reason": reason, "of": record.entry_id}
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.xadd(
                    keys.dead_letters(record.model),
                    cast("dict[Any, Any]", fields),
                    maxlen=DEAD_LETTERS_MOST,
                    approximate=True,
                )
                pipeline.xack(stream, keys.SETTLEMENT_GROUP, record.entry_id)
                pipeline.xdel(stream, record.entry_id)
                await pipeline.execute()

    async def dead_letters(
        self, model: str, *, most: int = 100, first: bytes = b"-", last: bytes = b"+"
    ) -> list[DeadLetter]:
        """Return the oldest dead letters of a model, of entry ids `first` to `last`. Raises DependencyUnavailable.

        Ids are as XRANGE takes them: `-` and `+` are the ends, `(` in front leaves the id itself out.
        """
        with redis_errors():
            entries = await self._redis.xrange(keys.dead_letters(model), min=first, max=last, count=most)
        return [_dead_letter(model, entry_id, fields) for entry_id, fields in entries]

    async def newest_dead_letter(self, model: str) -> bytes | None:
        """Return the entry id of a model's newest dead letter; None without any. Raises DependencyUnavailable."""
        with redis_errors():
            entries = await self._redis.xrevrange(keys.dead_letters(model), count=1)
        return entries[0][0] if entries else None

    async def replay(self, model: str, entry_ids: Sequence[bytes]) -> int:
        """Put dead letters of kind finish back into the queue; return how many. Raises DependencyUnavailable.

        Safe to repeat: a letter leaves in the step that puts its record back, and a record is charged once.
        """
        if not entry_ids:
            return 0
        names = (*script_keys(model), keys.dead_letters(model), keys.settlement(model))
        with redis_errors():
            return int(await _REPLAY.run(self._redis, names, (keys.job_id(model, ""), *entry_ids)))

    async def backlog(self, models: Sequence[str]) -> int:
        """Return how many records are not acknowledged, read or not. Raises DependencyUnavailable."""
        if not models:
            return 0
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for model in models:
                    pipeline.xlen(keys.settlement(model))
                return sum(await pipeline.execute())

    async def lag_seconds(self, models: Sequence[str]) -> float:
        """Return the age of the oldest record that is not acknowledged; 0 without any. Raises DependencyUnavailable."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                for model in models:
                    pipeline.xrange(keys.settlement(model), count=1)
                (seconds, microseconds), *found = await pipeline.execute()
        oldest = [_made_ms(entries[0][0]) for entries in found if entries]
        return max(0.0, seconds + microseconds / 1e6 - min(oldest) / 1000) if oldest else 0.0

    async def _fill(self, models: Sequence[str], consumer: str, *, most: int, block_ms: int) -> None:
        await self._open_groups(models)
        try:
            if self._own_pending_first:
                await self._read_streams(models, consumer, most=most, block_ms=None, after="0")
                self._own_pending_first = bool(self._held)
            now = time.monotonic()
            if not self._held and now >= self._take_over_at:
                self._take_over_at = now + self._settings.settle_idle_ms / 3000
                await self._take_over(models, consumer, most=most)
            if not self._held:
                await self._read_streams(models, consumer, most=most, block_ms=block_ms, after=">")
            if now >= self._prune_at:
                self._prune_at = now + PRUNE_SECONDS
                await self._prune(models, consumer)
        except redis_exceptions.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._grouped.clear()  # Redis lost its data: the next call makes the groups again

    async def _open_groups(self, models: Sequence[str]) -> None:
        for model in models:
            if model in self._grouped:
                continue
            try:
                await self._redis.xgroup_create(keys.settlement(model), keys.SETTLEMENT_GROUP, id="0", mkstream=True)
            except redis_exceptions.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            self._grouped.add(model)

    async def _read_streams(
        self, models: Sequence[str], consumer: str, *, most: int, block_ms: int | None, after: str
    ) -> None:
        names = {keys.settlement(model): model for model in models}
        found = await self._redis.xreadgroup(
            keys.SETTLEMENT_GROUP,
            consumer,
            dict.fromkeys(names, after),
            count=most,
            block=block_ms,
        )
        for name, entries in found:
            model = names[name.decode()]
            deliveries = {} if after == ">" else await self._deliveries(model, consumer, most)
            await self._hold(model, consumer, entries, deliveries)

    async def _take_over(self, models: Sequence[str], consumer: str, *, most: int) -> None:
        for model in models:
            _, entries, *_ = await self._redis.xautoclaim(
                keys.settlement(model), keys.SETTLEMENT_GROUP, consumer, self._settings.settle_idle_ms, count=most
            )
            if entries:
                logger.warning("records_taken_over", model=model, records=len(entries))
                await self._hold(model, consumer, entries, await self._deliveries(model, consumer, most))

    async def _deliveries(self, model: str, consumer: str, most: int) -> dict[bytes, int]:
        pending = await self._redis.xpending_range(
            keys.settlement(model), keys.SETTLEMENT_GROUP, min="-", max="+", count=most, consumername=consumer
        )
        return {entry["message_id"]: entry["times_delivered"] for entry in pending}

    async def _hold(self, model: str, consumer: str, entries: Sequence[Any], deliveries: dict[bytes, int]) -> None:
        deleted = []
        for entry_id, fields in entries:
            if not fields or b"f" not in fields:  # trimmed or deleted behind the group's back
                if entry_id is not None:
                    deleted.append(entry_id)
                continue
            self._held.append(
                Record(model=model, entry_id=entry_id, payload=fields[b"f"], deliveries=deliveries.get(entry_id, 1))
            )
        if deleted:
            await self._redis.xack(keys.settlement(model), keys.SETTLEMENT_GROUP, *deleted)

    async def _prune(self, models: Sequence[str], consumer: str) -> None:
        idle_most = IDLE_CONSUMERS * self._settings.settle_idle_ms
        for model in models:
            stream = keys.settlement(model)
            for each in await self._redis.xinfo_consumers(stream, keys.SETTLEMENT_GROUP):
                if each["name"] != consumer.encode() and each["pending"] == 0 and each["idle"] > idle_most:
                    await self._redis.xgroup_delconsumer(stream, keys.SETTLEMENT_GROUP, each["name"])


def _dead_letter(model: str, entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        model=model,
        entry_id=entry_id,
        payload=fields.get(b"f", b""),
        kind=fields.get(b"kind", b"finish").decode(errors="replace"),
        reason=fields.get(b"reason", b"").decode(errors="replace"),
        of=fields.get(b"of", b"").decode(errors="replace"),
        dead_ms=_made_ms(entry_id),
    )


def _made_ms(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])
