"""A manager's engines: one for each process and event loop.

Invariants
- What belongs to one loop (flights, lanes) is never touched from another. Engines of closed loops, and of the process that this one was
  forked from, are forgotten without a word to anybody.
- `last` is the place that was asked for last: the hot path compares the identity of its loop. A fork clears it in the child.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from aiocache_aura.renewing import Engine


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
        self._last: Place | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        _all.add(self)

    def __repr__(self) -> str:
        return f"Engines({len(self._places)})"

    def __len__(self) -> int:
        return len(self._places)

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
        self._last, self._pid, self._lock = None, os.getpid(), threading.Lock()
        for place in places.values():
            place.engine.forget()

    def _sweep(self) -> None:
        for loop in [loop for loop in self._places if loop.is_closed()]:
            self._places.pop(loop).engine.forget()

    async def aclose(self) -> None:
        """Close every loop's engine in its own loop; those of loops that do not run are forgotten. Idempotent."""
        if self._pid != os.getpid():
            self._forget_the_parent()
        self._last = None
        while self._places:
            loop, place = self._places.popitem()
            if loop is asyncio.get_running_loop():
                await place.aclose()
            elif loop.is_running():
                await self._close_elsewhere(place)
            else:
                place.engine.forget()

    async def _close_elsewhere(self, place: Place) -> None:
        """Have a place closed in its own loop. That one may end at any moment: then nothing was begun that would be left behind."""
        closed: concurrent.futures.Future[None] = concurrent.futures.Future()

        def end(_: asyncio.Task[None]) -> None:
            if not closed.cancelled():
                closed.set_result(None)

        def begin() -> None:
            place.loop.create_task(place.aclose()).add_done_callback(end)

        try:
            place.loop.call_soon_threadsafe(begin)
        except RuntimeError:  # it has been closed meanwhile
            place.engine.forget()
            return
        await asyncio.wait({asyncio.wrap_future(closed)}, timeout=self._patience)
        closed.cancel()


_all: weakref.WeakSet[Engines] = weakref.WeakSet()


def _after_fork() -> None:
    for engines in list(_all):
        engines.after_fork()


os.register_at_fork(after_in_child=_after_fork)
