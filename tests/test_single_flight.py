"""Single flight in one process: one load for all who wait (P1), who may leave at any time (P2), and what their loads belong to."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from aiocache_aura import CacheManager, cache, current_tenant, tenant_scope
from aiocache_aura.errors import CacheError, RecursiveLoadError
from aiocache_aura.resilience.single_flight import Flight, Flights
from aiocache_aura.types import MISSING
from tests.clocks import ManualClock
from tests.servers import Server
from tests.steps import SOON, TERMS, Fleet, Process, Source, address, settled, soon, terms

KEY, A, B, C = address(), address("a"), address("b"), address("c")
PERSONAL = terms(personal=True)
PHASES = ["claiming", "loading", "filling"]
KINDS = pytest.mark.parametrize("kind", ["single", "batch"])


@pytest.fixture
async def fleet(clock: ManualClock) -> AsyncIterator[Fleet]:
    """Processes over a memory store; nothing may be left in their registries, and no exception unretrieved."""
    said: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context))
    fleet = Fleet(None, clock)
    yield fleet
    await settled()
    left = [repr(process.engine.flights) for process in fleet.processes]
    await fleet.aclose()
    gc.collect(1)
    assert set(left) <= {"<Flights 0 open, 0 tasks>"}
    assert said == []


@pytest.fixture
def ours(fleet: Fleet) -> Process:
    return fleet.process()


@pytest.fixture
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[CacheManager]:
    async with CacheManager("memory://") as manager:
        yield manager


def aboard(process: Process, where: Any = KEY) -> int:
    """How many wait for the load of this key; 0 without one."""
    flight = process.engine.flights.get(where.key)
    return 0 if flight is None else len(flight.waiters)


@dataclass
class Herd:
    """Callers of one key, whose load is held in some phase."""

    process: Process
    source: Source
    callers: list[asyncio.Task[Any]]
    go_on: Callable[[], Any]

    @classmethod
    async def in_phase(cls, process: Process, phase: str, count: int = 5, how: Any = TERMS) -> Herd:
        """A leader, and callers that have joined him while claiming."""
        process.port.hold("claim", "fill")
        source = Source(held=True)
        callers = [process.read(source, KEY, how) for _ in range(count)]
        claim = await process.port.arrived("claim")
        await settled()
        assert aboard(process) == count
        herd = cls(process, source, callers, claim.go)
        if phase != "claiming":
            await claim.go()
            herd.go_on = (load := await source.begun()).finish
            if phase == "filling":
                load.finish()
                herd.go_on = (await process.port.arrived("fill")).write().go
        process.port.release()
        return herd

    async def end(self) -> list[Any]:
        """Let the load come to its end; what each caller got."""
        self.source.held = False
        going = self.go_on()
        if asyncio.iscoroutine(going):
            await going
        await settled()
        return await soon(asyncio.gather(*self.callers, return_exceptions=True))


def is_cancelled(outcome: Any) -> bool:
    return isinstance(outcome, asyncio.CancelledError)


# P1: one load


async def test_hundred_callers_of_a_cold_key_are_one_load(ours: Process) -> None:
    """However many begin, before the load, while it runs, and after it."""
    source = Source(held=True)
    early = [ours.read(source, KEY) for _ in range(50)]
    load = await source.begun()
    late = [ours.read(source, KEY) for _ in range(50)]
    await settled()
    load.finish()
    assert await soon(asyncio.gather(*early, *late)) == [1] * 100
    assert await soon(ours.read(source, KEY)) == 1
    assert source.loads == 1


async def test_a_read_that_began_before_the_load_is_a_founder_wherever_it_joins(ours: Process) -> None:
    """Its own lookup took longer; the load meanwhile begun is not older than it, so it takes the result without a verdict (M3)."""
    source = Source(held=True)
    ours.port.hold("lookup")
    slow = ours.read(source, KEY)
    missed = await (await ours.port.arrived("lookup")).execute()
    ours.port.release()
    first = ours.read(source, KEY)
    load = await source.begun()
    missed.answer()
    await settled()
    assert aboard(ours) == 2
    await ours.engine.delete([KEY])
    load.finish()
    assert await soon(asyncio.gather(first, slow)) == [1, 1]
    assert source.loads == 1


async def test_every_way_in_shares_one_registry(manager: CacheManager) -> None:
    """A decorated function with `key=`, get_or_load and get_or_load_many of its key: one load, whoever comes first."""
    source = Source(held=True)

    @cache(cache_type="menu", key="item:{item_id}", manager=manager)
    async def item(item_id: int) -> int:
        return await source.load()

    async def load_many(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, await source.load())

    def decorated(n: int) -> Any:
        return item(n)

    def single(n: int) -> Any:
        return manager.get_or_load("menu", f"item:{n}", source.load)

    async def batch(n: int) -> Any:
        return (await manager.get_or_load_many("menu", [f"item:{n}"], load_many))[f"item:{n}"]

    for n, ways in enumerate([(decorated, single, batch), (single, batch, decorated), (batch, decorated, single)]):
        reads = [asyncio.ensure_future(way(n)) for way in ways for _ in range(3)]
        (await source.begun()).finish()
        assert await soon(asyncio.gather(*reads)) == [1] * 9
        assert source.loads == n + 1


async def test_r5_callers_of_one_process_over_redis_are_one_load(valkey: Server) -> None:
    """aiocache computes in every process, and loses the coalescing within one: here 40 callers over a real server are one load."""
    source = Source(held=True)
    async with CacheManager(valkey.url, prefix="r5") as manager:

        @cache(cache_type="api", manager=manager)
        async def answer(n: int) -> int:
            return await source.load()

        early = [asyncio.ensure_future(answer(1)) for _ in range(20)]
        load = await source.begun()
        late = [asyncio.ensure_future(answer(1)) for _ in range(20)]
        await settled()
        load.finish()
        assert await soon(asyncio.gather(*early, *late)) == [1] * 40
        assert await answer(1) == 1
        assert source.loads == 1
        assert manager.stats()["api"]["coalesced"] == 39


async def test_every_caller_owns_what_it_gets(ours: Process) -> None:
    """Leaders and followers get copies of their own; with `share`, and of what cannot be stored, the one object."""

    async def load() -> list[int]:
        return [1]

    async def unstorable() -> object:
        return object()

    def read(name: str, how: Any, loader: Any = load) -> Any:
        return asyncio.gather(*(ours.engine.get_or_load(address(name), how, loader) for _ in range(3)))

    owned = await read("owned", TERMS)
    shared = await read("shared", terms(share=True))
    odd = await read("odd", TERMS, unstorable)
    assert owned == shared == [[1]] * 3
    assert len({id(value) for value in owned}) == 3
    assert len({id(value) for value in shared}) == 1
    assert len({id(value) for value in odd}) == 1


async def test_a_caller_that_declares_another_type_does_not_take_the_result(manager: CacheManager) -> None:
    """As from the store: what was loaded without a type, or as another, is no value for it; it loads its own."""

    @dataclass
    class Dish:
        name: str

    begun, going = asyncio.Event(), asyncio.Event()

    async def plain() -> dict[str, str]:
        begun.set()
        await going.wait()
        return {"name": "soup"}

    async def dish() -> Dish:
        return Dish("soup")

    async def dishes(keys: list[str]) -> dict[str, Dish]:
        return {key: await dish() for key in keys}

    first = asyncio.ensure_future(manager.get_or_load("menu", "soup", plain))
    await begun.wait()
    single = asyncio.ensure_future(manager.get_or_load("menu", "soup", dish, as_type=Dish))
    many = asyncio.ensure_future(manager.get_or_load_many("menu", ["soup"], dishes, as_type=Dish))
    await settled()
    going.set()
    assert await soon(first) == {"name": "soup"}
    assert await soon(single) == Dish("soup")
    assert await soon(many) == {"soup": Dish("soup")}


async def test_a_flight_has_a_caller_aboard_before_it_starts(ours: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops with eager tasks run a load to its end inside `start`: whom it is for must be aboard by then."""
    seen: list[list[int]] = []
    start = Flights.start

    def watched(self: Flights, flights: list[Flight], drive: Any) -> None:
        seen.append([len(flight.waiters) for flight in flights])
        start(self, flights, drive)

    monkeypatch.setattr(Flights, "start", watched)
    source = Source()
    await ours.read(source, KEY)
    await ours.engine.refresh(KEY, TERMS, source.load)
    await ours.batch(source, A, B)
    assert seen == [[1], [1], [1, 1]]


