"""How fresh what is given is, over every store: two lives, waits that end, loads that end, and what is stored besides values.

Lives are a clock's that the test moves; waits that end are short and real, and their loads held until the test lets them go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from aiocache_aura import cache, current_tenant, current_user, tenant_scope, user_scope
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.errors import CacheError, LoadDeadlineError, LoadTimeoutError, RecursiveLoadError
from aiocache_aura.resilience import single_flight
from aiocache_aura.resilience.single_flight import MOST_BEHIND
from aiocache_aura.stats import Counts
from aiocache_aura.types import FOREVER, MISSING, Uncached
from tests.clocks import ManualClock
from tests.contract.conftest import STORES, Store, opened
from tests.steps import SOON, Source, soon

SHORT = 0.02  # seconds of a wait that is to end
PAUSE = 0.05  # seconds after a failed refresh: by our clock in this process, by the server's for the fleet
ALWAYS = 1e9  # a factor of early refresh by which every hit is due
NOTHING_LEFT = "<Flights 0 open, 0 tasks>"


class NotFound(Exception):
    """The source has no such thing."""


class Forbidden(Exception):
    """The source does not tell."""


class Shop:
    """A manager whose clock stands still, a source, and one key that lives 60 seconds and then stands in for 600."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.store, self.clock = store, clock
        self.manager: CacheManager = store.open(clock=clock)
        self.source = Source()
        self.usual: dict[str, Any] = {"ttl": 60, "stale": 600, "load_deadline": None, "throttle": PAUSE}

    @property
    def counts(self) -> Counts:
        return self.manager.caches["menu"].counts

    @property
    def flights(self) -> single_flight.Flights:
        engine = self.manager.engine_now()
        assert engine is not None
        return engine.flights

    @property
    def aboard(self) -> int:
        """How many wait for loads."""
        return sum(len(flight.waiters) for flight in self.flights.by_key.values())

    def read(self, key: str = "k", **policy: Any) -> Awaitable[Any]:
        return self.manager.get_or_load("menu", key, self.source.load, **{**self.usual, **policy})

    def reading(self, key: str = "k", **policy: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.read(key, **policy))

    async def filled(self, key: str = "k", *, age: float = 0.0, **policy: Any) -> None:
        """Version 1 is stored, and so old; the source has version 2 by now, and holds its loads."""
        self.source.held = False
        assert await soon(self.read(key, **policy)) == 1
        self.source.version, self.source.held, self.source.loads = 2, True, 0
        self.counts.reset()
        self.clock.advance(age)

    async def landed(self) -> None:
        """No load is under way any more."""
        while self.flights._tasks:
            await soon(asyncio.wait(self.flights._tasks))
        await asyncio.sleep(0)

    async def paused(self) -> None:
        """The pause after a failure is over."""
        self.clock.advance(PAUSE)
        if not self.store.is_memory:
            await asyncio.sleep(PAUSE + SHORT)

    async def soften(self, manager: CacheManager | None = None) -> None:
        """A soft invalidation of the type: what is stored is stale from now on."""
        by = manager or self.manager
        assert await (await by.engine()).invalidate(by.addresses.to_invalidate("menu"), soft=True)


@pytest.fixture(params=[kind for kind in STORES if kind == "memory" or kind.endswith("-tcp")])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store of one process, and those that processes share; how they are reached is not what this is about."""
    async for one in opened(request):
        yield one


@pytest.fixture
async def shop(store: Store, clock: ManualClock) -> AsyncIterator[Shop]:
    shop = Shop(store, clock)
    yield shop
    await shop.landed()
    assert repr(shop.flights) == NOTHING_LEFT


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until it is."""
    async with asyncio.timeout(SOON):
        while not is_so():
            await asyncio.sleep(0.001)


async def everything(*tasks: asyncio.Task[Any]) -> list[Any]:
    return list(await soon(asyncio.gather(*tasks, return_exceptions=True)))


