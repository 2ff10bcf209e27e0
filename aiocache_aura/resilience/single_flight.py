"""Single flight: however many callers of one event loop ask for a cold key, one load.

A flight is the way of one load: claiming -> loading -> filling -> done. The registry holds at most one open flight for a key. The flight's
task belongs to the registry; callers wait on futures of their own, are counted, and may leave. This module does not know what is loaded.

Order is one integer, the tick (PROTOCOL.md). A read notes the tick when it begins; a flight takes one when its load begins.

Invariants
- A founder began no later than the load did: it takes the result in any case. Everybody else is late, and takes it only if it came before
  the fill was written and the fill was confirmed: accepted by the fence, and no generation changed (M3). Otherwise RETRY, with the old
  tick; then it is a founder wherever it lands, so that happens once.
- Who arrives while the fill is under way waits for its verdict and then looks up (M4). A lookup that missed although the key was filled
  after the lookup had begun looks up again (V25).
- The last caller to leave takes the flight out of the registry and cancels it, in one synchronous stretch (M17): nobody joins what is
  being cancelled. While filling there is nothing left to cancel. A flight that is kept is not cancelled: one that nobody has waited for
  from the start, one that outlives its callers, or whose callers' patience has ended. Of these there are at most `MOST_BEHIND`.
- A flight that is failed from outside, by its deadline, is over at once, whether or not its load heeds being cancelled.
- A flight waits for another while one of its loads is a caller aboard it. Boarding never closes a circle of these.
- A flight's end takes out only itself, by identity: a superseded flight does not remove its successor (V24).
- Closed, superseded: whoever has joined keeps the flight; later callers start another; a closed flight stores nothing (M18).
- A personal load uses what belongs to its caller (a session). It ends with that caller, which waits until it has, and the next waiting
  caller's load takes its place (P2). Who waits without a load of its own then looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context, ContextVar, copy_context
from enum import Enum, IntEnum
from typing import Any, Final, TypeAlias

import anyio

from aiocache_aura.errors import CacheError, RecursiveLoadError

Load: TypeAlias = Callable[[], Awaitable[Any]]


class Retry(Enum):
    """A late caller may not take the result: it looks again."""

    RETRY = "RETRY"


class LeftOut(Enum):
    """A batch's loader has left this key out. Not MISSING, which a loader may give."""

    LEFT_OUT = "LEFT_OUT"


RETRY: Final = Retry.RETRY
LEFT_OUT: Final = LeftOut.LEFT_OUT
REMEMBERED_FILLS = 1024
MOST_BEHIND = 100
CLOSING = 5.0  # seconds that loads have to end in when everything is closed


class NobodyLoads(CacheError):
    """Whose load it was has left, and who still waits has brought none."""


class Paused(CacheError):
    """A refresh has just failed, and whoever would refresh has a value to go on with."""