# P2: a caller can leave


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("leaving", [[0], [2], [4], [0, 4], [0, 1, 2, 3], [1, 2, 3, 4]], ids=str)
async def test_r1_who_is_cancelled_leaves_alone(ours: Process, phase: str, leaving: list[int]) -> None:
    """cashews: cancelling one coalesced caller cancels all. Here whoever leaves, leader or follower, at whatever moment, leaves alone."""
    herd = await Herd.in_phase(ours, phase)
    for n in leaving:
        herd.callers[n].cancel()
    await settled()
    assert [n for n, caller in enumerate(herd.callers) if caller.cancelled()] == leaving
    outcomes = await herd.end()
    assert [n for n, outcome in enumerate(outcomes) if is_cancelled(outcome)] == leaving
    assert {outcome for outcome in outcomes if not is_cancelled(outcome)} == {1}
    assert herd.source.loads == 1
    assert herd.source.cancelled == []
    assert await ours.engine.get(KEY, TERMS) == 1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_load_that_nobody_waits_for_is_cancelled(ours: Process, phase: str, at_once: bool) -> None:
    """The last caller takes the load along, unless it is over and only its value is being stored."""
    herd = await Herd.in_phase(ours, phase)
    for caller in herd.callers:
        caller.cancel()
        if not at_once:
            await settled()
    await settled()
    assert all(caller.cancelled() for caller in herd.callers)
    assert repr(ours.engine.flights) == ("<Flights 1 open, 1 tasks>" if phase == "filling" else "<Flights 0 open, 0 tasks>")
    assert herd.source.loads == (0 if phase == "claiming" else 1)
    assert herd.source.cancelled == ([1] if phase == "loading" else [])
    await herd.end() if phase == "filling" else None
    await settled()
    assert await ours.engine.get(KEY, TERMS) is (1 if phase == "filling" else MISSING)


@pytest.mark.parametrize("phase", PHASES)
async def test_who_comes_in_the_tick_in_which_the_last_one_leaves_is_served(ours: Process, phase: str) -> None:
    """Leaving, taking the flight out and cancelling it are one stretch: a newcomer of that tick is not cancelled with it (M17)."""
    herd = await Herd.in_phase(ours, phase, count=1)
    before = ours.read(herd.source, KEY)
    herd.callers[0].cancel()
    after = ours.read(herd.source, KEY)
    herd.callers.extend([before, after])
    outcomes = await herd.end()
    assert is_cancelled(outcomes[0])
    assert outcomes[1:] == [1, 1]


@pytest.mark.parametrize("order", ["load first", "cancel first"])
@pytest.mark.parametrize("ends", ["well", "failing"])
@pytest.mark.parametrize("who", [0, 1])
async def test_who_is_cancelled_in_the_tick_in_which_the_load_ends(ours: Process, order: str, ends: str, who: int) -> None:
    """It is cancelled and the other one gets the outcome; no exception is left unretrieved."""
    source = Source(held=True)
    ours.port.hold("claim")
    callers = [ours.read(source, KEY) for _ in range(2)]
    await settled()
    await (await ours.port.arrived("claim")).go()
    load = await source.begun()
    acts = [load.finish if ends == "well" else lambda: load.fail(ValueError("no")), callers[who].cancel]
    for act in acts if order == "load first" else reversed(acts):
        act()
    outcomes = await soon(asyncio.gather(*callers, return_exceptions=True))
    assert is_cancelled(outcomes[who])
    assert repr(outcomes[1 - who]) == ("1" if ends == "well" else "ValueError('no')")
    assert source.loads == 1


