"""How long what is stored lives, and what freshness does to those who wait: nobody is left behind, whenever they leave.

The sums first; then one engine, whose callers leave at every step; then processes that share a server, and refresh once for all.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocache_aura.codecs.envelope import Entry
from aiocache_aura.errors import LoadTimeoutError
from aiocache_aura.freshness import EARLIEST, EARLY, Standing, is_due, is_used, standing, stands_in_for
from aiocache_aura.resilience.single_flight import MOST_BEHIND
from aiocache_aura.stats import Counts
from aiocache_aura.terms import UNKNOWN_LIFE, Terms
from aiocache_aura.types import FOREVER, MISSING, Uncached
from tests.clocks import ManualClock
from tests.servers import Server
from tests.steps import ADDRESSES, SOON, Fleet, Leases, Process, Source, address, settled, soon, terms

KEY, OTHER = address(), address("other")
NOTHING_LEFT = "<Flights 0 open, 0 tasks>"
PRINT = bytes(range(16))
SOFTER = PRINT[:8] + bytes(8)
HARDER = bytes(8) + PRINT[8:]


def stale_terms(**changes: Any) -> Terms:
    return terms(**{"stale": 600.0, "stale_on": (TimeoutError,), "counts": Counts(), **changes})


def entry(**changes: Any) -> Entry:
    usual = {"codec": 0, "flags": 0, "created": 1000.0, "ttl": 60.0, "stale": 30.0, "cost": 0.0, "schema": 0, "fingerprint": PRINT}
    return Entry(**{**usual, "extras": b"", "payload": b"1", **changes})


TIMES = st.floats(0, 1e6)
LIVES = TIMES | st.just(math.inf)
PRINTS = st.sampled_from([PRINT, SOFTER, HARDER, None])


class TestStanding:
    @pytest.mark.parametrize(
        ("now", "expected"),
        [
            (0.0, Standing.FRESH),
            (1000.0, Standing.FRESH),
            (1059.99, Standing.FRESH),
            (1060.0, Standing.STALE),
            (1089.99, Standing.STALE),
            (1090.0, Standing.DEAD),
            (1e9, Standing.DEAD),
        ],
    )
    def test_two_lives_one_after_the_other(self, now: float, expected: Standing) -> None:
        """Below the end of a life it is that life still, at the end no more."""
        assert standing(entry(), now, PRINT, 30.0) is expected

    @pytest.mark.parametrize(
        ("fingerprint", "now", "stale", "expected"),
        [
            (SOFTER, 1000.0, 30.0, Standing.STALE),
            (SOFTER, 1089.99, 30.0, Standing.STALE),
            (SOFTER, 1090.0, 30.0, Standing.DEAD),
            (SOFTER, 1000.0, 0.0, Standing.DEAD),
            (HARDER, 1000.0, 30.0, Standing.DEAD),
            (bytes(16), 1000.0, 30.0, Standing.DEAD),
            (None, 1000.0, 30.0, Standing.DEAD),
            (b"", 1000.0, 30.0, Standing.DEAD),
        ],
    )
    def test_what_an_invalidation_leaves(self, fingerprint: bytes | None, now: float, stale: float, expected: Standing) -> None:
        """A hard one nothing, a soft one the value as stale, until the end that it had before."""
        assert standing(entry(), now, fingerprint, stale) is expected

    @given(TIMES, LIVES, LIVES, LIVES, TIMES, PRINTS)
    def test_nobody_is_given_more_than_both_say(
        self, created: float, ttl: float, stale: float, reader: float, now: float, fingerprint: bytes | None
    ) -> None:
        """Fresh only within the life and with all generations; stale only within what the smaller of both allows past it."""
        one = entry(created=created, ttl=ttl, stale=stale)
        is_what = standing(one, now, fingerprint, reader)
        if is_what is Standing.FRESH:
            assert fingerprint == PRINT
            assert now < created + ttl
        if is_what is Standing.STALE:
            assert fingerprint in (PRINT, SOFTER)
            assert min(stale, reader) > 0
            assert stands_in_for(one, now, reader) > 0
            assert now < created + ttl + stale + 1e-3
        if fingerprint == PRINT and now < created + ttl:
            assert is_what is Standing.FRESH

    @given(TIMES, LIVES, LIVES, LIVES, TIMES, TIMES, PRINTS)
    def test_it_gets_worse_with_time_and_with_less_patience(
        self, created: float, ttl: float, stale: float, reader: float, now: float, later: float, fingerprint: bytes | None
    ) -> None:
        """What is dead stays dead; a reader that takes less is given no more."""
        order = [Standing.FRESH, Standing.STALE, Standing.DEAD]
        one = entry(created=created, ttl=ttl, stale=stale)
        is_now = order.index(standing(one, now, fingerprint, reader))
        assert order.index(standing(one, now + later, fingerprint, reader)) >= is_now
        assert order.index(standing(one, now, fingerprint, reader / 2)) >= is_now
        assert order.index(standing(one, now, fingerprint, 0.0)) >= is_now


class TestIsDue:
    @given(st.floats(0, 1, exclude_max=True), st.floats(0.1, 1e5), st.floats(0, 1e3), st.floats(0.01, 10), st.floats(0, 2))
    def test_the_throw_decides(self, throw: float, ttl: float, cost: float, factor: float, age: float) -> None:
        """Due exactly if what is left is at most the cost and the throw, which is bounded, times the factor; always past the end."""
        one, now = entry(ttl=ttl, cost=cost), 1000.0 + age * ttl
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(random, "random", lambda: throw)
            due = is_due(one, now, factor)
            assert due == (one.left(now) <= factor * (cost + min(-math.log(1.0 - throw) * EARLY, EARLIEST) * ttl))
            assert due or one.left(now) > 0
            assert not due or is_due(one, now + ttl / 10, factor)
            assert not due or is_due(one, now, factor * 2)

    def test_one_that_lives_for_ever_is_never_due(self) -> None:
        """Whatever the throw, the cost and the factor."""
        assert not any(is_due(entry(ttl=math.inf, cost=1e30), 1e12, 1e9) for _ in range(100))

    def test_cheap_loads_are_refreshed_in_time_and_rarely_before(self) -> None:
        """Asked for a hundred times in a life, an entry that costs nothing to load is all but always refreshed before its end, late."""
        dice = random.Random(7)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(random, "random", dice.random)
            one, refreshed = entry(ttl=100.0), []
            for _ in range(500):
                refreshed.append(next((n for n in range(100) if is_due(one, 1000.0 + n, 1.0)), None))
        in_time = [n for n in refreshed if n is not None]
        assert len(in_time) >= 0.95 * len(refreshed)
        assert min(in_time) >= 100 * (1 - EARLIEST)


@pytest.mark.parametrize(
    ("ttl", "age", "expected"),
    [(60, 0.99, False), (60, 1.0, True), (1, 0.049, False), (1, 0.05, True), (math.inf, 1e6, False), (60, -5.0, False)],
)
def test_a_life_is_renewed_once_a_second_or_twentieth(ttl: float, age: float, expected: bool) -> None:
    """Below the limit not, at it yes; what lives for ever needs none."""
    assert is_used(entry(created=0.0, ttl=ttl), age) is expected


def test_terms_that_one_call_alters() -> None:
    """`fresh` takes nothing stale, `max_stale` only takes less, `ttl` is another life for what is loaded."""
    usual = stale_terms(life_of=lambda result: 5)
    assert (usual.altered(fresh=True).fresh, usual.altered(fresh=True).stale) == (True, 0.0)
    assert usual.altered(max_stale=10).stale == 10
    assert usual.altered(max_stale="1h").stale == 600
    assert usual.altered(max_stale=0).stale == 0
    assert (usual.altered(ttl="1m").life, usual.altered(ttl="1m").life_of) == (60.0, None)
    assert usual.altered().life_of is usual.life_of


# One engine


@pytest.fixture
async def fleet(clock: ManualClock) -> AsyncIterator[Fleet]:
    """Processes over a memory store; nothing may be left in their registries, and no exception unretrieved."""
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    fleet = Fleet(None, clock)
    yield fleet
    await settled()
    left = {repr(process.engine.flights) for process in fleet.processes}
    await fleet.aclose()
    gc.collect(1)
    assert left <= {NOTHING_LEFT}
    assert said == []


@pytest.fixture
def ours(fleet: Fleet) -> Process:
    return fleet.process()


async def filled(process: Process, source: Source, how: Terms, *where: Any, age: float = 61.0) -> None:
    """Version 1 is stored, and so old; the source has version 2."""
    for each in where or (KEY,):
        assert await soon(process.read(source, each, how)) == 1
    process.engine._time.__self__.advance(age)  # type: ignore[attr-defined]
    source.version, source.loads = 2, 0


def aboard(process: Process, where: Any = KEY) -> int:
    flight = process.engine.flights.get(where.key)
    return 0 if flight is None else len(flight.waiters)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until it is."""
    async with asyncio.timeout(SOON):
        while not is_so():
            await asyncio.sleep(0.001)


