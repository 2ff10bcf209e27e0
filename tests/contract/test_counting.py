"""What each operation adds to the counters, over every store: exactly, to nothing else, and as of when it happened.

Each step comes after a pause of minutes, and is looked for in a window of a minute too: what is counted late, or told as of before the
pause, is found missing there. The clock stands still but for the pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from aiocache_aura import cache
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.errors import LoadDeadlineError
from aiocache_aura.stats import INTS, Counts
from aiocache_aura.timeline import SLOT
from tests.clocks import ManualClock
from tests.contract.conftest import Store
from tests.steps import SOON, Source, soon

PAUSE = 700.0  # seconds
DAY = 86_400
SHORT = 0.02  # seconds of a wait that is to end


def told(counts: Counts) -> tuple[dict[str, int], dict[str, int]]:
    """What is not 0: the figures, and the numbers of durations by operation."""
    took = {operation: histogram.count for operation, histogram in counts.times.items() if histogram.count}
    return {name: n for name in INTS if (n := getattr(counts, name))}, took


class Shop:
    """A manager whose clock stands still, and what its type "menu" has counted."""

    def __init__(self, manager: CacheManager, clock: ManualClock) -> None:
        self.manager, self.clock, self.source = manager, clock, Source()
        self.fails = False

    @contextlib.contextmanager
    def adds(self, took: dict[str, int] | None = None, **figures: int) -> Iterator[None]:
        """After a pause, what is done in this block adds exactly so much, and so many durations."""
        self.clock.advance(PAUSE)
        before = self.manager.recorder.total("menu")
        yield
        assert told(self.manager.recorder.total("menu").minus(before)) == (figures, took or {})
        self.clock.advance(SLOT + 1)
        assert told(self.manager.recorder.window("menu", 60)) == (figures, took or {})

    def read(self, key: str = "a", **policy: Any) -> Any:
        return self.manager.get_or_load("menu", key, self.load, **{"ttl": DAY, "load_deadline": None, **policy})

    async def load(self) -> int:
        if self.fails:
            raise TimeoutError
        return await self.source.load()

    async def refreshed(self) -> None:
        """No load is under way any more."""
        async with asyncio.timeout(SOON):
            while self.manager.engine_now().flights._tasks:
                await asyncio.sleep(0.001)


@pytest.fixture
def shop(clocked: CacheManager, clock: ManualClock) -> Shop:
    return Shop(clocked, clock)


class TestVerbs:
    async def test_get_and_set(self, shop: Shop) -> None:
        """A lookup is one duration, of however many keys."""
        manager = shop.manager
        with shop.adds({"get": 1}, misses=1):
            assert await manager.get("menu", "a") is None
        with shop.adds({"set": 1}, sets=1):
            assert await manager.set("menu", "a", 1, ttl=DAY)
        with shop.adds({"get": 1}, hits=1):
            assert await manager.get("menu", "a") == 1
        with shop.adds({"set": 1}, sets=3):
            assert await manager.mset("menu", {"b": 1, "c": 2, "d": 3}, ttl=DAY)
        with shop.adds({"get": 1}, hits=3, misses=2):
            assert await manager.get_many("menu", ["a", "x", "b", "c", "y"]) == {"a": 1, "b": 1, "c": 2}

    async def test_delete(self, shop: Shop) -> None:
        """As many as were there."""
        manager = shop.manager
        await manager.mset("menu", {"a": 1, "b": 2}, ttl=DAY)
        with shop.adds({"delete": 1}, deletes=2):
            assert await manager.delete("menu", "a", "b", "x") == 2
        with shop.adds({"delete": 1}):
            assert await manager.delete("menu", "a") == 0
        with shop.adds({"get": 1}, misses=1):
            assert await manager.get("menu", "a") is None

    async def test_add_touch_and_looks(self, shop: Shop) -> None:
        """An `add` that writes is a set; looking at an entry, or giving it a new life, is neither a hit nor a miss."""
        manager = shop.manager
        with shop.adds({"set": 1}, sets=1):
            assert await manager.add("menu", "a", 1, ttl=DAY)
        with shop.adds():
            assert not await manager.add("menu", "a", 2, ttl=DAY)
        with shop.adds():
            assert await manager.touch("menu", "a", DAY) and await manager.exists("menu", "a") and await manager.ttl("menu", "a")
            assert (await manager.explain("menu", "a")).verdict == "hit"
        with shop.adds({"delete": 1}, deletes=1):
            assert await manager.touch("menu", "a", 0)

    async def test_invalidate(self, shop: Shop) -> None:
        """One of whatever kind is one; what it voids is no deletion."""
        manager = shop.manager
        await manager.mset("menu", {"a": 1, "b": 2}, ttl=DAY, tags=["t"])
        with shop.adds({"invalidate": 1}, invalidations=1):
            assert await manager.invalidate("menu", tags=["t"])
        with shop.adds({"get": 1}, misses=2):
            assert await manager.get_many("menu", ["a", "b"]) == {}
        with shop.adds({"invalidate": 1}, invalidations=1):
            assert await manager.invalidate("menu", keep_stale=True)

    async def test_invalidate_pattern(self, shop: Shop) -> None:
        """It is an invalidation; it has no duration of its own."""
        await shop.manager.mset("menu", {"a:1": 1, "a:2": 2, "b": 3}, ttl=DAY)
        with shop.adds(invalidations=1):
            assert await shop.manager.invalidate_pattern("menu", "a:*") == 2

    async def test_what_another_type_was_stored_as(self, shop: Shop) -> None:
        """It is a miss, and undecodable."""
        await shop.manager.set("menu", "a", "text", ttl=DAY)
        with shop.adds({"get": 1}, misses=1, undecodable=1):
            assert await shop.manager.get("menu", "a", as_type=int) is None


class TestLoads:
    async def test_a_miss_and_a_hit(self, shop: Shop) -> None:
        """A miss loads and stores; a hit does neither."""
        with shop.adds({"get": 1, "load": 1, "set": 1}, misses=1, loads=1, sets=1):
            assert await shop.read() == 1
        with shop.adds({"get": 1}, hits=1):
            assert await shop.read() == 1

    async def test_callers_that_wait_for_one_load(self, shop: Shop) -> None:
        """Each is a miss; those that found it under way are coalesced, and have not looked."""
        shop.source.held = True
        with shop.adds({"get": 1, "load": 1, "set": 1}, misses=5, coalesced=4, loads=1, sets=1):
            first = asyncio.ensure_future(shop.read())
            load = await shop.source.begun()
            others = [asyncio.ensure_future(shop.read()) for _ in range(4)]
            await asyncio.sleep(0)
            load.finish()
            assert await soon(asyncio.gather(first, *others)) == [1] * 5

    async def test_a_load_that_raises(self, shop: Shop) -> None:
        """Its duration is of another kind, and nothing is stored."""
        shop.fails = True
        with shop.adds({"get": 1, "load_error": 1}, misses=1, loads=1, load_errors=1), pytest.raises(TimeoutError):
            await shop.read()

    async def test_what_cannot_be_stored(self, shop: Shop) -> None:
        """It is given, and not stored."""
        with shop.adds({"get": 1, "load": 1}, misses=1, loads=1, unstorable=1):
            await shop.manager.get_or_load("menu", "a", lambda: object())

    async def test_a_load_that_is_not_done_in_time(self, shop: Shop) -> None:
        """It is cancelled: an overrun."""
        shop.source.held = True
        with shop.adds({"get": 1, "load_error": 1}, misses=1, loads=1, overruns=1):
            with pytest.raises(LoadDeadlineError):
                await soon(shop.read(load_deadline=SHORT))
            await shop.refreshed()

    async def test_a_batch(self, shop: Shop) -> None:
        """One lookup, one load and one fill, of as many misses and sets as there are keys."""

        async def load(keys: list[str]) -> dict[str, int]:
            return dict.fromkeys(keys, 1)

        with shop.adds({"get": 1, "load": 1, "set": 1}, misses=3, loads=1, sets=3):
            await shop.manager.get_or_load_many("menu", ["a", "b", "c"], load, ttl=DAY)
        with shop.adds({"get": 1, "load": 1, "set": 1}, hits=2, misses=1, loads=1, sets=1):
            await shop.manager.get_or_load_many("menu", ["a", "b", "d"], load, ttl=DAY)

    async def test_a_function_counts_for_itself_and_its_type(self, shop: Shop) -> None:
        """What a function adds to its own counters it adds to its type's; a refresh is a load, and no read."""

        @cache(cache_type="menu", manager=shop.manager, ttl=DAY)
        async def dish(n: int) -> int:
            return n

        with shop.adds({"get": 1, "load": 1, "set": 1}, misses=1, loads=1, sets=1):
            assert await dish(1) == 1
        with shop.adds({"get": 1}, hits=1):
            assert await dish(1) == 1
        with shop.adds({"load": 1, "set": 1}, loads=1, sets=1):
            assert await dish.refresh(1) == 1
        figures = dish.cache_info()
        assert (figures.hits, figures.misses) == (1, 1)


