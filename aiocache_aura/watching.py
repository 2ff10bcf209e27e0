"""The task of a monitor: it looks after a cache's health, says when that has changed, and tells the fleet what this process has counted.

Invariants
- Nothing ends it but `end`, the end of its manager, and that of its event loop: what goes wrong in a step is logged, and the next is taken.
- It never overlaps itself. A look that takes longer than the interval leaves out those that were due meanwhile.
- A change is told once, in the order in which they came. Callbacks run beside the task, so that one that hangs holds up only its like.
- What it has begun ends with it, and what it has posted is taken down, unless the store is not well: then that goes when its life is over.
- In a fork it does nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, TypeAlias
from weakref import WeakSet

import anyio

from aiocache_aura import hot
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.errors import BackendError
from aiocache_aura.health import Health
from aiocache_aura.published import BOARD, Published, process_name, windows_of
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.resilience.threads import settled
from aiocache_aura.stores.base import Notes, Posted

log = logging.getLogger("aiocache_aura.monitor")

STEP = 0.25  # seconds between two measures of the event loop's lag
LEAST_LIFE = 5.0  # seconds of a note; else it is three intervals
MARKS, AGAIN, MARK_LIFE, SPARE = "marks", "marks-again", 3600.0, 60.0
GUARDED = 0.5  # seconds in which users have missed, after which it is asked whether the store was emptied
HEAT_EVERY = 30.0  # seconds
GRACE = 5.0  # seconds that callbacks, once cancelled, have for their end
MOST_WAITING = 100

Callback: TypeAlias = Callable[[Health], object] | None
Check: TypeAlias = Callable[[float], Awaitable[Health]]

_watches: WeakSet[Watch] = WeakSet()
_numbers = itertools.count(1)


async def rest(seconds: float) -> float:
    """Sleep, and measure by how much the event loop was late in going on, at worst."""
    time = asyncio.get_running_loop().time
    until, lag = time() + seconds, 0.0
    while (left := until - time()) > 0:
        due = time() + min(left, STEP)
        await asyncio.sleep(due - time())
        lag = max(lag, time() - due)
    return lag


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Run what ends a task, whoever cancels that once more meanwhile: the work has to be bounded."""
    task = asyncio.get_running_loop().create_task(work, name="aiocache_aura monitor's end")
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue
    task.result()