async def landed(process: Process) -> None:
    await until(lambda: repr(process.engine.flights) == NOTHING_LEFT)


async def _later(error: Exception) -> str:
    for _ in range(3):
        await asyncio.sleep(0)
    return "instead"


LEAVING = {
    "plain": {},
    "soft": {"soft": SOON},
    "soft at once": {"soft": 0.0},
    "hard": {"hard": SOON},
    "hard at once": {"hard": 0.0, "stale": 0.0},
    "both": {"soft": 0.0, "hard": 0.001},
    "kept": {"keep_loading": True},
    "personal": {"personal": True},
    "personal, soft": {"personal": True, "soft": SOON},
    "personal, hard at once": {"personal": True, "hard": 0.0},
    "early": {"early": 1e9, "is_plain": False, "life": 1e6},
    "sliding": {"sliding": True, "is_plain": False, "life": 1e6},
    "fallback": {"fallback": _later, "stale": 0.0},
    "cached error": {"cache_errors": (TimeoutError,), "stale": 0.0},
    "strict": {"fresh": True, "stale": 0.0},
}


@pytest.mark.parametrize("is_batch", [False, True], ids=["single", "batch"])
@pytest.mark.parametrize("fails", [False, True], ids=["loads", "fails"])
@pytest.mark.parametrize("how", LEAVING)
async def test_p2_a_caller_leaves_at_every_step(fleet: Fleet, clock: ManualClock, how: str, fails: bool, is_batch: bool) -> None:
    """Two callers; one is cancelled after each number of steps: it ends, the other is answered, and nothing is left."""
    how_read = stale_terms(**LEAVING[how])
    allowed = {1, 2, "instead", LoadTimeoutError, *([TimeoutError] if fails else [])}
    for steps in range(24):
        ours = fleet.process()
        await ours.engine.delete([KEY])
        source = Source()
        await filled(ours, source, replace(how_read, fresh=False, hard=None, personal=False))

        async def load(source: Source = source) -> int:
            for _ in range(6):
                await asyncio.sleep(0)
            if fails:
                raise TimeoutError("slow")
            return await source.load()

        async def load_many(positions: list[int], load: Callable[[], Any] = load) -> dict[int, int]:
            return dict.fromkeys(positions, await load())

        def read(ours: Process = ours, load: Any = load, load_many: Any = load_many) -> asyncio.Task[Any]:
            if is_batch:
                return ours.start(_batch(ours, how_read, load_many))
            return ours.start(ours.engine.get_or_load(KEY, how_read, load))

        leaving, staying = read(), read()
        for _ in range(steps):
            await asyncio.sleep(0)
        leaving.cancel()
        outcomes = await soon(asyncio.gather(leaving, staying, return_exceptions=True))
        told = {type(one) if isinstance(one, BaseException) else one for one in outcomes}
        assert told - {asyncio.CancelledError} <= allowed, (steps, outcomes)
        assert not staying.cancelled(), steps
        await landed(ours)
        again = await soon(asyncio.gather(ours.read(source, KEY, stale_terms(stale=0.0))))
        assert again[0] in (1, 2)