class TestStale:
    async def test_while_it_is_refreshed(self, shop: Shop) -> None:
        """A stale value is a hit; the refresh behind it is a load and a set."""
        await shop.read(ttl=10, stale=DAY)
        with shop.adds({"get": 1, "load": 1, "set": 1}, hits=1, stale_refreshing=1, loads=1, sets=1):
            assert await shop.read(ttl=10, stale=DAY) == 1
            await shop.refreshed()

    async def test_while_a_refresh_that_failed_is_young(self, shop: Shop) -> None:
        """The first is served while it is refreshed, the second while the refresh is paused."""
        await shop.read(ttl=10, stale=DAY, throttle=DAY)
        shop.fails = True
        with shop.adds({"get": 1, "load_error": 1}, hits=1, stale_refreshing=1, loads=1, load_errors=1):
            assert await shop.read(ttl=10, stale=DAY, throttle=DAY) == 1
            await shop.refreshed()
        with shop.adds({"get": 1}, hits=1, stale_paused=1):
            assert await shop.read(ttl=10, stale=DAY, throttle=DAY) == 1

    async def test_instead_of_an_error(self, shop: Shop) -> None:
        """A caller that has waited for the refresh has missed."""
        options = {"ttl": 10, "stale": DAY, "soft_timeout": SOON}
        await shop.read(**options)
        shop.fails = True
        with shop.adds({"get": 1, "load_error": 1}, misses=1, loads=1, load_errors=1, stale_error=1):
            assert await shop.read(**options) == 1

    async def test_after_a_timeout(self, shop: Shop) -> None:
        """It is told apart; the load goes on, and is stored."""
        options = {"ttl": 10, "stale": DAY, "soft_timeout": SHORT}
        await shop.read(**options)
        shop.source.held = True
        with shop.adds({"get": 1, "load": 1, "set": 1}, misses=1, loads=1, sets=1, stale_timeout=1):
            assert await soon(shop.read(**options)) == 1
            (await shop.source.begun()).finish()
            await shop.refreshed()