class Calls:
    """Callbacks of one kind, called one after another, each in a task of its own."""

    def __init__(self, faults: FaultLog) -> None:
        self._faults = faults
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Calls, {len(self._tasks)} under way>"

    @property
    def are_over(self) -> bool:
        return not self._tasks

    def put(self, callback: Callable[..., object], *args: Any) -> None:
        if len(self._tasks) >= MOST_WAITING:
            log.error("a callback, %.80r, is not called: %d wait for the one before, which does not end", callback, len(self._tasks) - 1)
            return
        before = self._tasks[-1] if self._tasks else None
        task = asyncio.get_running_loop().create_task(self._call(before, callback, args), name="aiocache_aura monitor's callback")
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _call(self, before: asyncio.Task[None] | None, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            await settled(callback(*args))
        except Exception as error:
            self._faults.report(error, f"a callback, {callback!r:.80},")

    async def end(self) -> None:
        """Cancel them, and wait for their ends, but not for ever."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=GRACE)
            if stuck:
                log.error("%d callbacks were cancelled and do not end: %r", len(stuck), stuck)


class Watch:
    """One task, of the event loop that it is made in. `check` asks for the health; it is told the lag of the loop."""

    def __init__(
        self,
        manager: CacheManager,
        check: Check,
        interval: float,
        *,
        on_unhealthy: Callback,
        on_recovered: Callback,
        on_emptied: Callable[[], object] | None,
        publish: bool,
    ) -> None:
        self.manager, self.publishes, self._check, self._interval = manager, publish, check, interval
        self._on_unhealthy, self._on_recovered, self._on_emptied = on_unhealthy, on_recovered, on_emptied
        self._name = process_name(manager)
        self._mark_name = f"{self._name}-{next(_numbers)}"  # its own: of two, the second would find what the first has put up again
        self._pid = os.getpid()
        self._faults = FaultLog(log, clock=manager.settings.clock)
        self._changes, self._warmings = Calls(self._faults), Calls(self._faults)
        self._is_unhealthy = False
        self._posted: set[tuple[str, str]] = set()
        self._gone, self._unheard = dict[str, bool](), set[str]()  # whether that a mark is gone was heard
        self._stands_until = self._heat_due = -math.inf
        self._marking = asyncio.Lock()
        self._status = "unknown"
        self.lag = 0.0
        self._loop = asyncio.get_running_loop()
        # In a context of its own: not in the tenant, bypass() or deferred() block of whoever starts it.
        self._task = self._loop.create_task(self._live(), name="aiocache_aura monitor", context=Context())
        _watches.add(self)
        manager.own(self._task)

    def __repr__(self) -> str:
        state = "over" if self.is_over else self._status
        return f"<Watch of {self.manager!r} each {self._interval:g} s, {state}>"

    @property
    def is_over(self) -> bool:
        return self._task.done() or self._loop.is_closed() or self._pid != os.getpid()

    async def end(self) -> None:
        """End the task and all that it has begun, and wait for that; from any event loop."""
        if self.is_over:
            return
        if asyncio.get_running_loop() is not self._loop:
            await self._end_there()
            return
        self._task.cancel()
        with anyio.CancelScope(shield=True):  # a scope of anyio's cancels again and again, and would end the wait at once
            await asyncio.wait({self._task})

    async def _end_there(self) -> None:
        """Have its own event loop end it. That one may stop or be closed at any moment: then nobody is waited for."""
        if not self._loop.is_running():
            return
        ending = self.end()
        try:
            ended = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ending, self._loop))
        except RuntimeError:  # it has been closed meanwhile
            ending.close()
            return
        while not ended.done() and self._loop.is_running():
            await asyncio.wait({ended}, timeout=STEP)
        if ended.done():
            ended.result()

    async def _live(self) -> None:
        time, due = self._loop.time, self._loop.time()
        guard = self._loop.create_task(self._guard(), name="aiocache_aura monitor's guard")
        try:
            while not self._is_cancelled() and self._pid == os.getpid():
                await self._look()
                due += self._interval * max(math.ceil((time() - due) / self._interval), 1)
                self.lag = await rest(due - time())
        finally:
            guard.cancel()
            await to_the_end(self._finish(guard))

    async def _guard(self) -> None:
        """While users miss, see whether the store was emptied between two looks, too."""
        if self._on_emptied is None or self._interval <= GUARDED:
            return
        while self._pid == os.getpid():
            missed = self.manager.recorder.misses()
            await asyncio.sleep(GUARDED)
            if self.manager.recorder.misses() != missed:
                try:
                    await self._post(self._mark)
                except Exception as error:
                    self._faults.report(error, "marking the store")

    def _is_cancelled(self) -> bool:
        return self._task.cancelling() > 0

    async def _step(self, what: str, step: Awaitable[Any]) -> Any:
        """What goes wrong in a step is logged, a cancellation that was not meant for this task as well; the next is taken all the same."""
        try:
            return await step
        except asyncio.CancelledError as error:
            if self._is_cancelled():
                raise
            self._faults.report(error, what)
        except Exception as error:
            self._faults.report(error, what)

    # Looking

    async def _look(self) -> None:
        await self._step("a look at the cache's health", self._see())
        if self._on_emptied is not None:
            await self._step("marking the store", self._post(self._mark))
        if self.publishes:
            await self._step("publishing this process's figures", self._post(self._tell_fleet))

    async def _see(self) -> None:
        """Check the health, and call whoever wants to know if it has changed."""
        health = await self._check(self.lag)
        self._status, is_unhealthy = health["status"], health["status"] == "unhealthy"
        if is_unhealthy is self._is_unhealthy:
            return
        self._is_unhealthy = is_unhealthy
        if is_unhealthy:
            log.warning("the cache is unhealthy: %s", "; ".join(health["issues"]))
        else:
            log.warning("the cache is not unhealthy any more: %s", "; ".join(["it is " + health["status"], *health["issues"]]))
        callback = self._on_unhealthy if is_unhealthy else self._on_recovered
        if callback is not None:
            self._changes.put(callback, health)

    # Posting

    async def _post(self, post: Callable[[Notes], Awaitable[None]]) -> None:
        """Post something; that a store which is not well does not take it, is known."""
        try:
            await post((await self.manager.engine()).port.notes)
        except BackendError as error:
            if not self._is_unhealthy:
                raise
            log.debug("an unhealthy store has taken no note: %s", error)

    async def _put_up(self, notes: Notes, board: str, name: str, note: bytes, life: float) -> Posted:
        self._posted.add((board, name))  # also if there is no answer
        posted = await notes.post(board, name, note, life=life, timeout=self.manager.settings.budget)
        if posted is Posted.FULL:
            raise BackendError(f"the board {board!r} is full of notes of other processes; each leaves when its life is over")
        return posted

    async def _mark(self, notes: Notes) -> None:
        """Put up the marks that only an emptied store has lost before their time, and see whether they were there.

        They are two, and both have to be gone: one alone was evicted. One that was put up without an answer cannot tell, and leaves
        it to the other.
        """
        async with self._marking:
            await self._mark_both(notes)

    async def _mark_both(self, notes: Notes) -> None:
        now, seen = self.manager.settings.clock.monotonic(), len(self._gone)
        for board in (MARKS, AGAIN):
            was_unheard = board in self._unheard
            self._unheard.add(board)
            posted = await self._put_up(notes, board, self._mark_name, b"", MARK_LIFE)
            self._unheard.remove(board)
            if posted is Posted.NEW or was_unheard:
                self._gone[board] = self._gone.get(board, False) or posted is Posted.NEW
        was_to_stand, self._stands_until = now < self._stands_until, now + MARK_LIFE - SPARE
        is_empty = len(self._gone) == len((MARKS, AGAIN)) and any(self._gone.values())
        if is_empty or len(self._gone) == seen:
            self._gone.clear()
        if is_empty and was_to_stand and self._on_emptied is not None:
            log.warning("the store was emptied: what was posted there is gone")
            if self._warmings.are_over:
                self._warmings.put(self._on_emptied)

    async def _tell_fleet(self, notes: Notes) -> None:
        note = Published(self._name, self.manager.settings.clock.time(), await windows_of(self.manager.recorder), self._status)
        await self._put_up(notes, BOARD, self._name, note.encode(), max(3 * self._interval, LEAST_LIFE))
        if self._loop.time() >= self._heat_due:  # it changes slowly, and takes the longest to tell
            await hot.publish(self.manager, self._name)
            self._heat_due = self._loop.time() + HEAT_EVERY

    # Ending

    async def _finish(self, guard: asyncio.Task[None]) -> None:
        await asyncio.wait({guard})
        if self._pid != os.getpid():
            return
        await asyncio.gather(self._changes.end(), self._warmings.end())
        engine = self.manager.engine_now()
        if engine is None or self._is_unhealthy:
            return
        try:
            for board, name in sorted(self._posted):
                if board != BOARD or not self._is_one_of_several():
                    await engine.port.notes.drop(board, name, timeout=self.manager.settings.budget)
        except BackendError as error:
            log.debug("this process's notes are left to their end: %s", error)

    def _is_one_of_several(self) -> bool:
        """Whether another task, which publishes under the same name, goes on."""
        others = [one for one in list(_watches) if one is not self and one.manager is self.manager]
        return any(one.publishes and not one.is_over for one in others)