async def _batch(process: Process, how: Terms, load: Any) -> Any:
    (value,) = await process.engine.get_or_load_many([KEY], how, load)
    return value


async def test_p2_everybody_leaves_a_refresh_that_is_waited_for(ours: Process) -> None:
    """With soft timeouts, all callers are cancelled while they wait: the refresh ends with the last."""
    source, how = Source(), stale_terms(soft=SOON)
    await filled(ours, source, how)
    source.held = True
    readers = [ours.read(source, KEY, how) for _ in range(3)]
    await source.begun()
    for reader in readers:
        reader.cancel()
    await soon(asyncio.gather(*readers, return_exceptions=True))
    await landed(ours)
    assert source.cancelled == [2]
    assert how.counts.load_errors == 0
    source.held = False
    assert await soon(ours.read(source, KEY, how)) == 2


async def test_p2_who_waits_and_leaves_does_not_end_a_refresh_behind(ours: Process) -> None:
    """A refresh that was begun behind goes on though one that had joined it is cancelled."""
    source, how = Source(), stale_terms()
    await filled(ours, source, how)
    source.held = True
    assert await soon(ours.read(source, KEY, how)) == 1
    load = await source.begun()
    joined = ours.read(source, KEY, replace(how, stale=0.0))
    await until(lambda: aboard(ours) == 1)
    joined.cancel()
    await settled()
    load.finish()
    await landed(ours)
    assert await ours.engine.get(KEY, how) == 2


