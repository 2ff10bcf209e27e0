"""Jobs: work that a fleet does on a schedule, each run in one of its processes.

Every process has the job; before each run they ask the store whose turn it is, as `stores/jobs.py` says. A `Job` is one task: it asks,
runs or waits, and asks again.

Invariants
- Nothing is run without a claim that the store has granted. A store that does not answer is asked again, with a growing pause; meanwhile
  nothing runs, since what would be stored could not be.
- A claim's token is kept until its fate is known, and given back if the job ends before that.
- A claim's answer that took longer than a third of a lease is not used: the claim is made again, which renews it.
- A run is a task of its own, beside which the lease is renewed; once it is lost, or nothing was heard for as long as it is good, the run is
  cancelled and does not count.
- A run never overlaps another of the same job. Due times that it outlasts are left out; a failure is logged, and the next due time stays.
- The job's task belongs to its manager, and ends before its engines do: after the work, and after who is told of its report. In a fork it
  does nothing.
- Whoever wants a run is told what came of it, or that the job has ended; from the moment in which that begins, so that what the job waits
  for as it ends cannot wait for the job.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from aiocache_aura.errors import BackendError, CacheError, ConfigurationError
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.schedules import Schedule, at
from aiocache_aura.stores.base import TOKEN_BYTES, Turn
from aiocache_aura.stores.rota import LEASE

if TYPE_CHECKING:
    from aiocache_aura.cache_manager import CacheManager

log = logging.getLogger("aiocache_aura.jobs")

RENEWED_EVERY: Final = LEASE / 3
PATIENCE: Final = 1.0  # seconds for an answer of the store
POLL: Final = 15.0  # seconds after which whoever waits for a later due time asks again, at most
PAUSE_FIRST, PAUSE_MOST = 0.25, 5.0  # before a store is asked again that did not answer
LONGEST_NAME: Final = 500


@dataclass(frozen=True, slots=True)
class Run:
    """What a job's work is told: which run it is, and what is known of the one before and the next."""

    job: str
    due: datetime
    until_next: float  # seconds, from the run's begin to the next due time; by up to `jitter` more until that is run
    jitter: float
    took: float  # seconds that the last run took, in whichever process; 0.0 if there was none


Work: TypeAlias = Callable[[Run], Awaitable[Any]]
T = TypeVar("T")


