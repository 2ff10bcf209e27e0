"""A run of one source: what it yields, taken one after the other, and stored or loaded behind everybody's back.

    pairs    are gathered in small batches, and planted (see `planting`) before the source goes on
    calls    of cached functions that are not awaited become tasks, a few at a time; those that the source awaits itself come here as well,
             since its context says for which run it works

A source is read again from its beginning, once, if what its pairs depend on was invalidated meanwhile; and once more for those of its pairs
that named a tenant or a tag for the first time.

Invariants
- A run is last in line (see `warming_pace`): loads take turns that all runs of a warmer share, and no step keeps the event loop for long.
- What a load calls in turn is called as by anybody: it takes no turn, or all turns could wait for one. The same goes for what is called
  after the run is over, by a task that it left behind.
- The generations of pairs are captured before the source is opened, with its session, whose snapshot may be as old as it is (M6).
- However it ends, what the source has yielded is awaited or closed, and the source is closed. What it gave before it failed is stored.
- A place for a call is given back whatever becomes of its task. A CancelledError ends a run only if the run itself was cancelled: one that
  came from what a source or a call has awaited is a failure like any other.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any, Final, TypeAlias

from aiocache_aura.clock import Clock
from aiocache_aura.context import identity, warming_scope
from aiocache_aura.errors import BackendError, CacheError, ConfigurationError, MissingTenantError, MissingUserError
from aiocache_aura.generations import Address
from aiocache_aura.loading import LoadMany
from aiocache_aura.namespace import Cache
from aiocache_aura.planting import Bed, Ground, Pair, Planted, Renewal, Voided
from aiocache_aura.renewing import Engine, Warmed
from aiocache_aura.terms import Terms, fall_back
from aiocache_aura.types import MISSING
from aiocache_aura.warm_report import Ended, TypeReport, WarmProgress
from aiocache_aura.warming_pace import BATCH_KEYS, Pace
from aiocache_aura.warming_steps import Step, Steps, close

log = logging.getLogger("aiocache_aura.warmer")

BATCH_FIRST: Final = 16
COLD: Final = 0.9  # of a batch was stored anew: the next one is stored without a look
BATCH_BYTES: Final = 64 * 1024
GATHERED_FOR: Final = 0.25  # seconds after which a batch is planted, full or not
LOOKED_AT: Final = 4  # steps between two looks at the time
MOST_ERRORS: Final = 10
MOST_FAULTS: Final = 3  # batches in a row that the store did not take, after which a source is given up
TELL_EACH: Final = 0.1  # seconds between two words of progress
REMEMBERED: Final = 32
PAUSES: Final = (0.1, 0.5)  # seconds between attempts of a call to have the store answer

Reading: TypeAlias = Callable[[], AbstractAsyncContextManager[Steps]]


class Tally:
    """What became of a type's keys so far."""

    def __init__(self, cache_type: str, clock: Clock, progress: Callable[[WarmProgress], object] | None) -> None:
        self.cache_type, self._now, self._progress = cache_type, clock.monotonic, progress
        self.loaded = self.refreshed = self.skipped = self.failed = 0
        self.errors: list[str] = []
        self.ended: Ended | None = None
        self._started: float | None = None
        self._told_at = self._seconds = 0.0

    def start(self) -> None:
        self._started = self._told_at = self._now()

    def fail(self, error: BaseException, *, keys: int = 1, what: str = "") -> None:
        self.failed += keys
        self.note(f"{what}{type(error).__name__}: {error}")

    def note(self, error: str) -> None:
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(error)

    def tell(self, *, is_over: bool = False) -> None:
        """Tell the progress, unless it has been told just now. Whatever the callback raises is logged, and it is not called again."""
        now = self._now()
        if self._progress is None or self._started is None or (not is_over and now - self._told_at < TELL_EACH):
            return
        self._told_at = now
        figures = {name: getattr(self, name) for name in ("cache_type", "loaded", "refreshed", "skipped", "failed")}
        try:
            self._progress(WarmProgress(**figures, seconds=now - self._started, is_over=is_over))
        except Exception:
            log.warning("the progress callback of a warmer raised, and is told no more", exc_info=True)
            self._progress = None

    def mark(self) -> tuple[int, ...]:
        """Where a source begins."""
        return self.loaded, self.refreshed, self.skipped, self.failed, len(self.errors)

    def restart(self, mark: tuple[int, ...]) -> None:
        """The source that began there begins again: what it has stored so far is void."""
        self.loaded, self.refreshed, self.skipped, self.failed, errors = mark
        del self.errors[errors:]

    def end(self, how: Ended) -> None:
        self.tell(is_over=True)
        self.ended = how
        self._seconds = 0.0 if self._started is None else self._now() - self._started

    def report(self) -> TypeReport:
        figures = {name: getattr(self, name) for name in ("cache_type", "loaded", "refreshed", "skipped", "failed")}
        return TypeReport(**figures, seconds=self._seconds, errors=tuple(self.errors), ended=self.ended or "done")


