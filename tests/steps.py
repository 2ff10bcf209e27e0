"""Races, forced: operations of a store that wait at each of their moments until the test lets them go on.

An operation of a port has moments that a real network pulls apart: it is asked for, written, executed, answered. A `Step` is one operation
held in front of each of them; the test moves it on. What was not asked to be held passes through at once. A caller that is cancelled drops
its future, and the operation is executed all the same, as on a lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from aiocache_aura.codecs.serializers import serializer_for
from aiocache_aura.engine import Engine
from aiocache_aura.errors import BackendError
from aiocache_aura.generations import Address, Addresses, tag_extra
from aiocache_aura.keys import user_tail
from aiocache_aura.owner import USER_LEFT_OUT, Owner
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stats import Counts
from aiocache_aura.stores import base
from aiocache_aura.stores.connections import Endpoint
from aiocache_aura.stores.lanes import LaneLink
from aiocache_aura.stores.memory import MemoryStore
from aiocache_aura.stores.redis import RedisPort
from aiocache_aura.terms import Terms
from tests.clocks import ManualClock

SOON = 10.0  # seconds after which a test that waits for a step has failed
ADDRESSES = Addresses("p")
OPERATIONS = ("lookup", "claim", "fill", "generations", "store", "store_if", "expire", "delete", "invalidate", "purge")


class Step:
    """One operation on its way. `written`, then `execute`, then `answer` (or `fail`); `go` is all of it."""

    def __init__(self, name: str, what: tuple[Any, ...], run: Callable[[], Awaitable[Any]]) -> None:
        self.name, self.what, self._run = name, what, run
        self.on_write: Callable[[], None] = lambda: None
        self.on_answer: Callable[[], None] = lambda: None
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.context = copy_context()  # of who asks
        self.is_written = self.is_executed = False
        self.result: Any = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.moment}>"

    @property
    def moment(self) -> str:
        if self.future.done():
            return "answered"
        return "executed" if self.is_executed else "written" if self.is_written else "asked"

    def write(self) -> Step:
        """It leaves this process; what its port does at that moment is done."""
        if not self.is_written:
            self.is_written = True
            self.on_write()
        return self

    async def execute(self) -> Step:
        """The store does it; nobody has heard of it yet. A second time: as a client does that sends it again."""
        self.write()
        self.result = await self._run()
        self.is_executed = True
        return self

    def answer(self) -> None:
        """The caller hears of it."""
        assert self.is_executed, self
        self.on_answer()
        if not self.future.done():
            self.future.set_result(self.result)

    def fail(self, error: BaseException | None = None) -> None:
        """The caller hears that it failed, whether or not it was executed."""
        if not self.future.done():
            self.future.set_exception(error or BackendError("the answer was lost"))

    async def go(self) -> Step:
        if not self.is_executed:
            await self.execute()
        self.answer()
        return self


class Holder:
    """Keeps the steps of those names that are held, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.steps: list[Step] = []
        self._new: list[Step] = []
        self._arrival = asyncio.Event()

    def hold(self, *names: str) -> None:
        """From now on, operations of these names wait."""
        self.held.update(names)

    def release(self, *names: str) -> None:
        """From now on, operations of these names (all, if none is said) pass; those that wait go on waiting."""
        self.held.difference_update(names or tuple(self.held))

    def waiting(self) -> list[Step]:
        """The held operations that have not been answered."""
        return [step for step in self.steps if not step.future.done()]

    def add(self, step: Step) -> Step:
        self.steps = [*self.waiting(), step]
        self._new.append(step)
        self._arrival.set()
        return step

    async def arrived(self, *names: str) -> Step:
        """The next held operation, of one of these names if any are said."""
        async with asyncio.timeout(SOON):
            while True:
                for step in self._new:
                    if not names or step.name in names:
                        self._new.remove(step)
                        return step
                self._arrival.clear()
                await self._arrival.wait()


