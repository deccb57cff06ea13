"""arq's worker with leases: claims by script, beats, reaps, and hands over what it cannot finish.

Called by `workers/inference/worker.py`. Promises: a claim runs under a fence that no other owner holds; `run` learns
through `claim.cancel` why to stop; Redis may go away and come back; after `drain` nothing here is left claimed.
`run` must count the slot it takes before its first await, and write its end through a LogWriter: none is written here.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from signal import Signals
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from arq.connections import ArqRedis
from arq.worker import Worker, func

from shared import keys, log
from shared.clock import Clock, SystemClock
from shared.connections import Redis
from shared.crash_points import CrashPoints
from shared.queue.claimer import Claimer
from shared.queue.claims import FENCE_LOST, HANDED_OVER, CancelToken, Claim, ClaimReader
from shared.queue.job_format import FUNCTION, JobFormat
from shared.queue.keeper import Beat, Keeper
from shared.queue.readers import ReaderWatch
from shared.queue.reaper import Reaper
from shared.queue.room import Room, room_of
from shared.queue.running import Running, RunningClaims
from shared.queue.scripts import REDIS_FAILED
from shared.settings import QueueSettings
from shared.wire import Seal

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine

__all__ = ["FENCE_LOST", "HANDED_OVER", "CancelToken", "Claim", "LeasedWorker"]

RETRY_SECONDS: Final = 0.1
RETRY_SECONDS_MOST: Final = 1.0
SOON_SECONDS: Final = 0.05  # between looks at a held suspect while others wait, and for a slot that batch jobs may have
CANCEL_SECONDS_MOST: Final = 2.0  # for tasks to end once they were cancelled

DRAIN: Final = "drain"  # the code of the command that is not about one request

_decode_command: Final = msgspec.msgpack.Decoder(tuple[str, int, str]).decode

logger = log.get_logger("queue")


class LeasedWorker(Worker):
    """Runs claims of `models()` in `run`, as many as `free_slots(model)` allows; `main` runs until `drain`."""

    def __init__(
        self,
        *,
        redis: Redis,
        seal: Seal,
        settings: QueueSettings,
        owner: str,
        models: Callable[[], Sequence[str]],
        run: Callable[[Claim], Awaitable[None]],
        free_slots: Callable[[str], int],
        slots: Callable[[str], int] = lambda _: 0,
        crash: CrashPoints | None = None,
        clock: Clock | None = None,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        """`slots`: in all, some of which batch jobs leave free; 0: not known, none is.

        `on_drain`: an operator asks this worker to leave (`inferbase workers drain`).
        """
        job_format = JobFormat(seal)

        async def complete(_: dict[Any, Any], claim: Claim) -> None:
            await run(claim)

        super().__init__(
            functions=[func(cast("WorkerCoroutine", complete), name=FUNCTION)],
            redis_pool=ArqRedis(pool_or_conn=redis.connection_pool),
            handle_signals=False,
            keep_result=0,
            job_serializer=job_format.serialize,
            job_deserializer=job_format.deserialize,
            log_results=False,
        )
        self._redis = redis
        self._settings = settings
        self._owner = owner
        self._models = models
        self._run = run
        self._free_slots = free_slots
        self._slots = slots
        self._crash = crash or CrashPoints()
        self._clock = clock or SystemClock()
        self._running = RunningClaims(self.run_job, self.tasks)
        self._keeper = Keeper(redis, settings, owner)
        self._readers = ReaderWatch(redis, settings, self._clock)
        self.claims = ClaimReader(redis, seal, settings, owner)
        self.reaper = Reaper(redis, seal, settings, owner, reader=self.claims)
        self._claimer = Claimer(redis, self.claims, settings, owner)
        self._on_drain = on_drain
        self._claiming: asyncio.Task[None] | None = None
        self._to_return: list[Claim] = []  # they ran here when Redis went out of reach
        self._lost_reply = False  # a claim may have been answered without our reading it
        self._batch_waits = False  # and has no slot: nobody wakes this worker when one of its own becomes spare
        self._last_woken = ""  # the model whose jobs probably come next: claimed in the round trip of the wait
        self._reachable = True
        self._draining = False
        self._stopped = asyncio.Event()

    async def main(self) -> None:
        """Claim, beat, reap and listen until `drain` has ended."""
        async with asyncio.TaskGroup() as group:
            self._claiming = group.create_task(self._claim_loop())
            tasks = [group.create_task(loop()) for loop in (self._beat_loop, self._reap_loop, self._command_loop)]
            await self._stopped.wait()
            for task in (self._claiming, *tasks):
                task.cancel()
        await self._claimer.close()

    async def drain(self, seconds: float) -> None:
        """Claim nothing more, let what runs end within `seconds`, hand over the rest, and let `main` return."""
        self._draining = True
        self._running.freed.set()
        await self._wait_for_tasks(seconds)
        if self._claiming is not None:
            await asyncio.wait([self._claiming], timeout=self._settings.lease_seconds / 2)
        left = self._running.all()
        for running in left:
            running.stop(HANDED_OVER)
        await self._wait_for_tasks(CANCEL_SECONDS_MOST)
        await self._hand_over([running.claim for running in left])
        self._stopped.set()

    def cancelled(self, request_id: str, attempt: int) -> str | None:
        """Return the code by which a running claim was cancelled."""
        running = self._running.get(request_id)
        if running is None or running.claim.attempt != attempt:
            return None
        return running.claim.cancel.code

    def running(self, model: str) -> int:
        """Return how many claims of a model run here."""
        return sum(running.claim.job.model == model for running in self._running.all())

    # What arq calls, or would call.

    async def run_job(self, job_id: str, score: int) -> None:
        """Run one claim (`job_id`: request id, `score`: attempt): nothing is read from or written to Redis."""
        running = self._running.get(job_id)
        assert running is not None and running.claim.attempt == score
        await self._run(running.claim)

    async def finish_job(self, *_: Any, **__: Any) -> None:
        """Do nothing: FINISH and RELEASE end a job, under its fence."""

    def handle_sig(self, signum: Signals) -> None:
        """Hand everything over now; `main` returns."""
        self._signalled = self.loop.create_task(self.drain(0))

    def handle_sig_wait_for_completion(self, signum: Signals) -> None:
        """Drain for `job_completion_wait` seconds; `main` returns."""
        self._signalled = self.loop.create_task(self.drain(self._job_completion_wait))

    async def close(self) -> None:
        """Hand over what still runs; the Redis client belongs to its opener."""
        if not self._stopped.is_set():
            await self.drain(0)

    # The four loops.

    async def _claim_loop(self) -> None:
        more, suspects_wait, delay = False, False, RETRY_SECONDS
        turn = 0
        while not self._draining:
            free = [model for model in self._models() if self._free_slots(model) > 0]
            if not free:
                await self._wait_for_slot()
                continue
            turn += 1
            first = turn % len(free)
            try:
                if self._lost_reply:
                    await self._claimer.return_strays(free, known=self._running.ids(), keeper=self._keeper)
                    self._lost_reply = False
                more, suspects_wait = await self._claim([*free[first:], *free[:first]], more, suspects_wait)
                delay = RETRY_SECONDS
            except REDIS_FAILED as error:
                self._lost_reply, more = True, False
                self._note_failure("claim", error)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, RETRY_SECONDS_MOST)

    async def _claim(self, free: list[str], more: bool, suspects_wait: bool) -> tuple[bool, bool]:
        """Claim of the model that wakes this worker; of each in `free` where nothing wakes it or `more` is there."""
        held = self._running.suspects
        soon = self._batch_waits or (suspects_wait and held)
        wait = min(self._settings.poll_seconds, SOON_SECONDS) if soon else self._settings.poll_seconds
        wake = () if more else tuple(keys.wake(model) for model in free)
        more, suspects_wait, self._batch_waits = False, False, False
        left = deque(sorted(free, key=lambda model: model != self._last_woken))
        while left:
            model = left.popleft()
            room = self._room(model)
            if room.most == 0:
                continue
            claimed = await self._claimer.claim(model, room=room, held=held, wake=wake, wait_seconds=wait)
            held.difference_update(claimed.cleared)
            await self._start(claimed.claims)
            self._batch_waits = self._batch_waits or claimed.batch_waits
            more, suspects_wait, wake = more or claimed.more, suspects_wait or claimed.suspects_wait, ()
            if claimed.woken is not None:
                self._last_woken = next(each for each in free if keys.wake(each) == claimed.woken)
                left = deque([self._last_woken] if self._last_woken != model else [])
        return more, suspects_wait

    def _room(self, model: str) -> Room:
        load, slots = self._running.load(model), self._slots(model)
        peak = load.peak(self.loop.time()) if slots else 0
        return room_of(self._free_slots(model), slots, self._settings, peak=peak, batch=load.batch)

    async def _beat_loop(self) -> None:
        while True:
            try:
                await self._beat()
                self._reachable = True
                delay = min(self._settings.beat_seconds, max(RETRY_SECONDS, self._readers.seconds_to_limit()))
            except REDIS_FAILED as error:
                self._note_failure("beat", error)
                self._readers.forget()
                delay = RETRY_SECONDS
            self._stop_cut_off()
            await asyncio.sleep(delay)

    async def _reap_loop(self) -> None:
        while not self._draining:
            await asyncio.sleep(self._settings.reap_seconds * random.uniform(0.8, 1.2))
            if not self._reachable:  # our own leases come first
                continue
            try:
                for model in self._models():
                    await self._start(await self.reaper.reap(model))
            except REDIS_FAILED as error:
                self._lost_reply = True
                self._note_failure("reap", error)

    async def _command_loop(self) -> None:
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as commands:
                    await commands.subscribe(keys.commands(self._owner))
                    async for message in commands.listen():
                        self._obey(message["data"])
            except REDIS_FAILED as error:  # a command missed meanwhile is a flag that the next beat reads
                self._note_failure("listen", error)
            await asyncio.sleep(RETRY_SECONDS)

    # What the loops do.

    async def _start(self, claims: list[Claim]) -> None:
        if not claims:
            return
        self._crash.reach("after_claim")
        if self._draining:
            await self._keeper.release_claims(claims)
            return
        models = self._models()  # one may have been closed while its jobs were on their way here
        homeless = [claim for claim in claims if claim.close is None and claim.job.model not in models]
        if homeless:
            claims = [claim for claim in claims if claim.close is not None or claim.job.model in models]
        self._running.start(claims, lost=FENCE_LOST)
        await asyncio.sleep(0)  # each run takes its slot before anybody counts free ones
        if homeless:
            await self._keeper.release_claims(homeless)

    async def _wait_for_slot(self) -> None:
        self._running.freed.clear()
        try:
            async with asyncio.timeout(self._settings.poll_seconds):
                await self._running.freed.wait()
        except TimeoutError:
            pass

    async def _beat(self) -> None:
        running = self._running.all()
        if not running:
            self._readers.forget()  # else a reader of the past, never looked at again, would hurry every beat
            if not self._to_return:
                return
        sent_at = self.loop.time()
        async with asyncio.timeout(self._settings.beat_seconds / 2):
            by_claim = {id(each.claim): each for each in running}
            for beat in await self._keeper.beat(each.claim for each in running):
                self._apply(by_claim[id(beat.claim)], beat, sent_at)
            reading = [each for each in running if each.needs_reader]
            gone = await self._readers.look({each.reader for each in reading})
            for each in reading:
                if each.reader in gone:
                    each.claim.cancel.set("no_reader")
            if self._to_return:
                await self._keeper.release_claims(self._to_return)
                self._to_return.clear()

    def _apply(self, running: Running, beat: Beat, sent_at: float) -> None:
        if not beat.holds:
            running.stop(FENCE_LOST)
            return
        running.renewed_at = sent_at
        running.reader = beat.reader or running.reader
        if beat.cancel is not None:
            running.claim.cancel.set(beat.cancel)

    def _stop_cut_off(self) -> None:
        """Stop what could not be renewed for half a lease: before anybody else may claim it."""
        limit = self.loop.time() - self._settings.lease_seconds / 2
        late = [each for each in self._running.all() if each.renewed_at <= limit and not each.stopped]
        for each in late:
            each.stop(FENCE_LOST)
            self._to_return.append(each.claim)
        if late:
            logger.error("cut_off", claims=len(late))

    def _obey(self, message: bytes) -> None:
        try:
            request_id, attempt, code = _decode_command(message)
        except msgspec.MsgspecError:
            logger.warning("command_unreadable")
            return
        if code == DRAIN:
            self._on_drain()
            return
        running = self._running.get(request_id)
        if running is not None and running.claim.attempt == attempt:
            running.claim.cancel.set(code)

    async def _hand_over(self, claims: list[Claim]) -> None:
        try:
            async with asyncio.timeout(self._settings.lease_seconds / 2):
                released = await self._keeper.release_claims(claims)
            logger.info("drained", handed_over=released)
        except REDIS_FAILED as error:  # the leases run out by themselves
            logger.warning("hand_over_failed", claims=len(claims), error=repr(error))

    async def _wait_for_tasks(self, seconds: float) -> None:
        if self.tasks and seconds > 0:
            await asyncio.wait(list(self.tasks.values()), timeout=seconds)

    def _note_failure(self, what: str, error: BaseException) -> None:
        if self._reachable:
            logger.warning("redis_unavailable", during=what, error=repr(error))
        self._reachable = False