async def test_p2_patience_is_for_all_of_a_read(ours: Process, fleet: Fleet, clock: ManualClock) -> None:
    """A caller that has to look again after one load has no more patience for the next than it had left."""
    other, source, how = fleet.process(), Source(held=True), stale_terms(stale=0.0, hard=100.0)
    first = ours.read(source, KEY, how)
    load = await source.begun()
    late = ours.read(source, KEY, how)
    await until(lambda: aboard(ours) == 2)
    assert await other.invalidate_type()
    clock.advance(100)
    load.finish()
    assert await soon(first) == 1
    with pytest.raises(LoadTimeoutError):
        await soon(late)
    second = await source.begun()
    second.finish()


async def test_p2_a_batch_that_gives_up_leaves_what_failed_meanwhile(ours: Process) -> None:
    """A batch waits for one key when another's load fails: its time is up, and nobody complains of that failure."""
    source, failing, how = Source(held=True), Source(held=True), stale_terms(hard=0.3)
    singles = [ours.read(source, KEY, replace(how, hard=None))]
    load = await source.begun()
    ours.port.hold("claim")
    singles.append(ours.read(failing, OTHER, replace(how, hard=None)))
    claim = await ours.port.arrived("claim")
    batch = ours.start(ours.engine.get_or_load_many([KEY, OTHER], how, lambda positions: failing.load()))
    await until(lambda: aboard(ours) == aboard(ours, OTHER) == 2)
    flight = ours.engine.flights.get(OTHER.key)
    assert flight is not None
    waiter = list(flight.waiters)[1]
    await claim.go()
    (await failing.begun()).fail(TimeoutError("slow"))
    with pytest.raises(LoadTimeoutError):
        await soon(batch)
    is_untold = waiter.future._log_traceback  # what asyncio goes by, when it complains of an exception that nobody has asked for
    load.finish()
    assert [type(one) for one in await soon(asyncio.gather(*singles, return_exceptions=True))] == [int, TimeoutError]
    assert isinstance(waiter.future.exception(), TimeoutError)
    assert not is_untold