class Network:
    """The requests that are on their way in a random history, and what moves them on."""

    def steps(self) -> list[Step]:
        """Those that have not been answered, in a fixed order."""
        raise NotImplementedError

    async def _execute(self, step: Step) -> None:
        raise NotImplementedError

    async def move(self, n: int, moment: int, but: str = "") -> None:
        """One request goes on, but none of this name: it is written, or executed as well, or answered as well."""
        waiting = [step for step in self.steps() if step.name != but]
        if waiting:
            step = waiting[n % len(waiting)]
            if moment < 2 and not step.is_written:
                step.write()
            elif moment < 5 and not step.is_executed:
                await self._execute(step)
            else:
                await self._go(step)

    async def execute(self, n: int, name: str) -> None:
        """One request of this name is executed, and not answered yet."""
        waiting = [step for step in self.steps() if step.name == name and not step.is_executed]
        if waiting:
            await self._execute(waiting[n % len(waiting)])

    async def answer(self, n: int, name: str) -> None:
        """One request of this name that has been executed is answered."""
        waiting = [step for step in self.steps() if step.name == name and step.is_executed]
        if waiting:
            waiting[n % len(waiting)].answer()

    async def _go(self, step: Step) -> None:
        if not step.is_executed:
            await self._execute(step)
        step.answer()


class Port(Holder):
    """A port whose operations can be held. As on Redis, the tick is taken when a lookup is written and when a write is answered."""

    def __init__(self, inner: base.Port, tick: Tick) -> None:
        super().__init__()
        self.inner, self._tick = inner, tick
        self.leases: Leases | None = None  # loads take permits here, unless they are given leases

    def __repr__(self) -> str:
        return f"<Port {self.steps}>"

    def _ask(self, name: str, *args: Any, **options: Any) -> Awaitable[Any]:
        operation = getattr(self.inner, name)
        if name not in self.held:
            return operation(*args, **options)  # type: ignore[no-any-return]
        written = options.pop("written", None)
        if written is not None:
            options["written"] = lambda: None
        step = Step(name, args, lambda: operation(*args, **options))
        if written is not None:
            step.on_write = written
        elif name == "lookup":
            step.on_write = self._take_tick
        if name != "lookup":
            step.on_answer = self._take_tick
        self.add(step)
        return step.future

    def _take_tick(self) -> None:
        self._tick.take()

    def lookup(self, key: bytes, scopes: base.Scopes) -> Awaitable[Any]:
        return self._ask("lookup", key, scopes)

    async def claim(self, keys: Any, **options: Any) -> Any:
        return await self._ask("claim", keys, **options)

    async def fill(self, fills: Any, **options: Any) -> Any:
        return await self._ask("fill", fills, **options)

    async def generations(self, scopes: Any, **options: Any) -> Any:
        return await self._ask("generations", scopes, **options)

    async def store(self, items: Any, **options: Any) -> Any:
        return await self._ask("store", items, **options)

    async def store_if(self, key: Any, raw: Any, life: Any, **options: Any) -> Any:
        return await self._ask("store_if", key, raw, life, **options)

    async def expire(self, key: Any, raw: Any, life: Any, **options: Any) -> Any:
        return await self._ask("expire", key, raw, life, **options)

    async def look(self, keys: Any, scopes: Any, **options: Any) -> Any:
        return await self._ask("look", keys, scopes, **options)

    async def plant(self, items: Any, scopes: Any, **options: Any) -> Any:
        return await self._ask("plant", items, scopes, **options)

    async def delete(self, keys: Any, **options: Any) -> Any:
        return await self._ask("delete", keys, **options)

    async def invalidate(self, scopes: Any, **options: Any) -> Any:
        return await self._ask("invalidate", scopes, **options)

    async def purge(self, glob: Any, matches: Any, **options: Any) -> Any:
        return await self._ask("purge", glob, matches, **options)

    async def aclose(self) -> None:
        await self.inner.aclose()

    def forget(self) -> None:
        self.inner.forget()


