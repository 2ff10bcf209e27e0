"""A run of one source: what it yields, taken one after the other, and stored or loaded behind everybody's back.

    pairs    are gathered in small batches, and planted (see `planting`) before the source goes on
    calls    of cached functions that are not awaited become tasks, a few at a time; those that the source awaits itself come here as well,
             since its context says for which run it works

Invariants
- A run is last in line: loads take turns that all runs of a warmer share, keys are bounded by a rate, and no step keeps the event loop for
  longer than `SLICE`; where others want it too, the run pauses as long as it has worked.
- What a load calls in turn is called as by anybody: it takes no turn, or all turns could wait for one. The same goes for what is called
  after the run is over, by a task that it left behind.
- However it ends, what the source has yielded is awaited or closed, and the source is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import anyio
import anyio.abc

from aiocache_aura.clock import Clock
from aiocache_aura.context import warming_scope
from aiocache_aura.engine import Engine
from aiocache_aura.errors import CacheError, ConfigurationError
from aiocache_aura.generations import Address
from aiocache_aura.namespace import Cache
from aiocache_aura.planting import Pair, Renewal, Voided
from aiocache_aura.resilience.threads import call_plain
from aiocache_aura.terms import Terms
from aiocache_aura.warm_report import Ended, TypeReport, WarmProgress

BATCH_KEYS = 256
CHUNK = 256  # steps that a plain source makes in its thread before they are looked at
SLICE = 0.0002  # seconds of work before others may go on
MOST_ERRORS = 10
TELL_EACH = 0.1  # seconds between two words of progress

Steps: TypeAlias = AsyncGenerator[Any, None]
Turn: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Pace:
    """What the runs of one warmer share: turns for loads, and a rate of keys per second."""

    def __init__(self, clock: Clock, concurrency: int, rate: float | None) -> None:
        self._now, self._rate = clock.monotonic, rate
        self._turns = anyio.CapacityLimiter(concurrency)
        self._free_at = self._now()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One of the loads that may run at once."""
        mine = object()
        await self._turns.acquire_on_behalf_of(mine)
        try:
            yield
        finally:
            self._turns.release_on_behalf_of(mine)

    async def keys(self, count: int) -> None:
        """Wait until so many keys more are within the rate."""
        if self._rate is None:
            return
        now = self._now()
        start = max(self._free_at, now)
        self._free_at = start + count / self._rate
        if start > now:
            await asyncio.sleep(start - now)


class Tally:
    """What became of a type's keys so far."""

    def __init__(self, cache_type: str, clock: Clock, progress: Callable[[WarmProgress], object] | None) -> None:
        self.cache_type, self._now, self._progress = cache_type, clock.monotonic, progress
        self.loaded = self.refreshed = self.skipped = self.failed = 0
        self.errors: list[str] = []
        self.ended: Ended = "done"
        self._started = self._told_at = self._now()

    def fail(self, error: BaseException, *, keys: int = 1, what: str = "") -> None:
        self.failed += keys
        self.note(f"{what}{type(error).__name__}: {error}")

    def note(self, error: str) -> None:
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(error)

    def tell(self, *, is_over: bool = False) -> None:
        """Tell the progress, unless it has been told just now."""
        now = self._now()
        if self._progress is None or (not is_over and now - self._told_at < TELL_EACH):
            return
        self._told_at = now
        figures = {name: getattr(self, name) for name in ("cache_type", "loaded", "refreshed", "skipped", "failed")}
        self._progress(WarmProgress(**figures, seconds=now - self._started, is_over=is_over))

    def restart(self) -> None:
        """The source begins again: what was stored so far is void."""
        self.loaded = self.refreshed = self.skipped = self.failed = 0
        self.errors.clear()

    def report(self) -> TypeReport:
        figures = {name: getattr(self, name) for name in ("cache_type", "loaded", "refreshed", "skipped", "failed", "ended")}
        return TypeReport(**figures, seconds=self._now() - self._started, errors=tuple(self.errors))