async def test_p2_a_personal_load_is_handed_on_under_a_deadline(ours: Process) -> None:
    """Its owner leaves, another's load takes its place; who is left when nobody has one looks again: no such error is stored or seen."""
    source, how = Source(held=True), stale_terms(personal=True, cache_errors=(Exception,), deadline=SOON)
    owner = ours.read(source, KEY, how)
    await source.begun()
    batch = ours.batch(source, KEY)
    await until(lambda: aboard(ours) == 2)
    owner.cancel()
    (await source.begun()).finish()
    assert await soon(batch) == [1]
    assert source.cancelled == [1]


async def test_what_a_load_raises_after_its_deadline_pauses_nothing(ours: Process, clock: ManualClock) -> None:
    """A refresh overruns, which pauses the next; long after, its loader raises: the pause is not prolonged."""
    source, go_on, how = Source(), asyncio.Event(), stale_terms(throttle=50.0, deadline=0.01)
    await filled(ours, source, how)

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await go_on.wait()
            raise TimeoutError("cleaning up") from None

    assert await soon(ours.start(ours.engine.get_or_load(KEY, how, stubborn))) == 1
    await until(lambda: how.counts.overruns == 1)
    clock.advance(40)
    go_on.set()
    await landed(ours)
    clock.advance(11)
    assert await soon(ours.read(source, KEY, how)) == 1
    await landed(ours)
    assert await soon(ours.read(source, KEY, how)) == 2


async def test_p3_a_strict_read_takes_nothing_from_a_flight_older_than_itself(ours: Process) -> None:
    """`fresh`: it begins a load of its own beside one that is under way, and later reads join that."""
    source, how = Source(held=True), stale_terms()
    first = ours.read(source, KEY, how)
    old = await source.begun()
    source.version = 2
    strict = ours.read(source, KEY, how.altered(fresh=True))
    new = await source.begun()
    later = ours.read(source, KEY, how)
    await until(lambda: aboard(ours) == 2)
    new.finish()
    assert await soon(strict) == await soon(later) == 2
    old.finish()
    assert await soon(first) == 1
    assert await ours.engine.get(KEY, how) == 2


async def test_p3_a_strict_read_is_given_nothing_stale(ours: Process) -> None:
    """It waits where others are given the stale value, and gets the error where they get that."""
    source, how = Source(), stale_terms(soft=SOON)
    await filled(ours, source, how)
    source.held = True
    strict = ours.read(source, KEY, how.altered(fresh=True))
    load = await source.begun()
    patient = ours.read(source, KEY, how)
    await until(lambda: aboard(ours) == 2)
    load.fail(TimeoutError("slow"))
    with pytest.raises(TimeoutError, match="slow"):
        await soon(strict)
    assert await soon(patient) in (1, 2)


async def test_what_is_put_behind_is_counted_by_the_batch(ours: Process) -> None:
    """One call behind for many keys takes one place; a hundred of them leave none."""
    source, how = Source(), stale_terms()
    await filled(ours, source, how, KEY, OTHER)
    source.held = True

    async def load(positions: list[int]) -> dict[int, int]:
        return dict.fromkeys(positions, await source.load())

    assert await soon(ours.engine.get_or_load_many([KEY, OTHER], how, load)) == [1, 1]
    await source.begun()
    assert "1 behind" in repr(ours.engine.flights)
    assert ours.engine.flights.has_room_behind
    assert MOST_BEHIND > 1
    await ours.engine.delete([KEY, OTHER])
    await ours.engine.flights.aclose()