class TestStale:
    async def test_a_stale_value_is_given_at_once_and_refreshed_behind(self, shop):
        """Past its life, a value is given while it is loaded anew; who comes afterwards gets the new one."""
        await shop.filled(age=61)
        assert await soon(shop.read()) == 1
        load = await shop.source.begun()
        assert await soon(shop.read()) == 1
        load.finish()
        await shop.landed()
        assert await soon(shop.read()) == 2
        assert shop.source.loads == 1
        assert (shop.counts.stale_served, shop.counts.hits, shop.counts.misses, shop.counts.loads) == (2, 3, 0, 1)

    async def test_nobody_waits_for_a_refresh_that_hangs(self, shop):
        """A hundred callers at once, and again: each is given the stale value, and one load is under way."""
        await shop.filled(age=61)
        for _ in range(2):
            assert set(await everything(*(shop.reading() for _ in range(50)))) == {1}
        load = await shop.source.begun()
        load.finish()
        await shop.landed()
        assert shop.source.loads == 1

    @pytest.mark.parametrize(
        ("age", "fresh", "stale"),
        [(0, True, True), (59.99, True, True), (60, False, True), (659.99, False, True), (660, False, False), (10_000, False, False)],
    )
    async def test_at_most_so_long_past_its_life(self, shop, age, fresh, stale):
        """Fresh for `ttl` seconds, then stale for `stale` seconds, then gone."""
        await shop.filled(age=age)
        reading = shop.reading()
        if stale:
            assert await soon(reading) == 1
        if not fresh:
            (await shop.source.begun()).finish()
        await shop.landed()
        assert await soon(reading) == (1 if stale else 2)
        assert shop.source.loads == int(not fresh)

    @pytest.mark.parametrize(("entry", "reader", "gives"), [(600, 30, 30), (30, 600, 30), (600, 0, 0), (0, 600, 0), (30, 30, 30)])
    async def test_the_smaller_of_what_entry_and_reader_say(self, shop, entry, reader, gives):
        """An entry says for how long it may stand in, and a reader for how long it takes that: the smaller counts."""
        for age in (60, 60 + gives - 0.01, 60 + gives) if gives else (60,):
            await shop.manager.delete("menu", "k")
            shop.source.version = 1
            await shop.filled(stale=entry, age=age)
            reading = shop.reading(stale=reader)
            (await shop.source.begun()).finish()
            assert await soon(reading) == (1 if age < 60 + gives else 2)
            await shop.landed()

    async def test_only_what_loads_is_given_a_stale_value(self, shop):
        """For all other verbs an entry past its life is not there."""
        await shop.filled(age=61)
        menu = shop.manager.caches["menu"]
        shop.manager.override("menu", stale=600)
        assert await menu.get("k") is None
        assert await menu.mget(["k"], default=MISSING) == [MISSING]
        assert await menu.get_many(["k"]) == {}
        assert not await menu.exists("k")
        assert await menu.ttl("k") is None
        assert not await menu.touch("k")
        assert await menu.add("k", 3)
        assert await menu.get("k") == 3

    async def test_what_was_set_stands_in_too(self, shop):
        """An explicit write has a stale life like a loaded value."""
        await shop.manager.set("menu", "k", 1, ttl=60, stale=600)
        shop.clock.advance(61)
        assert await soon(shop.read()) == 1
        await shop.landed()

    async def test_a_refresh_behind_works_for_the_callers_tenant_and_user(self, shop):
        """The load behind carries the scope of who caused it, though that one has left it long since."""
        seen = []

        async def load():
            seen.append((current_tenant(), current_user()))
            return 1

        def read():
            return shop.manager.get_or_load("menu", "k", load, **shop.usual)

        with tenant_scope(7), user_scope(5):
            await read()
            shop.clock.advance(61)
            await read()
        with tenant_scope(8):
            await shop.landed()
        assert seen == [("7", "5")] * 2

    async def test_a_function_is_refreshed_behind_too(self, shop):
        """A decorated function, plain or not, with its arguments."""
        calls = []

        @cache(cache_type="menu", manager=shop.manager, ttl=60, stale=600)
        def plain(n: int) -> int:
            calls.append(n)
            return len(calls)

        assert await plain(7) == 1
        shop.clock.advance(61)
        assert await plain(7) == 1
        await shop.landed()
        assert await plain(7) == 2
        assert calls == [7, 7]

    async def test_a_session_is_not_used_behind_its_caller(self, shop):
        """A function with an excluded argument is refreshed by a caller that waits, with its own."""
        sessions = []

        @cache(cache_type="menu", manager=shop.manager, ttl=60, stale=600, exclude=["db"])
        async def of(n: int, db: object) -> int:
            sessions.append(db)
            return len(sessions)

        assert await of(7, db := object()) == 1
        shop.clock.advance(61)
        assert await soon(of(7, other := object())) == 2
        assert sessions == [db, other]
        assert shop.counts.stale_served == 0

    @pytest.mark.parametrize(("error", "hidden"), [(TimeoutError("slow"), True), (Forbidden("no"), False)])
    async def test_a_refresh_in_the_foreground_that_fails(self, shop, error, hidden):
        """Its caller is given the stale value for a failure in `stale_on`, and the failure for any other."""

        @cache(cache_type="menu", manager=shop.manager, ttl=60, stale=600, exclude=["db"])
        async def of(db: object) -> int:
            return await shop.source.load()

        assert await of(None) == 1
        shop.clock.advance(61)
        shop.source.held = True
        reading = asyncio.ensure_future(of(None))
        (await shop.source.begun()).fail(error)
        assert await everything(reading) == [1 if hidden else error]
        assert await soon(of(None)) == 1  # and everybody for `throttle` seconds
        assert shop.source.loads == 2


class TestFailingRefresh:
    async def test_nobody_refreshes_for_a_while(self, shop):
        """After a refresh that failed, everybody is given the stale value for `throttle` seconds, without a load; then there is one."""
        await shop.filled(age=61)
        for n in range(1, 4):
            for _ in range(3):
                assert await soon(shop.read()) == 1
            (await shop.source.begun()).fail(OSError("down"))
            await shop.landed()
            for _ in range(3):
                assert await soon(shop.read()) == 1
                shop.clock.advance(PAUSE / 4)
            assert await soon(shop.read()) == 1
            await shop.landed()
            assert shop.source.loads == n
            await shop.paused()
        assert (shop.counts.load_errors, shop.counts.misses) == (3, 0)

    async def test_the_service_recovers_by_itself(self, shop):
        """Once the source answers again, the next refresh is stored."""
        await shop.filled(age=61)
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).fail(OSError("down"))
        await shop.landed()
        await shop.paused()
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).finish()
        await shop.landed()
        assert await soon(shop.read()) == 2

    async def test_a_failure_behind_never_surfaces_and_is_told(self, shop, caplog):
        """Whatever a refresh behind raises, in `stale_on` or not, is counted and logged, without a value or a key."""
        await shop.filled(age=61)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert await soon(shop.read()) == 1
            (await shop.source.begun()).fail(Forbidden("secret"))
            await shop.landed()
        assert await soon(shop.read()) == 1
        assert shop.counts.load_errors == 1
        (line,) = [record.getMessage() for record in caplog.records]
        assert "Forbidden" in line
        assert "menu" in line
        assert "secret" not in line

    async def test_a_failed_refresh_makes_nothing_live_longer(self, shop):
        """The stale life is counted from the value's own end, however often its refresh has failed."""
        await shop.filled(age=600)
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).fail(OSError("down"))
        await shop.landed()
        shop.clock.advance(60 - PAUSE)
        await shop.paused()
        reading = shop.reading()
        (await shop.source.begun()).fail(OSError("down"))
        (error,) = await everything(reading)
        assert isinstance(error, OSError)

    async def test_who_has_nothing_to_go_on_loads_all_the_same(self, shop):
        """The pause is for those who are given a stale value; a reader that takes none loads at once."""
        await shop.filled(age=61)
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).fail(OSError("down"))
        await shop.landed()
        reading = shop.reading(stale=0)
        (await shop.source.begun()).finish()
        assert await soon(reading) == 2

    async def test_who_takes_no_stale_value_gets_the_error(self, shop):
        """A reader that joins a refresh because it takes nothing stale is not given what others are."""
        await shop.filled(age=61)
        assert await soon(shop.read()) == 1
        load = await shop.source.begun()
        strict = shop.reading(stale=0)
        await asyncio.sleep(0)
        load.fail(OSError("down"))
        await until(lambda: strict.done() or shop.source.loads == 2)
        if shop.source.loads == 2:  # it was late for the first load, and has its own
            (await shop.source.begun()).fail(OSError("down"))
        (error,) = await everything(strict)
        assert isinstance(error, OSError)

    async def test_readers_that_take_stale_values_do_not_wait_behind_one_that_does_not(self, shop):
        """A strict reader's load is under way: who may be given the stale value is given it at once, and whatever comes of that load."""
        await shop.filled(age=61)
        strict = shop.reading(stale=0)
        load = await shop.source.begun()
        assert await soon(shop.read()) == 1
        load.fail(OSError("down"))
        (error,) = await everything(strict)
        assert isinstance(error, OSError)
        assert await soon(shop.read()) == 1
        assert shop.source.loads == 1