class Tick:
    """The order of what one event loop does: batches written, loads begun, own writes answered."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0

    def take(self) -> int:
        taken = self.now
        self.now = taken + 1
        return taken

    def __repr__(self) -> str:
        return f"Tick({self.now})"


class Phase(IntEnum):
    CLAIMING = 0
    LOADING = 1
    FILLING = 2
    DONE = 3


class Waiter:
    """One caller aboard a flight; `content` if it has a value to go on with."""

    __slots__ = ("aboard", "began", "content", "context", "early", "future", "load")

    def __init__(self, began: int, early: bool, load: Load | None, content: bool) -> None:
        self.began, self.early, self.load, self.content = began, early, load, content
        self.aboard = _aboard.get()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.context: Context | None = None if load is None else copy_context()


class Flight:
    """One load on its way, and who waits for it."""

    __slots__ = (
        "_crew",
        "_flights",
        "_running",
        "anew",
        "kept",
        "key",
        "let_go",
        "load_tick",
        "outlives",
        "phase",
        "refreshes",
        "scopes",
        "waiters",
    )

    def __init__(self, flights: Flights, key: bytes, scopes: Iterable[bytes], refreshes: bool) -> None:
        self.key, self.scopes, self.refreshes = key, frozenset(scopes), refreshes
        self.anew = self.outlives = self.kept = False
        self.phase = Phase.CLAIMING
        self.load_tick: int | None = None
        self.waiters: dict[Waiter, None] = {}
        self._flights = flights
        self.let_go: Callable[[], None] | None = None  # of what others wait for
        self._crew: _Crew | None = None
        self._running: tuple[Waiter, asyncio.Task[Any]] | None = None

    def __repr__(self) -> str:
        return f"<Flight {self.phase.name.lower()}, {len(self.waiters)} waiting{'' if self.is_open else ', closed'}>"

    @property
    def is_open(self) -> bool:
        return self._flights.get(self.key) is self

    def was_founded_by(self, began: int) -> bool:
        """Whether a read that began then is one that the load began after."""
        return self.load_tick is None or began <= self.load_tick

    @property
    def is_wanted(self) -> bool:
        return self.phase is Phase.FILLING or (self.phase is not Phase.DONE and (bool(self.waiters) or self.kept))

    @property
    def is_content(self) -> bool:
        """Whether everybody who waits, if anybody does, has a value to go on with."""
        return all(waiter.content for waiter in self.waiters)

    # Callers

    def board(self, began: int, load: Load | None = None, *, content: bool = False) -> Waiter:
        """Join now; a `load` is this caller's own, for a personal flight."""
        if self._crew is not None:  # else it is new, and nobody waits for it yet
            self.refuse_recursion()
        waiter = Waiter(began, self.phase < Phase.FILLING, load, content)
        self.waiters[waiter] = None
        return waiter

    def refuse_recursion(self) -> None:
        """RecursiveLoadError for a loader that would wait for itself, through whatever other loads."""
        waiting = [_aboard.get()]
        known = {id(waiting[0])}  # a batch is one, however many wait for its flights
        for flights in waiting:  # grows: who waits for these, and who for those
            if self in flights:
                raise RecursiveLoadError(
                    "a loader asked the cache for the key that it is loading, or for one whose loader waits for it; call the uncached "
                    "function (fn.__wrapped__) there"
                )
            for waiter in (waiter for flight in flights for waiter in flight.waiters):
                if id(waiter.aboard) not in known:
                    known.add(id(waiter.aboard))
                    waiting.append(waiter.aboard)

    async def outcome(self, waiter: Waiter) -> Any:
        """What the load gave, its exception, or RETRY. Leaves the flight when the caller is cancelled. A caller whose own load has been
        failed from outside waits until that has ended."""
        try:
            return await waiter.future
        except BaseException:
            await self.leave(waiter)
            raise

    async def leave(self, waiter: Waiter) -> None:
        """Go; everything but waiting for one's own personal load happens before the first await."""
        if self.waiters.pop(waiter, self) is self:
            if waiter.future.done() and not waiter.future.cancelled():
                waiter.future.exception()  # retrieved: nobody else will
            await self._see_the_end_of(waiter)
            return
        running = self._running
        if not self.waiters and self.phase < Phase.FILLING and not (self.kept or (self.outlives and self.keep())):
            self._abandon()
        if running is not None and running[0] is waiter:
            running[1].cancel()
            await self._see_the_end_of(waiter)

    async def _see_the_end_of(self, waiter: Waiter) -> None:
        """Wait until a caller's own load, which is being cancelled, is no more."""
        if self._running is not None and self._running[0] is waiter:
            with anyio.CancelScope(shield=True):  # a scope of anyio's cancels again and again, and would end the wait at once
                await asyncio.wait({self._running[1]}, timeout=self._flights.patience)

    def part(self, waiter: Waiter) -> None:
        """Go, and let the load go on without anybody, if there is room for one more such; else it is abandoned."""
        self.outlives = True  # whoever leaves last
        if self.waiters.pop(waiter, self) is self and waiter.future.done() and not waiter.future.cancelled():
            waiter.future.exception()  # retrieved: nobody else will
        if not self.waiters and self.phase < Phase.FILLING and not self.keep():
            self._abandon()

    def keep(self) -> bool:
        """Have the load go on though nobody waits for it; False if there are too many of these."""
        self.kept = self.kept or self._flights.take_behind(self._crew)
        return self.kept

    def _abandon(self) -> None:
        """Nobody waits any more. A personal load under way is cancelled by the leaving of its owner, once, so that it can clean up."""
        self._flights.take_out(self)
        if self._crew is not None and self._running is None and not self._crew.lose(self):
            self.close()  # a batch goes on without it

    def close(self) -> None:
        """It is out of the registry and stores nothing: nobody is to wait for that (M15)."""
        if self.let_go is not None and self.phase < Phase.FILLING:
            self.let_go()

    # The load's side

    def begin_load(self) -> None:
        self.load_tick = self._flights.tick.take()
        self.phase = Phase.LOADING

    def fill_written(self) -> None:
        self.phase = Phase.FILLING

    async def run_personal(self) -> Any:
        """Run the load of the caller that has waited longest; if it leaves, the next one's."""
        while True:
            owner = next((waiter for waiter in self.waiters if waiter.load is not None), None)
            if owner is None or owner.load is None:
                raise NobodyLoads("whose load it was has left")
            self.begin_load()
            task = asyncio.get_running_loop().create_task(self._in_flight(owner.load), context=owner.context)
            self._running = owner, task
            try:
                return await task
            except BaseException:
                if owner in self.waiters or not self.waiters:
                    raise
            finally:
                self._running = None

    async def _in_flight(self, load: Load) -> Any:
        _aboard.set((self,))
        return await load()

    def finish(self, result: Any, *, confirmed: bool) -> None:
        """Give the result to whoever may have it; `confirmed`: the fence took the fill, and no generation has changed since."""
        for waiter in self._end():
            founder = self.was_founded_by(waiter.began)
            waiter.future.set_result(result if founder or (confirmed and waiter.early) else RETRY)

    def fail(self, error: BaseException, *, for_everybody: bool = False) -> None:
        """The load failed: founders get its exception, late ones look again, unless there is nothing more to be had, or they would go round
        in a circle."""
        for waiter in self._end():
            late = not self.was_founded_by(waiter.began) and not for_everybody and not isinstance(error, RecursiveLoadError)
            if late or isinstance(error, NobodyLoads) or (isinstance(error, Paused) and not waiter.content):
                waiter.future.set_result(RETRY)
            elif isinstance(error, asyncio.CancelledError):
                waiter.future.cancel()
            else:
                waiter.future.set_exception(error)

    def overrun(self, error: BaseException) -> None:
        """Its time is up: over now, and its load cancelled."""
        if self.phase < Phase.FILLING:
            self.fail(error)
            if self._crew is not None:
                self._crew.lose(self)

    def _end(self) -> list[Waiter]:
        self._flights.take_out(self)
        self.phase = Phase.DONE
        waiting = [waiter for waiter in self.waiters if not waiter.future.done()]
        self.waiters = {}
        return waiting


