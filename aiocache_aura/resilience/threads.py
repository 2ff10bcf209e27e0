"""Plain functions, run in worker threads that are the library's own.

Invariants
- A plain function may come back to its loop (`anyio.from_thread`) and call another cached plain function there. If both took their threads
  from one limiter, enough of the outer ones would hold every place that an inner one waits for (PEERS R36). So each depth of nesting has a
  limiter of its own: a call only ever waits for calls that are deeper than its callers.
- That does not cover a call at depth 0 that a deeper caller joins (single flight). So a limiter that gave no place for a second gives one
  more: slow functions get a thread a second, a deadlock gets out of itself.
- Who is cancelled waits until the thread is done: what it works with (a session) is closed next.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

THREADS = 40  # for each depth; anyio's own default
STARVED_AFTER = 1.0

_depth: ContextVar[int] = ContextVar("aiocache_aura_thread_depth", default=0)


class _Places:
    """The threads that calls of one depth may have at once."""

    __slots__ = ("_given", "_limiter")

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(THREADS)
        self._given = 0

    def __repr__(self) -> str:
        statistics = self._limiter.statistics()
        return f"_Places({statistics.borrowed_tokens} of {statistics.total_tokens}, {statistics.tasks_waiting} waiting)"

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        borrower = object()
        try:
            self._limiter.acquire_on_behalf_of_nowait(borrower)
        except anyio.WouldBlock:
            await self._wait(borrower)
        self._given += 1
        try:
            yield
        finally:
            self._limiter.release_on_behalf_of(borrower)
            if self._limiter.total_tokens > THREADS:
                self._limiter.total_tokens -= 1

    async def _wait(self, borrower: object) -> None:
        while True:
            given = self._given
            with anyio.move_on_after(STARVED_AFTER):
                await self._limiter.acquire_on_behalf_of(borrower)
                return
            if self._given == given:
                self._limiter.total_tokens += 1


class _Loop:
    """One event loop's places, and a limiter that does not limit: anyio wants one, and its own is shared with everybody."""

    __slots__ = ("_by_depth", "unlimited")

    def __init__(self) -> None:
        self._by_depth: dict[int, _Places] = {}
        self.unlimited = anyio.CapacityLimiter(math.inf)

    def places(self, depth: int) -> _Places:
        if depth not in self._by_depth:
            self._by_depth[depth] = _Places()
        return self._by_depth[depth]


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


def _this_loop() -> _Loop:
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops[loop] = _Loop()
    return _loops[loop]


async def call_plain(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a plain function in a worker thread; an awaitable that it returns is awaited here, in the loop.

    It runs in a copy of the caller's context. Who is cancelled leaves once the thread is done; a second cancellation does not wait.
    """
    here, depth = _this_loop(), _depth.get()
    token = _depth.set(depth + 1)
    try:
        async with here.places(depth).taken():
            answer = await _to_the_end(anyio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=here.unlimited))
        return await settled(answer)
    finally:
        _depth.reset(token)


async def _to_the_end(running: Any) -> Any:
    task = asyncio.ensure_future(running)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_retrieve)
        with anyio.CancelScope(shield=True):  # a scope of anyio's cancels again and again, and would end the wait at once
            await asyncio.wait({task})
        raise


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Whoever would have been told of its exception has left."""
    if not task.cancelled():
        task.exception()


async def settled(answer: Any) -> Any:
    """An answer, awaited only if it has to be."""
    return await answer if inspect.isawaitable(answer) else answer


async def call_any(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call what may be an async or a plain function."""
    if is_async(function):
        return await function(*args, **kwargs)
    return await call_plain(function, *args, **kwargs)


def is_async(function: object) -> bool:
    """Whether calling it gives a coroutine: async functions, partials of them, objects with an async `__call__`, AsyncMock."""
    while isinstance(function, partial):
        function = function.func
    if inspect.iscoroutinefunction(function) or _is_marked(function):
        return True
    return not isinstance(function, type) and inspect.iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004 - not "is it callable"


def _is_marked(function: object) -> bool:
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)  # an AsyncMock looks like a coroutine function by these
    return isinstance(flags, int) and bool(flags & inspect.CO_COROUTINE)