class TestSoftTimeout:
    async def test_a_caller_waits_for_the_refresh_first(self, shop):
        """With a soft timeout, a refresh that is quick enough is what the caller gets."""
        await shop.filled(age=61)
        reading = [shop.reading(soft_timeout=SOON) for _ in range(3)]
        (await shop.source.begun()).finish()
        assert await everything(*reading) == [2, 2, 2]
        assert shop.source.loads == 1
        assert shop.counts.stale_served == 0

    async def test_then_takes_the_stale_value_and_the_load_goes_on(self, shop):
        """One that is not: the stale value, and the load is finished behind, for those who come later."""
        await shop.filled(age=61)
        assert await everything(*(shop.reading(soft_timeout=SHORT) for _ in range(3))) == [1, 1, 1]
        assert shop.counts.stale_served == 3
        load = await shop.source.begun()
        joined = shop.reading(soft_timeout=SOON)
        await until(lambda: shop.aboard == 1)
        load.finish()
        assert await soon(joined) == 2
        await shop.landed()
        assert await soon(shop.read()) == 2
        assert shop.source.loads == 1

    async def test_without_a_stale_value_it_ends_no_wait(self, shop):
        """Who has nothing to take waits on."""
        shop.source.held = True
        reading = shop.reading(soft_timeout=SHORT)
        load = await shop.source.begun()
        done, _ = await asyncio.wait({reading}, timeout=SHORT * 3)
        assert not done
        load.finish()
        assert await soon(reading) == 1

    @pytest.mark.parametrize(("error", "hidden"), [(TimeoutError("slow"), True), (OSError("down"), True), (Forbidden("no"), False)])
    async def test_a_load_that_fails_meanwhile(self, shop, error, hidden):
        """A failure in `stale_on` is answered with the stale value at once, any other is raised."""
        await shop.filled(age=61)
        reading = [shop.reading(soft_timeout=SOON) for _ in range(2)]
        (await shop.source.begun()).fail(error)
        assert await everything(*reading) == [1 if hidden else error] * 2
        assert shop.counts.stale_served == (2 if hidden else 0)

    async def test_stale_on_is_what_the_policy_says(self, shop):
        """Other failures can be named, and the usual ones left out."""
        await shop.filled(age=61)
        reading = shop.reading(soft_timeout=SOON, stale_on=(Forbidden,))
        (await shop.source.begun()).fail(Forbidden("no"))
        assert await soon(reading) == 1
        await shop.paused()
        reading = shop.reading(soft_timeout=SOON, stale_on=())
        (await shop.source.begun()).fail(OSError("down"))
        (error,) = await everything(reading)
        assert isinstance(error, OSError)

    async def test_nobody_waits_after_a_failure(self, shop):
        """For `throttle` seconds the stale value is given at once."""
        await shop.filled(age=61)
        reading = shop.reading(soft_timeout=SOON)
        (await shop.source.begun()).fail(OSError("down"))
        assert await soon(reading) == 1
        assert await soon(shop.read(soft_timeout=SOON)) == 1
        assert shop.source.loads == 1

    async def test_what_it_held_is_over_by_then(self, shop):
        """A value whose stale life ends during the wait is not given after it: the failure is."""
        await shop.filled(age=659)
        reading = shop.reading(soft_timeout=SOON)
        load = await shop.source.begun()
        shop.clock.advance(1)
        load.fail(OSError("down"))
        (error,) = await everything(reading)
        assert isinstance(error, OSError)

    async def test_nobody_waits_past_the_stale_life(self, shop):
        """A stale value with less life left than the soft timeout is taken while it may be."""
        await shop.filled(age=660 - SHORT)
        assert await soon(shop.read(soft_timeout=SOON * 10)) == 1
        (await shop.source.begun()).finish()


class TestHardTimeout:
    async def test_a_caller_gives_up_and_the_load_goes_on(self, shop):
        """LoadTimeoutError, a TimeoutError; the load is finished and stored, and who comes meanwhile joins it."""
        shop.source.held = True
        errors = await everything(*(shop.reading(hard_timeout=SHORT) for _ in range(3)))
        assert [type(error) for error in errors] == [LoadTimeoutError] * 3
        assert isinstance(errors[0], TimeoutError)
        load = await shop.source.begun()
        joined = shop.reading(hard_timeout=SOON)
        await until(lambda: shop.aboard == 1)
        load.finish()
        assert await soon(joined) == 1
        await shop.landed()
        assert await shop.manager.get("menu", "k") == 1
        assert shop.source.loads == 1

    async def test_a_patient_caller_keeps_waiting(self, shop):
        """Each caller's own patience counts."""
        shop.source.held = True
        patient = shop.reading()
        load = await shop.source.begun()
        (error,) = await everything(shop.reading(hard_timeout=SHORT))
        assert isinstance(error, LoadTimeoutError)
        assert not patient.done()
        load.finish()
        assert await soon(patient) == 1

    async def test_the_load_goes_on_though_a_later_caller_leaves(self, shop):
        """One caller's patience has ended, another is cancelled, in either order: the load that was promised to go on does."""
        for key, order in ("a", "patience first"), ("b", "cancelled first"):
            shop.source.held = True
            cancelled = shop.reading(key)
            load = await shop.source.begun()
            if order == "patience first":
                (error,) = await everything(shop.reading(key, hard_timeout=SHORT))
                cancelled.cancel()
            else:
                impatient = shop.reading(key, hard_timeout=SHORT * 15)
                await until(lambda: shop.aboard == 2)
                cancelled.cancel()
                (error,) = await everything(impatient)
            assert isinstance(error, LoadTimeoutError)
            await everything(cancelled)
            load.finish()
            await shop.landed()
            assert await shop.manager.get("menu", key) == 1, order
            assert shop.source.cancelled == []

    async def test_joining_and_leaving_a_load_that_goes_on_behind(self, shop):
        """Who joins it and is cancelled takes nothing away."""
        shop.source.held = True
        await everything(shop.reading(hard_timeout=SHORT))
        load = await shop.source.begun()
        joined = shop.reading()
        await until(lambda: shop.aboard == 1)
        joined.cancel()
        await everything(joined)
        load.finish()
        await shop.landed()
        assert await shop.manager.get("menu", "k") == 1

    async def test_a_session_ends_with_its_caller(self, shop):
        """A load that uses what belongs to its caller does not go on without it."""

        @cache(cache_type="menu", manager=shop.manager, hard_timeout=SHORT, exclude=["db"])
        async def of(db: object) -> int:
            return await shop.source.load()

        shop.source.held = True
        (error,) = await everything(asyncio.ensure_future(of(None)))
        assert isinstance(error, LoadTimeoutError)
        assert "goes on" not in str(error)
        assert shop.source.cancelled == [1] * shop.source.loads  # none, where its time was up before the load began

    async def test_no_more_than_so_many_go_on_behind(self, shop):
        """A hundred loads go on without anybody; one more is cancelled with its last caller."""
        shop.source.held = True
        errors = await everything(*(shop.reading(f"k{n}", hard_timeout=SHORT) for n in range(MOST_BEHIND + 1)))
        assert {type(error) for error in errors} == {LoadTimeoutError}
        await until(lambda: len(shop.flights._tasks) == MOST_BEHIND)
        loads = []
        while sum(not load.future.done() for load in loads) < MOST_BEHIND:
            loads.append(await shop.source.begun())
        for load in loads:
            if not load.future.done():
                load.finish()
        await shop.landed()
        assert len(await shop.manager.caches["menu"].get_many([f"k{n}" for n in range(MOST_BEHIND + 1)])) == MOST_BEHIND

    async def test_no_stale_value_is_refreshed_while_there_are_so_many(self, shop):
        """With no room for one more load behind, the stale value is given all the same."""
        await shop.filled(age=61)
        await everything(*(shop.reading(f"k{n}", hard_timeout=SHORT) for n in range(MOST_BEHIND)))
        assert await soon(shop.read()) == 1
        assert "k" not in [flight.key.decode().rpartition(":")[2] for flight in shop.flights.by_key.values()]
        for _ in range(MOST_BEHIND):
            (await shop.source.begun()).finish()
        await shop.landed()