@pytest.mark.parametrize("ticks", range(8))
@KINDS
async def test_a_caller_that_is_cancelled_after_any_number_of_ticks_leaves_nothing(ours: Process, ticks: int, kind: str) -> None:
    """Not yet started, looking up, taking off, loading, storing, done: the registry is empty afterwards, and the next caller is served."""
    source = Source()
    read = ours.read(source, KEY, kind=kind)
    for _ in range(ticks):
        await asyncio.sleep(0)
    read.cancel()
    await settled()
    assert repr(ours.engine.flights) == "<Flights 0 open, 0 tasks>"
    assert await soon(ours.read(source, KEY)) == 1


async def test_a_loader_that_swallows_its_cancellation_holds_up_nobody(ours: Process) -> None:
    """It goes on by itself, its value is not stored, and who comes gets a load of his own at once."""
    stubborn, finish = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stubborn.set()
        await finish.wait()
        return 7

    read = ours.start(ours.engine.get_or_load(KEY, TERMS, load))
    await settled()
    read.cancel()
    await soon(stubborn.wait())
    await settled()
    assert read.cancelled()
    assert await soon(ours.read(Source(), KEY)) == 1
    finish.set()
    await settled()
    assert await ours.engine.get(KEY, TERMS) == 1


async def test_a_loader_that_is_cancelled_from_within_is_that_to_its_own_callers_only(ours: Process) -> None:
    """What it awaited was cancelled: who waited from the start sees what the uncached function shows; late ones load anew."""
    inner, begun = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def load() -> Any:
        begun.set()
        return await inner

    first = ours.start(ours.engine.get_or_load(KEY, TERMS, load))
    await begun.wait()
    late = ours.read(Source(), KEY)
    await settled()
    inner.cancel()
    assert is_cancelled((await soon(asyncio.gather(first, return_exceptions=True)))[0])
    assert await soon(late) == 1


# Failing loads


async def test_a_failing_load_fails_its_own_callers_once_and_is_not_cached(ours: Process) -> None:
    """A hundred who waited from the start get its exception; the next call loads anew."""
    herd = await Herd.in_phase(ours, "claiming", count=100)
    await herd.go_on()
    (await herd.source.begun()).fail(ValueError("no"))
    outcomes = await soon(asyncio.gather(*herd.callers, return_exceptions=True))
    assert {repr(outcome) for outcome in outcomes} == {"ValueError('no')"}
    assert herd.source.loads == 1
    herd.source.held = False
    assert await soon(ours.read(herd.source, KEY)) == 1


@pytest.mark.parametrize("again", ["well", "failing"])
async def test_hundred_late_callers_of_a_failing_load_are_one_more_load(ours: Process, again: str) -> None:
    """They look again, all of them together: at most one reload, no herd."""
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    late = [ours.read(source, KEY) for _ in range(100)]
    await settled()
    load.fail(ValueError("first"))
    second = await source.begun()
    await settled()
    assert aboard(ours) == 100
    second.finish() if again == "well" else second.fail(ValueError("second"))
    outcomes = await soon(asyncio.gather(first, *late, return_exceptions=True))
    assert repr(outcomes[0]) == "ValueError('first')"
    assert {repr(outcome) for outcome in outcomes[1:]} == {"1" if again == "well" else "ValueError('second')"}
    assert source.loads == 2


async def test_the_traceback_of_a_shared_exception_does_not_grow(ours: Process) -> None:
    """The hundredth who raises it shows the way of the load, not the ways of ninety-nine others."""
    depths: list[int] = []

    async def call(source: Source) -> None:
        try:
            await ours.engine.get_or_load(KEY, TERMS, source.load)
        except ValueError as error:
            depth, traceback = 0, error.__traceback__
            while traceback is not None:
                depth, traceback = depth + 1, traceback.tb_next
            depths.append(depth)

    source = Source(held=True)
    ours.port.hold("claim")
    callers = [ours.start(call(source)) for _ in range(100)]
    await settled()
    await (await ours.port.arrived("claim")).go()
    (await source.begun()).fail(ValueError("no"))
    await soon(asyncio.gather(*callers))
    assert len(depths) == 100
    assert max(depths) <= min(depths) + 1


async def test_a_load_that_gives_none_is_shared_by_its_founders_and_not_stored(ours: Process) -> None:
    """None is not cached: who was there from the start takes it, late ones load once more, together."""
    loads: list[asyncio.Future[None]] = []

    async def load() -> None:
        loads.append(asyncio.get_running_loop().create_future())
        return await loads[-1]

    ours.port.hold("claim")
    early = [ours.start(ours.engine.get_or_load(KEY, TERMS, load)) for _ in range(3)]
    await settled()
    await (await ours.port.arrived("claim")).go()
    ours.port.release()
    await settled()
    late = [ours.start(ours.engine.get_or_load(KEY, TERMS, load)) for _ in range(3)]
    await settled()
    loads[0].set_result(None)
    assert await soon(asyncio.gather(*early)) == [None] * 3
    await settled()
    loads[1].set_result(None)
    assert await soon(asyncio.gather(*late)) == [None] * 3
    assert len(loads) == 2


# Recursion


@pytest.mark.parametrize("way", ["single", "nested", "batch", "in a batch", "refresh"])
async def test_a_loader_that_asks_for_its_own_key_is_told(ours: Process, way: str) -> None:
    """It would wait for itself: RecursiveLoadError, whichever way it asks; and nothing stays behind in the registry."""
    source = Source()

    async def load() -> Any:
        if way == "single":
            return await ours.engine.get_or_load(KEY, TERMS, load)
        if way == "nested":
            return await ours.engine.get_or_load(A, TERMS, lambda: ours.engine.get_or_load(KEY, TERMS, load))
        if way == "refresh":
            return await ours.engine.refresh(KEY, TERMS, load)
        return await ours.batch_now(source, A, KEY, B)

    async def load_many(positions: list[int]) -> dict[int, int]:
        return dict.fromkeys(positions, await load())

    if way == "in a batch":
        asked = ours.engine.get_or_load_many([KEY, C], TERMS, load_many)
    else:
        asked = ours.engine.get_or_load(KEY, TERMS, load)
    with pytest.raises(RecursiveLoadError, match="__wrapped__"):
        await soon(asked)
    await settled()
    assert repr(ours.engine.flights) == "<Flights 0 open, 0 tasks>"
    for where in (KEY, A, B, C):
        assert await soon(ours.read(source, where)) == 1


