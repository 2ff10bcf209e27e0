"""What sources give, step by step, however they do: an async generator, one that a worker thread runs, a list or a mapping, or nothing.

A step is what the source gave, in a `Step` with the context in which it did if that is another than that of the task that asks.

Invariants
- The session is opened for one reading of the source, and closed after it. An async source and its session live in the event loop; a plain
  one, with what a plain factory gives it, in one worker thread from beginning to end, as drivers that know their thread want it.
- A plain generator is handed over in chunks, bounded in number and time: it makes one while another is taken, and waits then.
- However it ends, the generator is closed, the thread done, and what was handed over and not taken is closed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from contextvars import Context, copy_context
from typing import Any, Final, NamedTuple, TypeAlias

import anyio
import anyio.from_thread

from aiocache_aura.context import identity
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.providing import Provided, opened, raising
from aiocache_aura.resilience.threads import call_plain, is_async
from aiocache_aura.signatures import CallSignature
from aiocache_aura.sources import Source

CHUNK: Final = 256  # steps of a plain generator
CHUNK_SECONDS: Final = 0.05

Steps: TypeAlias = AsyncIterator[Any]


class Step(NamedTuple):
    """What a source gave, and in which context."""

    item: Any
    context: Context


class Sessions:
    """What the sources of one warmer are given as their session: one of its own for each reading, or the one there is, in turns."""

    def __init__(self, db: Any) -> None:
        self.db, self.are_made = db, callable(db)
        self._turns: anyio.Lock | None = None

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Any]:
        """A session in the event loop."""
        if self.are_made:
            async with raising(AsyncExitStack()) as stack:
                yield await opened(stack, self.db())
            return
        if self._turns is None:
            self._turns = anyio.Lock()
        async with self._turns:
            yield self.db


@asynccontextmanager
async def reading(source: Source, sessions: Sessions, tenant_id: Any) -> AsyncIterator[Steps]:
    """One reading of a source: its steps, for as long as the block is open."""
    in_loop = is_in_loop(source.function)
    own_thread = not in_loop and not source.makes_calls and sessions.are_made
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(sessions.one()) if source.takes_db and not own_thread else None
        if in_loop:
            made = source.bound(db, tenant_id)()
            steps = _given(await made if inspect.isawaitable(made) else made)
        else:
            steps = _pumped(_in_thread(source, sessions if own_thread else None, db, tenant_id))
        await stack.enter_async_context(_closing(steps))
        yield await stack.enter_async_context(aclosing(_calls(source, steps, db))) if source.makes_calls else steps


async def _calls(source: Source, steps: Steps, db: Any) -> AsyncGenerator[Any, None]:
    """The calls with what a source gave."""
    async for step in steps:
        yield step._replace(item=source.step(step.item, db)) if step.__class__ is Step else source.step(step, db)


def is_in_loop(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine or an async generator."""
    while isinstance(function, functools.partial):
        function = function.func
    inner = inspect.unwrap(function)
    own = None if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004 - not "is it callable"
    return is_async(function) or is_async(inner) or any(inspect.isasyncgenfunction(one) for one in (function, inner, own))


def _given(made: Any) -> Steps:
    """The steps in what a source gave, in the event loop; a plain generator is run in a thread."""
    if hasattr(made, "__aiter__"):
        steps: Steps = made
        return steps
    if hasattr(made, "__next__"):
        return _pumped(lambda pump: call_plain(pump.feed, made))
    return _listed(iterated(() if made is None else made))


def _closing(steps: Any) -> AbstractAsyncContextManager[Any]:
    return aclosing(steps) if hasattr(steps, "aclose") else nullcontext()


async def _listed(items: Iterator[Any]) -> AsyncGenerator[Any, None]:
    try:
        for item in items:
            yield item
    finally:
        for item in items:
            close(item)


def iterated(made: Any) -> Iterator[Any]:
    """An iterator over what a source gave; ConfigurationError for what holds no steps."""
    if isinstance(made, Mapping):
        return iter(made.items())
    if isinstance(made, str | bytes) or not isinstance(made, Iterable):
        raise ConfigurationError(f"a source gives pairs of keys and values, or calls of cached functions, not {type(made).__name__}")
    return iter(made)


