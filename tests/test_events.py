"""Happenings, and who is told of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from functools import partial

import pytest

from aiocache_aura import CacheManager, cache_menu
from aiocache_aura.errors import BackendError
from aiocache_aura.events import (
    KINDS,
    Deleted,
    Events,
    Evicted,
    Fault,
    Happening,
    Hit,
    Invalidated,
    Load,
    Miss,
    SlowOperation,
    StaleServed,
    Stored,
)
from tests.servers import Server


@pytest.fixture
async def manager(clock):
    async with CacheManager("memory://", clock=clock) as manager:
        yield manager


def hit(**changes) -> Hit:
    return Hit(**{"cache_type": "menu", "key": "k", "at": 1.0, "seconds": 0.1, **changes})


def kinds(heard) -> list[str]:
    return [type(one).__name__ for one in heard]


class TestEvents:
    def test_a_listener_hears_the_kinds_it_asked_for(self):
        """One kind, several, or all; each happening once, in the order of listening."""
        events, heard = Events(), []
        events.listen(partial(heard.append), Hit)
        events.listen(lambda one: heard.append(("all", one)))
        events.tell(hit())
        events.tell(Miss(cache_type="menu", at=1.0))
        assert heard == [hit(), ("all", hit()), ("all", Miss(cache_type="menu", at=1.0))]

    def test_nobody_listens_and_nothing_is_wanted(self):
        """`wants` tells whether to make a happening at all."""
        events = Events()
        assert not any(events.wants(kind) for kind in KINDS) and not events.hits
        with events.listen(print, Load):
            assert [kind for kind in KINDS if events.wants(kind)] == [Load]
            assert not events.hits
        with events.listen(print):
            assert all(events.wants(kind) for kind in KINDS) and events.hits
        assert not any(events.wants(kind) for kind in KINDS) and not events.hits

    def test_stopping_is_idempotent_and_stops_one(self):
        """The same callable that listens twice hears twice, and once after one of the two has stopped."""
        events, heard = Events(), []
        first = events.listen(heard.append, Hit)
        events.listen(heard.append, Hit)
        first.stop()
        first.stop()
        events.tell(hit())
        assert len(heard) == 1

    def test_on_decorates(self):
        """`on` leaves the function as it is."""
        events, heard = Events(), []

        @events.on(Hit, Miss)
        def listener(happening):
            heard.append(happening)

        events.tell(hit())
        assert heard == [hit()] and listener.__name__ == "listener"

    def test_a_listener_that_raises_harms_nobody(self, caplog):
        """The others hear all the same; it is logged, once in a while."""
        events, heard = Events(), []

        def broken(happening):
            raise LookupError("no such thing")

        events.listen(broken)
        events.listen(heard.append)
        with caplog.at_level(logging.WARNING):
            for _ in range(100):
                events.tell(hit())
        assert len(heard) == 100
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "no such thing" in caplog.text and "broken" in caplog.text

    @pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError, asyncio.InvalidStateError])
    @pytest.mark.parametrize("shown", [None, LookupError, asyncio.CancelledError])
    def test_whatever_a_listener_and_its_repr_raise_harms_nobody(self, error, shown, caplog):
        """A cancelled future that it asks for its result, a repr that fails: it is logged, and the others hear; so with a condition."""

        class Broken:
            def __call__(self, *happening):
                raise error("no such thing")

            def __repr__(self):
                if shown is not None:
                    raise shown
                return "<Broken>"

        events, heard = Events(), []
        events.listen(Broken(), Hit)
        events.listen(heard.append, Hit)
        events.listen(heard.append, Load, when=Broken())
        with caplog.at_level(logging.WARNING):
            events.tell(hit())
            assert not events.wants(Load)
        assert heard == [hit()]
        assert len(caplog.records) == 1 and "no such thing" in caplog.text and "Broken" in caplog.text

    def test_a_listener_may_stop_itself_and_others(self):
        """What is told is told to those who listened when it began."""
        events, heard = Events(), []

        def once(happening):
            heard.append("once")
            mine.stop()
            other.stop()

        mine = events.listen(once, Hit)
        other = events.listen(lambda one: heard.append("other"), Hit)
        events.tell(hit())
        events.tell(hit())
        assert heard == ["once", "other"]

    @pytest.mark.parametrize("callback", [1, None, "print"])
    def test_what_cannot_listen_is_refused(self, callback):
        """Something that cannot be called is a TypeError."""
        with pytest.raises(TypeError, match="callable"):
            Events().listen(callback)

    def test_an_async_listener_is_refused(self):
        """Nobody would await it."""

        async def listener(happening): ...

        class Listener:
            async def __call__(self, happening): ...

        for callback in (listener, Listener()):
            with pytest.raises(TypeError, match="async"):
                Events().listen(callback)

    @pytest.mark.parametrize("kind", [int, "Hit", hit(), object])
    def test_what_is_no_kind_is_refused(self, kind):
        """The message names the kinds that there are."""
        with pytest.raises(TypeError, match="Hit, Miss"):
            Events().listen(print, kind)

    def test_on_without_brackets_is_refused(self):
        """`@events.on` would take the function for a kind."""
        with pytest.raises(TypeError, match="events.on"):
            Events().on(lambda one: None)

    def test_happenings_are_frozen(self):
        """Nobody changes what others are told; each has a type, a key and a time."""
        for kind in KINDS:
            assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen and issubclass(kind, Happening)
        with pytest.raises(dataclasses.FrozenInstanceError):
            hit().key = "other"


class TestOfAManager:
    async def test_the_life_of_an_entry(self, manager, clock):
        """A miss, a load, a fill, a hit, a deletion, an invalidation: each is told with what it knows."""
        heard = []
        manager.events.listen(heard.append)

        async def load():
            clock.advance(0.05)
            return {"name": "Margherita"}

        await manager.get_or_load("menu", "a", load, ttl=60)
        await manager.get_or_load("menu", "a", load, ttl=60)
        await manager.delete("menu", "a")
        await manager.invalidate("menu", tenant=1)
        assert kinds(heard) == ["Miss", "Load", "Stored", "Hit", "Deleted", "Invalidated"]
        miss, loaded, stored, found, deleted, invalidated = heard
        assert all(one.cache_type == "menu" and one.at == pytest.approx(clock.now, abs=1) for one in heard)
        assert len({one.key for one in heard[:5]}) == 1 and miss.key.startswith("menu:")
        assert (loaded.seconds, loaded.error, loaded.outcome) == (pytest.approx(0.05), None, "ok")
        assert stored.ttl == 60 and stored.size > len('{"name":"Margherita"}') and found.size == stored.size
        assert (deleted.count, invalidated.delivered, invalidated.what) == (1, True, "invalidate of cache type 'menu'")

    async def test_a_load_that_fails(self, manager):
        """The error is told, and no fill."""
        heard = []
        manager.events.listen(heard.append)

        async def load():
            raise LookupError("no such dish")

        with pytest.raises(LookupError):
            await manager.get_or_load("menu", "a", load)
        assert kinds(heard) == ["Miss", "Load"]
        assert isinstance(heard[1].error, LookupError) and heard[1].outcome == "error"
        assert "no such dish" not in repr(heard[1])

    async def test_callers_that_join_a_load(self, manager):
        """One miss leads, the others are coalesced."""
        heard = []
        manager.events.listen(heard.append, Miss, Load)

        async def load():
            await asyncio.sleep(0)
            return 1

        await asyncio.gather(*(manager.get_or_load("menu", "a", load) for _ in range(5)))
        assert sorted(one.coalesced for one in heard if isinstance(one, Miss)) == [False, True, True, True, True]
        assert kinds(heard).count("Load") == 1

    async def test_a_hit_is_told_at_once_to_whoever_begins_to_listen(self, manager):
        """A call that was made many times before is told from the first one on that somebody listens, and not after."""

        @cache_menu(manager=manager)
        async def menu_of(restaurant_id: int) -> int:
            return 1

        for _ in range(3000):  # until not each hit is timed
            await menu_of(1)
        heard = []
        with manager.events.listen(heard.append, Hit):
            for _ in range(10):
                await menu_of(1)
        await menu_of(1)
        assert len(heard) == 10

    async def test_stale_values_are_told_with_the_reason(self, manager, clock):
        """Refreshing, an error, a pause after it, a timeout."""
        heard = []
        manager.events.listen(heard.append, StaleServed)
        fails = False

        async def load():
            if fails:
                raise TimeoutError
            return 1

        options = {"ttl": 10, "stale": 1000, "throttle": 5}
        await manager.get_or_load("menu", "a", load, **options)
        clock.advance(11)
        fails = True
        await manager.get_or_load("menu", "a", load, **options)
        await asyncio.sleep(0.01)
        await manager.get_or_load("menu", "a", load, **options)
        clock.advance(6)
        await manager.get_or_load("menu", "a", load, soft_timeout=5, **options)
        assert [one.reason for one in heard] == ["refreshing", "paused", "error"]
        counts = manager.counts("menu")
        assert counts.stale_by_reason() == {"refreshing": 1, "timeout": 0, "error": 1, "paused": 1}
        assert manager.stats()["menu"]["stale_served"] == 3

    async def test_a_stale_value_after_a_timeout(self, manager, clock):
        """A caller that has waited for its `soft_timeout` is told apart."""
        heard = []
        manager.events.listen(heard.append, StaleServed)
        await manager.set("menu", "a", 1, ttl=10, stale=1000)
        clock.advance(11)
        go_on = asyncio.Event()

        async def load():
            await go_on.wait()
            return 2

        assert await manager.get_or_load("menu", "a", load, ttl=10, stale=1000, soft_timeout=0.01) == 1
        assert [one.reason for one in heard] == ["timeout"]
        go_on.set()
        await asyncio.sleep(0.01)

    async def test_what_is_evicted(self):
        """The in-process store tells the type and the bound; a listener may ask the store."""
        async with CacheManager("memory://", l1_entries=2) as manager:
            heard = []

            def listener(one):
                heard.append((one.cache_type, one.reason, sum(n for n, _ in manager.engine_now().port.usage().values())))

            manager.events.listen(listener, Evicted)
            for n in range(3):
                await manager.set("menu", str(n), n)
            assert heard == [("menu", "entries", 1)]
            assert manager.stats()["menu"]["evictions"] == {"entries": 1}

    async def test_faults_of_the_store(self):
        """A store that is not there: each operation that failed is told, with its error."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.25) as manager:
            heard = []
            manager.events.listen(heard.append, Fault)
            assert await manager.get_or_load("menu", "a", lambda: 1) == 1
            assert heard and all(one.cache_type == "menu" for one in heard)
            assert manager.stats()["menu"]["errors_by_type"] == {"BackendError": len(heard)}

    EXPLICIT = {
        "get": lambda m: m.get("menu", "a"),
        "get_many": lambda m: m.get_many("menu", ["a", "b"]),
        "set": lambda m: m.set("menu", "a", 1),
        "add": lambda m: m.add("menu", "a", 1),
        "touch": lambda m: m.touch("menu", "a", 5),
        "delete": lambda m: m.delete("menu", "a"),
        "invalidate_pattern": lambda m: m.invalidate_pattern("menu", "*"),
    }

    @pytest.mark.parametrize("verb", EXPLICIT)
    @pytest.mark.parametrize("strict", [False, True])
    async def test_faults_of_explicit_verbs(self, verb, strict):
        """A verb that the store has failed is told once, and counted once, under `strict`, too."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.25, strict=strict) as manager:
            heard = []
            manager.events.listen(heard.append, Fault)
            with contextlib.suppress(BackendError):
                await self.EXPLICIT[verb](manager)
            assert [(one.cache_type, isinstance(one.error, BackendError)) for one in heard] == [("menu", True)]
            counts = manager.counts("menu")
            assert (counts.errors, counts.by_error) == (1, {type(heard[0].error).__name__: 1})

    async def test_a_listener_that_is_cancelled_does_not_harm_a_verb(self):
        """Nor the fault that it is told of."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.25) as manager:

            def broken(happening):
                raise asyncio.CancelledError

            manager.events.listen(broken)
            assert await manager.get("menu", "a", default=3) == 3
            assert await manager.invalidate_pattern("menu", "*") == 0
            assert await manager.get_or_load("menu", "a", lambda: 1) == 1

    async def test_slow_operations(self, manager, clock):
        """What takes longer than the threshold is kept, at most fifty, and told."""
        heard = []
        manager.events.listen(heard.append, SlowOperation)
        manager.recorder.slow_threshold = 0.5

        async def load(seconds):
            clock.advance(seconds)
            return 1

        for n, seconds in enumerate([0.4, 0.5, 2.0]):
            await manager.get_or_load("menu", str(n), partial(load, seconds))
        assert [(one.operation, round(one.seconds, 3)) for one in heard] == [("load", 0.5), ("load", 2.0)]
        assert manager.recorder.slow_operations == heard
        for n in range(60):
            await manager.get_or_load("menu", f"x{n}", partial(load, 1.0))
        assert len(manager.recorder.slow_operations) == 50

    async def test_keys_are_shown_as_in_logs(self, clock):
        """Arguments are hashed, unless the manager shows them."""
        for shows in (False, True):
            async with CacheManager("memory://", log_keys=shows) as manager:
                heard = []
                manager.events.listen(heard.append)
                await manager.set("menu", "coupon-SUMMER", 1)
                assert ("SUMMER" in heard[0].key) is shows

    async def test_a_listener_that_raises_does_not_harm_a_read(self, manager):
        """The value comes all the same."""

        def broken(happening):
            raise RuntimeError

        manager.events.listen(broken)
        assert await manager.get_or_load("menu", "a", lambda: 1) == 1
        assert await manager.get_or_load("menu", "a", lambda: 2) == 1

    async def test_listeners_stay_when_a_manager_is_configured(self):
        """`configure` comes later in a program than `events.on`, often."""
        manager = CacheManager("memory://")
        heard = []
        manager.events.listen(heard.append, Stored)
        manager.configure(prefix="shop")
        await manager.set("menu", "a", 1)
        assert kinds(heard) == ["Stored"]
        await manager.aclose()

    async def test_over_a_server(self, valkey: Server):
        """The same over Redis; what another process has loaded is told by its own listeners only."""
        async with CacheManager(valkey.url, prefix="a") as here, CacheManager(valkey.url, prefix="a") as there:
            heard, elsewhere = [], []
            here.events.listen(heard.append)
            there.events.listen(elsewhere.append)
            assert await here.get_or_load("menu", "a", lambda: 1) == 1
            assert await there.get_or_load("menu", "a", lambda: 2) == 1
            await here.delete("menu", "a")
            assert kinds(heard) == ["Miss", "Load", "Stored", "Deleted"] and isinstance(heard[-1], Deleted)
            assert kinds(elsewhere) == ["Hit"]
            assert await here.invalidate_menu(1)
            assert isinstance(heard[-1], Invalidated)