class TestFleet:
    @pytest.fixture
    def pair(self, remote: Store, clock: ManualClock) -> tuple[Shop, Shop]:
        """Two processes of one store."""
        return Shop(remote.open(clock=clock), clock), Shop(remote.open(clock=clock), clock)

    async def test_a_load_that_another_process_makes(self, pair: tuple[Shop, Shop]) -> None:
        """Who waits for it has missed, and followed."""
        here, there = pair
        there.source.held = True
        loading = asyncio.ensure_future(there.read())
        load = await there.source.begun()
        with here.adds({"get": 1}, misses=1, followed=1):
            waiting = asyncio.ensure_future(here.read())
            async with asyncio.timeout(SOON):
                while not here.manager.counts("menu").misses:
                    await asyncio.sleep(0.001)
            load.finish()
            assert await soon(asyncio.gather(loading, waiting)) == [1, 1]
        assert here.source.loads == 0

    @pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
    async def test_a_refresh_that_is_left_to_another_process(self, pair: tuple[Shop, Shop], many: bool) -> None:
        """The stale value is a hit, and its refresh is followed: it is not made here."""
        here, there = pair
        options = {"ttl": 10, "stale": DAY, "load_deadline": None}
        await there.read(**options)
        there.clock.advance(PAUSE)
        there.source.held = True
        assert await there.read(**options) == 1
        load = await there.source.begun()
        with here.adds({"get": 1}, hits=1, stale_refreshing=1, followed=1):
            if many:
                found = await here.manager.get_or_load_many("menu", ["a"], lambda keys: {}, **options)
                assert found == {"a": 1}
            else:
                assert await here.read(**options) == 1
            await here.refreshed()
        load.finish()
        await there.refreshed()
