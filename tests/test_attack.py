"""Ways to break the concurrent heart of the library, each forced; what was found broken once, stays mended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiocache_aura import MISSING
from aiocache_aura.errors import CacheError, LoadDeadlineError
from aiocache_aura.stores import leases
from tests.clocks import ManualClock
from tests.servers import Server
from tests.steps import SOON, Fleet, Process, Source, address, soon, terms

KEY, OTHER, THIRD = address("k"), address("other"), address("third")


@pytest.fixture
async def fleet(valkey: Server, clock: ManualClock) -> AsyncIterator[Fleet]:
    fleet = Fleet(valkey.url, clock)
    yield fleet
    await fleet.aclose()


@pytest.fixture
async def ours(fleet: Fleet) -> Process:
    return fleet.process(leased=True)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not is_so():
            await asyncio.sleep(0.005)


def held_by(process: Process) -> int:
    assert process.port.leases is not None
    return len(process.port.leases.inner._held)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["invalidate", "delete"])
@pytest.mark.parametrize("when", ["claiming", "loading"])
async def test_m15_nobody_waits_behind_a_flight_that_its_own_process_has_closed(ours: Process, verb: str, when: str) -> None:
    """A read begins while an invalidation is on its way, whose answer closes its flight: who reads next does not wait for its lease."""
    source = Source(held=True)
    ours.port.hold(verb)
    if when == "claiming":
        ours.port.leases.hold("acquire")  # type: ignore[union-attr]
    write = ours.start(ours.invalidate_type() if verb == "invalidate" else ours.engine.delete([KEY]))
    step = await ours.port.arrived(verb)
    await step.execute()
    first = ours.read(source, KEY)
    if when == "claiming":
        asked = await ours.port.leases.arrived("acquire")  # type: ignore[union-attr]
        await asked.execute()
        step.answer()
        await soon(write)
        asked.answer()
        ours.port.leases.held.clear()  # type: ignore[union-attr]
        old = await source.begun()
    else:
        old = await source.begun()
        step.answer()
        await soon(write)
    second = ours.read(source, KEY)
    began = asyncio.get_running_loop().time()
    (await source.begun()).finish()
    assert await soon(second) == 1
    assert asyncio.get_running_loop().time() - began < leases.LEASE - 0.5
    old.finish()
    assert await soon(first) == 1
    assert (source.loads, held_by(ours)) == (2, 0)


async def test_m17_a_key_of_a_batch_that_nobody_waits_for_is_free(ours: Process) -> None:
    """The batch's caller leaves, one of its keys is still waited for: who asks for the other does not wait for what is thrown away."""
    source = Source(held=True)
    batch = ours.batch(source, KEY, OTHER)
    load = await source.begun()
    joined = ours.read(source, OTHER)
    await until(lambda: ours.engine.flights.get(OTHER.key) is not None and len(ours.engine.flights.get(OTHER.key).waiters) == 2)  # type: ignore[union-attr]
    batch.cancel()
    await asyncio.gather(batch, return_exceptions=True)
    read = ours.read(source, KEY)
    (await source.begun()).finish()
    assert await soon(read) == 1
    load.finish()
    assert await soon(joined) == 1
    assert held_by(ours) == 0


async def test_m17_what_is_split_off_a_batch_loads_for_nobody(fleet: Fleet) -> None:
    """The only caller of a key leaves while its batch asks for leases; another process has it, and is done: it is not loaded once more."""
    ours, other = fleet.process(leased=True), fleet.process(leased=True)
    source, theirs = Source(held=True), Source(held=True)
    there = other.read(theirs, KEY)
    load = await theirs.begun()
    ours.port.leases.hold("acquire")  # type: ignore[union-attr]
    batch = ours.batch(source, KEY, OTHER)
    asked = await ours.port.leases.arrived("acquire")  # type: ignore[union-attr]
    joined = ours.read(source, OTHER)
    await until(lambda: len(ours.engine.flights.get(OTHER.key).waiters) == 2)  # type: ignore[union-attr]
    batch.cancel()
    await asyncio.gather(batch, return_exceptions=True)
    await asked.execute()
    there.cancel()
    await asyncio.gather(there, return_exceptions=True)
    assert load.future.cancelled()
    await asyncio.sleep(0.05)  # the lease is given back
    ours.port.leases.held.clear()  # type: ignore[union-attr]
    asked.answer()
    (await source.begun()).finish()
    assert await soon(joined) == 1
    await until(lambda: len(ours.engine.flights._tasks) == 0)  # noqa: SLF001
    assert source.loads == 1