class Run:
    """One source's run for one tenant."""

    def __init__(self, cache: Cache, tally: Tally, pace: Pace, renewal: Renewal, clock: Clock, *, concurrency: int) -> None:
        self._cache, self._tally, self._pace, self._renewal = cache, tally, pace, renewal
        self._now, self._concurrency = clock.monotonic, concurrency
        self._captured: dict[bytes, bytes | None] = {}
        self._waiting: dict[int, Awaitable[Any]] = {}
        self._told: Exception | None = None
        self._since = self._now()
        self.is_over = False

    def __repr__(self) -> str:
        return f"<Run of {self._tally.cache_type!r}{', over' if self.is_over else ''}>"

    async def take(self, source: Callable[[], Any], tags: Iterable[str]) -> None:
        """Store and load all that a source comes with; once more from its beginning if that was invalidated meanwhile."""
        try:
            try:
                await self._take(source, tags)
            except Voided:
                self._tally.restart()
                await self._take(source, tags)
        finally:
            self.is_over = True

    async def _take(self, source: Callable[[], Any], tags: Iterable[str]) -> None:
        address, terms = self._cache.place("any", tags=tags)
        self._captured = await (await self._cache.engine()).capture(address.scopes, terms.reach)
        try:
            with warming_scope(self):
                async with aclosing(steps_of(source)) as steps:
                    await self._drive(steps)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _drive(self, steps: Steps) -> None:
        pairs: list[Pair] = []
        room = anyio.Semaphore(2 * self._concurrency)
        try:
            async with anyio.create_task_group() as calls:
                async for step in steps:
                    if inspect.isawaitable(step):
                        self._waiting[id(step)] = step
                        await room.acquire()
                        calls.start_soon(self._finish, step, room)
                        continue
                    self._gather(step, pairs)
                    if len(pairs) >= BATCH_KEYS:
                        await self._plant(pairs)
                        pairs = []
                    await self.breathe()
                await self._plant(pairs)
        finally:
            while self._waiting:
                close(self._waiting.popitem()[1])

    # Pairs

    def _gather(self, step: Any, pairs: list[Pair]) -> None:
        try:
            key, value, options = _spread(step)
            address, terms = self._cache.place(key, **options)
        except (CacheError, TypeError, ValueError) as error:
            self._tally.fail(error)
        else:
            pairs.append(Pair(address, value, terms))

    async def _plant(self, pairs: list[Pair]) -> None:
        if not pairs:
            return
        await self._pace.keys(len(pairs))
        distinct = list({pair.address.key: pair for pair in pairs}.values())  # the last of a key
        done = await (await self._cache.engine()).plant(distinct, self._captured, self._renewal, self.breathe)
        self._tally.loaded += done.loaded
        self._tally.refreshed += done.refreshed
        self._tally.skipped += done.skipped + len(pairs) - len(distinct)
        for _, error in done.refused:
            self._tally.fail(error)
        self._tally.tell()

    async def breathe(self) -> None:
        """Let others go on if this has worked for long enough, and for longer if they want to."""
        worked = self._now() - self._since
        if worked < SLICE:
            return
        before = self._now()
        await asyncio.sleep(0)
        others = self._now() - before
        if others > SLICE:
            await asyncio.sleep(worked)
        self._since = self._now()

    # Calls

    async def _finish(self, step: Awaitable[Any], room: anyio.Semaphore) -> None:
        """Await a step that was not."""
        del self._waiting[id(step)]
        try:
            await self.finish(step)
        finally:
            room.release()

    async def finish(self, step: Awaitable[Any]) -> None:
        """Await a call; what fails is counted, and stops nobody."""
        try:
            await step
        except Exception as error:
            if self._told is not error:
                self._tally.fail(error)
        finally:
            self._told = None
            self._tally.tell()

    async def call(self, engine: Engine, address: Address, terms: Terms, load: Callable[[], Awaitable[Any]]) -> Any:
        """A call of a cached function, or a `get_or_load`, that the source has made."""

        async def as_anybody() -> Any:
            with warming_scope(None):
                return await load()

        await self._pace.keys(1)
        try:
            renewed, value = await engine.warm(address, terms, as_anybody, self._renewal, self._pace.turn)
        except Exception as error:
            self._tally.fail(error, what=f"{terms.label}: ")
            self._told = error
            raise
        if renewed is None:
            self._tally.skipped += 1
        elif renewed:
            self._tally.refreshed += 1
        else:
            self._tally.loaded += 1
        self._tally.tell()
        return value


def close(step: object) -> None:
    """Let a step go that nobody will await."""
    if inspect.iscoroutine(step):
        step.close()
    elif isinstance(step, asyncio.Future):
        step.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that a task group was ended by."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _spread(step: Any) -> tuple[str, Any, Mapping[str, Any]]:
    """(key, value, options) of a step."""
    match step:
        case (str() as key, value):
            return key, value, {}
        case (str() as key, value, Mapping() as options):
            return key, value, options
        case _:
            raise ConfigurationError(
                f"a source yields (key, value), (key, value, options) or a call of a cached function that is not awaited, not {step!r:.80}"
            )


# What sources are


async def steps_of(source: Callable[[], Any]) -> Steps:
    """The steps of a source, however it gives them: from a generator, async or not, or returned as a list or a mapping; or none."""
    if inspect.isasyncgenfunction(inspect.unwrap(_bare(source))):
        made = source()
    elif inspect.iscoroutinefunction(inspect.unwrap(_bare(source))):
        made = await source()
    else:
        made = await call_plain(source)
    if inspect.isawaitable(made):
        made = await made
    async with contextlib.AsyncExitStack() as stack:
        if hasattr(made, "__aiter__"):
            if hasattr(made, "aclose"):
                await stack.enter_async_context(aclosing(made))
            async for step in made:
                yield step
        elif made is not None:
            async for step in _in_chunks(_iterator(made), stack):
                yield step


def _bare(source: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(source, functools.partial):
        source = source.func
    return source


def _iterator(made: Any) -> Iterator[Any]:
    if isinstance(made, Mapping):
        return iter(made.items())
    if isinstance(made, str | bytes) or not isinstance(made, Iterable):
        raise ConfigurationError(f"a source gives pairs of keys and values, or calls of cached functions, not {type(made).__name__}")
    return iter(made)


async def _in_chunks(steps: Iterator[Any], stack: contextlib.AsyncExitStack) -> Steps:
    """A plain generator makes its steps in a worker thread; what is there already is taken as it is."""
    if not inspect.isgenerator(steps):
        for step in steps:
            yield step
        return
    stack.push_async_callback(call_plain, steps.close)
    while chunk := await call_plain(list, itertools.islice(steps, CHUNK)):
        while chunk:
            try:
                yield chunk.pop(0)
            except BaseException:
                for step in chunk:
                    close(step)
                raise
