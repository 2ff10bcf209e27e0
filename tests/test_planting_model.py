"""Planting, against the truth: random histories of a warmer's runs among users, each replayable from its seed, and faults that they catch.

A history is a list of steps drawn from a seed. A source reads all that it gives at its beginning, and gives one pair at a time, when it is
told to; what its run asks of the store is executed, and answered, by steps of their own. In between, this process and another one write,
invalidate, delete and load; generations are evicted. What a process sends on its write lane is executed in the order in which it was sent.

What is checked: a read that began after an invalidation, or a `set`, or this process's `delete` had returned, gets nothing older. And every
run ends. A `delete` by the other process is not in here: it is the hole that `planting` tells of.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from aiocache_aura import CacheManager, CacheWarmer, planting, warming
from aiocache_aura.planting import Bed, Ground, Pair, Planted, Planting
from aiocache_aura.removals import Removals
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores import redis as redis_store
from aiocache_aura.stores.base import Command, Tokens
from aiocache_aura.stores.memory import MemoryStore
from tests.clocks import ManualClock
from tests.servers import Server
from tests.steps import SOON, Port, lived

Action = tuple[str, int, int]  # what, a number, another one
TAGS: dict[str, list[str]] = {"a": [], "b": ["known"], "c": ["late"]}  # the last tag is told only with its pair
KEYS = list(TAGS)
LENGTH = 40
FIRST = 600  # histories, one of which has to catch a planted fault
KINDS = {"go": 12.0, "warm": 2.0, "read": 2.0}
USERS = ["invalidate", "invalidate", "soften", "delete", "purge", "set", "their set", "load", "evict"]

is_run: ContextVar[bool] = ContextVar("is_run", default=False)


class Violation(AssertionError):
    """A promise was broken."""


class RunPort(Port):
    """Holds what runs of warmers ask for, and lets everybody else's requests pass."""

    def _ask(self, name: str, *args: Any, **options: Any) -> Awaitable[Any]:
        if is_run.get():
            return super()._ask(name, *args, **options)
        return getattr(self.inner, name)(*args, **options)  # type: ignore[no-any-return]