class TestLifeOfResults:
    """`ttl` as a function of the result."""

    @pytest.mark.parametrize(
        ("given", "left"), [(5, 5.0), ("2m", 120.0), (FOREVER, math.inf), (0, None), (3 * UNKNOWN_LIFE, 3 * UNKNOWN_LIFE)]
    )
    async def test_the_result_says_how_long(self, ours: Process, given: Any, left: float | None) -> None:
        """Any form of a TTL; 0 does not store; more than could be foreseen is kept for as long, too."""
        how = stale_terms(life_of=lambda result: given, stale=0.0)
        assert await soon(ours.read(Source(), KEY, how)) == 1
        assert await ours.engine.ttl(KEY, how) == left

    async def test_none_leaves_it_to_the_policy(self, ours: Process) -> None:
        """A function that has nothing to say of a result."""
        how = stale_terms(life_of=lambda result: None)
        assert await soon(ours.read(Source(), KEY, how)) == 1
        assert await ours.engine.ttl(KEY, how) == how.life

    @pytest.mark.parametrize("given", [-1, True, "soon", math.nan])
    async def test_one_that_makes_no_sense_keeps_it_from_being_stored(self, ours: Process, given: Any) -> None:
        """The value is given; the mistake is told and counted."""
        how = stale_terms(life_of=lambda result: given)
        assert await soon(ours.read(Source(), KEY, how)) == 1
        assert await ours.engine.get(KEY, how) is MISSING
        assert how.counts.unstorable == 1

    async def test_it_is_not_asked_for_what_is_not_stored(self, ours: Process) -> None:
        """Neither of a None nor of what the loader keeps from being stored."""
        asked: list[Any] = []

        def life(result: Any) -> float:
            asked.append(result)
            return 5.0

        how = stale_terms(life_of=life)
        for value in (None, Uncached(3)):

            async def load(value: Any = value) -> Any:
                return value

            await soon(ours.engine.get_or_load(KEY, how, load))
        assert asked == []
        assert await ours.engine.get(KEY, how) is MISSING


# A fleet


@pytest.fixture
async def served(valkey: Server, clock: ManualClock) -> AsyncIterator[Fleet]:
    """Processes that share a server, and leases."""
    fleet = Fleet(valkey.url, clock)
    yield fleet
    await fleet.aclose()


async def held_stale(fleet: Fleet, how: Terms, source: Source) -> tuple[Process, Process]:
    ours, other = fleet.process(leased=True), fleet.process(leased=True)
    await filled(ours, source, how)
    source.held = True
    return ours, other


def leases_of(process: Process) -> Leases:
    assert isinstance(process.port.leases, Leases)
    return process.port.leases


async def test_a_fleet_refreshes_once(served: Fleet) -> None:
    """Two processes find a stale value: each gives it at once, and one of them loads."""
    source, how = Source(), stale_terms()
    ours, other = await held_stale(served, how, source)
    assert await soon(ours.read(source, KEY, how)) == 1
    load = await source.begun()
    for _ in range(3):
        assert await soon(other.read(source, KEY, how)) == 1
        await landed(other)
    load.finish()
    await landed(ours)
    assert await soon(other.read(source, KEY, how)) == await soon(ours.read(source, KEY, how)) == 2
    assert source.loads == 1


async def test_a_fleet_pauses_after_a_failed_refresh(served: Fleet) -> None:
    """Where one process has failed to refresh, no other tries for `throttle` seconds; a reader with nothing to go on does."""
    source, how = Source(), stale_terms(throttle=600.0)
    ours, other = await held_stale(served, how, source)
    assert await soon(ours.read(source, KEY, how)) == 1
    (await source.begun()).fail(TimeoutError("slow"))
    await landed(ours)
    for kind in ("behind", "soft"):
        for process in (ours, other, served.process(leased=True)):
            assert await soon(process.read(source, KEY, replace(how, soft=SOON if kind == "soft" else None))) == 1
            await landed(process)
    assert source.loads == 1
    strict = other.read(source, KEY, how.altered(fresh=True))
    (await source.begun()).finish()
    assert await soon(strict) == 2