async def test_a_batch_that_is_refused_for_recursion_leaves_what_it_would_have_joined(ours: Process) -> None:
    """It has no hold on other loads: they are cancelled when their own callers leave."""
    source = Source(held=True)
    other = ours.read(source, A)
    await source.begun()

    async def load() -> Any:
        with pytest.raises(RecursiveLoadError):
            await ours.batch_now(Source(), A, KEY)
        return 5

    assert await soon(ours.engine.get_or_load(KEY, TERMS, load)) == 5
    assert aboard(ours, A) == 1
    other.cancel()
    await settled()
    assert source.cancelled == [1]


async def test_loaders_may_ask_for_other_keys(ours: Process) -> None:
    """Loads within loads are loads like any other, shared with others who ask."""
    source = Source(held=True)
    outer = ours.start(ours.engine.get_or_load(A, TERMS, lambda: ours.engine.get_or_load(B, TERMS, source.load)))
    load = await source.begun()
    inner = ours.read(source, B)
    await settled()
    load.finish()
    assert await soon(asyncio.gather(outer, inner)) == [1, 1]
    assert source.loads == 1


# Loads that belong to their caller


class Session:
    """What a caller opens, hands to the load, and closes when it leaves."""

    def __init__(self) -> None:
        self.closed = False
        self.used_after_close = 0
        self.turns: asyncio.Queue[None] = asyncio.Queue()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.closed = True

    async def query(self) -> None:
        self.used_after_close += self.closed
        try:
            await self.turns.get()
        finally:
            await asyncio.sleep(0)
            self.used_after_close += self.closed