class World:
    """A process that warms, another one, and the truth."""

    def __init__(self, ours: CacheManager, theirs: CacheManager, clock: ManualClock) -> None:
        self.ours, self.theirs, self.clock = ours, theirs, clock
        self.source = dict.fromkeys(KEYS, 1)
        self.needed = dict.fromkeys(KEYS, 0)  # the version that a read has to see
        self.gate: asyncio.Future[None] | None = None
        self.run: asyncio.Task[Any] | None = None
        self.loads: list[tuple[asyncio.Future[None], asyncio.Task[Any]]] = []
        self.broken: list[str] = []
        self.order = KEYS
        self.warmer = CacheWarmer(manager=ours)
        self.warmer.source("menu", tags=["known"])(self._given)

    async def open(self) -> None:
        engine = await self.ours.engine()
        self.port = RunPort(engine.port, engine._tick)
        self.port.hold("generations", "look", "plant")
        engine._port = self.port

    async def _given(self) -> AsyncIterator[Any]:
        read = dict(self.source)
        for key in self.order:
            self.gate = asyncio.get_running_loop().create_future()
            await self.gate
            yield key, read[key], {"tags": TAGS[key]}

    # The run

    async def warm(self, only_missing: bool, order: Sequence[str]) -> None:
        if self.run is None:
            self.order = list(order)
            self.run = asyncio.create_task(self._running(only_missing))
            await self._still()

    async def _running(self, only_missing: bool) -> None:
        is_run.set(True)
        await self.warmer.warm("menu", only_missing=only_missing)

    async def go(self, how: int) -> None:
        """The run goes on by one thing: its request is executed, or executed and answered, or its source gives a pair."""
        if self.run is None:
            return
        waiting = self.port.waiting()
        if waiting:
            step = waiting[0]
            if not step.is_executed:
                await step.execute()
                if how % 3:
                    return
            step.answer()
        elif self.gate is not None and not self.gate.done():
            self.gate.set_result(None)
        await self._still()
        if self.run.done():
            self.run.result()
            self.run = None

    async def _still(self) -> None:
        """The run waits for a step."""
        assert self.run is not None
        async with asyncio.timeout(SOON):
            while not (self.run.done() or self.port.waiting() or (self.gate is not None and not self.gate.done())):
                await asyncio.sleep(0)

    async def _sent(self) -> None:
        """What a run has sent before on this process's write lane is executed."""
        for step in [step for step in self.port.waiting() if not step.is_executed]:
            await step.execute()

    # Users

    def _changed(self, keys: Iterable[str]) -> dict[str, int]:
        """The source has been written to; the versions that reads have to see once the cache was told."""
        keys = list(keys)
        for key in keys:
            self.source[key] += 1
        return {key: self.source[key] for key in keys}

    async def write(self, kind: str, key: str, n: int) -> None:
        is_ours = kind in ("delete", "purge", "set") or (kind != "their set" and bool(n % 2))
        manager = self.ours if is_ours else self.theirs
        if is_ours:
            await self._sent()
        if kind in ("invalidate", "soften"):
            tags = TAGS[key] if n % 4 > 1 else []
            needed = self._changed([key] if tags else KEYS)
            assert await manager.invalidate("menu", tags=tags, keep_stale=kind == "soften")
        elif kind == "delete":
            needed = self._changed([key])
            await manager.delete("menu", key)
        elif kind == "purge":
            needed = self._changed([key])
            await manager.invalidate_pattern("menu", key)
        else:
            needed = self._changed([key])
            if not await manager.set("menu", key, needed[key], tags=TAGS[key]):  # voided by what this process has invalidated: a `delete`
                needed = {}
        self.needed.update(needed)

    async def load(self, key: str, n: int) -> None:
        """A user's load begins, and reads the source; or all of them end: one may have joined another."""
        if self.loads and n % 3:
            await self._end_loads()
            return
        gate, begun = asyncio.get_running_loop().create_future(), asyncio.Event()

        async def loader() -> int:
            version = self.source[key]
            begun.set()
            await gate
            return version

        manager = self.ours if n % 2 else self.theirs
        task = asyncio.create_task(manager.get_or_load("menu", key, loader, tags=TAGS[key], load_deadline=None))
        async with asyncio.timeout(SOON):
            while not (begun.is_set() or task.done() or len(self.loads) > 0):
                await asyncio.sleep(0)
        self.loads.append((gate, task))

    async def _end_loads(self) -> None:
        loads, self.loads = self.loads, []
        for gate, _ in loads:
            gate.set_result(None)
        for _, task in loads:
            await task

    async def read(self, key: str, n: int) -> None:
        needed = self.needed[key]
        found = await (self.ours if n % 2 else self.theirs).get("menu", key)
        if found is not None and found < needed:
            self.broken.append(f"a read of {key} that needs v{needed} got v{found}")

    async def evict(self, n: int) -> None:
        inner = self.port.inner
        if isinstance(inner, MemoryStore):
            scopes = sorted(inner._tokens)
            if scopes:
                inner._tokens.pop(scopes[n % len(scopes)])
        else:
            address, _ = self.ours.caches["menu"].place(KEYS[n % len(KEYS)], tags=TAGS[KEYS[n % len(KEYS)]])
            await inner.invalidate([address.scopes[n % len(address.scopes)]], timeout=SOON)

    # A history

    async def act(self, action: Action) -> None:
        kind, n, m = action
        self.clock.advance(0.001)
        key = KEYS[m % len(KEYS)]
        match kind:
            case "go":
                await self.go(n)
            case "warm":
                await self.warm(bool(n % 2), random.Random(m).sample(KEYS, len(KEYS)))
            case "read":
                await self.read(key, n)
            case "load":
                await self.load(key, n)
            case "evict":
                await self.evict(n)
            case _:
                await self.write(kind, key, n)

    async def end(self) -> None:
        async with asyncio.timeout(SOON):
            while self.run is not None:
                await self.go(0)
        await self._end_loads()
        for n in range(2):
            for key in KEYS:
                await self.read(key, n)


Make = Callable[[ManualClock], tuple[CacheManager, CacheManager]]


def in_memory(clock: ManualClock) -> tuple[CacheManager, CacheManager]:
    """Two managers over one memory, each with an engine of its own."""
    ours, theirs = (CacheManager("memory://", clock=clock) for _ in range(2))
    ours._open_port(Tick())
    theirs._memory, theirs._memory_pid = ours._memory, ours._memory_pid
    return ours, theirs


def history(seed: int) -> list[Action]:
    """Few kinds of steps in each, which go deeper than all at once."""
    rng = random.Random(seed)
    kinds = KINDS | dict.fromkeys(rng.sample(USERS, rng.choice([1, 2, 3])), 2.0)
    drawn = rng.choices(list(kinds), list(kinds.values()), k=LENGTH)
    return [("warm", rng.randrange(60), rng.randrange(60)), *((kind, rng.randrange(60), rng.randrange(60)) for kind in drawn)]


