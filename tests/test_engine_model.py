"""The engine as a whole, against the truth: random histories of two processes over one store, each replayable from its seed.

A history is a list of steps, drawn from a seed. Everything that a network or a scheduler could delay is held and moved on by a step of its
own: each operation of the store (asked, written, executed, answered; or its answer is lost), each load (begun, has read the source, ended;
or fails), each turn of the event loop. So readers, loads, writes and invalidations meet in every order, and none of it depends on time.

What is checked
- P3: a read that began after an invalidation, delete or set had returned gets nothing older, no older value and no older failure. Every
  value carries the source's version when it was read. Explicit sets are as old as PROTOCOL.md says (M10; model `fence`).
- P1: one load of a key at a time in a process, while somebody waits for it and no write has closed it. In calm histories, where nothing is
  written, lost or evicted, one load in all, but for those that all callers have left.
- P2: nobody is cancelled but who was cancelled; a personal load has ended when its caller has left; at the end no flight or task is left
  and everybody has been answered.

A failure prints the seed, and the steps that are left when all that can be dropped is dropped: `replay(seed)`, `run(steps)` show it again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest

from aiocache_aura.errors import BackendError
from aiocache_aura.resilience.single_flight import Phase, _aboard
from aiocache_aura.types import MISSING
from tests.clocks import ManualClock
from tests.steps import ADDRESSES, TERMS, Fleet, Network, Process, Step, address, lived, settled, terms

Action = tuple[str, int, int, int]  # what, a number, a key, a number
PLACES = [address("a", tenants=["1"], tags=["x"]), address("b", tenants=["2"], tags=["x"]), address("c", tenants=["1"])]
PERSONAL = terms(personal=True)
HOW = [TERMS, TERMS, PERSONAL]
INVALIDATIONS = [
    ADDRESSES.to_invalidate("menu"),
    ADDRESSES.to_invalidate("menu", tenants=["1"]),
    ADDRESSES.to_invalidate("menu", tags=["x"]),
    ADDRESSES.to_invalidate(None, tenants=["2"]),
]
LENGTH = 80
HELD = ("lookup", "claim", "fill", "generations", "store", "store_if", "delete", "invalidate", "purge")


class Violation(AssertionError):
    """A promise was broken."""


class LoadFailed(Exception):
    """What a load raises: as old as what it had read."""

    def __init__(self, versions: dict[int, int]) -> None:
        super().__init__(versions)
        self.versions = versions


@dataclass
class Read:
    """A read under way: what it may get, at the least."""

    process: int
    keys: list[int]
    need: dict[int, tuple[int, int]] = field(default_factory=dict)
    is_cancelled: bool = False
    task: asyncio.Task[Any] | None = None


@dataclass
class Loading:
    """A load under way, held before it reads the source and before it ends."""

    process: int
    keys: list[int]
    flights: dict[int, Any]
    owner: Read | None  # of a personal load
    gate: asyncio.Future[bool]
    versions: dict[int, int] | None = None
    closed: set[int] = field(default_factory=set)
    abandoned: set[int] = field(default_factory=set)


@dataclass
class Write:
    """An explicit write under way, and the id of the value that it writes."""

    process: int
    key: int
    value: int


reader: ContextVar[Read | None] = ContextVar("reader", default=None)
writer: ContextVar[Write | None] = ContextVar("writer", default=None)


class World(Network):
    """Two processes, their store, the truth, and what is known of it."""

    def __init__(self, *, calm: bool = False) -> None:
        self.fleet, self.calm = Fleet(None, ManualClock()), calm
        self.processes: list[Process] = [self.fleet.process(*HELD) for _ in range(1 if calm else 2)]
        self.source = [1] * len(PLACES)
        self.invalidated, self.written = [0] * len(PLACES), [0] * len(PLACES)  # the versions that a read must see, by what promised it
        self.values: dict[int, tuple[int, int]] = {}  # of each value, how old it is to invalidations, and to deletes and sets
        self.dropped: list[tuple[int, int, int]] = []  # (process, key, version) of invalidations that have begun
        self.begun = [0] * len(PLACES)  # the latest version of deletes and sets that have begun
        self.reads: list[Read] = []
        self.loads: list[Loading] = []
        self.all_loads: list[Loading] = []
        self.closing: list[tuple[int, int]] = []  # (process, key) of refreshes and adds under way: they close when they get to it
        self.lost: list[Step] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.loaded, self.left = [0] * len(PLACES), [0] * len(PLACES)
        self.broken: list[str] = []

    # Reading

    def read(self, process: int, keys: list[int], kind: int) -> None:
        read = Read(process, keys)
        engine = self.processes[process].engine
        places = [PLACES[key] for key in keys]

        async def load_many(positions: list[int]) -> dict[int, int]:
            return dict(zip(positions, await self.load(process, [keys[n] for n in positions], None), strict=True))

        async def load() -> int:
            return (await self.load(process, keys[:1], reader.get() if HOW[keys[0]] is PERSONAL else None))[0]

        ways: list[Callable[[], Awaitable[Any]]] = [
            lambda: engine.get_or_load(places[0], HOW[keys[0]], load),
            lambda: engine.get_or_load_many(places, TERMS, load_many),
            lambda: engine.get_many(places, TERMS),
            lambda: engine.refresh(places[0], HOW[keys[0]], load),
        ]
        read.task = self._start(self._reading(read, ways[kind], loads=kind != 2, refreshes=kind == 3))

    async def _reading(self, read: Read, way: Callable[[], Awaitable[Any]], *, loads: bool, refreshes: bool) -> None:
        reader.set(read)
        read.need = {key: (self.invalidated[key], self.written[key]) for key in read.keys}
        self.reads.append(read)
        if refreshes:
            self._close(read.process, read.keys[:1])
            self.closing.append((read.process, read.keys[0]))
        try:
            found = await way()
            for key, value in zip(read.keys, found if isinstance(found, list) else [found], strict=False):
                self._check(read, key, value, loads)
        except asyncio.CancelledError:
            if not read.is_cancelled:
                self.broken.append(f"P2: {read} is cancelled, and nobody has cancelled it")
            if any(load.owner is read for load in self.loads):
                self.broken.append(f"P2: {read} has left, and its personal load goes on")
            self._note_abandoned()
            raise
        except LoadFailed as error:
            for key in read.need.keys() & error.versions.keys():
                if error.versions[key] < max(read.need[key]):
                    self.broken.append(f"P3: {read} got a failure of v{error.versions[key]} for key {key}")
        except BackendError:
            if loads:
                self.broken.append(f"P4: {read} got an error of the store")
        finally:
            self.reads.remove(read)
            if refreshes:
                self.closing.remove((read.process, read.keys[0]))

    def _check(self, read: Read, key: int, value: Any, loads: bool) -> None:
        if value is MISSING and not loads:
            return
        if value not in self.values:
            self.broken.append(f"{read} got {value!r} for {key}, which nobody has written")
            return
        dropped, written = self.values[value]
        if dropped < read.need[key][0] or written < read.need[key][1]:
            self.broken.append(f"P3: {read} got value {value} of v{dropped}/v{written} for key {key}, and needs {read.need[key]}")

    def _note_abandoned(self) -> None:
        """Count the loads that nobody waits for any more."""
        for load in self.all_loads:
            for key, flight in load.flights.items():
                is_left = not flight.waiters and flight.phase is Phase.LOADING
                if key not in load.abandoned and (is_left or (load.owner is not None and load.owner.is_cancelled)):
                    load.abandoned.add(key)
                    self.left[key] += 1

    def cancel(self, n: int) -> None:
        staying = [read for read in self.reads if not read.is_cancelled]  # a second time would end the waiting for a personal load
        if staying:
            read = staying[n % len(staying)]
            read.is_cancelled = True
            assert read.task is not None
            read.task.cancel()

    # Loading

    async def load(self, process: int, keys: list[int], owner: Read | None) -> list[int]:
        flights = dict(zip(keys, _aboard.get()[-len(keys) :], strict=True))
        load = Loading(process, keys, flights, owner, asyncio.get_running_loop().create_future())
        load.closed.update(key for key in keys if not flights[key].is_open)
        self.all_loads.append(load)
        self._note_abandoned()  # a batch loads them all the same
        for key in keys:
            self._begin_load(load, key)
        self.loads.append(load)
        try:
            await load.gate
            load.versions = {key: self.source[key] for key in keys}
            load.gate = asyncio.get_running_loop().create_future()
            if not await load.gate:
                raise LoadFailed(load.versions)
            return [self.new_value(load.versions[key]) for key in keys]
        except asyncio.CancelledError:
            load.gate = asyncio.get_running_loop().create_future()
            load.closed.update(keys)
            await load.gate  # it takes its time to end
            raise
        finally:
            self.loads.remove(load)

    def _begin_load(self, load: Loading, key: int) -> None:
        self.loaded[key] += 1
        if (load.process, key) in self.closing:
            load.closed.add(key)
            self._close(load.process, [key])
        for other in self.loads if key not in load.closed else []:
            if other.process == load.process and key in other.keys and key not in other.closed and other.flights[key].waiters:
                self.broken.append(f"P1: key {key} is loaded twice at a time in process {load.process}")
        if self.calm and self.loaded[key] > 1 + self.left[key]:
            self.broken.append(f"P1: load number {self.loaded[key]} of key {key}, and {self.left[key]} were left")

    def move_load(self, n: int, ends_well: bool) -> None:
        held = [load for load in self.loads if not load.gate.done()]
        if held:
            held[n % len(held)].gate.set_result(ends_well)

    def new_value(self, version: int) -> int:
        value = len(self.values) + 1
        self.values[value] = version, version
        return value

    # Writing

    def _close(self, process: int, keys: Iterable[int]) -> None:
        for load in self.loads:
            if load.process == process:
                load.closed.update(keys)

    def invalidate(self, process: int, n: int) -> None:
        scopes = INVALIDATIONS[n % len(INVALIDATIONS)]
        keys = [key for key, place in enumerate(PLACES) if not set(scopes).isdisjoint(place.scopes)]
        self._start(self._writing(process, keys, self.invalidated, lambda: self.processes[process].engine.invalidate(scopes)))

    def delete(self, process: int, keys: list[int]) -> None:
        engine = self.processes[process].engine
        self._start(self._writing(process, keys, self.written, lambda: engine.delete([PLACES[key] for key in keys])))

    def purge(self, process: int) -> None:
        engine = self.processes[process].engine
        self._start(self._writing(process, [0, 1, 2], self.written, lambda: engine.purge("menu", "*")))

    def set(self, process: int, key: int, *, adds: bool) -> None:
        async def act() -> Any:
            value = self.new_value(self.source[key])
            writer.set(Write(process, key, value))
            engine = self.processes[process].engine
            return await (engine.add(PLACES[key], value, TERMS) if adds else engine.set([(PLACES[key], value)], TERMS))

        self._start(self._writing(process, [key], self.written, act, closes=not adds))

    async def _writing(
        self, process: int, keys: list[int], promised: list[int], act: Callable[[], Awaitable[Any]], *, closes: bool = True
    ) -> None:
        for key in keys:
            self.source[key] += 1
            if promised is self.written:
                self.begun[key] = self.source[key]
            else:
                self.dropped.append((process, key, self.source[key]))
        versions = {key: self.source[key] for key in keys}
        if closes:
            self._close(process, keys)
        self.closing += [] if closes else [(process, key) for key in keys]
        try:
            done = await act()
        except BackendError:
            done = False
        finally:
            for key in () if closes else keys:
                self.closing.remove((process, key))
        self._close(process, keys)
        if done is not False:
            for key in keys:
                promised[key] = max(promised[key], versions[key])

    def _note(self, step: Step, by: Write | None) -> None:
        """What the executing of an explicit write's request makes of the age of its value (M10)."""
        if by is None or step.name not in ("lookup", "generations", "store", "store_if"):
            return
        dropped, written = self.values[by.value]
        if step.name in ("lookup", "generations"):  # asks for what it did not know: others' invalidations until here may be missed
            dropped = max([dropped, *(version for process, key, version in self.dropped if key == by.key and process != by.process)])
        else:  # ordered against deletes and sets where they meet
            written = max(written, self.begun[by.key])
        self.values[by.value] = dropped, written

    # The store

    def steps(self) -> list[Step]:
        return [step for process in self.processes for step in process.port.waiting()]

    async def _execute(self, step: Step) -> None:
        self._note(step, step.context.get(writer))
        await step.execute()

    async def lose(self, n: int) -> None:
        """A request that was lost, or whose answer was; or, all the same, one that was thought lost and is executed now."""
        waiting = self.steps()
        if waiting and n % 2:
            step = waiting[n // 2 % len(waiting)]
            step.fail()
            if not step.is_executed and step.name in ("claim", "fill", "delete", "invalidate"):
                self.lost.append(step)
        elif self.lost:
            await self._execute(self.lost.pop(n // 2 % len(self.lost)))

    def evict(self, n: int) -> None:
        memory = self.fleet.memory
        shelf = [memory._tokens, memory._permits, memory.values][n % 3]
        names = sorted(shelf)
        if names:
            shelf.pop(names[n // 3 % len(names)])

    # A history

    async def act(self, action: Action) -> None:
        (kind, name), n, key, d = action[0].partition(" ")[::2], *action[1:]
        process = n % len(self.processes)
        keys = [key, (key + 1 + d % 2) % len(PLACES)][: 1 + d // 2 % 2]
        match kind:
            case "read":
                self.read(process, [key], 0)
            case "batch":
                self.read(process, keys, 1)
            case "get":
                self.read(process, keys, 2)
            case "refresh":
                self.read(process, [key], 3)
            case "invalidate":
                self.invalidate(process, d)
            case "set" | "add":
                self.set(process, key, adds=kind == "add")
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
            case "load":
                self.move_load(n, ends_well=True)
            case "fail":
                self.move_load(n, ends_well=False)
            case "cancel":
                self.cancel(n)
            case "evict":
                self.evict(n)
            case "lose":
                await self.lose(n)
            case _:
                await asyncio.sleep(0)
        if d % 3:
            await settled()

    async def end(self) -> None:
        """Everything goes on; everybody is answered; nothing is left; and whoever reads now gets what was promised."""
        for _ in range(500):
            await settled()
            if not self.reads and not self.loads and not self.steps() and all(task.done() for task in self.tasks):
                break
            for step in self.steps():
                await self._go(step)
            for load in self.loads:
                if not load.gate.done():
                    load.gate.set_result(True)
        else:
            self.broken.append(f"somebody waits for ever: {self.reads}")
        await settled()
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.broken.append(f"unexpected: {task.exception()!r}")
        for process in self.processes:
            if repr(process.engine.flights) != "<Flights 0 open, 0 tasks>":
                self.broken.append(f"left: {process.engine.flights!r}")
            process.port.release()
        if not self.broken:
            for n in range(len(self.processes)):
                self.read(n, [0, 1, 2], 2)
            await settled()

    def _start(self, work: Any) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]


async def run(actions: list[Action], *, calm: bool = False) -> None:
    """Live through this history; Violation at the first promise that it breaks."""
    world = World(calm=calm)
    try:
        await lived(world, actions)
        broken = list(world.broken)
    finally:
        for task in world.tasks:
            task.cancel()
        for load in world.loads:
            load.gate.cancel()
        await settled()
        await world.fleet.aclose()
    if broken:
        raise Violation("\n".join(broken))


def history(seed: int, *, calm: bool = False) -> list[Action]:
    """Each seed has its favourites: few kinds of steps on few keys go deeper than all of them at once."""
    rng = random.Random(seed)
    slow = rng.choice(["", "", "fill", "fill", "lookup", "claim", "invalidate", "delete", "store", "generations"])
    kinds = {"read": 3.0, f"move {slow}": 8.0, "load": 3.0, "tick": 1.0, f"execute {slow}": 1.5, f"answer {slow}": rng.choice([0.5, 1])}
    for kind in ("batch", "get", "refresh", "cancel") if not calm else ("batch", "get", "cancel"):
        kinds[kind] = rng.choice([0, 0, 1, 2])
    for kind in () if calm else ("fail", "evict", "lose"):
        kinds[kind] = rng.choice([0, 0, 0.5, 1])
    for kind in (
        () if calm else rng.sample(["invalidate", "set", "add", "delete", "purge", "invalidate", "delete"], rng.choice([1, 1, 2, 3]))
    ):
        kinds[kind] = rng.choice([0.5, 1, 2])
    keys = rng.sample(range(len(PLACES)), rng.choice([1, 1, 2, 3]))
    drawn = rng.choices(list(kinds), list(kinds.values()), k=LENGTH)
    return [(kind, rng.randrange(60), rng.choice(keys), rng.randrange(12)) for kind in drawn]


async def replay(seed: int, *, calm: bool = False) -> None:
    await run(history(seed, calm=calm), calm=calm)


async def explore(seeds: Iterable[int], *, calm: bool = False) -> None:
    for seed in seeds:
        try:
            await replay(seed, calm=calm)
        except Violation:
            actions = await shrunk(history(seed, calm=calm), calm)
            try:
                await run(actions, calm=calm)
            except Violation as violation:
                raise Violation(f"seed {seed}, calm={calm}: {violation}\nrun({actions}, calm={calm})") from None


async def shrunk(actions: list[Action], calm: bool) -> list[Action]:
    """What is left of a history that breaks a promise when every step that can be dropped is dropped."""
    size = len(actions) // 2
    while size:
        start = 0
        while start < len(actions):
            fewer = actions[:start] + actions[start + size :]
            try:
                await run(fewer, calm=calm)
                start += size
            except Violation:
                actions = fewer
        size //= 2
    return actions


# Tests


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiocache_aura")


@pytest.mark.parametrize("part", range(4))
async def test_no_history_breaks_a_promise(part: int) -> None:
    """Reads, loads, writes, invalidations, cancellations, lost answers and evictions in two processes, in any order."""
    await explore(range(part * 700, (part + 1) * 700))


async def test_no_calm_history_loads_twice() -> None:
    """One process, nothing written: a key is loaded once, but for loads that everybody has left."""
    await explore(range(600), calm=True)


async def test_histories_reach_what_they_are_for() -> None:
    """The explorer is worth something: in its histories reads hit, miss and join, loads fail, values are stored, answers are lost."""
    seen = dict.fromkeys(["hits", "misses", "coalesced", "loads", "sets", "load_errors", "errors"], 0.0)
    before = dict(seen)
    for name in seen:
        before[name] = getattr(TERMS.counts, name) + getattr(PERSONAL.counts, name)
    for seed in range(100):
        await replay(seed)
    for name in seen:
        seen[name] = getattr(TERMS.counts, name) + getattr(PERSONAL.counts, name) - before[name]
    assert {name: count for name, count in seen.items() if count < 20} == {}


def test_a_seed_is_a_history() -> None:
    """The same seed is the same history, whatever ran before it."""
    assert history(7) == history(7)
    assert history(7) != history(8)