async def test_who_waits_for_another_process_takes_its_value_or_its_own(served: Fleet) -> None:
    """With a soft timeout a reader follows another process's refresh; if that fails, it takes what it found, and loads nothing."""
    source, how = Source(), stale_terms(soft=SOON, throttle=600.0)
    ours, other = await held_stale(served, how, source)
    for fails in (True, False):
        first = ours.read(source, KEY, how if fails else how.altered(fresh=True))
        load = await source.begun()
        followed = len(leases_of(other).waits)
        second = other.read(source, KEY, replace(how, counts=Counts()) if fails else how.altered(fresh=True))
        await until(lambda followed=followed: len(leases_of(other).waits) > followed)
        if fails:
            load.fail(TimeoutError("slow"))
        else:
            load.finish()
        assert await soon(first) == await soon(second) == (1 if fails else 2)
    assert source.loads == 2


async def test_a_pause_is_nothing_to_a_reader_without_a_value(served: Fleet) -> None:
    """One that boards a refresh just as the server says "it has failed, pause" is not told that: it loads."""
    source, how = Source(), stale_terms(soft=SOON, throttle=600.0)
    ours, other = await held_stale(served, how, source)
    assert await soon(ours.read(source, KEY, replace(how, soft=None))) == 1
    (await source.begun()).fail(TimeoutError("slow"))
    await landed(ours)
    leases_of(other).hold("acquire")
    content = other.read(source, KEY, how)
    asked = await leases_of(other).arrived("acquire")
    await asked.execute()
    strict = other.read(source, KEY, replace(how, stale=0.0))
    await until(lambda: aboard(other) == 2)
    leases_of(other).held.clear()
    asked.answer()
    assert await soon(content) == 1
    (await source.begun()).finish()
    assert await soon(strict) == 2


async def test_a_soft_invalidation_elsewhere_is_refreshed_once(served: Fleet) -> None:
    """Both processes give the stale value, one loads, and both then have the new one."""
    source, how = Source(), stale_terms()
    ours, other = served.process(leased=True), served.process(leased=True)
    await filled(ours, source, how, age=1.0)
    source.held = True
    assert await other.engine.invalidate(ADDRESSES.to_invalidate("menu"), soft=True)
    assert await soon(ours.read(source, KEY, how)) == 1
    load = await source.begun()
    assert await soon(other.read(source, KEY, how)) == 1
    load.finish()
    await landed(ours)
    await landed(other)
    assert await soon(ours.read(source, KEY, how)) == await soon(other.read(source, KEY, how)) == 2
    assert source.loads == 1


async def test_an_error_that_is_cached_is_one_in_the_fleet(served: Fleet) -> None:
    """Who follows gets the error that is stored, and loads nothing."""
    source, how = Source(held=True), terms(cache_errors=(LookupError,), negative_life=5.0)
    ours, other = served.process(leased=True), served.process(leased=True)
    first = ours.read(source, KEY, how)
    load = await source.begun()
    second = other.read(source, KEY, how)
    await until(lambda: bool(leases_of(other).waits))
    load.fail(KeyError("menu"))
    for reading in (first, second):
        with pytest.raises(KeyError) as caught:
            await soon(reading)
        assert caught.value.args == ("menu",)
    assert source.loads == 1


async def test_what_is_not_stored_is_each_processs_own(served: Fleet) -> None:
    """A loader that keeps its value from being stored is asked by each process that waits, and none waits for ever."""
    ours, other = served.process(leased=True), served.process(leased=True)
    source = Source(held=True)

    async def load() -> Any:
        return Uncached(await source.load())

    how = terms()
    first = ours.start(ours.engine.get_or_load(KEY, how, load))
    held = await source.begun()
    second = other.start(other.engine.get_or_load(KEY, how, load))
    await until(lambda: bool(leases_of(other).waits))
    held.finish()
    (await source.begun()).finish()
    assert await soon(first) == await soon(second) == 1
