"""A manager's engines: one for each process and event loop.

Invariants
- What belongs to one loop (flights, lanes) is never touched from another. Engines of closed loops, and of the process that this one was
  forked from, are forgotten without a word to anybody.
- Tasks that the manager owns end before the engines do, each in its own loop; nobody ends those of a process that this one was forked
  from.
- `last` is the place that was asked for last: the hot path compares the identity of its loop. A fork clears it in the child.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from aiocache_aura.renewing import Engine

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Place:
    """One event loop's engine, and the tasks that work behind its callers' backs."""

    __slots__ = ("behind", "engine", "loop")

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine, self.loop = engine, loop
        self.behind: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(work)
        self.behind.add(task)
        task.add_done_callback(self.behind.discard)

    async def aclose(self) -> None:
        if self.behind:
            await asyncio.wait(set(self.behind))
        await self.engine.aclose()


class Engines:
    """The places of one manager."""

    def __init__(self, make: Callable[[], Engine], patience: float) -> None:
        self._make, self._patience = make, patience
        self._places: dict[asyncio.AbstractEventLoop, Place] = {}
        self._owned: dict[asyncio.AbstractEventLoop, set[asyncio.Task[Any]]] = {}
        self._last: Place | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        _all.add(self)

    def __repr__(self) -> str:
        return f"Engines({len(self._places)})"

    def __len__(self) -> int:
        return len(self._places)

    def every(self) -> list[Engine]:
        """The engines of this process; may be asked in any thread."""
        return [] if self._pid != os.getpid() else [place.engine for place in self._places.copy().values()]

    def now(self) -> Engine | None:
        """The engine of this loop, if it is open."""
        last = self._last
        if last is not None and last.loop is asyncio.get_running_loop():
            return last.engine
        place = self._known()
        return None if place is None else place.engine

    def place(self) -> Place:
        """This loop's place, opened if need be."""
        place = self._known()
        if place is not None:
            return place
        with self._lock:
            self._sweep()
            loop = asyncio.get_running_loop()
            place = self._last = self._places[loop] = Place(self._make(), loop)
            return place

    def own(self, task: asyncio.Task[Any]) -> None:
        """Have `aclose` cancel this task, and wait for its end, before it closes any engine."""
        if self._pid != os.getpid():
            self._forget_the_parent()
        self._owned.setdefault(task.get_loop(), set()).add(task)
        task.add_done_callback(self._disown)

    def _disown(self, task: asyncio.Task[Any]) -> None:
        tasks = self._owned.get(task.get_loop(), set())
        tasks.discard(task)
        if not tasks:
            self._owned.pop(task.get_loop(), None)

    def _known(self) -> Place | None:
        if self._pid != os.getpid():
            self._forget_the_parent()
        place = self._places.get(asyncio.get_running_loop())
        if place is not None:
            self._last = place
        return place

    def after_fork(self) -> None:
        """In the child: the next call finds out that this is another process."""
        self._last = None

    def _forget_the_parent(self) -> None:
        places, self._places = self._places, {}
        self._last, self._pid, self._lock, self._owned = None, os.getpid(), threading.Lock(), {}
        for place in places.values():
            place.engine.forget()

    def _sweep(self) -> None:
        for loop in [loop for loop in self._places if loop.is_closed()]:
            self._places.pop(loop).engine.forget()

    async def aclose(self) -> None:
        """End what is owned, then close every loop's engine, in its own loop; those of loops that do not run are forgotten. Idempotent."""
        if self._pid != os.getpid():
            self._forget_the_parent()
        while self._owned:
            loop, tasks = self._owned.popitem()
            await self._do_there(loop, partial(_end, tasks), _nothing)
        self._last = None
        while self._places:
            loop, place = self._places.popitem()
            await self._do_there(loop, place.aclose, place.engine.forget)

    async def _do_there(self, loop: asyncio.AbstractEventLoop, work: Work, otherwise: Callable[[], None]) -> None:
        """Have this done in a loop, or, if that one does not run, what is to be done otherwise."""
        if loop is asyncio.get_running_loop():
            await work()
        elif loop.is_running():
            await self._do_elsewhere(loop, work, otherwise)
        else:
            otherwise()

    async def _do_elsewhere(self, loop: asyncio.AbstractEventLoop, work: Work, otherwise: Callable[[], None]) -> None:
        """Have this done in another loop. That one may end at any moment: then nothing was begun that would be left behind."""
        closed: concurrent.futures.Future[None] = concurrent.futures.Future()

        def end(_: asyncio.Task[None]) -> None:
            if not closed.cancelled():
                closed.set_result(None)

        def begin() -> None:
            loop.create_task(work()).add_done_callback(end)

        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError:  # it has been closed meanwhile
            otherwise()
            return
        await asyncio.wait({asyncio.wrap_future(closed)}, timeout=self._patience)
        closed.cancel()


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel these, and wait for their ends; one that asks for its own end gets it when it awaits next."""
    others = {task for task in tasks if task is not asyncio.current_task()}
    for task in list(tasks):
        task.cancel()
    if others:
        await asyncio.wait(others)


def _nothing() -> None:
    return None


_all: weakref.WeakSet[Engines] = weakref.WeakSet()


def _after_fork() -> None:
    for engines in list(_all):
        engines.after_fork()


os.register_at_fork(after_in_child=_after_fork)