class TestDeadline:
    async def test_whoever_waits_is_told_and_the_key_is_free(self, shop):
        """The load is cancelled, those who wait get LoadDeadlineError, a TimeoutError; the next caller loads at once."""
        shop.source.held = True
        errors = await everything(*(shop.reading(load_deadline=SHORT) for _ in range(3)))
        assert {type(error) for error in errors} == {LoadDeadlineError}
        assert isinstance(errors[0], TimeoutError)
        assert shop.source.cancelled == [1]
        reading = shop.reading()
        await shop.source.begun()
        (await shop.source.begun()).finish()
        assert await soon(reading) == 1
        assert (shop.counts.overruns, shop.counts.load_errors) == (1, 0)

    async def test_a_loader_that_does_not_heed_its_cancellation(self, shop):
        """The key is free all the same, and what that loader gives in the end is dropped."""
        go_on, cancelled = asyncio.Event(), asyncio.Event()

        async def stubborn():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                await go_on.wait()
            return "too late"

        first = asyncio.ensure_future(shop.manager.get_or_load("menu", "k", stubborn, load_deadline=SHORT))
        (error,) = await everything(first)
        assert isinstance(error, LoadDeadlineError)
        await soon(cancelled.wait())
        assert await soon(shop.read()) == 1
        go_on.set()
        await shop.landed()
        assert await shop.manager.get("menu", "k") == 1
        assert shop.counts.overruns == 1

    async def test_a_loader_that_answers_its_cancellation_with_another_error(self, shop):
        """What it raises then reaches nobody, and holds up no refresh."""

        async def raises():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise Forbidden("cleaning up") from None

        (error,) = await everything(asyncio.ensure_future(shop.manager.get_or_load("menu", "k", raises, load_deadline=SHORT)))
        assert isinstance(error, LoadDeadlineError)
        await shop.landed()
        assert await soon(shop.read()) == 1

    async def test_a_stale_value_stands_in(self, shop):
        """The deadline is among the failures that a stale value hides."""
        await shop.filled(age=61)
        assert await soon(shop.read(soft_timeout=SOON, load_deadline=SHORT)) == 1
        assert shop.counts.stale_served == 1

    async def test_a_refresh_behind_ends_too(self, shop):
        """A refresh that hangs is cancelled, counted, and begun again after the pause."""
        await shop.filled(age=61)
        assert await soon(shop.read(load_deadline=SHORT)) == 1
        await shop.source.begun()
        await shop.landed()
        assert shop.source.cancelled == [2]
        assert shop.counts.overruns == 1
        assert await soon(shop.read()) == 1
        await shop.paused()
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).finish()
        await shop.landed()
        assert await soon(shop.read()) == 2

    async def test_a_session_is_free_too(self, shop):
        """A load with an excluded argument has the same deadline; its caller waits until it has cleaned up."""
        cleaned = []

        @cache(cache_type="menu", manager=shop.manager, load_deadline=SHORT, exclude=["db"])
        async def of(db: list[int]) -> int:
            try:
                return await shop.source.load()
            finally:
                db.append(1)

        shop.source.held = True
        (error,) = await everything(asyncio.ensure_future(of(cleaned)))
        assert isinstance(error, LoadDeadlineError)
        await shop.landed()
        assert cleaned == [1]

    async def test_a_batch_has_one_too(self, shop):
        """Everybody who waits for a key of it is told."""
        hang = asyncio.Event()

        async def load(keys):
            await hang.wait()
            return dict.fromkeys(keys, 1)

        async def many():
            return await shop.manager.get_or_load_many("menu", ["a", "b"], load, load_deadline=SHORT)

        (error,) = await everything(asyncio.ensure_future(many()))
        assert isinstance(error, LoadDeadlineError)
        assert shop.counts.overruns == 1


class TestKeepLoading:
    @pytest.mark.parametrize("keep", [True, False])
    async def test_a_load_outlives_its_last_caller_if_it_is_to(self, shop, keep):
        """With `keep_loading` what is under way is finished and stored, without it cancelled."""
        shop.source.held = True
        callers = [shop.reading(keep_loading=keep) for _ in range(2)]
        load = await shop.source.begun()
        for caller in callers:
            caller.cancel()
        await everything(*callers)
        if keep:
            load.finish()
        await shop.landed()
        assert await shop.manager.get("menu", "k") == (1 if keep else None)
        assert shop.source.cancelled == ([] if keep else [1])
        assert shop.counts.load_errors == 0

    async def test_closing_ends_what_is_kept(self, store, clock):
        """`aclose` cancels what goes on behind."""
        shop = Shop(store, clock)
        shop.source.held = True
        caller = shop.reading(keep_loading=True)
        await shop.source.begun()
        caller.cancel()
        await everything(caller)
        await soon(shop.manager.aclose())
        assert shop.source.cancelled == [1]

    async def test_closing_does_not_wait_for_ever(self, store, clock, monkeypatch):
        """A loader that does not heed its cancellation holds up `aclose` for so long and no longer; its caller is told at once."""
        monkeypatch.setattr(single_flight, "CLOSING", SHORT)
        shop = Shop(store, clock)
        go_on, begun, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def stubborn():
            begun.set()
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except asyncio.CancelledError:
                    continue
            ended.set()

        caller = asyncio.ensure_future(shop.manager.get_or_load("menu", "k", stubborn))
        await soon(begun.wait())
        try:
            await soon(shop.manager.aclose())
            (error,) = await everything(caller)
            assert isinstance(error, CacheError)
            assert not ended.is_set()
        finally:
            go_on.set()
        await soon(ended.wait())