class Job:
    """Work on a schedule, of which each run is done by one process of the fleet; as a handle, what this process knows of it.

    Made in a running event loop; the first run is at once, unless another process has run the job, or is about to. `name` and the schedule
    are its identity: the same in every process. It ends with `cancel`, or with its manager. `on_report`, plain or async, is called with
    what the work returned, after each run of this process that counts.
    """

    def __init__(
        self,
        work: Work,
        schedule: Schedule,
        *,
        name: str,
        manager: CacheManager,
        on_report: Callable[[Any], object] | None = None,
    ) -> None:
        if not name or len(name) > LONGEST_NAME:
            raise ConfigurationError(f"name={name!r:.40}: a job's name has 1 to {LONGEST_NAME} characters")
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                f"job {name!r} is scheduled outside a running event loop; do it where the application starts: in its lifespan, or in main()"
            ) from None
        self._work, self._schedule, self._name, self._manager, self._on_report = work, schedule, name, manager, on_report
        self._id = f"{name}|{schedule}"
        self._pid = os.getpid()
        self._token: bytes | None = None
        self._seen, self._seen_at = 0, 0.0  # the store's clock, and the loop's when it was read
        self._next: int | None = None
        self._running = False
        self._wanted: list[asyncio.Future[Any]] = []  # by those whose run has not begun
        self._untold: set[asyncio.Future[Any]] = set()  # these, and those whose run goes on
        self._is_ending = False
        self._wake = asyncio.Event()
        self._pause = PAUSE_FIRST
        self._faults = FaultLog(log, clock=manager.settings.clock)
        self._runs = 0
        self._last_run: datetime | None = None
        self._last_report: Any = None
        self._last_error: BaseException | None = None
        # In a context of its own: not in the tenant, bypass() or deferred() block of whoever schedules it.
        self._task = self._loop.create_task(self._live(), name=f"aiocache_aura job {name}", context=Context())
        self._task.add_done_callback(self._dismiss)  # it may be cancelled before it has begun
        manager.own(self._task)

    def __repr__(self) -> str:
        state = "ended" if self._task.done() else "running" if self._running else "waiting"
        return f"<Job {self._name!r} {self._schedule}, {state}, {self._runs} runs>"

    # What is known

    @property
    def name(self) -> str:
        """The same in every process that has the job."""
        return self._name

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def next_run(self) -> datetime | None:
        """When some process is to run it next, as far as this one knows; None before the store has answered, and after the job's end."""
        return None if self._next is None or self._task.done() else at(self._next)

    @property
    def last_run(self) -> datetime | None:
        """When the last run in this process began, by the store's clock; None if there was none."""
        return self._last_run

    @property
    def last_report(self) -> Any:
        """What the last run in this process that did not fail returned."""
        return self._last_report

    @property
    def last_error(self) -> BaseException | None:
        """What the last run in this process raised; None if it did not fail."""
        return self._last_error

    @property
    def runs(self) -> int:
        """How many runs this process has done, failed ones included."""
        return self._runs

    @property
    def is_over(self) -> bool:
        """Whether it has ended in this process: by `cancel`, or with its manager."""
        return self._task.done()

    @property
    def is_running(self) -> bool:
        """Whether this process is running it."""
        return self._running

    # What can be told

    async def cancel(self) -> None:
        """End the job in this process, and a run that is under way; another process goes on. Idempotent; from any event loop."""
        if asyncio.get_running_loop() is not self._loop:
            if self._loop.is_running() and not self._is_copy():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.cancel(), self._loop))
            return
        if not self._is_ending:
            self._dismiss()
            self._task.cancel()
        await asyncio.wait({self._task})

    async def run_now(self) -> Any:
        """Run it without waiting until it is due, and return what the work returned.

        A run that is under way, here or elsewhere, is waited for; then this process runs it once more, for all who want it. What is due
        next stays due. Raises what the work raises, BackendError where the store does not answer, and CacheError if the job ends before.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(f"job {self._name!r} belongs to another event loop: call run_now() in that one")
        if self._is_ending:
            raise CacheError(f"job {self._name!r} has ended; schedule it again")
        wanted: asyncio.Future[Any] = self._loop.create_future()
        wanted.add_done_callback(self._told)
        self._wanted.append(wanted)
        self._untold.add(wanted)
        self._wake.set()
        return await wanted

    # Its life

    async def _live(self) -> None:
        try:
            while not self._is_copy():
                await self._rest(await self._step())
        finally:
            self._running = False
            self._dismiss()
            await self._give_back()

    async def _rest(self, seconds: float) -> None:
        """So long, or until somebody wants a run."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._wake.wait()
        self._wake.clear()

    async def _step(self) -> float:
        """Ask, and run if it is this process's turn; the seconds until it is to be asked again."""
        wanted = list(self._wanted)
        asked = self._loop.time()
        self._token = self._token or os.urandom(TOKEN_BYTES)
        try:
            jobs = (await self._manager.engine()).jobs
            turn = await jobs.claim(self._id, self._token, at_once=bool(wanted), timeout=PATIENCE)
        except BackendError as error:
            self._fault(error, "asking whose turn it is")
            self._tell(wanted, error)
            return self._longer()
        self._pause = PAUSE_FIRST
        self._seen, self._seen_at = turn.now, self._loop.time()
        self._next = turn.at
        if turn.kind == "run":
            return await self._run(turn, asked, wanted) if self._seen_at - asked < RENEWED_EVERY else 0.0
        self._token = None
        return self._wait(turn)

    def _wait(self, turn: Turn) -> float:
        """Until it is due, or whoever runs it is to have ended; less, so that a record that is lost is noticed."""
        if turn.kind == "held":
            after = self._schedule.after(turn.due, turn.now)
            self._next = after
            return min(turn.until, after) / 1e6 - turn.now / 1e6
        return min((turn.at - turn.now) / 1e6, POLL * random.uniform(0.7, 1.0))  # noqa: S311

    def _now(self) -> int:
        """The store's clock, as far as it is sure to have come."""
        return self._seen + int((self._loop.time() - self._seen_at) * 1e6)

    # A run

    async def _run(self, turn: Turn, asked: float, wanted: list[asyncio.Future[Any]]) -> float:
        """Run it beside renewals of its lease, and say what came of it; the seconds until the next one is due."""
        self._wanted = [one for one in self._wanted if one not in wanted]
        self._last_run, began = at(turn.now), self._loop.time()
        until_next = (self._schedule.after(turn.due, turn.now) - turn.now) / 1e6
        run = Run(self._name, at(turn.due), until_next, self._schedule.jitter, turn.took / 1e6)
        work = self._loop.create_task(_called(self._work, run), name=f"aiocache_aura run of {self._name}")
        self._running = True
        try:
            held = await self._until_over(work, self._hold(work, asked))
            self._running = False
            seconds = await self._end(turn, self._loop.time() - began) if held else None
        except asyncio.CancelledError:
            self._drop(work)
            raise
        self._token = None
        if seconds is None:
            self._drop(work)
            self._lose(wanted)
            return 0.0
        await self._report(work, wanted)
        return seconds

    async def _until_over(self, task: asyncio.Task[Any], waiting: Awaitable[T]) -> T:
        """Wait so for a task of the job's, and end it if the wait is over before: none is left running, however often that is cancelled."""
        try:
            return await waiting
        except asyncio.CancelledError:
            self._dismiss()
            raise
        finally:
            await self._stop(task)

    async def _hold(self, work: asyncio.Task[Any], heard: float) -> bool:
        """Renew the lease until the work has ended; False once it is lost. `heard` is when the last request was sent that was answered."""
        pause = max(heard + RENEWED_EVERY - self._loop.time(), 0.0)  # the answer may have taken long
        while True:
            done, _ = await asyncio.wait({work}, timeout=pause)
            pause = RENEWED_EVERY
            if done:
                return not self._is_copy()
            asked = self._loop.time()
            try:
                if self._is_copy() or not await (await self._manager.engine()).jobs.renew(self._id, self._known_token(), timeout=PATIENCE):
                    return False
                heard = asked
            except BackendError as error:
                self._fault(error, "renewing its lease")
                if self._loop.time() - heard >= LEASE:
                    return False

    async def _stop(self, task: asyncio.Task[Any]) -> None:
        cancelled: asyncio.CancelledError | None = None
        if not task.done():
            task.cancel()
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                self._dismiss()
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _drop(self, work: asyncio.Task[Any]) -> None:
        """A run does not count; that it failed, too, is told."""
        error = None if work.cancelled() else work.exception()
        if error is not None:
            log.error("job %r failed in a run that does not count: %s: %s", self._name, type(error).__name__, error, exc_info=error)

    async def _end(self, turn: Turn, took: float) -> float | None:
        """Tell the store, for as long as it takes; the seconds until the next run, None if another process has taken this one over."""
        while True:
            now = self._now()
            due = self._schedule.after(turn.due, now if turn.at > turn.now else max(now, turn.due))
            begins = due + self._schedule.delay()
            try:
                jobs = (await self._manager.engine()).jobs
                if not await jobs.end(self._id, self._known_token(), due, begins, round(took * 1e6), timeout=PATIENCE):
                    return None
            except BackendError as error:
                self._fault(error, "telling that a run has ended")
                self._tell(list(self._wanted), error)  # whoever wants a run meanwhile cannot have one
                await self._rest(self._longer())
            else:
                self._pause, self._next = PAUSE_FIRST, begins
                return min((begins - self._now()) / 1e6, POLL)

    async def _report(self, work: asyncio.Task[Any], wanted: list[asyncio.Future[Any]]) -> None:
        """Keep what came of a run, and tell who wants to know."""
        self._runs += 1
        error = asyncio.CancelledError("the work was cancelled") if work.cancelled() else work.exception()
        self._last_error = error
        if error is not None:
            log.error("job %r failed, and is run again when it is due: %s: %s", self._name, type(error).__name__, error, exc_info=error)
            self._tell(wanted, CacheError(f"job {self._name!r}: its work was cancelled") if work.cancelled() else error)
            return
        self._last_report = report = work.result()
        for one in wanted:
            if not one.done():
                one.set_result(report)
        if self._on_report is not None:
            telling = self._loop.create_task(self._hand_on(report), name=f"aiocache_aura report of {self._name}")
            await self._until_over(telling, asyncio.wait({telling}))
            if telling.cancelled():
                log.error("job %r: on_report failed: it was cancelled", self._name)

    async def _hand_on(self, report: Any) -> None:
        """A task of its own, as the work is: a cancellation that it comes upon, or takes no notice of, is not the job's."""
        try:
            said = self._on_report(report) if self._on_report is not None else None
            if inspect.isawaitable(said):
                await said
        except Exception as problem:
            log.exception("job %r: on_report failed: %s", self._name, problem)

    def _lose(self, wanted: list[asyncio.Future[Any]]) -> None:
        self._last_error = CacheError(
            f"job {self._name!r}: its lease was lost, so another process may run what was due; this run was ended"
        )
        log.warning("%s", self._last_error)
        self._tell(wanted, self._last_error)

    # The rest

    def _tell(self, wanted: list[asyncio.Future[Any]], error: BaseException) -> None:
        self._wanted = [one for one in self._wanted if one not in wanted]
        for one in wanted:
            if not one.done():
                one.set_exception(error)

    def _told(self, wanted: asyncio.Future[Any]) -> None:
        """Retrieved here, since whoever wanted it may have left."""
        self._untold.discard(wanted)
        if not wanted.cancelled():
            wanted.exception()

    def _dismiss(self, _: object = None) -> None:
        """The job ends: tell all who want a run, and those who will."""
        self._is_ending = True
        self._tell(list(self._untold), CacheError(f"job {self._name!r} has ended"))

    def _known_token(self) -> bytes:
        assert self._token is not None
        return self._token

    async def _give_back(self) -> None:
        """What is held, or may be: the job ends."""
        token, self._token = self._token, None
        if token is not None and not self._is_copy():
            with suppress(BackendError):
                await (await self._manager.engine()).jobs.give_back(self._id, token, timeout=PATIENCE)

    def _fault(self, error: BackendError, what: str) -> None:
        self._faults.report(error, f"job {self._name!r}: {what}")

    def _longer(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, PAUSE_MOST)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311

    def _is_copy(self) -> bool:
        return self._pid != os.getpid()


async def _called(work: Work, run: Run) -> Any:
    return await work(run)