@pytest.mark.parametrize("leaving", [[0], [1], [2], [0, 1], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("at_once", [True, False])
async def test_r35_a_load_ends_with_the_caller_whose_session_it_uses(manager: CacheManager, leaving: list[int], at_once: bool) -> None:
    """A shared load runs on with the session of a caller who left, which reopens and leaks: here it ends first, and the next caller's load
    takes its place with his own."""
    sessions = [Session() for _ in range(3)]
    used: list[int] = []

    @cache(cache_type="analytics", exclude=["db"], manager=manager)
    async def revenue(month: int, db: Session) -> int:
        used.append(sessions.index(db))
        await db.query()
        return sessions.index(db)

    async def request(n: int) -> int:
        async with sessions[n] as db:
            return await revenue(1, db)

    requests = [asyncio.ensure_future(request(n)) for n in range(3)]
    await settled()
    for n in leaving:
        requests[n].cancel()
        if not at_once:
            await settled()
    await settled()
    staying = [n for n in range(3) if n not in leaving]
    for session in sessions:
        session.turns.put_nowait(None)
    outcomes = await soon(asyncio.gather(*requests, return_exceptions=True))
    await settled()
    assert [session.used_after_close for session in sessions] == [0, 0, 0]
    assert [is_cancelled(outcomes[n]) for n in range(3)] == [n in leaving for n in range(3)]
    assert [outcomes[n] for n in staying] == [staying[0]] * len(staying) if staying else outcomes
    owners = [0]
    for n in leaving if not at_once else [0] if 0 in leaving else []:
        after = [m for m in range(3) if m not in (leaving if at_once else leaving[: leaving.index(n) + 1])]
        owners += after[:1] if n == owners[-1] else []
    assert used == owners


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("leaving", [[0], [4], [0, 1, 2, 3]], ids=str)
async def test_r1_holds_for_personal_loads(ours: Process, phase: str, leaving: list[int]) -> None:
    """Whoever leaves leaves alone; whose load it was takes that along, and the next one's takes its place."""
    herd = await Herd.in_phase(ours, phase, how=PERSONAL)
    for n in leaving:
        herd.callers[n].cancel()
    await settled()
    outcomes = await herd.end() if phase != "loading" or 0 not in leaving else await _next_load(herd)
    assert [n for n, outcome in enumerate(outcomes) if is_cancelled(outcome)] == leaving
    assert {outcome for outcome in outcomes if not is_cancelled(outcome)} == {1}
    assert herd.source.cancelled == ([1] if phase == "loading" and 0 in leaving else [])
    assert herd.source.loads == (2 if phase == "loading" and 0 in leaving else 1)


async def _next_load(herd: Herd) -> list[Any]:
    (await herd.source.begun()).finish()
    return await soon(asyncio.gather(*herd.callers, return_exceptions=True))


@pytest.mark.parametrize("how", ["asyncio", "anyio"])
async def test_the_leaving_caller_waits_until_its_load_has_ended(ours: Process, how: str) -> None:
    """Its session is closed next; a cancel scope of anyio's, which cancels again and again, does not cut the waiting short."""
    said: list[str] = []
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned.wait()
            said.append("the load ended")

    scope = anyio.CancelScope()

    async def call() -> None:
        try:
            with scope:
                await ours.engine.get_or_load(KEY, PERSONAL, load)
        finally:
            said.append("the caller left")

    caller = ours.start(call())
    await begun.wait()
    caller.cancel() if how == "asyncio" else scope.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert said == []
    cleaned.set()
    await soon(asyncio.wait({caller}))
    assert said == ["the load ended", "the caller left"]


@pytest.mark.parametrize("how", ["asyncio", "anyio"])
@pytest.mark.parametrize("reads", ["cached", "past the cache"])
async def test_the_leaving_caller_of_a_plain_function_waits_until_its_thread_is_done(manager: CacheManager, how: str, reads: str) -> None:
    """The session that the thread works with is closed next, whichever way the caller is cancelled."""
    said: list[str] = []
    loop, begun, going = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    @cache(cache_type="menu", manager=manager, exclude=["db"])
    def plain(n: int, db: object) -> int:
        loop.call_soon_threadsafe(begun.set)
        going.wait(SOON)
        said.append("the thread is done")
        return n

    scope = anyio.CancelScope()

    async def call() -> None:
        try:
            with scope, manager.bypass() if reads == "past the cache" else nullcontext():
                await plain(1, object())
        finally:
            said.append("the caller left")

    caller = asyncio.ensure_future(call())
    await begun.wait()
    caller.cancel() if how == "asyncio" else scope.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert said == []
    going.set()
    await soon(asyncio.wait({caller}))
    assert said == ["the thread is done", "the caller left"]


async def test_the_leaving_caller_waits_no_longer_than_the_budget(fleet: Fleet) -> None:
    """A load that does not end when it is cancelled does not keep its caller."""
    ours = fleet.process(budget=0.3)
    begun, finish = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await finish.wait()
        return 7

    caller = ours.start(ours.engine.get_or_load(KEY, PERSONAL, load))
    await begun.wait()
    caller.cancel()
    await settled()
    assert not caller.done()
    await soon(asyncio.wait({caller}))
    assert caller.cancelled()
    finish.set()
    await settled()
    assert await ours.engine.get(KEY, TERMS) is MISSING


async def test_a_load_that_is_ending_is_not_cancelled_a_second_time(ours: Process) -> None:
    """Its caller left, and while it cleans up the last other one leaves, too: its cleaning is not interrupted."""
    said: list[str] = []
    cleaned = asyncio.Event()

    async def load() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await cleaned.wait()
                said.append("clean")
            except asyncio.CancelledError:
                said.append("interrupted")

    ours.port.hold("claim")
    first, second = (ours.start(ours.engine.get_or_load(KEY, PERSONAL, load)) for _ in range(2))
    await settled()
    await (await ours.port.arrived("claim")).go()
    await settled()
    first.cancel()
    await settled()
    second.cancel()
    await settled()
    cleaned.set()
    await settled()
    assert said == ["clean"]
    assert first.cancelled()
    assert second.cancelled()


@KINDS
@pytest.mark.parametrize("joins", ["before the load", "while it runs"])
async def test_who_waits_for_another_ones_load_and_has_none_of_that_kind_outlives_it(ours: Process, kind: str, joins: str) -> None:
    """A plain caller of a key whose load belongs to somebody who leaves looks again; it is not cancelled with him."""
    theirs, own = Source(held=True), Source()
    ours.port.hold("claim")
    owner = ours.read(theirs, KEY, PERSONAL)
    await settled()
    plain = ours.read(own, KEY, kind=kind) if joins == "before the load" else None
    await settled()
    await (await ours.port.arrived("claim")).go()
    ours.port.release()
    await theirs.begun()
    plain = plain or ours.read(own, KEY, kind=kind)
    await settled()
    owner.cancel()
    assert await soon(plain) == 1
    assert owner.cancelled()
    assert theirs.cancelled == [1]
    assert (theirs.loads, own.loads) == (1, 1)


async def test_a_failing_personal_load_fails_those_who_waited_for_it(ours: Process) -> None:
    """It is a load like any other: its exception is everybody's who was there when it began."""
    herd = await Herd.in_phase(ours, "loading", how=PERSONAL, count=3)
    herd.go_on.__self__.fail(ValueError("no"))
    outcomes = await soon(asyncio.gather(*herd.callers, return_exceptions=True))
    assert [repr(outcome) for outcome in outcomes] == ["ValueError('no')"] * 3
    assert herd.source.loads == 1


async def test_the_failing_of_a_load_whose_caller_has_left_is_nobodys(ours: Process) -> None:
    """Cancelled, it raises something else (a session that will not close): the next caller's load takes its place all the same."""
    begun = asyncio.Event()

    async def bad() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("will not close")
        return 0

    ours.port.hold("claim")
    first = ours.start(ours.engine.get_or_load(KEY, PERSONAL, bad))
    second = ours.read(Source(), KEY, PERSONAL)
    await settled()
    await (await ours.port.arrived("claim")).go()
    await begun.wait()
    first.cancel()
    assert await soon(second) == 1
    assert first.cancelled()


# Contexts


place: ContextVar[str] = ContextVar("place", default="nowhere")


@pytest.mark.parametrize("personal", [False, True])
async def test_a_load_runs_in_the_context_of_the_caller_that_it_is_made_for(ours: Process, personal: bool) -> None:
    """Its variables and tenant are there, for a taken-over personal load the successor's; what the load sets does not come back."""
    seen: list[tuple[str, str | None]] = []
    gate = Source(held=True)

    async def load() -> str:
        seen.append((place.get(), current_tenant()))
        place.set("inside")
        await gate.load()
        return place.get()

    async def call(where: str, tenant: str) -> tuple[str, str]:
        place.set(where)
        with tenant_scope(tenant):
            value = await ours.engine.get_or_load(KEY, PERSONAL if personal else TERMS, load)
        return value, place.get()

    ours.port.hold("claim")
    first, second = ours.start(call("first", "7")), ours.start(call("second", "8"))
    await settled()
    await (await ours.port.arrived("claim")).go()
    begun = await gate.begun()
    first.cancel()
    if personal:
        begun = await gate.begun()
    begun.finish()
    assert await soon(second) == ("inside", "second")
    assert seen == [("first", "7"), ("second", "8")][: 2 if personal else 1]


async def test_a_load_of_the_manager_knows_the_tenant_of_its_caller(manager: CacheManager) -> None:
    """get_or_load, get_or_load_many and decorated functions alike."""

    @cache(cache_type="menu", manager=manager)
    async def decorated() -> str | None:
        return current_tenant()

    async def single() -> str | None:
        return current_tenant()

    async def many(keys: list[str]) -> dict[str, str | None]:
        return dict.fromkeys(keys, current_tenant())

    for tenant in ("7", "8"):
        with tenant_scope(tenant):
            assert await decorated() == tenant
            assert await manager.get_or_load("menu", "single", single) == tenant
            assert await manager.get_or_load_many("menu", ["many"], many) == {"many": tenant}


# Many at once


def batch_of(process: Process, where: list[Any], load: Any) -> asyncio.Task[Any]:
    """get_or_load_many of these, with a loader that is given addresses."""

    async def by_position(positions: list[int]) -> dict[int, Any]:
        found = await load([where[n] for n in positions])
        return {n: found[where[n]] for n in positions if where[n] in found}

    return process.start(process.engine.get_or_load_many(where, TERMS, by_position))


async def test_a_batch_is_one_call_of_the_loader_with_just_the_missing_keys(ours: Process) -> None:
    """Neither what is stored nor what somebody loads already is asked of it."""
    source, asked = Source(held=True), []

    async def load(missing: list[Any]) -> dict[Any, int]:
        asked.append(missing)
        return dict.fromkeys(missing, 9)

    await ours.engine.set([(A, 5)], TERMS)
    single = ours.read(source, B)
    begun = await source.begun()
    batch = batch_of(ours, [A, B, C, KEY], load)
    await settled()
    assert asked == [[C, KEY]]
    assert not batch.done()
    begun.finish()
    assert await soon(batch) == [5, 1, 9, 9]
    assert await soon(single) == 1
    assert await ours.engine.get_many([A, B, C, KEY], TERMS) == [5, 1, 9, 9]


async def test_a_single_get_joins_the_load_of_a_batch(ours: Process) -> None:
    """One load, though nobody asked for just that key before."""
    source = Source(held=True)
    batch = ours.batch(source, A, B)
    load = await source.begun()
    singles = [ours.read(source, A), ours.read(source, B)]
    await settled()
    load.finish()
    assert await soon(batch) == [1, 1]
    assert await soon(asyncio.gather(*singles)) == [1, 1]
    assert source.loads == 1


async def test_v23_overlapping_batches_do_not_wait_in_a_circle(ours: Process) -> None:
    """(a,b) leads b and follows a while (b,c,a) leads c: what is led is loaded at once, what is followed waited for afterwards (M16)."""
    loads: list[list[Any]] = []
    going = asyncio.Event()

    async def load(missing: list[Any]) -> dict[Any, int]:
        loads.append(missing)
        await going.wait()
        return dict.fromkeys(missing, 1)

    single_a = ours.start(ours.engine.get_or_load(A, TERMS, lambda: _value(going)))
    await settled()
    batches = [batch_of(ours, where, load) for where in ([A, B], [B, C, A], [C, B, A], [B, A])]
    await settled()
    single_b = ours.read(Source(), B)
    await settled()
    going.set()
    assert [await soon(batch) for batch in batches] == [[1, 1], [1, 1, 1], [1, 1, 1], [1, 1]]
    assert await soon(asyncio.gather(single_a, single_b)) == [1, 1]
    assert loads == [[B], [C]]


async def _value(going: asyncio.Event) -> int:
    await going.wait()
    return 1


async def test_two_batches_that_lead_what_the_other_follows(ours: Process) -> None:
    """Each has begun with a key of its own when it meets the other's: both are answered, each key is loaded once."""
    loads: list[list[Any]] = []
    gates = {A: asyncio.Event(), B: asyncio.Event()}

    async def load(missing: list[Any]) -> dict[Any, int]:
        loads.append(missing)
        await gates[missing[0]].wait()
        return dict.fromkeys(missing, 1)

    first = batch_of(ours, [A], load)
    await settled()
    second = batch_of(ours, [B, A], load)
    await settled()
    third = batch_of(ours, [A, B], load)
    await settled()
    assert loads == [[A], [B]]
    gates[B].set()
    await settled()
    assert not second.done()
    gates[A].set()
    assert await soon(asyncio.gather(first, second, third)) == [[1], [1, 1], [1, 1]]
    assert loads == [[A], [B]]


async def test_a_key_that_the_loader_leaves_out_is_absent(ours: Process) -> None:
    """Absent for the batch, not stored; a single get that had joined loads for itself."""
    going, source = asyncio.Event(), Source()

    async def load(missing: list[Any]) -> dict[Any, int]:
        await going.wait()
        return {A: 1}

    ours.port.hold("claim")
    batch = batch_of(ours, [A, B], load)
    await settled()
    founder = ours.read(source, B)
    await settled()
    await (await ours.port.arrived("claim")).go()
    ours.port.release()
    await settled()
    late = ours.read(source, B)
    await settled()
    going.set()
    assert await soon(batch) == [1, MISSING]
    assert await soon(asyncio.gather(founder, late)) == [1, 1]
    assert source.loads == 1
    assert await ours.engine.get_many([A, B], TERMS) == [1, 1]


@pytest.mark.parametrize("joins", ["founder", "late"])
async def test_a_failing_batch_fails_its_own_callers_once(ours: Process, joins: str) -> None:
    """Who waited from the start gets its exception; a late single get loads anew; nothing stays in the registry."""
    source, single = Source(held=True), Source()
    ours.port.hold("claim")
    batch = ours.batch(source, A, B, C)
    await settled()
    other = ours.read(single, B) if joins == "founder" else None
    await settled()
    await (await ours.port.arrived("claim")).go()
    ours.port.release()
    load = await source.begun()
    other = other or ours.read(single, B)
    await settled()
    load.fail(ValueError("no"))
    outcomes = await soon(asyncio.gather(batch, other, return_exceptions=True))
    assert [repr(outcome) for outcome in outcomes] == ["ValueError('no')", "ValueError('no')" if joins == "founder" else "1"]
    assert single.loads == (0 if joins == "founder" else 1)
    assert await ours.engine.get_many([A, C], TERMS) == [MISSING, MISSING]


async def test_a_batch_that_follows_a_failing_load_fails_and_leaves_its_own(ours: Process) -> None:
    """What it led alone is cancelled; what somebody else waits for as well goes on."""
    followed, led = Source(held=True), Source(held=True)
    ours.port.hold("claim")
    single = ours.read(followed, A)
    await settled()
    claim = await ours.port.arrived("claim")
    ours.port.release()
    batch = ours.batch(led, A, B)
    await led.begun()
    await claim.go()
    (await followed.begun()).fail(ValueError("no"))
    outcomes = await soon(asyncio.gather(single, batch, return_exceptions=True))
    assert [repr(outcome) for outcome in outcomes] == ["ValueError('no')"] * 2
    await settled()
    assert led.cancelled == [1]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("others", [[], [A], [A, B]], ids=len)
async def test_a_batch_that_is_cancelled_takes_along_what_nobody_else_waits_for(ours: Process, phase: str, others: list[Any]) -> None:
    """Its load goes on while anybody waits for any of its keys; of the other keys nothing is stored, unless it is being stored already."""
    source = Source(held=True)
    ours.port.hold("claim", "fill")
    batch = ours.batch(source, A, B, C)
    await settled()
    singles = [ours.read(source, where) for where in others]
    await settled()
    go_on = (claim := await ours.port.arrived("claim")).go
    if phase != "claiming":
        await claim.go()
        load = await source.begun()
        if phase == "filling":
            load.finish()
            go_on = (await ours.port.arrived("fill")).write().go
    batch.cancel()
    await settled()
    assert batch.cancelled()
    if not others and phase != "filling":
        assert repr(ours.engine.flights) == "<Flights 0 open, 0 tasks>"
        assert source.loads == (0 if phase == "claiming" else 1)
        return
    ours.port.release()
    if phase == "loading":
        load.finish()
    else:
        await go_on()
        if phase == "claiming":
            (await source.begun()).finish()
    assert await soon(asyncio.gather(*singles)) == [1] * len(others)
    await settled()
    assert source.loads == 1
    stored = await ours.engine.get_many([A, B, C], TERMS)
    assert stored == ([1, 1, 1] if phase == "filling" else [1 if where in others else MISSING for where in (A, B, C)])


async def test_one_refused_fill_of_a_batch_does_not_concern_the_others(ours: Process) -> None:
    """A key is deleted while the batch loads: that one is not stored, and late callers of that one load anew."""
    source = Source(held=True)
    batch = ours.batch(source, A, B)
    load = await source.begun()
    source.version = 2
    await ours.engine.delete([A])
    late = ours.read(source, B)
    await settled()
    load.finish()
    assert await soon(batch) == [1, 1]
    assert await soon(late) == 1
    assert await ours.engine.get_many([A, B], TERMS) == [MISSING, 1]
    assert source.loads == 1


async def test_a_batch_is_counted_like_as_many_gets(ours: Process) -> None:
    """Each key once, as a hit or a miss, however often the batch had to look; joined loads as coalesced."""
    how, source = terms(), Source(held=True)
    await ours.engine.set([(A, 5)], how)
    single = ours.start(ours.engine.get_or_load(B, how, source.load))
    begun = await source.begun()

    async def load(positions: list[int]) -> dict[int, int]:
        return dict.fromkeys(positions, 1)

    batch = ours.start(ours.engine.get_or_load_many([A, B, C], how, load))
    await settled()
    await ours.engine.delete([B])
    begun.finish()
    assert await soon(batch) == [5, 1, 1]
    assert await soon(single) == 1
    assert (how.counts.hits, how.counts.misses, how.counts.coalesced) == (1, 3, 1)


async def test_keys_named_twice_are_loaded_once(manager: CacheManager) -> None:
    """The loader sees each key once."""
    asked: list[list[str]] = []

    async def load(keys: list[str]) -> dict[str, int]:
        asked.append(keys)
        return dict.fromkeys(keys, 1)

    assert await manager.get_or_load_many("menu", ["a", "b", "a"], load) == {"a": 1, "b": 1}
    assert asked == [["a", "b"]]


# What closes a flight


@pytest.mark.parametrize("how", ["set", "add", "delete", "invalidate", "purge"])
async def test_who_comes_after_a_write_does_not_wait_for_the_load_before_it(ours: Process, how: str) -> None:
    """Closed in the same stretch: who had joined keeps the flight, who comes later is not held up by it, and it stores nothing (M18)."""
    hanging, source = Source(held=True), Source()
    source.version = 2
    old = [ours.read(hanging, KEY)]
    load = await hanging.begun()
    changes = {
        "set": lambda: ours.engine.set([(KEY, 2)], TERMS),
        "add": lambda: ours.engine.add(KEY, 2, TERMS),
        "delete": lambda: ours.engine.delete([KEY]),
        "invalidate": ours.invalidate_type,
        "purge": lambda: ours.engine.purge("menu", "*"),
    }
    await soon(changes[how]())
    assert aboard(ours) == 0
    assert await soon(ours.read(source, KEY)) == 2
    assert source.loads == (0 if how in ("set", "add") else 1)
    load.finish()
    assert await soon(old[0]) == 1
    await settled()
    assert await ours.engine.get(KEY, TERMS) == 2


async def test_an_add_that_finds_an_entry_closes_nothing(ours: Process) -> None:
    """It writes nothing, so it voids nothing."""
    source = Source()
    await ours.read(source, KEY)
    source.version, source.held = 2, True
    refreshing = ours.start(ours.engine.refresh(KEY, TERMS, source.load))
    load = await source.begun()
    assert not await ours.engine.add(KEY, 9, TERMS)
    load.finish()
    assert await soon(refreshing) == 2
    assert await ours.engine.get(KEY, TERMS) == 2


async def test_an_invalidation_closes_just_what_it_covers(ours: Process) -> None:
    """A tag, a tenant: flights of other tags and tenants stay open."""
    source = Source(held=True)
    covered = [address("t", tags=["x"]), address("t", tenants=["1"])]
    spared = [address("u", tags=["y"]), address("t", tenants=["2"]), address("t", cache_type="api")]
    reads = [ours.read(source, where) for where in (*covered, *spared)]
    loads = [await source.begun() for _ in reads]
    await ours.engine.invalidate((*covered[0].scopes[-2:-1], *(scope for scope in covered[1].scopes if scope.endswith(b"t:1"))))
    assert [aboard(ours, where) for where in (*covered, *spared)] == [0, 0, 1, 1, 1]
    for load in loads:
        load.finish()
    assert await soon(asyncio.gather(*reads)) == [1] * 5


# Refreshing


async def test_hits_do_not_wait_for_a_refresh(ours: Process) -> None:
    """A value is there: who reads takes it, whatever becomes of the refresh; after it, the new one (M3)."""
    source = Source()
    await ours.read(source, KEY)
    source.version, source.held = 2, True
    refreshing = ours.start(ours.engine.refresh(KEY, TERMS, source.load))
    load = await source.begun()
    assert await soon(ours.read(source, KEY)) == 1
    assert await soon(ours.batch(source, KEY)) == [1]
    load.fail(ValueError("no"))
    assert repr((await soon(asyncio.gather(refreshing, return_exceptions=True)))[0]) == "ValueError('no')"
    assert await soon(ours.read(source, KEY)) == 1
    source.held = False
    assert await ours.engine.refresh(KEY, TERMS, source.load) == 2
    assert await soon(ours.read(source, KEY)) == 2


async def test_a_miss_joins_a_refresh(ours: Process) -> None:
    """Nothing is there to read: one load serves both."""
    source = Source(held=True)
    refreshing = ours.start(ours.engine.refresh(KEY, TERMS, source.load))
    load = await source.begun()
    reads = [ours.read(source, KEY), ours.read(source, KEY, kind="batch")]
    await settled()
    load.finish()
    assert await soon(asyncio.gather(refreshing, *reads)) == [1, 1, 1]
    assert source.loads == 1


async def test_a_refresh_is_never_served_by_a_load_that_began_before_it(ours: Process) -> None:
    """It loads anew and closes the older load; refreshes that begin before the load does share it."""
    source = Source(held=True)
    first = ours.read(source, KEY)
    old = await source.begun()
    source.version = 2
    ours.port.hold("claim")
    refreshes = [ours.start(ours.engine.refresh(KEY, TERMS, source.load)) for _ in range(3)]
    await settled()
    await (await ours.port.arrived("claim")).go()
    ours.port.release()
    new = await source.begun()
    new.finish()
    assert await soon(asyncio.gather(*refreshes)) == [2, 2, 2]
    old.finish()
    assert await soon(first) == 1
    await settled()
    assert await ours.engine.get(KEY, TERMS) == 2
    assert source.loads == 2


# The end


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["single", "batch", "personal", "closed", "late"])
async def test_aclose_fails_who_waits_and_leaves_nothing(ours: Process, phase: str, kind: str) -> None:
    """Nobody is cancelled and nobody waits for ever: each gets a CacheError that says why; the loads have ended when it returns."""
    source = Source(held=True)
    ours.port.hold("claim", "fill")
    readers = [ours.read(source, KEY, PERSONAL if kind == "personal" else TERMS, kind="batch" if kind == "batch" else "single")]
    await settled()
    if phase != "claiming":
        await (await ours.port.arrived("claim")).go()
        load = await source.begun()
        if kind == "late":
            readers.append(ours.read(source, KEY))
            await settled()
        if phase == "filling":
            load.finish()
            (await ours.port.arrived("fill")).write()
    if kind == "closed":
        assert await ours.invalidate_type()
    await soon(ours.engine.flights.aclose())
    assert repr(ours.engine.flights) == "<Flights 0 open, 0 tasks>"
    outcomes = await soon(asyncio.gather(*readers, return_exceptions=True))
    assert all(isinstance(outcome, CacheError) and "was closed" in str(outcome) for outcome in outcomes), outcomes
    assert source.cancelled == ([1] if phase == "loading" else [])


async def test_aclose_waits_for_a_loader_that_is_slow_to_end(ours: Process) -> None:
    """It is cancelled and gets the time that it takes to clean up; its callers do not wait for that."""
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def load() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await cleaned.wait()
        return 7

    read = ours.start(ours.engine.get_or_load(KEY, TERMS, load))
    await begun.wait()
    closing = ours.start(ours.engine.flights.aclose())
    with pytest.raises(CacheError, match="was closed"):
        await soon(read)
    await settled()
    assert not closing.done()
    cleaned.set()
    await soon(closing)
    assert repr(ours.engine.flights) == "<Flights 0 open, 0 tasks>"


async def test_a_manager_that_was_closed_while_loading_can_be_used_again() -> None:
    """Its callers are told, and the next call begins afresh."""
    source = Source(held=True)
    async with CacheManager("memory://") as manager:
        reading = asyncio.ensure_future(manager.get_or_load("menu", "k", source.load))
        await source.begun()
        async with asyncio.timeout(SOON):
            await manager.aclose()
        with pytest.raises(CacheError, match="was closed"):
            await reading
        source.held = False
        assert await manager.get_or_load("menu", "k", source.load) == 1


async def test_a_load_leaves_nothing_for_the_garbage_collector(ours: Process) -> None:
    """What a flight was made of is freed as the flight ends, not when the collector comes by."""
    flights = ours.engine.flights

    async def fly(n: int) -> None:
        flight = flights.open(b"k%d" % n, ())

        async def drive() -> None:
            await asyncio.sleep(0)
            flight.finish(n, confirmed=True)

        waiter = flight.board(0)
        flights.start([flight], drive)
        assert await flight.outcome(waiter) == n

    await fly(0)
    gc.collect()
    gc.disable()
    try:
        for n in range(100):
            await fly(n)
        await asyncio.sleep(0)
        assert gc.collect() < 100
    finally:
        gc.enable()


async def test_a_plain_function_that_fails_after_its_caller_has_left_is_not_complained_of() -> None:
    """Nobody is there to be told, and asyncio does not tell the log instead."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    running, go_on = threading.Event(), threading.Event()

    def fails() -> None:
        running.set()
        go_on.wait(SOON)
        raise ValueError("nobody hears this")

    async with CacheManager() as manager:
        caller = asyncio.create_task(manager.get_or_load("menu", "a", fails))
        while not running.is_set():
            await asyncio.sleep(0)
        caller.cancel()
        await settled()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
    gc.collect()
    await settled()
    assert complaints == []