class Leases(Holder):
    """The leases of a port. `acquire` can be held; what ends a lease, and the wake-ups of those who follow, can be lost."""

    def __init__(self, inner: base.Leases) -> None:
        super().__init__()
        self.inner = inner
        self.is_mute = self.is_deaf = False
        self.waits: list[float] = []

    def follow(self, key: bytes) -> base.Follower:
        return Follower(self, self.inner.follow(key))

    async def acquire(self, wants: Sequence[base.Want], *, timeout: float, written: Callable[[], None]) -> list[base.Standing]:
        if "acquire" not in self.held:
            return await self.inner.acquire(wants, timeout=timeout, written=written)
        step = Step("acquire", tuple(wants), lambda: self.inner.acquire(wants, timeout=timeout, written=lambda: None))
        step.on_write = written
        self.add(step)
        return await step.future  # type: ignore[no-any-return]

    def release(self, key: bytes, lease: bytes) -> None:
        if not self.is_mute:
            self.inner.release(key, lease)

    def fail(self, key: bytes, lease: bytes, reason: bytes, *, throttle: float) -> None:
        if not self.is_mute:
            self.inner.fail(key, lease, reason, throttle=throttle)

    def leave_alone(self, key: bytes, lease: bytes) -> None:
        if not self.is_mute:
            self.inner.leave_alone(key, lease)

    async def holder(self, key: bytes, *, timeout: float) -> base.Holder | None:
        return await self.inner.holder(key, timeout=timeout)


class Follower:
    """One who waits for the load of a key; deaf to wake-ups if its process is."""

    def __init__(self, leases: Leases, inner: base.Follower) -> None:
        self._leases, self._inner = leases, inner

    async def wait(self, seconds: float) -> None:
        self._leases.waits.append(seconds)
        await (asyncio.sleep(seconds) if self._leases.is_deaf else self._inner.wait(seconds))

    def close(self) -> None:
        self._inner.close()