async def test_m16_refreshes_of_a_batch_that_another_process_is_at_are_left_to_it(fleet: Fleet, clock: ManualClock) -> None:
    """Nobody waits for them: one question tells it for all, and none goes on a way of its own."""
    ours, other = fleet.process(leased=True), fleet.process(leased=True)
    where, how, source = [KEY, OTHER, THIRD], terms(stale=600.0), Source()
    for one in where:
        await soon(other.read(source, one, how))
    clock.advance(61)
    source.held = True
    for one in where:
        assert await soon(other.read(source, one, how)) == 1
    loads = [await source.begun() for _ in where]
    ours.port.leases.hold("acquire")  # type: ignore[union-attr]

    async def load(positions: list[int]) -> dict[int, int]:
        raise AssertionError(positions)

    assert await soon(ours.engine.get_or_load_many(where, how, load)) == [1, 1, 1]
    await (await ours.port.leases.arrived("acquire")).go()  # type: ignore[union-attr]
    await until(lambda: repr(ours.engine.flights) == "<Flights 0 open, 0 tasks>")
    for loading in loads:
        loading.finish()


async def test_lives_that_the_results_of_a_batch_tell_are_one_question_more(ours: Process) -> None:
    """Of two that are longer than could be foreseen, generations are extended in one round trip, and live as long as the longest."""
    ours.port.hold("generations")

    async def load(positions: list[int]) -> dict[int, int]:
        return {n: n for n in positions}

    batch = ours.start(ours.engine.get_or_load_many([KEY, OTHER], terms(life_of=lambda n: (n + 2) * 86400), load))
    asked = await ours.port.arrived("generations")
    await asked.go()
    assert await soon(batch) == [0, 1]
    lives = await ours.port.inner._writes.run([("PTTL", scope) for scope in KEY.scopes], timeout=SOON)  # type: ignore[attr-defined]  # noqa: SLF001
    assert min(lives) > 3 * 86_400_000


class Vague:
    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


async def test_a_store_if_whose_answer_has_no_truth_fails_no_load(ours: Process) -> None:
    """As one that raises: the value is given, and not stored."""
    source = Source()
    assert await soon(ours.read(source, KEY, terms(store_if=lambda value: Vague()))) == 1
    assert held_by(ours) == 0


async def test_a_loader_that_gives_missing_is_called_once(ours: Process) -> None:
    """MISSING is what `get` gives by default: a loader that hands it on is not asked again and again."""
    calls = 0

    async def load() -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise RuntimeError("again and again")
        return MISSING

    assert await soon(ours.engine.get_or_load(KEY, terms(), load)) is MISSING
    assert await soon(ours.engine.refresh(KEY, terms(), load)) is MISSING
    assert calls == 2


class Empty(Exception):
    """An error that is false, as one with a length is."""

    def __len__(self) -> int:
        return 0


async def test_an_error_that_is_false_is_an_error(ours: Process) -> None:
    """Its callers get it, and no other."""
    source = Source(held=True)
    read = ours.read(source, KEY)
    (await source.begun()).fail(Empty())
    with pytest.raises(Empty):
        await soon(read)


@pytest.mark.parametrize("hard", [None, SOON])
@pytest.mark.parametrize("end", ["deadline", "aclose"])
async def test_r35_a_load_that_is_failed_from_outside_ends_before_its_caller_goes_on(ours: Process, end: str, hard: float | None) -> None:
    """A personal load uses what its caller closes next: the caller waits until it has ended, at its deadline and when all is closed too."""
    said: list[str] = []
    begun = asyncio.Event()

    async def load() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            said.append("the load ended")

    async def call() -> None:
        how = terms(personal=True, hard=hard, deadline=0.05 if end == "deadline" else None)
        try:
            await ours.engine.get_or_load(KEY, how, load)
        finally:
            said.append("the caller goes on")

    caller = ours.start(call())
    await begun.wait()
    if end == "aclose":
        await ours.engine.flights.aclose()
    with pytest.raises(LoadDeadlineError if end == "deadline" else CacheError):
        await soon(caller)
    assert said == ["the load ended", "the caller goes on"]


async def test_batches_in_batches_do_not_hold_up_the_loop(ours: Process) -> None:
    """Whether somebody waits for itself is looked for in as many steps as there are flights, not in their square."""
    count, took = 60, 0.0

    def keys(level: int) -> list[Any]:
        return [address(f"{level}-{n}") for n in range(count)]

    async def nested(level: int) -> Callable[[list[int]], Any]:
        async def load(positions: list[int]) -> dict[int, int]:
            nonlocal took
            if level < 3:
                await ours.engine.get_or_load_many(keys(level + 1), terms(), await nested(level + 1))
            else:
                started = time.thread_time()
                await asyncio.gather(*(ours.engine.get_or_load(one, terms(), Source().load) for one in keys(level + 1)))
                took = time.thread_time() - started
            return dict.fromkeys(positions, 1)

        return load

    await asyncio.wait_for(ours.engine.get_or_load_many(keys(1), terms(), await nested(1)), 60)
    started = time.thread_time()
    await asyncio.gather(*(ours.engine.get_or_load(address(f"flat-{n}"), terms(), Source().load) for n in range(count)))
    flat = time.thread_time() - started
    assert took < 10 * flat, (took, flat)