class TestFallback:
    @pytest.mark.parametrize("value", [0, None, [], "instead"])
    async def test_a_value_instead_of_an_error(self, shop, value):
        """It is given, falsy or not, and not stored: the next call loads again."""
        shop.source.held = True
        for n in (1, 2):
            reading = shop.reading(fallback=value)
            (await shop.source.begun()).fail(Forbidden("no"))
            assert await soon(reading) == value
            assert shop.source.loads == n
        assert await shop.manager.caches["menu"].mget(["k"], default=MISSING) == [MISSING]
        assert shop.counts.load_errors == 2

    async def test_a_function_instead_of_an_error(self, shop):
        """It may want the error or not, and may be async; what it raises is raised."""

        async def later(error):
            return f"later {error}"

        def refuses(error):
            raise NotFound from error

        shop.source.held = True
        ways = [(lambda: "plain", "plain"), (lambda error: f"was {error}", "was no"), (later, "later no"), (refuses, NotFound)]
        for fallback, expected in ways:
            reading = shop.reading(fallback=fallback)
            (await shop.source.begun()).fail(Forbidden("no"))
            (given,) = await everything(reading)
            assert given == expected or type(given) is expected

    async def test_instead_of_time_being_up(self, shop):
        """A wait that has ended is answered with it, too."""
        shop.source.held = True
        assert await soon(shop.read(hard_timeout=SHORT, fallback="instead")) == "instead"
        (await shop.source.begun()).finish()

    async def test_a_stale_value_comes_before_it(self, shop):
        """Where a stale value stands in, the fallback is not asked; where the failure is not in `stale_on`, it is."""
        await shop.filled(age=61)
        reading = shop.reading(soft_timeout=SOON, fallback="instead")
        (await shop.source.begun()).fail(OSError("down"))
        assert await soon(reading) == 1
        await shop.paused()
        reading = shop.reading(soft_timeout=SOON, fallback="instead")
        (await shop.source.begun()).fail(Forbidden("no"))
        assert await soon(reading) == "instead"

    async def test_no_fallback_for_a_cancelled_caller(self, shop):
        """Being cancelled is not an error of the load."""
        shop.source.held = True
        reading = shop.reading(fallback="instead")
        await shop.source.begun()
        reading.cancel()
        await everything(reading)
        assert reading.cancelled()

    async def test_an_error_that_is_cached_is_answered_with_it_every_time(self, shop):
        """The call that finds the error stored is given what the call was that loaded."""
        shop.source.held = True
        policy = {"fallback": "instead", "cache_errors": (NotFound,)}
        reading = shop.reading(**policy)
        (await shop.source.begun()).fail(NotFound("k"))
        assert await soon(reading) == "instead"
        assert await soon(shop.read(**policy)) == "instead"
        assert shop.source.loads == 1


class TestNegative:
    async def test_none_is_stored_if_it_is_to_be(self, shop):
        """A cached None is a hit, and told from a miss."""
        loads = []

        async def nothing():
            loads.append(1)

        for n in (1, 2):
            assert await shop.manager.get_or_load("menu", "none", nothing, cache_none=False) is None
            assert len(loads) == n
        for _ in range(2):
            assert await shop.manager.get_or_load("menu", "none", nothing, cache_none=True) is None
            assert len(loads) == 3
        assert await shop.manager.caches["menu"].mget(["none", "other"], default=MISSING) == [None, MISSING]
        assert await shop.manager.caches["menu"].get_many(["none", "other"]) == {"none": None}
        assert await shop.manager.exists("menu", "none")

    async def test_it_has_a_life_of_its_own(self, shop):
        """`negative_ttl` is the life of a None, implies that it is stored, and is no other value's."""
        loads = []

        async def nothing():
            loads.append(1)

        def read():
            return shop.manager.get_or_load("menu", "none", nothing, ttl=60, negative_ttl=5)

        await read()
        shop.clock.advance(4.9)
        await read()
        assert len(loads) == 1
        assert await shop.manager.ttl("menu", "none") == pytest.approx(0.1)
        shop.clock.advance(0.1)
        await read()
        assert len(loads) == 2
        await shop.filled(negative_ttl=5, age=59)
        assert await soon(shop.read(negative_ttl=5)) == 1

    async def test_an_error_is_stored_if_it_is_to_be(self, shop, store):
        """It is loaded once and raised again, as its class with its arguments, here and in other processes, for `negative_ttl`."""
        policy = {"cache_errors": (NotFound,), "negative_ttl": 5, "stale": 0}
        shop.source.held = True
        reading = shop.reading(**policy)
        (await shop.source.begun()).fail(NotFound("menu", 7))
        (error,) = await everything(reading)
        assert isinstance(error, NotFound)
        other = Shop(store, shop.clock)
        for each in [shop] if store.is_memory else [shop, other]:
            with pytest.raises(NotFound) as caught:
                await soon(each.read(**policy))
            assert caught.value.args == ("menu", 7)
        assert (shop.source.loads, other.source.loads) == (1, 0)
        assert shop.counts.hits == 1
        shop.clock.advance(5)
        reading = shop.reading(**policy)
        (await shop.source.begun()).finish()
        assert await soon(reading) == 1

    async def test_only_for_those_who_know_it(self, shop):
        """A reader that does not list its class misses, and so does every verb that gives values."""
        await self._stored(shop, NotFound("menu"))
        menu = shop.manager.caches["menu"]
        shop.manager.override("menu", cache_errors=(NotFound,))
        assert await menu.get("k") is None
        assert await menu.mget(["k"], default=MISSING) == [MISSING]
        assert not await menu.exists("k")
        assert await menu.ttl("k") is None
        assert not await menu.touch("k")
        reading = shop.reading(cache_errors=(KeyError,))
        (await shop.source.begun()).finish()
        assert await soon(reading) == 1
        assert await menu.get("k") == 1

    async def test_a_value_may_be_added_over_it(self, shop):
        """`add` writes where a read finds no value."""
        await self._stored(shop, NotFound("menu"))
        shop.manager.override("menu", cache_errors=(NotFound,))
        assert await shop.manager.add("menu", "k", 3)
        assert await shop.manager.get("menu", "k") == 3

    async def test_a_batch_loads_it_again(self, shop):
        """An error of one key is not that of a batch."""
        await self._stored(shop, NotFound("menu"))
        loaded = await shop.manager.get_or_load_many("menu", ["k"], lambda keys: dict.fromkeys(keys, 5), cache_errors=(NotFound,))
        assert loaded == {"k": 5}

    async def test_it_is_invalidated_like_a_value(self, shop):
        """After an invalidation it is loaded anew."""
        await self._stored(shop, NotFound("menu"))
        assert await shop.manager.invalidate("menu")
        reading = shop.reading(cache_errors=(NotFound,))
        (await shop.source.begun()).finish()
        assert await soon(reading) == 1

    async def test_one_that_cannot_be_stored_is_raised_all_the_same(self, shop, caplog):
        """What JSON does not hold exactly is told once for each function, and loaded again."""
        shop.source.held = True
        for n in (1, 2):
            reading = shop.reading(cache_errors=(NotFound,))
            (await shop.source.begun()).fail(NotFound(object()))
            (error,) = await everything(reading)
            assert isinstance(error, NotFound)
            assert shop.source.loads == n
        assert shop.counts.unstorable == 2
        assert sum("NotFound" in record.getMessage() for record in caplog.records) == 1

    async def test_an_error_does_not_stand_in(self, shop):
        """An error has no stale life: it is not raised for longer than it is stored for."""
        await self._stored(shop, NotFound("menu"), negative_ttl=5)
        shop.clock.advance(6)
        reading = shop.reading(cache_errors=(NotFound,), negative_ttl=5)
        (await shop.source.begun()).finish()
        assert await soon(reading) == 1

    async def test_a_failure_that_a_stale_value_hides_does_not_replace_it(self, shop):
        """An error that is to be cached and is in `stale_on`, too: while there is a stale value, that stands in."""
        policy = {"cache_errors": (TimeoutError,), "negative_ttl": 5}
        await shop.filled(age=61)
        assert await soon(shop.read(**policy)) == 1
        (await shop.source.begun()).fail(TimeoutError("slow"))
        await shop.landed()
        assert await soon(shop.read(**policy)) == 1
        assert shop.counts.load_errors == 1

    async def test_one_that_no_stale_value_hides_replaces_it(self, shop):
        """What is gone at the source is gone here."""
        await shop.filled(age=61)
        policy = {"cache_errors": (NotFound,)}
        assert await soon(shop.read(**policy)) == 1
        (await shop.source.begun()).fail(NotFound("menu"))
        await shop.landed()
        with pytest.raises(NotFound):
            await soon(shop.read(**policy))

    async def _stored(self, shop, error, **policy):
        shop.source.held = True
        reading = shop.reading(cache_errors=(type(error),), **policy)
        (await shop.source.begun()).fail(error)
        assert await everything(reading) == [error]
        shop.source.loads = 0