class Lane(Holder):
    """A lane whose groups can be held, each by the name of its first command."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def wake(self, collect: Callable[[], None], /) -> None:
        self.inner.wake(collect)

    def put(self, commands: Sequence[base.Command], handler: base.Handler, **options: Any) -> None:
        name = str(commands[0][0])
        if name not in self.held:
            self.inner.put(commands, handler, **options)
            return
        step = self.add(Step(name, tuple(commands), lambda: self.inner.send(commands, timeout=SOON)))
        step.on_write = handler.written
        step.on_answer = lambda: _deliver(handler, step.result)

    def send(self, commands: Sequence[base.Command], **options: Any) -> Awaitable[list[object]]:
        return self.inner.send(commands, **options)  # type: ignore[no-any-return]


def _deliver(handler: base.Handler, replies: list[object]) -> None:
    handler.deliver(list(replies))


class Link:
    """A link of one read lane and a write lane that can be held."""

    def __init__(self, inner: base.Link) -> None:
        self.inner = inner
        self.reads, self.writes = [Lane(inner.reads[0])], Lane(inner.writes)

    def listen(self, channel: bytes, ear: base.Ear) -> base.Listener | None:
        return self.inner.listen(channel, ear)

    async def aclose(self) -> None:
        await self.inner.aclose()

    def forget(self) -> None:
        self.inner.forget()


@dataclass
class Load:
    """One load that has read the source, and gives what it read when it is told to."""

    version: int
    future: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def finish(self) -> None:
        self.future.set_result(self.version)

    def fail(self, error: BaseException) -> None:
        self.future.set_exception(error)


class Source:
    """The truth, and a loader of it: a version, which writers raise."""

    def __init__(self, *, held: bool = False) -> None:
        self.version, self.loads, self.held = 1, 0, held
        self.cancelled: list[int] = []
        self._begun: asyncio.Queue[Load] = asyncio.Queue()

    async def load(self) -> int:
        self.loads += 1
        load = Load(self.version)
        if not self.held:
            return load.version
        self._begun.put_nowait(load)
        try:
            return await load.future
        except asyncio.CancelledError:
            self.cancelled.append(load.version)
            raise

    async def begun(self) -> Load:
        """The next load that has begun."""
        async with asyncio.timeout(SOON):
            return await self._begun.get()


def address(name: str = "k", *, tenants: Iterable[str] = (), tags: Iterable[str] = (), cache_type: str = "menu") -> Address:
    return ADDRESSES.address(cache_type, Owner(tuple(tenants), (), USER_LEFT_OUT), user_tail(name), list(map(tag_extra, tags)))


def terms(**changes: Any) -> Terms:
    return Terms(**{"serializer": serializer_for(), "life": 60.0, "max_value_bytes": 2**20, "counts": Counts(), "label": "test", **changes})


TERMS = terms()


class Process:
    """One process of a fleet: an engine of its own, over a store that all share."""

    def __init__(
        self, make: Callable[[Tick], base.Port], clock: ManualClock, *, hold: Iterable[str] = (), budget: float = SOON, leased: bool = False
    ) -> None:
        self.tick = Tick()
        made = make(self.tick)
        self.port = made if isinstance(made, Port) else Port(made, self.tick)
        self.port.hold(*hold)
        if leased:
            assert self.port.inner.leases is not None
            self.port.leases = Leases(self.port.inner.leases)
        self.engine = Engine(self.port, ADDRESSES, clock, budget=budget, tick=self.tick)
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Any) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]

    def read(self, source: Source, where: Address, how: Terms = TERMS, *, kind: str = "single") -> asyncio.Task[Any]:
        """Begin a read that loads: a `get_or_load`, or a batch of one."""
        if kind == "batch":
            return self.start(_only(self.batch(source, where)))
        return self.start(self.engine.get_or_load(where, how, source.load))

    def batch(self, source: Source, *where: Address) -> asyncio.Task[Any]:
        """Begin a `get_or_load_many`."""
        return self.start(self.batch_now(source, *where))

    async def batch_now(self, source: Source, *where: Address) -> list[Any]:
        """`get_or_load_many` in this very task."""

        async def load(positions: list[int]) -> dict[int, int]:
            return dict.fromkeys(positions, await source.load())

        return await self.engine.get_or_load_many(where, TERMS, load)

    async def invalidate_type(self, cache_type: str = "menu") -> bool:
        return await self.engine.invalidate(ADDRESSES.to_invalidate(cache_type))


async def _only(batch: asyncio.Task[Any]) -> Any:
    (value,) = await batch
    return value


class Fleet:
    """Processes over one store: a memory store, or a server."""

    def __init__(self, url: str | None, clock: ManualClock) -> None:
        self._url, self.clock = url, clock
        self.memory = MemoryStore(clock, max_bytes=None, max_entries=None)
        self.processes: list[Process] = []
        self.links: list[Link] = []

    def _open(self, tick: Tick) -> base.Port:
        if self._url is None:
            return self.memory
        self.links.append(Link(LaneLink(Endpoint.from_url(self._url))))
        return RedisPort(self.links[-1], ADDRESSES.prefix, budget=SOON, tick=tick)

    def process(self, *hold: str, budget: float = SOON, leased: bool = False) -> Process:
        self.processes.append(Process(self._open, self.clock, hold=hold, budget=budget, leased=leased))
        return self.processes[-1]

    async def aclose(self) -> None:
        tasks = [task for process in self.processes for task in process.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for process in self.processes:
            await process.engine.aclose()


async def settled() -> None:
    """Everything that can go on by itself has."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    for _ in range(10_000):
        if not ready:
            return
        await asyncio.sleep(0)
    raise AssertionError("it goes on for ever")


async def soon(work: Awaitable[Any]) -> Any:
    """What comes of it, which must come by itself."""
    async with asyncio.timeout(SOON):
        return await work


async def lived(world: Any, actions: Iterable[Any]) -> None:
    """Have a model's world act, and come to its end, or to the first promise that it breaks."""
    for action in actions:
        await world.act(action)
        if world.broken:
            return
    await world.end()