class Run:
    """One source's run for one tenant."""

    def __init__(self, cache: Cache, tally: Tally, pace: Pace, renewal: Renewal, *, in_turn: bool = False) -> None:
        """`in_turn`: one call after the other, since they share a session."""
        self._cache, self._tally, self._pace, self._renewal, self._in_turn = cache, tally, pace, renewal, in_turn
        self._now = asyncio.get_running_loop().time
        self._ground = Ground()
        self._only: frozenset[bytes] | None = None  # in a second reading, the scopes whose pairs are meant
        self._bed: tuple[object, Bed] | None = None
        self._size, self._faults, self._is_cold = BATCH_FIRST, 0, False
        self._waiting: dict[int, Awaitable[Any]] = {}
        self._counted: deque[BaseException] = deque(maxlen=REMEMBERED)
        self._since = self._gathered_at = self._now()
        self.is_over = False

    def __repr__(self) -> str:
        return f"<Run of {self._tally.cache_type!r}{', over' if self.is_over else ''}>"

    async def take(self, read: Reading, tags: Iterable[str]) -> None:
        """Store and load all that a source comes with; `read` begins a reading of it."""
        began = self._tally.mark()
        try:
            await self._capture(self._own_scopes(tags))
            was_voided = False
            while True:
                try:
                    await self._read(read)
                except Voided:
                    if was_voided:
                        raise
                    was_voided, self._only = True, None
                    self._tally.restart(began)
                    self._ground.settle()
                    await self._capture(())
                    continue
                if self._only is not None or not self._ground.new:
                    return
                self._only = self._ground.settle()
        finally:
            self.is_over = True
            self._ground = Ground()  # or what is removed would be remembered for it

    def _own_scopes(self, tags: Iterable[str]) -> Iterable[bytes]:
        try:
            return self._cache.place("any", tags=tags)[0].scopes
        except (MissingTenantError, MissingUserError):  # the source names them
            return ()

    async def _capture(self, scopes: Iterable[bytes]) -> None:
        _, terms = self._cache.place("any", tenant_aware=False, user_aware=False)
        await (await self._cache.engine()).capture(self._cache.name, scopes, terms.reach, self._ground)

    async def _read(self, read: Reading) -> None:
        with warming_scope(self):
            await self._drive(read)

    async def _drive(self, read: Reading) -> None:
        failure: Exception | None = None
        pairs: list[Pair] = []
        try:
            async with asyncio.TaskGroup() as calls:
                try:
                    async with read() as steps:
                        await self._take_all(steps, pairs, calls)
                except Exception as error:  # what it gave before is as good as ever
                    failure = error
                except asyncio.CancelledError:
                    failure = _not_ours()
                if not isinstance(failure, Voided):
                    try:
                        await self._plant(pairs)
                    except Exception as error:
                        failure = failure or error
        finally:
            while self._waiting:
                close(self._waiting.popitem()[1])
        if failure is not None:
            raise failure

    async def _take_all(self, steps: Steps, pairs: list[Pair], calls: asyncio.TaskGroup) -> None:
        n, most, now = 0, 1, self._now
        async for item in steps:
            context, n = None, n + 1
            if item.__class__ is Step:
                item, context = item  # noqa: PLW2901
            if item.__class__ is not tuple and inspect.isawaitable(item):
                await self._start(item, context, calls)
                continue
            if not pairs:
                self._gathered_at, most = now(), min(self._size, self._pace.most_at_once)
            self._gather(item, context, pairs)
            if n % LOOKED_AT == 0:
                await self.breathe()
            if len(pairs) >= most or now() - self._gathered_at > GATHERED_FOR:
                batch = pairs[:]
                pairs.clear()
                await self._plant(batch)

    # Pairs

    def _gather(self, item: Any, context: Context | None, pairs: list[Pair]) -> None:
        try:
            key, value, options = (*item, None) if item.__class__ is tuple and len(item) == 2 else _spread(item)
            bed = self._bed_for(options) if context is None else context.run(self._bed_for, options)
            if self._only is None or not self._only.isdisjoint(bed.scopes) or not self._ground.covers(bed.scopes):
                pairs.append(Pair(bed.key(key), value, bed))
        except (CacheError, TypeError, ValueError) as error:
            if self._only is None:
                self._tally.fail(error)

    def _bed_for(self, options: dict[str, Any] | None) -> Bed:
        known = identity.get()
        if options is None and self._bed is not None and self._bed[0] is known:
            return self._bed[1]
        place: Any = self._cache.place
        bed = Bed(*place("any", **({} if options is None else options)))
        if options is None:
            self._bed = known, bed
        return bed

    async def _plant(self, batch: Sequence[Pair]) -> None:
        if not batch:
            return
        distinct = list({pair.key: pair for pair in batch}.values())  # the last of a key
        try:
            engine = await self._cache.engine()
            done = await engine.plant(distinct, self._ground, self._renewal, self.breathe, at_once=self._is_cold)
        except BackendError as error:
            self._faults += 1
            self._tally.fail(error, keys=len(batch))
            if self._faults >= MOST_FAULTS:
                raise
            return
        self._faults = 0
        self._is_cold = done.loaded >= COLD * len(distinct)
        self._tally.skipped += len(batch) - len(distinct)
        self._count(done, len(distinct))
        await self._pace.keys(done.loaded + done.refreshed)

    def _count(self, done: Planted, keys: int) -> None:
        tally = self._tally
        tally.loaded += done.loaded
        tally.refreshed += done.refreshed
        tally.skipped += done.skipped
        for error in done.refused:
            tally.fail(error)
        if done.unsure and self._only is not None:
            tally.fail(Voided("a tenant or tag that it named neither in tags= nor the first time"), keys=done.unsure)
        self._size = max(min(BATCH_BYTES * keys // max(done.size, 1), 4 * self._size, BATCH_KEYS), 1)
        tally.tell()

    async def breathe(self) -> None:
        """Let others go on if this has worked for long enough."""
        worked = self._now() - self._since
        if worked >= self._pace.slice:
            await self._pace.rest(min(worked, 2 * self._pace.slice))  # what is more it has waited, for its source or the store
            self._since = self._now()

    # Calls

    async def _start(self, call: Awaitable[Any], context: Context | None, calls: asyncio.TaskGroup) -> None:
        if self._only is not None:  # it was made in the first reading
            close(call)
            return
        self._waiting[id(call)] = call
        await self._pace.room.acquire()
        task = calls.create_task(self._finish(call), context=context)
        task.add_done_callback(self._leave_room)  # which a task that is cancelled before its first step cannot do itself
        if self._in_turn:
            await asyncio.wait({task})

    def _leave_room(self, _: object) -> None:
        self._pace.room.release()

    async def _finish(self, call: Awaitable[Any]) -> None:
        """Await a call that was yielded."""
        self._waiting.pop(id(call), None)
        await self.finish(call)

    async def finish(self, call: Awaitable[Any]) -> None:
        """Await a call for this run; what fails is counted, and stops nobody."""
        calls = _Calls(self)
        try:
            with warming_scope(calls):
                await call
        except Exception as error:
            if not any(error is one for one in self._counted):
                self._tally.fail(error)
        except asyncio.CancelledError:
            self._tally.fail(_not_ours())
        else:
            if not calls.count and not isinstance(call, asyncio.Future):  # of what nobody caches, or a `set`; a task has run by itself
                self._tally.loaded += 1
        finally:
            self._tally.tell()

    async def call(self, engine: Engine, address: Address, terms: Terms, load: Callable[[], Awaitable[Any]]) -> Any:
        """A call of a cached function, or a `get_or_load`, that the source has made; raises what the load raises, if nothing stands in."""
        has_run = False

        async def as_anybody() -> Any:
            nonlocal has_run
            has_run = True
            with warming_scope(None):
                return await load()

        async def ask(attempt: int = 0) -> Warmed:
            try:
                return await engine.warm(address, terms, as_anybody, self._renewal, self._pace.turn)
            except BackendError:
                if has_run or attempt >= len(PAUSES):
                    raise
            await asyncio.sleep(PAUSES[attempt])
            return await ask(attempt + 1)

        try:
            warmed = await ask()
        except Exception as error:
            if has_run and isinstance(error, terms.cache_errors):
                self._add("loaded")
                self._counted.append(error)
                raise
            self._failed(error, terms)
            return await fall_back(terms.fallback, error)
        if warmed.error is not None:
            self._failed(warmed.error, terms)
        elif not has_run:
            self._add("skipped")
        else:
            self._add("loaded" if warmed.held is None else "refreshed")
        if not has_run and warmed.held is not None and warmed.held.error is not None:
            self._counted.append(warmed.held.error)
            raise warmed.held.error
        return warmed.value

    async def many(self, engine: Engine, addresses: Sequence[Address], terms: Terms, load: LoadMany) -> list[Any]:
        """A `get_or_load_many` that the source has made."""
        asked = set[int]()

        async def as_anybody(positions: list[int]) -> Any:
            asked.update(positions)
            with warming_scope(None):
                return await load(positions)

        try:
            values, there = await engine.warm_many(addresses, terms, as_anybody, self._renewal, self._pace.turn)
        except Exception as error:
            self._failed(error, terms, keys=len(addresses))
            raise
        loaded = {n for n in asked if values[n] is not MISSING}
        self._add("refreshed", len(loaded & there))
        self._add("loaded", len(loaded - there))
        self._add("skipped", len(addresses) - len(loaded))
        return values

    def _add(self, what: str, count: int = 1) -> None:
        if self._only is None:  # else it was counted in the first reading
            setattr(self._tally, what, getattr(self._tally, what) + count)
            self._tally.tell()

    def _failed(self, error: Exception, terms: Terms, *, keys: int = 1) -> None:
        """Count an error, which may be on its way to whoever awaits the call, who may be one of ours."""
        self._counted.append(error)
        if self._only is None:
            self._tally.fail(error, keys=keys, what=f"{terms.label}: ")


class _Calls:
    """The calls that come of one that a source has yielded."""

    __slots__ = ("_run", "count")

    def __init__(self, run: Run) -> None:
        self._run, self.count = run, 0

    @property
    def is_over(self) -> bool:
        return self._run.is_over

    async def call(self, engine: Engine, address: Address, terms: Terms, load: Callable[[], Awaitable[Any]]) -> Any:
        self.count += 1
        return await self._run.call(engine, address, terms, load)

    async def many(self, engine: Engine, addresses: Sequence[Address], terms: Terms, load: LoadMany) -> list[Any]:
        self.count += 1
        return await self._run.many(engine, addresses, terms, load)


def _not_ours() -> CacheError:
    """For a CancelledError of something that was awaited; if it is this task's own, it goes on."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise  # noqa: PLE0704 - called where it is handled
    return CacheError("CancelledError: something that it awaited was cancelled")


def _spread(item: Any) -> tuple[str, Any, dict[str, Any] | None]:
    """(key, value, options) of what was yielded."""
    match item:
        case (key, value):
            return key, value, None
        case (key, value, Mapping() as options):
            return key, value, dict(options)
        case _:
            raise ConfigurationError(
                "a source yields (key, value), (key, value, options) or a call of a cached function that is not awaited, not "
                f"{type(item).__name__}"
            )


__all__ = ["Run", "Tally"]
