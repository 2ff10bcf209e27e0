"""A fleet with leases, against the truth: random histories of several processes in virtual time, each replayable from its seed.

As `test_engine_model`, with what only a fleet has: leases (`leased`), which run out, are renewed, taken over and given back; followers and
their wake-ups; processes that fall silent, pause, or are cut off; and time, in which values get stale and callers lose their patience.
A history is a list of steps drawn from a seed. Everything that a network could delay is held, and moved on by a step of its own: each
operation (asked, written, executed, answered, lost, executed after its caller has gone, executed twice), each wake-up, each load (begun,
has read the source, ended, failed, hangs).

What is checked
- P3: a read that began after an invalidation, delete or set had returned gets nothing older. After a soft invalidation a read that takes
  stale values may; `fresh`, and whoever takes none, may not. `refresh` gets nothing older than itself. Nothing is given past its life.
- P1: in calm histories (nothing lost, cancelled, failing, evicted) each cold key is loaded once in the fleet, and once more for each
  write, by a process that does not read. In all others, at most 1, + 1 for each whole life that has passed, + what events allow:
      a write, an early read                              1, and 1 for each flight that it closes in its own process
      a load that fails, overruns, or is left by all      1; one whose value is not to be stored: 1, and 1 for each process
      a `refresh` or `fresh` read                         2: the one that it overtakes is refused
      an operation lost, a token or lease evicted         2: its load goes unseen by the others, and is not stored
      a value evicted; a death, for each load under way   1
- P2: nobody is cancelled but who was cancelled.
- P4: no read that loads gets an error of the store; nobody waits past a `hard_timeout`.
- Waiting: once the network is let go, whoever still waits does so for a load that hangs, of his own process, or begun after all writes that
  he has to see. Once time passes, too, everybody is answered, and no flight, task, lease or follower is left.

A failure prints the seed, and what is left of the history when all that can be dropped is dropped. By hand:
`python -m tests.test_fleet_model --seeds 10000`, and `--from` to go on elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from aiocache_aura.engine import Engine
from aiocache_aura.errors import BackendError, LoadDeadlineError, LoadTimeoutError
from aiocache_aura.loading import Loaded
from aiocache_aura.resilience.single_flight import Flight, Waiter, _aboard
from aiocache_aura.stores import base, followers
from aiocache_aura.stores.memory import MemoryStore
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING, Uncached
from tests.leased import OVER_A_NETWORK, LeasedFleet, LeasedPort, LeasedStore, Lessee, VirtualLoop
from tests.steps import ADDRESSES, Network, Process, Step, address, lived, settled, terms

Action = tuple[str, int, int, int]  # what, a number, a key, a number
PLACES = [address("a", tenants=["1"], tags=["x"]), address("b", tenants=["2"], tags=["x"]), address("c", tenants=["1"])]
INVALIDATIONS = [
    ADDRESSES.to_invalidate("menu"),
    ADDRESSES.to_invalidate("menu", tenants=["1"]),
    ADDRESSES.to_invalidate("menu", tags=["x"]),
    ADDRESSES.to_invalidate(None, tenants=["2"]),
]
LENGTH = 70
FIRST = 3000  # histories, one of which has to catch a planted fault
LIFE, STALE, DEADLINE, BUDGET = 8.0, 20.0, 20.0, 0.5
HELD = ("lookup", "claim", "fill", "generations", "store", "store_if", "delete", "invalidate", "purge", *OVER_A_NETWORK)
CALM = ("lookup", "acquire", "fill", "delete", "invalidate", "wake")
NAPS = [0.01, 0.1, 0.3, 0.6, 1.1, 2.5, 4.0, 9.0]
THEMES: list[dict[str, float]] = [
    {},
    {"fail": 4.0, "load": 0.3, "flow": 2.0, "read": 4.0},
    {"invalidate": 1.5, "hang": 0.7, "flow": 2.0, "read": 4.0},
    {"refresh": 2.0, "delete": 0.5, "read": 4.0},
]
PLOTS = [
    "read flow load load flow soften read~softly flow load invalidate flow read flow fail flow",
    "read flow load read flow fail fail flow read flow invalidate flow read flow fail fail flow",
    "read read read read flow fail fail flow fail fail flow read flow",
    "read flow hang invalidate flow read flow load load read flow",
]
REPEATABLE = ("fill", "delete", "invalidate", "end", "renew")


class Violation(AssertionError):
    """A promise was broken."""


class LoadFailed(Exception):
    """What a load raises: as old as what it had read, [key, version] for each of its keys."""

    def __init__(self, versions: list[list[int]]) -> None:
        super().__init__(versions)
        self.versions = versions


def ways_to_read(calm: bool) -> list[Terms]:
    """The terms that reads are drawn from."""
    if calm:
        return [terms(life=1e6)]
    common: dict[str, Any] = {"life": LIFE, "deadline": DEADLINE, "throttle": 2.0}
    stale = terms(**common, stale=STALE, stale_on=(LoadFailed, LoadDeadlineError))
    return [
        terms(**common),
        stale,
        terms(**common, stale=STALE, stale_on=(LoadFailed,), soft=0.5),
        terms(**common, hard=1.5, keep_loading=True),
        terms(**common, hard=3.0),
        terms(**common, stale=STALE, early=2.0, is_plain=False),
        stale.altered(fresh=True),
        stale.altered(max_stale=0),
    ]


@dataclass
class Need:
    """The versions that a read has to see of a key, by what promised them."""

    hard: int
    soft: int
    written: int
    least: int  # of a refresh


@dataclass(eq=False)
class Read:
    """A read under way."""

    process: int
    keys: list[int]
    name: str
    how: Terms = field(repr=False)
    loads: bool
    refreshes: bool
    need: dict[int, Need] = field(default_factory=dict)
    began: float = 0.0
    is_cancelled: bool = False
    task: asyncio.Task[Any] | None = field(default=None, repr=False)


@dataclass(eq=False)
class Loading:
    """A load under way, held before it reads the source and before it ends."""

    process: int
    keys: list[int]
    flights: dict[int, Flight]
    began: dict[int, int]  # the source's versions then
    gate: asyncio.Future[str] = field(repr=False)
    versions: dict[int, int] | None = None
    hangs: bool = False


@dataclass
class Value:
    """How old a value is: to invalidations, to deletes and sets, and by the clock."""

    key: int
    dropped: int
    written: int
    made: float


writer: ContextVar[Value | None] = ContextVar("writer", default=None)
writes_in: ContextVar[int] = ContextVar("writes_in", default=-1)


class WatchedStore(LeasedStore):
    """Tells the world what an explicit write asks for, when it is executed (M10)."""

    note: Callable[[str], None]

    async def lookup(self, key: bytes, scopes: base.Scopes) -> tuple[bytes | None, base.Tokens]:
        self.note("asks")
        return await super().lookup(key, scopes)

    async def generations(self, scopes: base.Scopes, *, life: float | None, timeout: float) -> base.Tokens:
        self.note("asks")
        return await super().generations(scopes, life=life, timeout=timeout)

    async def store(self, items: Sequence[tuple[bytes, bytes, float | None]], *, timeout: float) -> None:
        self.note("stores")
        await super().store(items, timeout=timeout)

    async def store_if(self, key: bytes, raw: bytes, life: float | None, *, seen: bytes | None, timeout: float) -> bool:
        self.note("stores")
        return await super().store_if(key, raw, life, seen=seen, timeout=timeout)


class World(Network):
    """Processes, the store that they share, the truth, and what is known of it."""

    def __init__(self, processes: int, *, calm: bool = False) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.clock, self.calm = loop.clock, calm
        self.fleet = LeasedFleet(self.clock)
        self.store = self.fleet.memory = WatchedStore(self.clock)
        self.store.note = self._note
        self.born = self.clock.now
        self.ways = ways_to_read(calm)
        budget = 1e6 if calm else BUDGET
        self.processes = [self.fleet.process(*(CALM if calm else HELD), budget=budget) for _ in range(processes)]
        self.dead, self.frozen = set[int](), set[int]()
        for n, process in enumerate(self.processes):
            self._watch(n, process)
        self.source = [1] * len(PLACES)
        self.hard, self.soft, self.written = ([0] * len(PLACES) for _ in range(3))  # the versions that a read must see
        self.begun = [0] * len(PLACES)  # the latest version of deletes and sets that have begun
        self.dropped: list[tuple[int, int, int]] = []  # (process, key, version) of invalidations that have begun
        self.values: list[Value] = []
        self.reads: list[Read] = []
        self.loads: list[Loading] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.loaded, self.allowed = [0] * len(PLACES), [1] * len(PLACES)
        self.broken: list[str] = []

    def _watch(self, n: int, process: Process) -> None:
        """Have what a write closes count."""
        flights = process.engine.flights
        close, close_where = flights.close, flights.close_where

        def counted(act: Callable[[Any], None]) -> Callable[[Any], None]:
            def counting(which: Any) -> None:
                before = set(flights.by_key)
                act(which)
                for key in before - set(flights.by_key):
                    self._allow([number for number, place in enumerate(PLACES) if place.key == key])

            return counting

        flights.close = counted(close)  # type: ignore[method-assign]
        flights.close_where = counted(close_where)  # type: ignore[method-assign]

    def _allow(self, keys: Iterable[int], loads: int = 1) -> None:
        for key in keys:
            self.allowed[key] += loads

    @property
    def alive(self) -> list[int]:
        return [n for n in range(len(self.processes)) if n not in self.dead]

    # Reading

    def read(self, process: int, keys: list[int], kind: str, how: int) -> Read:
        terms_ = self.ways[how % len(self.ways)]
        engine = self.processes[process].engine
        places = [PLACES[key] for key in keys]

        async def load_many(positions: list[int]) -> dict[int, Any]:
            return dict(zip(positions, await self.load(process, [keys[n] for n in positions]), strict=True))

        async def load() -> Any:
            return (await self.load(process, keys[:1]))[0]

        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "read": lambda: engine.get_or_load(places[0], terms_, load),
            "batch": lambda: engine.get_or_load_many(places, terms_, load_many),
            "get": lambda: engine.get_many(places, self.ways[0]),
            "refresh": lambda: engine.refresh(places[0], terms_, load),
        }
        name = kind + f" in way {how % len(self.ways)}"
        read = Read(process, keys, name, terms_ if kind != "get" else self.ways[0], loads=kind != "get", refreshes=kind == "refresh")
        self._allow(keys if read.loads else [], 2 * (read.refreshes or terms_.fresh) + bool(terms_.early))
        self.reads.append(read)
        read.task = self._start(self._reading(read, ways[kind]))
        read.task.add_done_callback(lambda _: self.reads.remove(read))
        return read

    async def _reading(self, read: Read, way: Callable[[], Awaitable[Any]]) -> None:
        read.need = {
            key: Need(self.hard[key], self.soft[key], self.written[key], self.source[key] if read.refreshes else 0) for key in read.keys
        }
        read.began = self.clock.now
        try:
            found = await way()
            for key, value in zip(read.keys, found if isinstance(found, list) else [found], strict=False):
                self._check(read, key, value)
        except asyncio.CancelledError:
            if not read.is_cancelled:
                self.broken.append(f"P2: {read} is cancelled, and nobody has cancelled it")
            raise
        except LoadFailed as error:
            for key, version in error.versions:
                if key in read.need and version < self._least(read, key):
                    self.broken.append(f"P3: {read} got a failure of v{version} for key {key}")
        except LoadTimeoutError:
            if read.how.hard is None:
                self.broken.append(f"P4: {read} lost a patience that it has not")
        except LoadDeadlineError:
            pass
        except BackendError:
            if read.loads:
                self.broken.append(f"P4: {read} got an error of the store")
        finally:
            waited = self.clock.now - read.began
            if read.how.hard is not None and waited > read.how.hard + 3 * BUDGET and not read.is_cancelled:
                self.broken.append(f"P4: {read} was answered after {waited} s")

    def _least(self, read: Read, key: int) -> int:
        need = read.need[key]
        return max(need.hard, need.written, need.least, 0 if read.how.stale else need.soft)

    def _check(self, read: Read, key: int, number: Any) -> None:
        if number is MISSING and not read.loads:
            return
        if not isinstance(number, int) or not 0 < number <= len(self.values) or self.values[number - 1].key != key:
            self.broken.append(f"{read} got {number!r} for {key}, which nobody has written")
            return
        value, need = self.values[number - 1], read.need[key]
        if value.dropped < max(need.hard, need.least, 0 if read.how.stale else need.soft) or value.written < need.written:
            self.broken.append(f"P3: {read} got {value} for key {key}")
        if value.made + read.how.life + read.how.stale + 2.0 < read.began:
            self.broken.append(f"P3: {read} began at {read.began}, and got {value} for key {key}")

    def cancel(self, n: int) -> None:
        staying = [read for read in self.reads if not read.is_cancelled]
        if staying:
            self._cancel(staying[n % len(staying)])

    def _cancel(self, read: Read) -> None:
        read.is_cancelled = True
        assert read.task is not None
        read.task.cancel()

    # Loading

    async def load(self, process: int, keys: list[int]) -> list[Any]:
        aboard = {flight.key: flight for flight in _aboard.get()}
        began = {key: self.source[key] for key in keys}
        load = Loading(process, keys, {key: aboard[PLACES[key].key] for key in keys}, began, asyncio.get_running_loop().create_future())
        self.loads.append(load)
        for key in keys:
            self._count_load(key)
        try:
            await load.gate
            load.versions = {key: self.source[key] for key in keys}
            load.gate = asyncio.get_running_loop().create_future()
            end = await load.gate
            if end == "fail":
                raise LoadFailed([[key, load.versions[key]] for key in keys])
            values = [self.new_value(key, load.versions[key]) for key in keys]
            if end != "uncached":
                return values
            self._allow(keys, len(self.processes) + 1)
            return [Uncached(value) for value in values]
        except BaseException:
            self._allow(keys)
            raise
        finally:
            self.loads.remove(load)
            self._allow(key for key in keys if not load.flights[key].is_open)  # in a batch, of which others want the rest

    def _count_load(self, key: int) -> None:
        self.loaded[key] += 1
        lost = sum(process.port.lost + process.port.lessee.lost for process in self.processes)  # type: ignore[attr-defined]
        lives = 0 if self.calm else int((self.clock.now - self.born) / LIFE)
        allowed = self.allowed[key] + lives + 2 * lost
        if self.loaded[key] > allowed:
            self.broken.append(f"P1: load number {self.loaded[key]} of key {key}, and {allowed} are allowed")

    def move_load(self, n: int, end: str) -> None:
        held = [load for load in self.loads if not load.gate.done() and not load.hangs and load.process not in self.dead]
        if held:
            load = held[n % len(held)]
            if end == "hang":
                load.hangs = True
            else:
                load.gate.set_result(end)

    def new_value(self, key: int, version: int) -> int:
        self.values.append(Value(key, version, version, self.clock.now))
        return len(self.values)

    # Writing

    def invalidate(self, process: int, n: int, *, soft: bool) -> None:
        scopes = INVALIDATIONS[n % len(INVALIDATIONS)]
        keys = [key for key, place in enumerate(PLACES) if not set(scopes).isdisjoint(place.scopes)]
        engine = self.processes[process].engine
        self._start(self._writing(process, keys, self.soft if soft else self.hard, lambda: engine.invalidate(scopes, soft=soft)))

    def delete(self, process: int, keys: list[int]) -> None:
        engine = self.processes[process].engine
        self._start(self._writing(process, keys, self.written, lambda: engine.delete([PLACES[key] for key in keys])))

    def purge(self, process: int) -> None:
        engine = self.processes[process].engine
        self._start(self._writing(process, [0, 1, 2], self.written, lambda: engine.purge("menu", "*")))

    def set(self, process: int, key: int, how: int, *, adds: bool) -> None:
        async def act() -> Any:
            number = self.new_value(key, self.source[key])
            writer.set(self.values[number - 1])
            writes_in.set(process)
            engine, terms_ = self.processes[process].engine, self.ways[how % 2 % len(self.ways)]
            return await (engine.add(PLACES[key], number, terms_) if adds else engine.set([(PLACES[key], number)], terms_))

        self._start(self._writing(process, [key], self.written, act))

    async def _writing(self, process: int, keys: list[int], promised: list[int], act: Callable[[], Awaitable[Any]]) -> None:
        self._allow(keys)
        for key in keys:
            self.source[key] += 1
            if promised is self.written:
                self.begun[key] = self.source[key]
            else:
                self.dropped.append((process, key, self.source[key]))
        versions = {key: self.source[key] for key in keys}
        try:
            done = await act()
        except BackendError:
            done = False
        if done is not False and process not in self.dead:
            for key in keys:
                promised[key] = max(promised[key], versions[key])

    def _note(self, what: str) -> None:
        """What the executing of an explicit write's request makes of the age of its value (M10)."""
        value, by = writer.get(), writes_in.get()
        if value is None:
            return
        if what == "asks":  # for what it did not know: others' invalidations until here may be missed
            value.dropped = max([value.dropped, *(version for process, key, version in self.dropped if key == value.key and process != by)])
        else:  # ordered against deletes and sets where they meet
            value.written = max(value.written, self.begun[value.key])

    # The network

    def _ports(self, n: int) -> tuple[LeasedPort, Lessee]:
        port = self.processes[n].port
        assert isinstance(port, LeasedPort)
        return port, port.lessee

    def steps(self) -> list[Step]:
        there = [self._ports(n) for n in self.alive if n not in self.frozen]
        return [step for port, lessee in there for step in (*port.waiting(), *lessee.waiting())]

    async def again(self, n: int) -> None:
        """A client sends a request again, whose answer it did not get."""
        waiting = [step for step in self.steps() if step.name in REPEATABLE and step.is_executed]
        if waiting:
            await self._execute(waiting[n % len(waiting)])

    async def late(self, n: int) -> None:
        """The server executes a request whose caller has gone."""
        late = [(holder.late, step) for n in self.alive for holder in self._ports(n) for step in holder.late]
        if late:
            shelf, step = late[n % len(late)]
            shelf.remove(step)
            await self._execute(step)

    async def _execute(self, step: Step) -> None:
        value, by = writer.set(step.context.get(writer)), writes_in.set(step.context.get(writes_in, -1))
        try:
            await step.execute()
        finally:
            writer.reset(value)
            writes_in.reset(by)

    def lose(self, n: int) -> None:
        """A request is lost, or its answer."""
        waiting = self.steps()
        if waiting:
            step = waiting[n % len(waiting)]
            if step.name == "wake":
                step.future.cancel()
            else:
                step.fail()

    async def flush(self) -> None:
        """All that can go through the network does."""
        for _ in range(1000):
            await settled()
            steps = self.steps()
            if not steps:
                return
            for step in steps:
                if not step.future.done():
                    await self._go(step)
        raise AssertionError("the network never gets empty")

    async def flow(self, seconds: float) -> None:
        """Time passes, and the network delays nothing."""
        await self.flush()
        holders = [holder for n in self.alive if n not in self.frozen for holder in self._ports(n)]
        held = [set(holder.held) for holder in holders]
        for holder in holders:
            holder.held.clear()
        await asyncio.sleep(seconds)
        await settled()
        for holder, names in zip(holders, held, strict=True):
            holder.held |= names

    def evict(self, n: int) -> None:
        shelf = [self.store._tokens, self.store._permits, self.store.values][n % 3]
        names = sorted(shelf)
        if names:
            gone = names[n // 3 % len(names)]
            shelf.pop(gone)
            self._allow([key for key, place in enumerate(PLACES) if gone == place.key or gone in place.scopes], 2)

    # Processes

    def die(self, n: int) -> None:
        """A process falls silent."""
        if len(self.alive) < 2:
            return
        self.dead.add(n)
        self.frozen.discard(n)
        self._ports(n)[1].die()
        self._allow([key for load in self.loads if load.process == n for key in load.keys])
        for read in [read for read in self.reads if read.process == n]:
            self._cancel(read)

    def freeze(self, n: int) -> None:
        self.frozen ^= {n}

    def part(self, n: int, how: int) -> None:
        """A process hears no wake-ups, and knows it or not, or hears them again."""
        wire = self._ports(n)[1].wire
        if how % 3 == 0:
            wire.cut()
        elif how % 3 == 1:
            wire.is_deaf = True
        else:
            wire.mend()

    # A history

    async def act(self, action: Action) -> None:
        (kind, name), n, key, d = action[0].partition(" ")[::2], *action[1:]
        process = self.alive[n % len(self.alive)]
        if self.calm:  # the last one writes, and nobody else does
            process = len(self.processes) - 1 if kind in ("invalidate", "delete", "set") else n % (len(self.processes) - 1)
        keys = [key, (key + 1 + d % 2) % len(PLACES)][: 1 + d // 2 % 2]
        match kind:
            case "read" | "refresh":
                self.read(process, [key], kind, 2 if name == "softly" else d if name else int(n < 40))
            case "batch" | "get":
                self.read(process, keys, kind, int(d > 8))
            case "invalidate" | "soften":
                self.invalidate(process, d, soft=kind == "soften")
            case "set" | "add":
                self.set(process, key, d, adds=kind == "add")
            case "delete":
                self.delete(process, keys)
            case "purge":
                self.purge(process)
            case "move":
                await self.move(n, d, but=name)
            case "execute":
                await self.execute(n, name)
            case "answer":
                await self.answer(n, name)
            case "again":
                await self.again(n)
            case "late":
                await self.late(n)
            case "lose":
                self.lose(n)
            case "load" | "fail" | "uncached" | "hang":
                self.move_load(n, kind)
            case "cancel":
                self.cancel(n)
            case "evict":
                self.evict(n)
            case "die":
                self.die(process)
            case "freeze":
                self.freeze(process)
            case "part":
                self.part(process, d)
            case "flow":
                await self.flow(NAPS[(n if self.calm else d) % (5 if self.calm else 8)])
            case "stall":
                await asyncio.sleep(NAPS[min(n % 8, d % 8)])
            case _:
                await asyncio.sleep(0)
        if d % 3:
            await settled()

    async def end(self) -> None:
        """The network goes on, then time does; everybody is answered, nothing is left, and whoever reads then gets what was promised."""
        self.frozen.clear()
        for n in self.alive:
            self._ports(n)[1].wire.mend()
        await self._calm_down(12)
        for n in self.alive[: len(self.alive) - self.calm]:
            for key in range(len(PLACES)):
                self.read(n, [key], "read", 0)
        await self._calm_down(12)
        self._check_waits()
        await self._calm_down(60)
        for read in self.reads:
            self.broken.append(f"somebody waits for ever: {read}")
        self._check_rest()
        if not self.broken:
            for n in self.alive:
                self.read(n, [0, 1, 2], "get", 0)
            await self.flush()

    async def _calm_down(self, rounds: int) -> None:
        """Half a second each, in which all loads end that do not hang."""
        for n in range(rounds):
            await self.flow(0.5 if n else 0.0)
            while held := [load for load in self._loads_alive() if not load.hangs and not load.gate.done()]:
                for load in held:
                    load.gate.set_result("load")
                await self.flow(0.0)
            is_quiet = not any(self.processes[n].engine.flights._tasks for n in self.alive)
            if is_quiet and not self.reads and not self._loads_alive() and not self.store.leased():
                return

    def _loads_alive(self) -> list[Loading]:
        return [load for load in self.loads if load.process not in self.dead]

    def _check_waits(self) -> None:
        for read in self.reads:
            hung = [(load, key) for load in self._loads_alive() for key in load.keys if key in read.keys and load.hangs]
            if not any(
                load.began[key] >= self._least(read, key) or (load.process == read.process and load.flights[key].waiters)
                for load, key in hung
            ):
                self.broken.append(f"{read} waits for nothing, or for a load that is older; loads: {self.loads}")

    def _check_rest(self) -> None:
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.broken.append(f"unexpected: {task.exception()!r}")
        if self.store.leased():
            self.broken.append(f"leases are left: {self.store.leased()}")
        for n in self.alive:
            engine, lessee = self.processes[n].engine, self._ports(n)[1]
            if repr(engine.flights) != "<Flights 0 open, 0 tasks>" or engine._chores:
                self.broken.append(f"left: {engine.flights!r}, {engine._chores}")
            if lessee.holds or lessee.followers._by_key or lessee.followers._waiting:
                self.broken.append(f"left: {lessee!r}")

    def _start(self, work: Any) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]


async def live(actions: list[Action], processes: int, calm: bool) -> None:
    world = World(processes, calm=calm)
    try:
        await lived(world, actions)
        broken = list(world.broken)
    finally:
        for task in world.tasks:
            task.cancel()
        await asyncio.sleep(0)
        for n in world.alive:
            world.die(n)
        await world.fleet.aclose()
    if broken:
        raise Violation("\n".join(broken))


def run(actions: list[Action], processes: int, *, calm: bool = False) -> None:
    """Live through this history; Violation at the first promise that it breaks."""
    dice = random.getstate()
    random.seed(len(actions))
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(live(actions, processes, calm))
    finally:
        random.setstate(dice)


def history(seed: int, *, calm: bool = False) -> tuple[list[Action], int]:
    """The steps, and for how many processes. Each seed has its favourites: few kinds of steps on few keys go deeper than all at once."""
    rng = random.Random(seed)
    slow = rng.choice(["", "", "fill", "fill", "lookup", "acquire", "acquire", "invalidate", "delete", "end", "renew", "wake"])
    kinds = {"read": 2.0, f"move {slow}": 8.0, "load": 3.0, "tick": 1.0, f"execute {slow}": 1.5, f"answer {slow}": rng.choice([0.5, 1])}
    kinds["flow"] = rng.choice([0, 0.5, 1.5])

    def sometimes(names: Iterable[str], *weights: float) -> None:
        for kind in names:
            kinds[kind] = rng.choice(weights)

    sometimes(["batch", "get"], 0, 0, 1, 2)
    writes = ["invalidate", "invalidate", "delete", "set"]
    if calm:
        sometimes(rng.sample(writes, rng.choice([0, 1, 2])), 0.5, 1)
    else:
        sometimes(["read in many ways"], 0, 1, 2, 4)
        sometimes(["refresh", "cancel", "fail", "uncached", "hang"], 0, 0, 0.5, 1)
        sometimes(["evict", "lose", "late", "again", "freeze", "part", "stall"], 0, 0, 0, 0.4, 0.8)
        sometimes(["die"], 0, 0, 0.2)
        sometimes(rng.sample([*writes, "soften", "add", "purge", "soften"], rng.choice([0, 1, 1, 2, 3])), 0.5, 1, 2)
        kinds |= rng.choice(THEMES)
    keys = rng.sample(range(len(PLACES)), rng.choice([1, 1, 1, 2, 3]))
    drawn = rng.choices(list(kinds), list(kinds.values()), k=LENGTH)
    if not calm and rng.random() < 0.2:  # with a plot, which random steps thwart now and then
        plot = [kind.replace("~", " ") for kind in rng.choice(PLOTS).split()]
        drawn = [kind for told in zip(plot, drawn, strict=False) for kind in told[: 1 + (rng.random() < 0.3)]] + drawn[len(plot) :]
        keys = keys[:1]
    return [(kind, rng.randrange(60), rng.choice(keys), rng.randrange(12)) for kind in drawn], rng.choice([2, 2, 3, 4]) + calm


def replay(seed: int, *, calm: bool = False) -> None:
    run(*history(seed, calm=calm), calm=calm)


def explore(seeds: Iterable[int], *, calm: bool = False, shrinks: bool = True) -> None:
    for seed in seeds:
        try:
            replay(seed, calm=calm)
        except Violation as violation:
            actions, processes = history(seed, calm=calm)
            if shrinks:
                actions, violation = shrunk(actions, processes, calm, violation)
            raise Violation(f"seed {seed}, calm={calm}: {violation}\nrun({actions}, {processes}, calm={calm})") from None


def shrunk(actions: list[Action], processes: int, calm: bool, violation: Violation) -> tuple[list[Action], Violation]:
    """What is left of a history that breaks a promise when every step that can be dropped is dropped."""
    size = len(actions) // 2
    while size:
        start = 0
        while start < len(actions):
            fewer = actions[:start] + actions[start + size :]
            try:
                run(fewer, processes, calm=calm)
                start += size
            except Violation as found:
                actions, violation = fewer, found
        size //= 2
    return actions, violation


# Tests


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiocache_aura")


@pytest.mark.parametrize("part", range(4))
def test_no_history_breaks_a_promise(part: int) -> None:
    """Reads of all kinds, loads, writes, invalidations, cancellations, losses, evictions, pauses and deaths, in any order."""
    explore(range(part * 150, (part + 1) * 150))


def test_no_calm_history_loads_twice() -> None:
    """Nothing lost, failing, left or evicted: each cold key is loaded once in the fleet, and once more for each write of somebody else."""
    explore(range(250), calm=True)


def test_histories_reach_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The explorer is worth something: every answer of `acquire`, every end and every kind of outcome occurs in its histories."""
    seen: Counter[str] = Counter()

    def noted(name: str, what: Callable[..., str]) -> None:
        real = getattr(WatchedStore, name)

        def noting(self: WatchedStore, *args: Any, **options: Any) -> Any:
            seen[what(self, *args, **options)] += 1
            return real(self, *args, **options)

        monkeypatch.setattr(WatchedStore, name, noting)

    acquire, ways = WatchedStore.acquire, World.__init__
    counts: list[Any] = []

    def acquire_noted(self: WatchedStore, want: base.Want, proof: bytes) -> base.Standing:
        there = self.place(want.key)
        stands = acquire(self, want, proof)
        seen[type(stands).__name__] += 1
        if isinstance(stands, base.Claim) and there is not None and there.kind == "lease":
            seen["forced" if want.force else "overtaken"] += 1
        if isinstance(stands, base.Claim):
            seen[f"attempt {self.places[want.key].attempt}"] += 1
        return stands

    def ways_noted(self: World, *args: Any, **options: Any) -> None:
        ways(self, *args, **options)
        counts.extend(way.counts for way in self.ways)

    monkeypatch.setattr(WatchedStore, "acquire", acquire_noted)
    monkeypatch.setattr(World, "__init__", ways_noted)
    noted("end", lambda self, key, proof, what, *_, **__: what)
    noted("publish", lambda *_: "wakes")
    explore(range(200), shrinks=False)
    for name in ("hits", "misses", "coalesced", "loads", "sets", "load_errors", "errors", "stale_served", "overruns"):
        seen[name] = int(sum(getattr(one, name) for one in counts))
    wanted = [
        "Claim",
        "Found",
        "HeldElsewhere",
        "Failed",
        "Alone",
        "forced",
        "overtaken",
        "attempt 2",
        "release",
        "fail",
        "leave_alone",
        "wakes",
    ]
    wanted += ["hits", "misses", "coalesced", "loads", "sets", "load_errors", "errors", "stale_served", "overruns"]
    assert [name for name in wanted if seen[name] < 3] == []


def test_a_seed_is_a_history() -> None:
    """The same seed is the same history, whatever ran before it."""
    assert history(7) == history(7)
    assert history(7) != history(8)


# What the checker catches


def fill_without_fence(patch: pytest.MonkeyPatch) -> None:
    def fill(self: MemoryStore, one: base.Fill, now: float) -> bool:
        return self._put(one.key, one.raw, one.life, now)

    patch.setattr(MemoryStore, "_fill", fill)


def generations_read_after_the_load(patch: pytest.MonkeyPatch) -> None:
    real = Engine._fill

    async def fill(self: Engine, flights: Any, addresses: Any, results: Any, claims: Any, *rest: Any) -> list[bool]:
        later = [
            one and replace(one, tokens=await self._port.generations(where.scopes, life=None, timeout=BUDGET))
            for one, where in zip(claims, addresses, strict=True)
        ]
        return await real(self, flights, addresses, results, later, *rest)

    patch.setattr(Engine, "_fill", fill)


def joining_after_the_fill_was_written(patch: pytest.MonkeyPatch) -> None:
    real = Flight.board

    def board(self: Flight, *args: Any, **options: Any) -> Waiter:
        waiter = real(self, *args, **options)
        waiter.early = True
        return waiter

    patch.setattr(Flight, "board", board)


def verdict_ignored(patch: pytest.MonkeyPatch) -> None:
    real = WatchedStore._fill_one

    async def fill_one(self: WatchedStore, fill: base.Fill, timeout: float) -> base.Verdict:
        return replace(await real(self, fill, timeout), accepted=True)

    patch.setattr(WatchedStore, "_fill_one", fill_one)


def wake_up_lost_and_no_limit_on_the_wait(patch: pytest.MonkeyPatch) -> None:
    async def sleep(self: followers.KeyFollower, seconds: float) -> None:
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    patch.setattr(followers.KeyFollower, "_sleep", sleep)


def unshielded_wait(patch: pytest.MonkeyPatch) -> None:
    async def outcome(self: Flight, waiter: Waiter) -> Any:
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if self._crew is not None and self._crew.task is not None:
                self._crew.task.cancel()
            raise

    patch.setattr(Flight, "outcome", outcome)


def lease_not_renewed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lessee, "_renew", lambda self: None)


def set_keeps_the_lease(patch: pytest.MonkeyPatch) -> None:
    async def store(self: WatchedStore, items: Sequence[tuple[bytes, bytes, float | None]], *, timeout: float) -> None:
        self.note("stores")
        for key, raw, life in items:
            self._put(key, raw, life, self._now())

    patch.setattr(WatchedStore, "store", store)


def v8_no_second_look_at_the_value(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeasedStore, "_is_news", lambda self, want, raw: False)


def v9_captured_at_the_lookup(patch: pytest.MonkeyPatch) -> None:
    look, fill = Engine._look, Engine._fill

    async def looking(self: Any, address: Any, *args: Any) -> Any:
        held, sight = await look(self, address, *args)
        self.__dict__.setdefault("seen", {})[address.key] = sight.tokens
        return held, sight

    async def filling(self: Any, flights: Any, addresses: Any, results: Any, claims: Any, *rest: Any) -> list[bool]:
        tokens = [self.__dict__.get("seen", {}).get(where.key) for where in addresses]
        older = [
            replace(one, tokens=seen) if one and seen and not seen.missing(where.scopes) else one
            for one, seen, where in zip(claims, tokens, addresses, strict=True)
        ]
        return await fill(self, flights, addresses, results, older, *rest)

    patch.setattr(Engine, "_look", looking)
    patch.setattr(Engine, "_fill", filling)


def v11_a_doomed_lease_is_not_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeasedStore, "_is_doomed", lambda self, place, tokens: False)


def v22_a_stale_value_handed_out_by_the_flight(patch: pytest.MonkeyPatch) -> None:
    take_off, fail = Engine._take_off, Flight.fail
    found: dict[Flight, Any] = {}

    def taking_off(self: Engine, *args: Any, held: Any = None, **options: Any) -> tuple[Flight, Waiter]:
        flight, waiter = take_off(self, *args, held=held, **options)
        if held is not None:
            found[flight] = Loaded(held.value, None, 0)
        return flight, waiter

    def failing(self: Flight, error: BaseException, **options: Any) -> None:
        if self in found and isinstance(error, LoadFailed):
            for waiter in self._end():
                waiter.future.set_result(found[self])
        else:
            fail(self, error, **options)

    patch.setattr(Engine, "_take_off", taking_off)
    patch.setattr(Flight, "fail", failing)


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], bool, str]] = [
    (fill_without_fence, True, "P3"),
    (generations_read_after_the_load, True, "P3"),
    (joining_after_the_fill_was_written, True, "P3"),
    (verdict_ignored, True, "P3"),
    (wake_up_lost_and_no_limit_on_the_wait, False, "waits for nothing|waits for ever"),
    (unshielded_wait, False, "P2"),
    (lease_not_renewed, True, "P1"),
    (set_keeps_the_lease, True, "P3"),
    (v8_no_second_look_at_the_value, True, "P1"),
    (v9_captured_at_the_lookup, True, "P1"),
    (v11_a_doomed_lease_is_not_taken, False, "waits for nothing"),
    (v22_a_stale_value_handed_out_by_the_flight, False, "P3"),
]


@pytest.mark.parametrize(("fault", "calm", "broken"), FAULTS, ids=[fault.__name__ for fault, _, _ in FAULTS])
def test_a_planted_fault_is_caught(
    fault: Callable[[pytest.MonkeyPatch], None], calm: bool, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker can fail: with this fault in the engine or the store, one of the first histories breaks the promise that it should."""
    fault(monkeypatch)
    with pytest.raises(Violation, match=broken):
        explore(range(FIRST), calm=calm, shrinks=False)


# By hand


def main() -> None:
    parser = argparse.ArgumentParser(description="Live through histories of a fleet, each twice: one with every trouble, one calm.")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--from", type=int, default=0, dest="start")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    seeds = range(options.start, options.start + options.seeds)
    explore(seeds)
    explore(seeds, calm=True)
    print(f"{2 * options.seeds} histories in {time.monotonic() - began:.0f} s, and no promise broken")


if __name__ == "__main__":
    main()