class TestWhatIsNotStored:
    async def test_uncached_is_given_and_not_stored(self, shop):
        """The callers get the value itself, each time from a load."""
        calls = []

        @cache(cache_type="menu", manager=shop.manager)
        async def of(n: int) -> Any:
            calls.append(n)
            return Uncached({"n": n})

        for count in (1, 2):
            assert await of(7) == {"n": 7}
            assert len(calls) == count
        assert await of.exists(7) is False
        assert await shop.manager.get_or_load("menu", "k", lambda: Uncached(None), cache_none=True) is None
        assert await shop.manager.caches["menu"].mget(["k"], default=MISSING) == [MISSING]

    async def test_a_batch_may_give_some(self, shop):
        """Of a batch, what is marked is given and not stored."""
        loaded = await shop.manager.get_or_load_many("menu", ["a", "b"], lambda keys: {"a": Uncached(1), "b": 2})
        assert loaded == {"a": 1, "b": 2}
        assert await shop.manager.caches["menu"].get_many(["a", "b"]) == {"b": 2}

    async def test_what_the_predicate_refuses(self, shop):
        """`store_if` false: given, not stored; true: stored."""
        for key, accepts in ("a", False), ("b", True):
            assert await soon(shop.read(key, store_if=lambda version, accepts=accepts: accepts and version == 1)) == 1
            assert await shop.manager.exists("menu", key) is accepts

    async def test_a_predicate_that_raises_keeps_it_from_being_stored(self, shop, caplog):
        """The value is given; the mistake is told, and counted."""

        def wrong(version):
            raise ZeroDivisionError

        assert await soon(shop.read(store_if=wrong)) == 1
        assert not await shop.manager.exists("menu", "k")
        assert shop.counts.unstorable == 1
        assert any("ZeroDivisionError" in record.getMessage() for record in caplog.records)


class TestLives:
    async def test_a_life_counts_from_the_start_of_the_load(self, shop):
        """What a slow load gives is as old as the load."""

        async def slow():
            shop.clock.advance(40)
            return 1

        assert await shop.manager.get_or_load("menu", "k", slow, ttl=60) == 1
        assert await shop.manager.ttl("menu", "k") == pytest.approx(20)

    async def test_a_refresh_behind_too(self, shop):
        """What was loaded behind is no younger than its load."""
        await shop.filled(age=61)
        assert await soon(shop.read()) == 1
        load = await shop.source.begun()
        shop.clock.advance(40)
        load.finish()
        await shop.landed()
        assert await shop.manager.ttl("menu", "k") == pytest.approx(20)

    async def test_a_load_longer_than_the_life_is_stored_as_stale(self, shop):
        """It is given to who waited, and stands in for who comes."""

        async def slow():
            shop.clock.advance(100)
            return 1

        assert await shop.manager.get_or_load("menu", "k", slow, **shop.usual) == 1
        shop.source.held, shop.source.version = True, 2
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).finish()