_aboard: ContextVar[tuple[Flight, ...]] = ContextVar("aiocache_aura_aboard", default=())


class _Crew:
    """The task behind one flight, or behind the flights of a batch."""

    __slots__ = ("flights", "task")

    def __init__(self, flights: list[Flight]) -> None:
        self.flights = flights
        self.task: asyncio.Task[None] | None = None

    def lose(self, flight: Flight) -> bool:
        """Cancel the task, unless another of its flights is wanted; whether it was."""
        if self.task is None or any(other.is_wanted for other in self.flights if other is not flight):
            return False
        self.task.cancel()
        return True


class Flights:
    """The registry of one event loop: which keys are being loaded."""

    def __init__(self, tick: Tick, *, patience: float) -> None:
        self.tick, self.patience = tick, patience
        self.by_key: dict[bytes, Flight] = {}
        self._tasks: dict[asyncio.Task[None], _Crew] = {}
        self._behind: set[_Crew | None] = set()
        self._filled: dict[bytes, int] = {}

    def __repr__(self) -> str:
        behind = f", {len(self._behind)} behind" if self._behind else ""
        return f"<Flights {len(self.by_key)} open, {len(self._tasks)} tasks{behind}>"

    def __len__(self) -> int:
        return len(self.by_key)

    def get(self, key: bytes) -> Flight | None:
        return self.by_key.get(key)

    def open(self, key: bytes, scopes: Iterable[bytes], *, refreshes: bool = False) -> Flight:
        """A new flight for this key; one that was open there is closed. One that `refreshes` is joined only by reads that have missed."""
        flight = self.by_key[key] = Flight(self, key, scopes, refreshes)
        return flight

    def start(self, flights: list[Flight], drive: Callable[[], Awaitable[None]]) -> None:
        """Run `drive` in a task of its own; it ends every flight, or raises what fails those that it has not ended."""
        crew = _Crew(flights)
        for flight in flights:
            flight._crew = crew  # noqa: SLF001 - set here, cleared in `_landed`
        task = crew.task = asyncio.get_running_loop().create_task(self._aboard_of(flights, drive))
        self._tasks[task] = crew
        task.add_done_callback(lambda done: self._landed(crew, done))

    def split(self, flight: Flight, drive: Callable[[], Awaitable[None]]) -> None:
        """Let a flight of a batch go its own way."""
        if flight._crew is not None:  # noqa: SLF001 - as in `start`
            flight._crew.flights.remove(flight)  # noqa: SLF001
        self.start([flight], drive)
        if flight.kept:
            flight.kept = self.take_behind(flight._crew)  # noqa: SLF001
            if not flight.is_wanted:
                flight._abandon()  # noqa: SLF001

    async def _aboard_of(self, flights: list[Flight], drive: Callable[[], Awaitable[None]]) -> None:
        _aboard.set(tuple(flights))
        await drive()

    @property
    def has_room_behind(self) -> bool:
        """Whether one more load may go on without anybody who waits for it."""
        return len(self._behind) < MOST_BEHIND

    def take_behind(self, crew: _Crew | None) -> bool:
        """Count a crew among those that nobody waits for; False if there are too many."""
        if crew in self._behind:
            return True
        if self.has_room_behind:
            self._behind.add(crew)
            return True
        return False

    def _landed(self, crew: _Crew, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._behind.discard(crew)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            error = CacheError("the load ended without a result")
        for flight in crew.flights:
            if flight.phase is not Phase.DONE:
                flight.fail(error)
            flight._crew = flight.let_go = None  # noqa: SLF001 - or flight, crew, task and its context would wait for the garbage collector
        crew.task = None

    def take_out(self, flight: Flight) -> None:
        if self.by_key.get(flight.key) is flight:
            del self.by_key[flight.key]

    def close(self, keys: Iterable[bytes]) -> None:
        """Deleted or set: later callers start another flight."""
        for flight in [self.by_key.pop(key) for key in keys if key in self.by_key]:
            flight.close()

    def close_where(self, is_meant: Callable[[Flight], bool]) -> None:
        """Invalidated: as `close`, for every flight that is meant."""
        for flight in [flight for flight in self.by_key.values() if is_meant(flight)]:
            self.take_out(flight)
            flight.close()

    def note_fill(self, key: bytes) -> None:
        """The fill of this key was answered."""
        self._filled.pop(key, None)
        self._filled[key] = self.tick.take()
        if len(self._filled) > REMEMBERED_FILLS:
            del self._filled[next(iter(self._filled))]

    def filled_since(self, key: bytes, tick: int) -> bool:
        return self._filled.get(key, -1) >= tick

    async def aclose(self) -> None:
        """Fail every flight, closed ones too, and wait for the tasks to end."""
        for flight in [flight for crew in self._tasks.values() for flight in crew.flights if flight.phase is not Phase.DONE]:
            flight.fail(CacheError("the cache manager was closed while this value was loading"), for_everybody=True)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING)
