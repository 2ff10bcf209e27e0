"""Warming, over every store: what is planted and loaded, what it gives way to, and what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from aiocache_aura import CacheWarmer, cache_menu, tenant_scope, warm_source
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.planting import Renewal
from aiocache_aura.sources import registered
from aiocache_aura.stores.base import Fill
from tests.contract.conftest import Store

MANY = 600  # more than a batch


@pytest.fixture(autouse=True)
def _no_sources_of_modules() -> Iterator[None]:
    registered.forget()
    yield
    registered.forget()


def figures(report: Any, cache_type: str = "menu") -> tuple[int, int, int, int]:
    one = report[cache_type]
    return one.loaded, one.refreshed, one.skipped, one.failed


async def reads(manager: CacheManager, cache_type: str = "menu") -> tuple[int, int]:
    counts = manager.counts(cache_type)
    return counts.hits, counts.misses


class TestPairs:
    async def test_pairs_are_what_a_set_would_have_stored(self, manager, peer):
        """Values, lives and tags come back as from `set`, in every process, for the tenant of the run and nobody else."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu", tags=["promo"])
        async def items(db, tenant_id):
            yield "plain", {"n": [1, None, "x"]}
            yield "short", (1, 2), {"ttl": 50}
            yield "tagged", b"raw", {"tags": ["promo"]}
            yield "none", None

        report = await warmer.warm_menu_cache(tenant_id=1)
        assert report.ok
        assert figures(report) == (4, 0, 0, 0)
        assert await peer.mget("menu", ["plain", "short", "tagged", "none"], tenant=1, default="-") == [
            {"n": [1, None, "x"]},
            (1, 2),
            b"raw",
            None,
        ]
        assert await peer.get("menu", "plain") is None
        assert 3500 < await peer.ttl("menu", "plain", tenant=1) <= 3600
        assert 40 < await peer.ttl("menu", "short", tenant=1) <= 50
        assert await peer.invalidate("menu", tags=["promo"])
        assert await manager.get("menu", "tagged", tenant=1) is None
        assert await manager.get("menu", "plain", tenant=1) is not None

    async def test_many_are_stored_and_a_second_run_leaves_them(self, manager):
        """More than a batch; what is fresh is skipped, what is gone is stored anew, and no user's read is counted for it."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def items():
            for n in range(MANY):
                yield f"item:{n}", {"n": n}

        assert figures(await warmer.warm_all()) == (MANY, 0, 0, 0)
        assert figures(await warmer.warm_all()) == (0, 0, MANY, 0)
        await manager.delete("menu", "item:3", "item:599")
        assert figures(await warmer.warm_all()) == (2, 0, MANY - 2, 0)
        assert await reads(manager) == (0, 0)
        assert await manager.get("menu", "item:599") == {"n": 599}
        assert manager.counts("menu").sets == MANY + 2

    async def test_what_is_due_is_renewed(self, clocked):
        """By what it has left to live, by its age, or all of it; else what is fresh is left."""
        warmer = CacheWarmer(manager=clocked)
        clock, version = clocked.settings.clock, 1

        @warmer.source("api")  # which lives for 60 s
        async def items():
            yield "a", version

        assert figures(await warmer.warm("api"), "api") == (1, 0, 0, 0)
        clock.advance(30)
        version = 2
        assert figures(await warmer.warm("api", refresh_within=29.9, refresh_older_than=30.1), "api") == (0, 0, 1, 0)
        assert figures(await warmer.warm("api", refresh_within=30), "api") == (0, 1, 0, 0)
        assert (await clocked.get("api", "a"), await clocked.ttl("api", "a")) == (2, 60)
        clock.advance(20)
        assert figures(await warmer.warm("api", refresh_older_than=20), "api") == (0, 1, 0, 0)
        clock.advance(1)
        assert figures(await warmer.warm("api", only_missing=False), "api") == (0, 1, 0, 0)
        assert await clocked.ttl("api", "a") == 60

    async def test_a_set_since_the_source_began_stays(self, manager, peer):
        """Also where everything is renewed: it is younger than what the source has read."""
        warmer = CacheWarmer(manager=manager)
        await manager.set("menu", "a", "old")
        await asyncio.sleep(0.002)  # by the clock

        @warmer.source("menu")
        async def items():
            assert await peer.set("menu", "a", "young")
            yield "a", "from the source"
            yield "b", "from the source"

        assert figures(await warmer.warm("menu", only_missing=False)) == (1, 0, 1, 0)
        assert await manager.mget("menu", ["a", "b"]) == ["young", "from the source"]

    async def test_planting_stores_only_over_what_was_seen(self, manager, peer):
        """Nothing over a value that came since the look; and it takes no permit away: a load that is under way still stores."""
        engine, other = await manager.engine(), await peer.engine()
        address, terms = manager.caches["menu"].place("a")
        tokens = await engine.port.generations(address.scopes, life=60, timeout=10)
        claim = (await other.port.claim([(address.key, address.scopes)], life=60, timeout=10))[0]

        async def plant(raw: bytes, seen: bytes | None) -> bool:
            written, found = await engine.port.plant([(address.key, raw, 60.0, seen)], address.scopes, timeout=10)
            assert found.fingerprint(address.scopes) == tokens.fingerprint(address.scopes)
            return written[0]

        first, second, third = (bytes([n]) * 20 for n in (1, 2, 3))
        assert await plant(first, None)
        assert not await plant(second, None)
        assert not await plant(second, third)
        assert await plant(second, first)
        assert (await engine.port.look([address.key], address.scopes, timeout=10))[0] == [second]
        fills = [Fill(address.key, third, 60.0, claim.permit, address.scopes)]
        assert (await other.port.fill(fills, written=lambda: None, timeout=10))[0].accepted
        there, found = await engine.port.look([address.key, b"nothing"], address.scopes, timeout=10)
        assert there == [third, None]
        assert found.fingerprint(address.scopes) == tokens.fingerprint(address.scopes)
        assert (await engine.port.look([], (), timeout=10))[0] == []
        assert (await engine.port.plant([], (), timeout=10))[0] == []

    @pytest.mark.parametrize("what", ["type", "tenant", "tag"])
    async def test_an_invalidation_while_a_source_runs_begins_it_anew(self, manager, peer, what):
        """Whatever it has read before then is never served; the second reading's values are."""
        warmer, versions, sessions = CacheWarmer(manager=manager), iter((1, 2, 3)), []

        @warmer.source("menu", tags=["promo"])
        async def items(tenant_id):
            version = next(versions)
            sessions.append(version)
            for n in range(MANY):
                if version == 1 and n == MANY // 2:
                    told = {"type": {}, "tenant": {"tenant": 1}, "tag": {"tags": ["promo"]}}[what]
                    assert await peer.invalidate("menu", **told)
                yield f"item:{n}", version, {"tags": ["promo"]}

        report = await warmer.warm_menu_cache(tenant_id=1)
        assert report.ok, report
        assert sessions == [1, 2]
        assert report["menu"].keys == report["menu"].loaded + report["menu"].refreshed == MANY
        values = await manager.mget("menu", [f"item:{n}" for n in range(MANY)], tenant=1)
        assert set(values) == {2}

    async def test_one_that_is_invalidated_again_and_again_is_given_up(self, manager):
        """After the second reading, with an error that says why; nothing that it has read is served, and other types are warmed."""
        warmer, begun = CacheWarmer(manager=manager), []

        @warmer.source("menu")
        async def items():
            begun.append(1)
            for n in range(3):
                yield f"item:{n}", n
            await manager.invalidate("menu")
            yield "last", 1

        @warmer.source("settings")
        async def others():
            yield "a", 1

        report = await warmer.warm_all()
        assert (len(begun), report["menu"].ended, report["settings"].loaded) == (2, "failed", 1)
        assert "Voided" in report["menu"].errors[0]
        assert "invalidated" in str(report)
        assert not report
        assert await manager.mget("menu", ["item:0", "last"]) == [None, None]

    @pytest.mark.parametrize("by", ["scope", "option", "tag"])
    async def test_what_a_source_names_only_with_its_pairs_is_read_again(self, manager, peer, by):
        """A tenant or tag that was not known when it began: an invalidation between the reading and the first naming is not overwritten."""
        warmer, source = CacheWarmer(manager=manager), {"a": "old"}
        readings = []

        @warmer.source("menu")
        async def items():
            readings.append(1)
            value = dict(source)
            if len(readings) == 1:
                source["a"] = "new"
                assert await (peer.invalidate("menu", tags=["promo"]) if by == "tag" else peer.invalidate_menu(5))
            yield "common", 1
            if by == "scope":
                with tenant_scope(5):
                    yield "a", value["a"]
            else:
                yield "a", value["a"], {"tags": ["promo"]} if by == "tag" else {"tenant": 5}

        report = await warmer.warm_menu_cache()
        assert len(readings) == 2
        assert (report.ok, figures(report)) == (True, (2, 0, 0, 0))
        assert await manager.get("menu", "a", tenant=None if by == "tag" else 5) == "new"

    async def test_tags_that_are_named_at_the_source_need_one_reading(self, manager):
        """And so do pairs of the run's own tenant."""
        warmer, readings = CacheWarmer(manager=manager), []

        @warmer.source("menu", tags=["a", "b"])
        async def items(db, tenant_id):
            readings.append(1)
            yield "x", 1, {"tags": ["a", "b"]}
            yield "y", 1

        assert (await warmer.warm_menu_cache(tenant_id=1)).loaded == 2
        assert readings == [1]

    async def test_new_names_in_the_second_reading_fail(self, manager):
        """It is not read for ever: each pair is counted once."""
        warmer, names = CacheWarmer(manager=manager), iter("abc")

        @warmer.source("menu")
        async def items():
            yield "x", 1
            yield "y", 1, {"tags": [next(names)]}

        report = await warmer.warm_menu_cache()
        assert figures(report) == (1, 0, 0, 1)
        assert await manager.get("menu", "y") is None

    async def test_what_cannot_be_stored_stops_nothing(self, manager):
        """It is counted, with its error; a life of 0 stores nothing, and of two values of a key the last counts."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def items():
            yield "a", object()
            yield "b", "x" * 200, {"max_value_bytes": 100}
            yield 5, "a key is text"
            yield "c", 1, {"tll": 5}
            yield "zero", 1, {"ttl": 0}
            yield "twice", 1
            yield "twice", 2
            yield "good", 1

        report = await warmer.warm_menu_cache()
        assert figures(report) == (2, 0, 2, 4)
        assert len(report["menu"].errors) == 4
        assert report["menu"].ended == "done"
        assert not report.ok
        assert await manager.mget("menu", ["twice", "good", "zero"]) == [2, 1, None]

    async def test_a_delete_by_this_process_wins_at_any_moment(self, manager):
        """Between a look and what is written for it; and while that is on its way, which a delete never overtakes."""
        warmer, engine = CacheWarmer(manager=manager), await manager.engine()
        look, plant, deletes = engine.port.look, engine.port.plant, []

        async def looking(keys: Any, *args: Any, **options: Any) -> Any:
            found = await look(keys, *args, **options)
            await manager.delete("menu", "behind the look")
            return found

        def planting(*args: Any, **options: Any) -> Any:
            written = asyncio.ensure_future(plant(*args, **options))
            deletes.append(asyncio.ensure_future(manager.delete("menu", "behind the writing")))
            return written

        engine.port.look, engine.port.plant = looking, planting
        try:

            @warmer.source("menu")
            async def items():
                yield "behind the look", 1
                yield "behind the writing", 1
                yield "good", 1

            assert figures(await warmer.warm_menu_cache()) == (2, 0, 1, 0)
        finally:
            del engine.port.look, engine.port.plant
        assert await asyncio.gather(*deletes) == [1]
        assert await manager.mget("menu", ["behind the look", "behind the writing", "good"]) == [None, None, 1]

    async def test_what_is_there_is_found_where_little_was_there_before(self, manager, peer):
        """A batch after one that was all new is stored without a look, where nothing is: what is there stays, or is renewed if due."""
        warmer, engine, looked = CacheWarmer(manager=manager), await manager.engine(), []
        look = engine.port.look

        async def looking(keys: Any, *args: Any, **options: Any) -> Any:
            looked.extend(keys)
            return await look(keys, *args, **options)

        engine.port.look = looking
        await peer.mset("menu", {"item:20": "fresh", "item:40": "fresh"})
        await peer.set("menu", "item:30", "void", tags=["t"])
        await peer.invalidate("menu", tags=["t"])
        try:

            @warmer.source("menu")
            async def items():
                for n in range(60):
                    yield f"item:{n}", n

            assert figures(await warmer.warm_menu_cache()) == (57, 1, 2, 0)
        finally:
            del engine.port.look
        assert 16 <= len(looked) < 30
        expected = [{20: "fresh", 40: "fresh"}.get(n, n) for n in range(60)]
        assert await manager.mget("menu", [f"item:{n}" for n in range(60)]) == expected

    async def test_large_values_go_in_requests_of_bounded_size(self, manager):
        """Batches shrink with them, and grow again."""
        warmer = CacheWarmer(manager=manager)
        engine = await manager.engine()
        sizes, plant = [], engine.port.plant

        async def watched(items: Any, scopes: Any, *, timeout: float) -> Any:
            sizes.append(sum(len(raw) for _, raw, _, _ in items))
            return await plant(items, scopes, timeout=timeout)

        engine._port.plant = watched
        try:

            @warmer.source("menu")
            async def items():
                for n in range(60):
                    yield f"large:{n}", "x" * 30_000
                for n in range(MANY):
                    yield f"small:{n}", n

            assert figures(await warmer.warm_menu_cache()) == (60 + MANY, 0, 0, 0)
        finally:
            del engine._port.plant
        assert max(sizes) < 64 * 1024 + 31_000
        assert await manager.get("menu", "large:59") == "x" * 30_000

    async def test_a_generator_is_not_run_ahead_of(self, manager):
        """At most a batch of what it gave is waiting: memory is bounded."""
        warmer, stored = CacheWarmer(manager=manager), manager.counts("menu")
        most = 0

        @warmer.source("menu")
        async def items():
            nonlocal most
            for n in range(3000):
                most = max(most, n - stored.sets)
                yield f"item:{n}", n

        assert (await warmer.warm_menu_cache()).loaded == 3000
        assert most <= 256


class TestCalls:
    async def test_calls_are_loaded_once_and_are_users_hits(self, manager, peer):
        """Yielded or awaited: one load each, no hit and no miss of users; a second run loads nothing."""
        warmer, loads = CacheWarmer(manager=manager), []

        @cache_menu(manager=manager, name="calls.menu")
        async def menu(restaurant_id: int) -> list[int]:
            loads.append(restaurant_id)
            return [restaurant_id]

        @warmer.source("menu")
        async def yielded():
            for n in range(20):
                yield menu(n)
                yield menu(n)

        @warmer.source("settings")
        async def awaited():
            assert [await menu(n) for n in range(20, 25)] == [[n] for n in range(20, 25)]

        report = await warmer.warm_all()
        assert (figures(report), figures(report, "settings")) == ((20, 0, 20, 0), (5, 0, 0, 0))
        assert sorted(loads) == list(range(25))
        assert await reads(manager) == (0, 0)
        assert manager.counts("menu").loads == 25
        assert await menu(3) == [3]
        assert await menu(3) == [3]
        assert await reads(manager) == (2, 0)
        assert figures(await warmer.warm_all()) == (0, 0, 40, 0)
        assert len(loads) == 25

    @pytest.mark.parametrize("first", ["user", "warmer"])
    @pytest.mark.parametrize("where", ["here", "elsewhere"])
    async def test_a_load_under_way_is_shared(self, manager, peer, first, where):
        """A user's miss while it is warmed waits for that load, and a warmer for a user's: one load, in one process or two."""
        loads, started, go = [], asyncio.Event(), asyncio.Event()
        theirs = peer if where == "elsewhere" else manager

        def cached(of: CacheManager) -> Any:
            async def load() -> int:
                loads.append(1)
                started.set()
                await go.wait()
                return 7

            return lambda: of.get_or_load("menu", "key", load, load_deadline=None)

        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def one():
            yield cached(manager)()

        begin = {"user": lambda: cached(theirs)(), "warmer": warmer.warm_menu_cache}
        other = begin["warmer" if first == "user" else "user"]
        early = asyncio.create_task(begin[first]())
        await started.wait()
        late = asyncio.create_task(other())
        await asyncio.sleep(0.02)  # it waits, now
        go.set()
        results = {first: await early, "warmer" if first == "user" else "user": await late}
        assert results["user"] == 7
        assert len(loads) == 1
        assert figures(results["warmer"]) == ((0, 0, 1, 0) if first == "user" else (1, 0, 0, 0))

    async def test_what_is_due_is_served_while_it_is_refreshed(self, clocked, store: Store):
        """A warmed key never goes cold: readers are given the old value at once, in every process; then the new one."""
        peer = store.peer_of(clocked)
        version, started, go = 1, asyncio.Event(), asyncio.Event()
        go.set()

        @cache_menu(manager=clocked, ttl=100, name="due", key="due")
        async def value() -> int:
            started.set()
            await go.wait()
            return version

        warmer = CacheWarmer(manager=clocked)

        @warmer.source("menu")
        async def source():
            yield value()

        assert figures(await warmer.warm("menu", refresh_within=50)) == (1, 0, 0, 0)
        clocked.settings.clock.advance(49)
        assert figures(await warmer.warm("menu", refresh_within=50)) == (0, 0, 1, 0)
        clocked.settings.clock.advance(1)
        version = 2
        started.clear()
        go.clear()
        run = asyncio.create_task(warmer.warm("menu", refresh_within=50))
        await started.wait()
        assert (await value(), await peer.get("menu", "due")) == (1, 1)
        go.set()
        assert figures(await run) == (0, 1, 0, 0)
        assert (await value(), await peer.get("menu", "due")) == (2, 2)

    async def test_a_refresh_takes_no_lease_from_another_process(self, remote: Store, clock):
        """While another process refreshes, the warmer waits for what that loads."""
        one, two = remote.open(clock=clock), remote.open(clock=clock)
        loads, started, go = [], asyncio.Event(), asyncio.Event()

        async def load_there() -> str:
            loads.append("there")
            started.set()
            await go.wait()
            return "from there"

        async def load_here() -> str:
            loads.append("here")
            return "from here"

        await one.set("menu", "key", "old", ttl=100)
        clock.advance(90)
        there, here = CacheWarmer(manager=two), CacheWarmer(manager=one)

        @there.source("menu")
        async def a():
            yield two.get_or_load("menu", "key", load_there, ttl=100, load_deadline=None)

        @here.source("menu")
        async def b():
            yield one.get_or_load("menu", "key", load_here, ttl=100)

        first = asyncio.create_task(there.warm("menu", refresh_within=20))
        await started.wait()
        second = asyncio.create_task(here.warm("menu", refresh_within=20))
        await asyncio.sleep(0.05)
        assert loads == ["there"]
        go.set()
        assert (figures(await first), figures(await second)) == ((0, 1, 0, 0), (0, 0, 1, 0))
        assert (loads, await one.get("menu", "key")) == (["there"], "from there")

    async def test_a_user_who_loads_while_the_warmer_waits_for_its_turn(self, manager):
        """What was seen before the turn came is looked at again: no second load."""
        warmer = CacheWarmer(manager=manager, concurrency=1)
        loads, in_turn, go = [], asyncio.Event(), asyncio.Event()

        async def slow() -> int:
            in_turn.set()
            await go.wait()
            return 1

        async def quick() -> int:
            loads.append(1)
            return 2

        @warmer.source("menu")
        async def a():
            await manager.get_or_load("menu", "slow", slow, load_deadline=None)

        @warmer.source("settings")
        async def b():
            await in_turn.wait()
            await manager.get_or_load("settings", "quick", quick)

        run = asyncio.create_task(warmer._warm(["menu", "settings"], None, Renewal(), at_once=2))
        await in_turn.wait()
        await asyncio.sleep(0.02)  # the other one has looked, and waits for its turn
        assert await manager.get_or_load("settings", "quick", quick) == 2
        go.set()
        await run
        assert len(loads) == 1

    async def test_a_batch_is_warmed(self, manager):
        """`get_or_load_many` in a source: one call of the loader with what is missing or due, and nobody's reads are counted."""
        warmer, asked = CacheWarmer(manager=manager), []

        async def load(keys: list[str]) -> dict[str, int]:
            asked.append(sorted(keys))
            return {key: len(key) for key in keys if key != "none"}

        @warmer.source("menu")
        async def source():
            await manager.caches["menu"].get_or_load_many(["a", "bb", "none"], load)

        await manager.set("menu", "a", 5)
        assert figures(await warmer.warm("menu")) == (1, 0, 2, 0)
        assert figures(await warmer.warm("menu", only_missing=False)) == (0, 2, 1, 0)
        assert asked == [["bb", "none"], ["a", "bb", "none"]]
        assert await reads(manager) == (0, 0)
        assert await manager.mget("menu", ["a", "bb", "none"]) == [1, 2, None]

    async def test_a_call_that_fails_stops_no_other(self, manager):
        """It is counted once, with its function; a fallback stands in for the source that awaits it; a fresh value stays."""
        warmer = CacheWarmer(manager=manager)

        @cache_menu(manager=manager, name="failing")
        async def failing(n: int) -> int:
            if n % 2:
                raise LookupError(f"no {n}")
            return n

        @cache_menu(manager=manager, name="falling", fallback=-1)
        async def falling() -> int:
            raise LookupError("nothing")

        @warmer.source("menu")
        async def source():
            for n in range(6):
                yield failing(n)
            assert await falling() == -1
            yield asyncio.gather(failing(7), failing(8), return_exceptions=True)

        report = await warmer.warm_menu_cache()
        assert figures(report) == (4, 0, 0, 5)
        assert "failing" in report["menu"].errors[0]
        assert "LookupError: no 1" in "".join(report["menu"].errors)
        assert report["menu"].ended == "done"

    async def test_a_failed_refresh_leaves_the_old_value(self, manager):
        """A value that is fresh, and due, is what the source gets for it, too."""
        warmer = CacheWarmer(manager=manager)

        async def load() -> int:
            raise OSError("the database is down")

        await manager.set("menu", "a", 1)
        got = []

        @warmer.source("menu")
        async def source():
            got.append(await manager.get_or_load("menu", "a", load))

        assert figures(await warmer.warm("menu", only_missing=False)) == (0, 0, 0, 1)
        assert got == [1]
        assert await manager.get("menu", "a") == 1

    async def test_an_error_that_is_cached_is_warm(self, manager):
        """It is stored like a value, and found like one."""
        warmer, loads = CacheWarmer(manager=manager), []

        @cache_menu(manager=manager, cache_errors=(LookupError,), name="absent")
        async def absent() -> int:
            loads.append(1)
            raise LookupError("gone")

        @warmer.source("menu")
        async def source():
            yield absent()

        assert figures(await warmer.warm_menu_cache()) == (1, 0, 0, 0)
        assert figures(await warmer.warm_menu_cache()) == (0, 0, 1, 0)
        assert len(loads) == 1

    async def test_what_is_loaded_but_cannot_be_stored_is_no_success(self, manager):
        """The report says so; the source has the value."""
        warmer, got = CacheWarmer(manager=manager), []

        @cache_menu(manager=manager, name="unstorable")
        async def value() -> Any:
            return object

        @warmer.source("menu")
        async def source():
            got.append(await value())

        report = await warmer.warm_menu_cache()
        assert (figures(report), got) == ((0, 0, 0, 1), [object])
        assert "SerializationError" in report["menu"].errors[0]

    async def test_loads_call_others_as_anybody_does(self, manager):
        """What a load calls takes no turn, or one turn could wait for itself, and is read and counted as by users."""
        warmer = CacheWarmer(manager=manager, concurrency=1)

        @cache_menu(manager=manager, name="inner")
        async def inner() -> int:
            return 1

        @cache_menu(manager=manager, name="outer")
        async def outer() -> int:
            return await inner() + 1

        @warmer.source("menu")
        async def source():
            yield outer()

        async with asyncio.timeout(10):
            assert figures(await warmer.warm_menu_cache()) == (1, 0, 0, 0)
        assert await reads(manager) == (0, 1)

    async def test_what_a_source_leaves_behind_is_no_warmer_for_ever(self, manager):
        """A task that outlives its run reads as anybody."""
        warmer, tasks, go = CacheWarmer(manager=manager), [], asyncio.Event()

        @cache_menu(manager=manager, name="later")
        async def later() -> int:
            return 1

        async def after() -> int:
            await go.wait()
            return await later()

        @warmer.source("menu")
        async def source():
            tasks.append(asyncio.create_task(after()))
            if False:
                yield

        assert figures(await warmer.warm_menu_cache()) == (0, 0, 0, 0)
        go.set()
        assert await tasks[0] == 1
        assert await reads(manager) == (0, 1)

    async def test_sources_of_modules_and_declared_calls_serve_every_warmer(self, manager):
        """`@warm_source`, and `warm=` of a function of the same manager; its missing session is the warmer's."""
        seen = []

        @warm_source("menu")
        async def common(db, tenant_id):
            yield "common", tenant_id

        @cache_menu(manager=manager, exclude=["db"], name="declared", warm=lambda db, tenant_id: [(tenant_id,), {"restaurant_id": 9}, 8])
        async def declared(restaurant_id: int, db: Any) -> int:
            seen.append((restaurant_id, db))
            return restaurant_id

        report = await CacheWarmer("session", manager=manager).warm_menu_cache(tenant_id=1)
        assert report.ok, report
        assert figures(report) == (4, 0, 0, 0)
        assert seen == [(1, "session"), (9, "session"), (8, "session")]
        with tenant_scope(1):
            assert await declared(8, "mine") == 8
        assert len(seen) == 3
        assert figures(await CacheWarmer(manager=manager).warm_menu_cache(tenant_id=1)) == (0, 0, 4, 0)