def close(item: object) -> None:
    """Let go of what nobody will await."""
    if inspect.iscoroutine(item):
        item.close()
    elif isinstance(item, asyncio.Future):
        item.cancel()


def let_go(made: Any) -> None:
    """Close the calls in what a source has returned, and nobody will take."""
    if isinstance(made, list | tuple):
        for item in made:
            close(item)


# In a thread


class _Stopped(BaseException):
    """Nobody takes the steps of a plain generator any more. No Exception: the user's code does not catch it."""


class _Pump:
    """What a plain generator gives in its thread, on its way to the event loop: one chunk waits there, one is made."""

    def __init__(self) -> None:
        self._chunks: deque[list[Any]] = deque()
        self._now = asyncio.get_running_loop().time
        self._room, self._news = asyncio.Semaphore(1), asyncio.Event()
        self._is_stopped = False

    # In the thread

    def feed(self, steps: Iterator[Any]) -> None:
        """Run a generator to its end."""
        ours, chunk, since = identity.get(), list[Any](), self._now()
        try:
            for item in steps:
                chunk.append(item if identity.get() == ours and not inspect.isawaitable(item) else Step(item, copy_context()))
                if len(chunk) >= CHUNK or self._now() - since > CHUNK_SECONDS:
                    given, chunk = chunk, []
                    self._hand_over(given)
                    since = self._now()
        finally:
            if inspect.isgenerator(steps):
                steps.close()
            if chunk:
                self._hand_over(chunk)

    def _hand_over(self, chunk: list[Any]) -> None:
        try:
            anyio.from_thread.run(self._put, chunk)
        except BaseException:
            close_all(chunk)
            raise

    # In the loop

    async def _put(self, chunk: list[Any]) -> None:
        await self._room.acquire()
        if self._is_stopped:
            self._room.release()
            raise _Stopped
        self._chunks.append(chunk)
        self._news.set()

    async def take(self, thread: asyncio.Task[Any]) -> list[Any]:
        """The next chunk; an empty one once the thread is done."""
        while not self._chunks and not thread.done():
            self._news.clear()
            await self._news.wait()
        if not self._chunks:
            return []
        self._room.release()
        return self._chunks.popleft()

    def wake(self, _: object) -> None:
        self._news.set()

    async def stop(self, thread: asyncio.Task[Any]) -> None:
        """Let the thread come to its end, and close what was not taken."""
        self._is_stopped = True
        self._room.release()
        with anyio.CancelScope(shield=True):  # a scope of anyio's cancels again and again
            await asyncio.wait({thread})
        for chunk in self._chunks:
            close_all(chunk)


def close_all(chunk: Iterable[Any]) -> None:
    for step in chunk:
        close(step.item if step.__class__ is Step else step)


async def _pumped(run: Callable[[_Pump], Awaitable[Any]]) -> AsyncGenerator[Any, None]:
    """The steps that a thread feeds, then those in what it returns."""
    pump = _Pump()
    chunk: list[Any] = []
    thread = asyncio.get_running_loop().create_task(_run(run, pump))
    thread.add_done_callback(pump.wake)
    try:
        while chunk := await pump.take(thread):
            chunk.reverse()
            while chunk:
                yield chunk.pop()
    except BaseException:
        close_all(chunk)
        await pump.stop(thread)
        if not thread.cancelled() and thread.exception() is None:
            let_go(thread.result())
        raise
    await pump.stop(thread)
    steps = _given(thread.result())
    async with _closing(steps):
        async for step in steps:
            yield step


async def _run(run: Callable[[_Pump], Awaitable[Any]], pump: _Pump) -> Any:
    try:
        return await run(pump)
    except _Stopped:
        return None


def _in_thread(source: Source, sessions: Sessions | None, db: Any, tenant_id: Any) -> Callable[[_Pump], Awaitable[Any]]:
    """Run a plain source in a thread, with the session, or with one that is opened and closed there if it can be."""

    async def run(pump: _Pump) -> Any:
        def work(db: Any = None) -> Any:
            made = source.bound(db, tenant_id)()
            if not hasattr(made, "__next__"):
                return made
            pump.feed(made)
            return None

        if sessions is not None and source.takes_db:
            return await Provided(work, CallSignature(work, owner=None, provided=("db",)), {"db": sessions.db}).load((), {})
        return await call_plain(work, db)

    return run