class TestSliding:
    async def test_a_hit_renews_the_life(self, shop):
        """As long as it is asked for, it lives; each read renews it, loading or not."""
        shop.manager.override("menu", sliding=True)
        await shop.filled(sliding=True)
        for n in range(4):
            shop.clock.advance(50)
            assert await (shop.read(sliding=True) if n % 2 else shop.manager.get("menu", "k")) == 1
            await self._renewed(shop)
            assert await shop.manager.ttl("menu", "k") == 60
        shop.clock.advance(60)
        assert await shop.manager.get("menu", "k") is None

    async def test_not_with_every_hit(self, shop):
        """At most once a second: hits are not to become writes."""
        await shop.filled(sliding=True)
        shop.clock.advance(0.9)
        await shop.read(sliding=True)
        await self._renewed(shop)
        assert await shop.manager.ttl("menu", "k") == pytest.approx(59.1)
        shop.clock.advance(0.1)
        await shop.read(sliding=True)
        await self._renewed(shop)
        assert await shop.manager.ttl("menu", "k") == 60

    async def test_what_is_stale_is_not_renewed(self, shop):
        """A value that is only standing in is refreshed, not given another life."""
        await shop.filled(sliding=True, age=61)
        assert await soon(shop.read(sliding=True)) == 1
        (await shop.source.begun()).finish()
        await shop.landed()
        assert await soon(shop.read(sliding=True)) == 2

    async def test_an_error_is_not_renewed(self, shop):
        """However often it is asked for, an error is tried again after its life."""
        policy = {"sliding": True, "cache_errors": (NotFound,), "negative_ttl": 5, "stale": 0}
        shop.source.held = True
        reading = shop.reading(**policy)
        (await shop.source.begun()).fail(NotFound("k"))
        await everything(reading)
        for _ in range(2):
            shop.clock.advance(2.4)
            with pytest.raises(NotFound):
                await soon(shop.read(**policy))
            await self._renewed(shop)
        shop.clock.advance(0.3)
        reading = shop.reading(**policy)
        (await shop.source.begun()).finish()
        assert await soon(reading) == 1

    async def test_an_invalidation_is_not_undone(self, shop):
        """A renewal that an invalidation overtakes leaves the entry void."""
        await shop.filled(sliding=True, age=50)
        reading = shop.reading(sliding=True)
        while not shop.manager.engine_now()._chores and not reading.done():
            await asyncio.sleep(0)
        assert await shop.manager.invalidate("menu")
        await soon(reading)
        await self._renewed(shop)
        assert await shop.manager.get("menu", "k") is None

    async def _renewed(self, shop):
        chores = shop.manager.engine_now()._chores
        if chores:
            await soon(asyncio.wait(set(chores)))


class TestEarlyRefresh:
    async def test_what_is_due_is_given_and_refreshed_behind(self, shop):
        """The caller is given the fresh value; there is one load behind for the crowd."""
        await shop.filled(early_refresh=ALWAYS)
        assert set(await everything(*(shop.reading(early_refresh=ALWAYS) for _ in range(20)))) == {1}
        (await shop.source.begun()).finish()
        await shop.landed()
        assert await soon(shop.read()) == 2
        assert shop.source.loads == 1
        assert (shop.counts.misses, shop.counts.stale_served) == (0, 0)

    async def test_one_that_fails_is_not_noticed(self, shop):
        """Nobody gets the error, and nobody refreshes for `throttle` seconds."""
        for stale in (0, 600):
            shop.source.version = 1
            await shop.manager.delete("menu", "k")
            await shop.filled(stale=stale)
            assert await soon(shop.read(early_refresh=ALWAYS, stale=stale)) == 1
            (await shop.source.begun()).fail(Forbidden("no"))
            await shop.landed()
            for _ in range(3):
                assert await soon(shop.read(early_refresh=ALWAYS, stale=stale)) == 1
                await asyncio.sleep(0)
            assert shop.source.loads == 1
            await shop.paused()
            assert await soon(shop.read(early_refresh=ALWAYS, stale=stale)) == 1
            (await shop.source.begun()).finish()
            await shop.landed()

    async def test_what_lives_for_ever_is_never_due(self, shop):
        """There is no end to be early for."""
        await shop.filled(ttl=FOREVER, early_refresh=True)
        for _ in range(20):
            assert await soon(shop.read(ttl=FOREVER, early_refresh=ALWAYS)) == 1
            await asyncio.sleep(0)
        assert shop.source.loads == 0

    async def test_with_a_session_the_caller_refreshes(self, shop):
        """In the foreground; if that fails, it is given the fresh value."""
        outcomes: list[Any] = [1, 2, Forbidden("no")]

        @cache(cache_type="menu", manager=shop.manager, ttl=60, early_refresh=ALWAYS, exclude=["db"])
        async def of(db: object) -> int:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        assert [await of(None) for _ in range(4)] == [1, 2, 2, 2]
        assert outcomes == []


class TestInvalidated:
    @pytest.mark.parametrize("how", ["invalidate", "soften", "delete", "set"])
    @pytest.mark.parametrize("who", ["here", "elsewhere"])
    async def test_what_a_refresh_behind_was_loading_is_not_stored(self, shop, store, how, who):
        """A refresh behind has read version 2; then the source changes, and this process or another says so: no read sees version 2."""
        by = shop.manager if who == "here" else store.peer_of(shop.manager)
        await shop.filled(age=61)
        assert await soon(shop.read()) == 1
        load = await shop.source.begun()
        shop.source.version = 3
        match how:
            case "invalidate":
                assert await by.invalidate("menu")
            case "soften":
                await shop.soften(by)
            case "delete":
                assert await by.delete("menu", "k") == 1
            case _:
                assert await by.set("menu", "k", 3)
        shop.source.held = False
        load.finish()
        await shop.landed()
        given = await soon(shop.read())
        await shop.landed()
        if how == "soften":
            assert given in (1, 2)  # may stand in, as what they are
            given = await soon(shop.read())
        assert given == 3

    @pytest.mark.parametrize("who", ["here", "elsewhere"])
    async def test_what_was_invalidated_softly_stands_in(self, shop, store, who):
        """It is given to those who take stale values, until `ttl` and `stale` are over; for everybody else it is gone."""
        by = shop.manager if who == "here" else store.peer_of(shop.manager)
        await shop.filled(age=10)
        await shop.soften(by)
        assert await shop.manager.get("menu", "k") is None
        assert not await shop.manager.exists("menu", "k")
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).fail(OSError("down"))
        await shop.landed()
        shop.clock.advance(649 - PAUSE)
        await shop.paused()
        assert await soon(shop.read()) == 1
        (await shop.source.begun()).fail(OSError("down"))
        await shop.landed()
        shop.clock.advance(1)
        reading = shop.reading()
        (await shop.source.begun()).finish()
        assert await soon(reading) == 2

    async def test_who_takes_nothing_stale_loads_it(self, shop):
        """For a reader with `stale=0` a soft invalidation is as good as any."""
        await shop.filled()
        await shop.soften()
        reading = shop.reading(stale=0)
        (await shop.source.begun()).finish()
        assert await soon(reading) == 2

    async def test_what_was_stored_without_a_stale_life_is_gone(self, shop):
        """An entry whose policy had no `stale` does not stand in, whatever the reader takes."""
        await shop.filled(stale=0)
        await shop.soften()
        reading = shop.reading()
        (await shop.source.begun()).finish()
        assert await soon(reading) == 2

    async def test_a_hard_invalidation_ends_a_soft_one(self, shop):
        """In either order: nothing stands in."""
        for order in ("soft first", "hard first"):
            await shop.manager.delete("menu", "k")
            shop.source.version = 1
            await shop.filled()
            if order == "soft first":
                await shop.soften()
            assert await shop.manager.invalidate("menu")
            if order == "hard first":
                await shop.soften()
            reading = shop.reading()
            (await shop.source.begun()).finish()
            assert await soon(reading) == 2

    async def test_a_crowd_after_a_soft_invalidation_loads_once(self, shop):
        """Everybody is given the stale value, and there is one load."""
        await shop.filled()
        await shop.soften()
        assert set(await everything(*(shop.reading() for _ in range(50)))) == {1}
        (await shop.source.begun()).finish()
        await shop.landed()
        assert await soon(shop.read()) == 2
        assert shop.source.loads == 1