async def live(make: Make, actions: list[Action]) -> None:
    clock = ManualClock()
    ours, theirs = make(clock)
    async with ours, theirs:
        world = World(ours, theirs, clock)
        await world.open()
        try:
            await lived(world, actions)
        finally:
            tasks = [task for task in (world.run, *(task for _, task in world.loads)) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if world.broken:
        raise Violation("\n".join(world.broken))


async def explore(make: Make, seeds: Iterable[int], clean: Callable[[], object] = lambda: None) -> None:
    for seed in seeds:
        clean()
        try:
            await live(make, history(seed))
        except Violation as violation:
            raise Violation(f"seed {seed}: {violation}\n{history(seed)}") from None


@pytest.fixture(autouse=True)
def _one_pair_at_a_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiocache_aura")
    monkeypatch.setattr(warming, "BATCH_FIRST", 1)
    monkeypatch.setattr(warming, "BATCH_KEYS", 1)


# Tests


@pytest.mark.parametrize("part", range(3))
async def test_no_history_breaks_a_promise(part: int) -> None:
    """Invalidations of types and tags, deletes, sets, loads and evictions at any moment of a run."""
    await explore(in_memory, range(part * 200, (part + 1) * 200))


async def test_no_history_over_a_server_breaks_a_promise(valkey: Server) -> None:
    """The same, between two processes."""
    await explore(over(valkey), range(60), flush(valkey))


def over(server: Server) -> Make:
    return lambda clock: (CacheManager(server.url, clock=clock), CacheManager(server.url, clock=clock))


def flush(server: Server) -> Callable[[], object]:
    client = server.client()
    return client.flushall


async def test_histories_reach_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs store, renew, leave, are voided and are read a second time; some things are removed while they run."""
    seen = dict.fromkeys(["loaded", "refreshed", "skipped", "unsure", "voided", "removed", "at once", "looked"], 0)
    plant, contains = Planting.plant, Removals.__contains__

    async def noting(self: Planting, *args: Any, at_once: bool) -> Planted:
        seen["at once" if at_once else "looked"] += 1
        try:
            done = await plant(self, *args, at_once=at_once)
        except planting.Voided:
            seen["voided"] += 1
            raise
        for name in ("loaded", "refreshed", "skipped", "unsure"):
            seen[name] += getattr(done, name)
        return done

    def holds(self: Removals, key: bytes) -> bool:
        is_in = contains(self, key)
        seen["removed"] += is_in
        return is_in

    monkeypatch.setattr(Planting, "plant", noting)
    monkeypatch.setattr(Removals, "__contains__", holds)
    await explore(in_memory, range(100))
    assert [name for name, times in seen.items() if times < 5] == []


# What the checker catches


def captured_behind_the_source(patch: pytest.MonkeyPatch) -> None:
    real = Planting.plant

    async def plant(self: Planting, batch: Sequence[Pair], ground: Ground, *rest: Any, **options: Any) -> Planted:
        removed = ground.removed
        await self.capture("menu", (), ground.life, ground)
        ground.removed = removed
        return await real(self, batch, ground, *rest, **options)

    patch.setattr(Planting, "plant", plant)


def generations_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    def check(self: planting._Sowing, tokens: Tokens) -> None:
        if not tokens.missing(tokens.found):  # else it has nothing to store with
            self._tokens = tokens

    patch.setattr(planting._Sowing, "check", check)


def stored_over_whatever_is_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryStore, "_holds", lambda self, key, seen, now: True)

    def planted(key: bytes, raw: bytes, ms: int, seen: bytes | None) -> Command:
        return ("SET", key, raw, "PX", ms) if ms else ("SET", key, raw)

    patch.setattr(redis_store, "_planted", planted)


def what_is_named_first_is_trusted(patch: pytest.MonkeyPatch) -> None:
    real = Planting._tend

    async def tend(self: Planting, ground: Ground, beds: Iterable[Bed], known: set[Bed]) -> None:
        await real(self, ground, beds, known)
        ground.settle()
        known.update(beds)

    patch.setattr(Planting, "_tend", tend)


def what_is_younger_is_renewed(patch: pytest.MonkeyPatch) -> None:
    real = Planting._is_kept

    async def is_kept(self: Planting, pair: Pair, seen: bytes, tokens: Tokens, ground: Ground, *rest: Any) -> bool:
        began, ground.began = ground.began, float("inf")
        try:
            return await real(self, pair, seen, tokens, ground, *rest)
        finally:
            ground.began = began

    patch.setattr(Planting, "_is_kept", is_kept)


def removals_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Removals, "__contains__", lambda self, key: False)


def removals_are_asked_for_before_the_look(patch: pytest.MonkeyPatch) -> None:
    real, contains = Planting.plant, Removals.__contains__
    before: dict[bytes, bool] = {}

    async def plant(self: Planting, batch: Sequence[Pair], ground: Ground, *rest: Any, **options: Any) -> Planted:
        if ground.removed is not None:
            before.update({pair.key: contains(ground.removed, pair.key) for pair in batch})
        return await real(self, batch, ground, *rest, **options)

    patch.setattr(Planting, "plant", plant)
    patch.setattr(Removals, "__contains__", lambda self, key: before[key])


def patterns_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Removals, "add_where", lambda self, head, matches: None)


FAULTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    captured_behind_the_source,
    generations_are_not_compared,
    stored_over_whatever_is_there,
    what_is_named_first_is_trusted,
    what_is_younger_is_renewed,
    removals_are_forgotten,
    removals_are_asked_for_before_the_look,
    patterns_are_forgotten,
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
async def test_a_planted_fault_is_caught(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker can fail: without this rule of planting, a read gets what was to be gone in one of the first histories."""
    fault(monkeypatch)
    with pytest.raises(Violation):
        await explore(in_memory, range(FIRST))


@pytest.mark.parametrize("fault", [stored_over_whatever_is_there, removals_are_forgotten], ids=["over whatever", "removals"])
async def test_a_planted_fault_is_caught_over_a_server(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, valkey: Server
) -> None:
    """What a server is told to look at in the same step as it writes is a rule of its own."""
    fault(monkeypatch)
    with pytest.raises(Violation):
        await explore(over(valkey), range(FIRST), flush(valkey))