class TestBatches:
    async def test_stale_values_are_given_at_once_and_refreshed_by_one_call(self, shop):
        """What is missing is loaded, what is stale is given and refreshed behind by one call, what is fresh is given."""
        calls: list[list[str]] = []
        hold = asyncio.Event()

        async def load(keys):
            calls.append(keys)
            if "stale" in keys:
                await hold.wait()
            return {key: f"{key}{len(calls)}" for key in keys}

        def read(*keys):
            return soon(shop.manager.get_or_load_many("menu", keys, load, **shop.usual))

        await read("older")
        calls.clear()
        hold.set()
        await read("stale", "too")
        hold.clear()
        shop.clock.advance(61)
        await read("fresh")
        calls.clear()
        assert await read("stale", "fresh", "missing", "too") == {
            "stale": "stale1",
            "too": "too1",
            "fresh": "fresh2",
            "missing": "missing2",
        }
        assert sorted(map(sorted, calls)) == [["missing"], ["stale", "too"]]
        assert await read("stale", "too") == {"stale": "stale1", "too": "too1"}
        hold.set()
        await shop.landed()
        assert len(calls) == 2
        assert await read("stale", "too") == {"stale": "stale2", "too": "too2"}

    async def test_a_refresh_that_fails_is_throttled(self, shop):
        """Each key of it pauses."""
        calls = []

        async def load(keys):
            calls.append(keys)
            if len(calls) > 1:
                raise OSError("down")
            return dict.fromkeys(keys, 1)

        for age in (0, 61, PAUSE / 3, PAUSE / 3):
            shop.clock.advance(age)
            assert await soon(shop.manager.get_or_load_many("menu", ["a", "b"], load, **shop.usual)) == {"a": 1, "b": 1}
            await shop.landed()
        assert len(calls) == 2

    async def test_one_that_leaves_a_stale_key_out(self, shop):
        """A key that a refresh behind leaves out is absent, as in any batch; the others are stored."""
        calls = []

        async def load(keys):
            calls.append(keys)
            return {"a": 2} if len(calls) > 1 else dict.fromkeys(keys, 1)

        def read():
            return soon(shop.manager.get_or_load_many("menu", ["a", "b"], load, **shop.usual))

        await read()
        shop.clock.advance(61)
        assert await read() == {"a": 1, "b": 1}
        await shop.landed()
        assert await read() == {"a": 2}
        assert calls[-1] == ["b"]

    async def test_a_caller_gives_up_and_the_load_goes_on(self, shop):
        """`hard_timeout` bounds the wait for a batch; what it loads is stored."""
        hold = asyncio.Event()

        async def load(keys):
            await hold.wait()
            return dict.fromkeys(keys, 1)

        async def many(*keys):
            return await shop.manager.get_or_load_many("menu", keys, load, hard_timeout=SHORT)

        shop.source.held = True
        single = shop.reading("b")
        own = await shop.source.begun()
        errors = await everything(*(asyncio.ensure_future(many(*keys)) for keys in (("a", "b", "c"), ("c", "d"))))
        assert {type(error) for error in errors} == {LoadTimeoutError}
        hold.set()
        own.finish()
        await soon(single)
        await shop.landed()
        assert await shop.manager.caches["menu"].get_many(list("abcd")) == dict.fromkeys("abcd", 1)

    async def test_a_fallback_stands_for_what_could_not_be_loaded(self, shop):
        """Values that are there are given, and the fallback for every key that the failed load was asked for."""
        await shop.manager.set("menu", "a", 1)

        def load(keys):
            raise Forbidden("no")

        seen = []

        def instead(error):
            seen.append(error)
            return 0

        loaded = await shop.manager.get_or_load_many("menu", ["a", "b", "c"], load, fallback=instead)
        assert loaded == {"a": 1, "b": 0, "c": 0}
        assert {type(error) for error in seen} == {Forbidden}
        assert await shop.manager.caches["menu"].get_many(list("abc")) == {"a": 1}


class TestCircles:
    async def test_two_loads_that_wait_for_each_other(self, shop):
        """a asks for b, b for a, in two tasks: one of them is told, and nobody hangs."""
        both = asyncio.Barrier(2)

        def loader(other):
            async def load():
                await both.wait()
                return await shop.manager.get_or_load("menu", other, loaders[other], **shop.usual)

            return load

        loaders = {"a": loader("b"), "b": loader("a")}
        errors = await everything(
            *(asyncio.ensure_future(shop.manager.get_or_load("menu", key, loaders[key], **shop.usual)) for key in loaders)
        )
        assert {type(error) for error in errors} == {RecursiveLoadError}

    async def test_a_stale_value_breaks_the_circle(self, shop):
        """Who is given a stale value does not wait."""
        await shop.filled("b", age=61)
        shop.source.held = False

        async def load_a():
            return await shop.read("b")

        assert await soon(shop.manager.get_or_load("menu", "a", load_a, **shop.usual)) == 1


async def test_a_refresh_that_finds_nothing_takes_the_old_value_away(shop):
    """The source says that it is gone: what stood in until then stands in no longer."""
    await shop.filled(age=61)
    assert await soon(shop.read()) == 1
    (await shop.source.begun()).future.set_result(None)
    await shop.landed()
    assert await shop.manager.get("menu", "k") is None
    late = shop.reading()
    (await shop.source.begun()).finish()
    assert await soon(late) == 2


async def test_a_refresh_whose_value_is_not_to_be_stored_pauses_the_next(shop):
    """`store_if` would not have it: the old value stands in, and the loader is asked once in a throttle."""
    await shop.filled(age=61)
    shop.source.held = False
    for _ in range(5):
        assert await soon(shop.read(store_if=lambda value: value == 1)) == 1
        await shop.landed()
    assert shop.source.loads == 1
    await shop.paused()
    assert await soon(shop.read(store_if=lambda value: value == 1)) == 1
    await shop.landed()
    assert shop.source.loads == 2
