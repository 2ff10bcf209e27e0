"""What is hot: the sketch against exact sums, recipes of calls, and what other processes posted."""

from __future__ import annotations

import asyncio
import math
import random
import sys
import threading
import time
import uuid
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocache_aura import (
    CacheManager,
    CacheWarmer,
    ConfigurationError,
    UnknownCacheTypeError,
    cache_menu,
    current_tenant,
    current_user,
    hot,
    register_type,
    tenant_scope,
    user_scope,
    warm_loader,
)
from aiocache_aura.cached import cached_named
from aiocache_aura.heat import HALF_LIFE, MOST_KEY, MOST_PLACES, MOST_TYPES, PLACES, Heat, HotKey, merged
from aiocache_aura.recipes import Recipe
from tests.clocks import ManualClock


@register_type
@dataclass(frozen=True)
class Viewer:
    name: str


offers = st.lists(st.tuples(st.integers(0, 30), st.floats(0.001, 10)), min_size=1, max_size=300)


def core(function):
    return function.cache_key.__self__._core


def heat_of(taken, places: int = PLACES) -> Heat:
    heat = Heat(ManualClock().monotonic, places=places)
    for key, seconds in taken:
        heat.offer("menu", str(key), seconds, None)
    return heat


@given(offers, st.integers(1, 20))
def test_weights_are_within_their_errors(taken, places) -> None:
    """A key weighs at most what is told and at least that without the error; what weighs more than a place's share of all is kept."""
    exact: Counter[str] = Counter()
    for key, seconds in taken:
        exact[str(key)] += seconds
    kept = {one.key: one for one in heat_of(taken, places).hottest(limit=1000)}
    assert len(kept) <= places
    for key, one in kept.items():
        assert one.seconds - one.error - 1e-6 <= exact[key] <= one.seconds + 1e-6
    share = sum(exact.values()) / places
    assert {key for key, weight in exact.items() if weight > share + 1e-6} <= kept.keys()


def test_the_hottest_of_a_zipf_load_are_found() -> None:
    """Of 20,000 keys asked for by Zipf's law, the twenty hottest are found, the first ones in their order."""
    rng = random.Random(3)
    weights = [1 / (n + 1) for n in range(20_000)]
    found = [one.key for one in heat_of((key, 0.01) for key in rng.choices(range(20_000), weights, k=60_000)).hottest()]
    assert {str(n) for n in range(20)} <= set(found)
    assert found[:3] == ["0", "1", "2"]


def test_heat_fades() -> None:
    """What was hot a half-life ago weighs half; after hundreds of half-lives nothing of it is left, and no number overflows."""
    clock = ManualClock()
    heat = Heat(clock.monotonic)
    heat.offer("menu", "old", 8.0, None)
    clock.advance(HALF_LIFE)
    heat.offer("menu", "new", 5.0, None)
    assert [(one.key, round(one.seconds, 6)) for one in heat.hottest()] == [("new", 5.0), ("old", 4.0)]
    clock.advance(HALF_LIFE * 300)
    heat.offer("menu", "newest", 1.0, None)
    first, *rest = heat.hottest()
    assert (first.key, first.seconds) == ("newest", pytest.approx(1.0))
    assert all(one.seconds < 1e-30 for one in rest)


@pytest.mark.parametrize("days", [7, 8, 400])
def test_heat_after_days_of_rest(days) -> None:
    """A manager that nobody has asked anything for so long goes on as a new one does."""
    clock = ManualClock()
    heat = Heat(clock.monotonic)
    heat.offer("menu", "old", 8.0, None)
    clock.advance(days * 86_400)
    heat.offer("menu", "new", 5.0, None)
    assert [(one.key, one.seconds) for one in heat.hottest(limit=1)] == [("new", pytest.approx(5.0))]


def test_memory_is_bounded() -> None:
    """So many types, so many places for each, and no long keys."""
    heat = Heat(ManualClock().monotonic, places=10)
    for n in range(MOST_TYPES + 5):
        heat.offer(f"type{n}", "k", 1.0, None)
    for n in range(1000):
        heat.offer("type0", str(n), 1.0, None)
    heat.offer("type1", "x" * MOST_KEY, 1.0, None)
    heat.offer("type1", "x" * (MOST_KEY + 1), 1.0, None)
    kept = Counter(one.cache_type for one in heat.hottest(limit=10_000))
    assert len(kept) == MOST_TYPES and kept["type0"] == 10 and kept["type1"] == 2


def test_all_types_together_are_bounded() -> None:
    """What is taken of one type is not there for another, which goes on with the places that it has."""
    heat = Heat(ManualClock().monotonic, places=10, most=12)
    for name in ("one", "two", "three"):
        for n in range(100):
            heat.offer(name, str(n), 1.0 + n, None)
    kept = Counter(one.cache_type for one in heat.hottest(limit=1000))
    assert kept == {"one": 10, "two": 2}
    assert {one.key for one in heat.hottest("two", limit=1)} == {"99"}


def test_a_recipe_is_made_once_for_each_key() -> None:
    """It is asked for until there is one, and not with each offer."""
    heat, asked = Heat(ManualClock().monotonic), []
    for _ in range(5):
        heat.offer("menu", "k", 1.0, lambda: asked.append(1) or b"recipe")
    assert len(asked) == 1 and heat.hottest()[0].recipe == b"recipe"
    heat.offer("menu", "by hand", 1.0, None)
    heat.offer("menu", "by hand", 1.0, lambda: b"later")
    assert [one.recipe for one in heat.hottest() if one.key == "by hand"] == [b"later"]


def test_what_is_hot_for_several_is_added_up() -> None:
    """Seconds and errors of one key are summed; a recipe that one of them has is kept."""
    one, two = HotKey("menu", "a", 2.0, 0.5), HotKey("menu", "a", 3.0, 0.25, b"r")
    assert merged([one, HotKey("api", "a", 4.0), two]) == [HotKey("menu", "a", 5.0, 0.75, b"r"), HotKey("api", "a", 4.0)]


def test_threads_that_offer_at_once() -> None:
    """Three threads offer more keys than there are places: no offer raises, then or later, and no place is too many."""
    heat, errors = Heat(time.monotonic, places=20), []

    def offer(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(20_000):
                heat.offer("menu", str(rng.randrange(200)), 0.01, None)
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=offer, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for n in range(100):
        heat.offer("menu", f"later{n}", 0.01, None)
    assert errors == [] and len(heat.hottest(limit=1000)) == 20


class TestRecipes:
    @pytest.mark.parametrize(
        "value",
        [1, True, 1.5, "x", None, b"\x00", Decimal("1.50"), uuid.UUID(int=7), datetime(2026, 11, 25, tzinfo=UTC), (1, True), [1], {"a": 1}],
        ids=repr,
    )
    def test_arguments_come_back_as_they_were(self, value):
        """The same values of the same types."""
        recipe = Recipe("f", {"x": value}, "7", None)
        found = Recipe.decode(recipe.encode())
        assert found == recipe and type(found.arguments["x"]) is type(value)

    def test_what_cannot_come_back_has_no_recipe(self):
        """An object of no known kind, and arguments beyond a bound."""
        assert Recipe("f", {"x": object()}, None, None).encode() is None
        assert Recipe("f", {"x": "y" * 2000}, None, None).encode() is None

    @given(st.binary(max_size=60))
    def test_garbage_is_none(self, raw):
        """Whatever stands in a store is a recipe or None, never an error."""
        found = Recipe.decode(raw)
        assert found is None or isinstance(found, Recipe)

    async def test_which_calls_have_one(self):
        """Functions whose arguments are all in the key; not methods, not secrets, not what needs its caller's session."""
        async with CacheManager("memory://") as manager:

            @cache_menu(manager=manager)
            async def plain(a, b=2): ...

            @cache_menu(manager=manager, exclude=["db"])
            async def personal(a, db): ...

            @cache_menu(manager=manager, secret=["token"])
            async def hidden(a, token): ...

            @cache_menu(manager=manager, provide={"db": lambda: 1})
            async def provided(a, db): ...

            class Shop:
                @cache_menu(manager=manager)
                async def method(self, a): ...

            recall = {function.__name__: core(function).current_state().terms.recall for function in (plain, personal, hidden, provided)}
            assert recall["personal"] is None and recall["hidden"] is None and Shop().method._core.current_state().terms.recall is None
            with tenant_scope(7), user_scope(5):
                found = Recipe.decode(recall["plain"]((1,), {}))
            assert found == Recipe(core(plain).name, {"a": 1, "b": 2}, "7", "5")
            assert Recipe.decode(recall["provided"]((1,), {})).arguments == {"a": 1}
            assert cached_named(core(plain).name, manager) is core(plain)
            async with CacheManager("memory://") as other:
                assert cached_named(core(plain).name, other) is None

    async def test_objects_of_the_caller_are_in_none(self):
        """A call that was given one of the manager's `exclude_types` has no recipe, also where the object could be written."""
        async with CacheManager("memory://", exclude_types=(Viewer,)) as manager:

            @cache_menu(manager=manager)
            async def dish(n: int, viewer: Any) -> int:
                await asyncio.sleep(0.001)
                return n

            for _ in range(3):
                await dish(1, Viewer("a password"))
            assert [one.recipe for one in manager.recorder.heat.hottest()] == [None]

    async def test_what_is_not_the_recipes_to_say(self):
        """A forged one gives no function what is to be provided, or what belongs to its caller, in any way."""
        given = []
        async with CacheManager("memory://") as manager:

            @cache_menu(manager=manager, provide={"db": lambda: "ours"})
            async def provided(n, db):
                given.append(db)

            @cache_menu(manager=manager, provide={"db": lambda: "ours"})
            async def more(n, db, **more):
                given.append(db)

            @cache_menu(manager=manager, exclude=["viewer"])
            async def personal(n, viewer):
                given.append(viewer)

            @cache_menu(manager=manager, secret=["pin"])
            async def hidden(n, pin):
                given.append(pin)

            forged = [
                Recipe(core(provided).name, {"n": 1, "db": "forged"}, None, None),
                Recipe(core(more).name, {"n": 1, "more": {"db": "forged"}}, None, None),
                Recipe(core(personal).name, {"n": 1, "viewer": "forged"}, None, None),
                Recipe(core(hidden).name, {"n": 1, "pin": "forged"}, None, None),
            ]
            keys = [HotKey("menu", f"k{n}", 1.0, 0.0, recipe.encode()) for n, recipe in enumerate(forged)]
            await CacheWarmer(manager=manager).warm_hot(keys=keys)
            assert given == []
            await CacheWarmer(manager=manager).warm_hot(
                keys=[HotKey("menu", "k", 1.0, 0.0, Recipe(core(provided).name, {"n": 1}, None, None).encode())]
            )
            assert given == ["ours"]


class TestBoards:
    def test_what_was_encoded_comes_back(self):
        """Keys, weights and recipes; of too many the hottest."""
        rng = random.Random(1)
        keys = [HotKey("menu", f"k{n}", 1000.0 - n, 0.5, rng.randbytes(300) if n % 2 else None) for n in range(900)]
        raw = hot.encode(keys)
        found = hot.decode(raw)
        assert len(raw) <= hot.MOST_BYTES and found == keys[: len(found)] and 250 < len(found) < 900
        assert hot.decode(hot.encode(keys[:100])) == keys[:100] and hot.decode(hot.encode([])) == []

    def test_a_note_that_would_fill_the_memory(self):
        """It is unpacked up to a bound."""
        line = b'["menu","k",1,0,null]\n'
        found = hot.decode(zlib.compress(line * 1_000_000))
        assert len(found) <= hot.MOST_UNPACKED // len(line) + 1

    def test_no_more_of_a_note_than_a_process_tells(self):
        """Who writes a note of its own has no more keys in it, nor longer ones."""
        line = b'["menu","k",1,0,null]'
        assert len(hot.decode(zlib.compress(b"\n".join([line] * 100_000)))) == hot.MOST_KEYS
        assert hot.decode(zlib.compress(line.replace(b"k", b"k" * (MOST_KEY + 1)))) == []

    async def test_a_note_is_made_beside_the_loop(self, monkeypatch):
        """Who posts what is hot does not hold up the others meanwhile."""
        go, made = threading.Event(), []

        def encode(keys):
            made.append(go.wait(10))
            return b""

        monkeypatch.setattr(hot, "encode", encode)
        async with CacheManager("memory://") as manager:
            manager.recorder.heat.offer("menu", "k", 1.0, None)
            asyncio.get_running_loop().call_soon(go.set)
            await hot.publish(manager, "ours")
        assert made == [True]

    async def test_what_the_fleet_tells_is_bounded(self):
        """Of many notes of distinct keys the hottest are kept, and others have their turn while they are read."""
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with CacheManager("memory://") as manager:
            notes = (await manager.engine()).port.notes
            for n in range(20):
                keys = [HotKey("menu", f"{n}-{each}", 1.0 + n) for each in range(hot.MOST_KEYS)]
                await notes.post(hot.BOARD, str(n), hot.encode(keys), life=60, timeout=1)
            task = asyncio.create_task(others())
            found = await hot.of_fleet(manager, "ours")
            task.cancel()
        assert len(found) == MOST_PLACES and (found[0].seconds, found[-1].seconds) == (20.0, 13.0) and turns >= 20

    @pytest.mark.parametrize("weight", [b"1.7e308", b"1e12"])
    async def test_weights_that_cannot_be(self, tmp_path, weight):
        """Notes whose sum is beyond every number, or more than one may say, do not spoil a file, nor a report."""
        async with CacheManager("memory://") as manager:
            notes = (await manager.engine()).port.notes
            for n in range(2):
                await notes.post(hot.BOARD, str(n), zlib.compress(b'["menu","k",%b,0,null]' % weight), life=60, timeout=1)
            assert all(one.seconds < math.inf for one in await hot.of_fleet(manager, "ours"))
            warmer = CacheWarmer(manager=manager)
            await warmer.save_hot(tmp_path / "hot")
            await warmer.restore_hot(tmp_path / "hot")

    @given(st.binary(max_size=200))
    def test_garbage_is_left_out(self, raw):
        """Whoever wrote it."""
        assert all(isinstance(one, HotKey) for one in hot.decode(raw) + hot.decode(zlib.compress(raw)))

    @pytest.mark.parametrize(
        "line",
        [
            b"{}",
            b"null",
            b'["menu","k",1]',
            b'["menu","k",-1,0,null]',
            b'["menu","k",1,2,null]',
            b'["menu","k",1,0,"\\u1234"]',
            b'[1,"k",1,0,null]',
        ],
        ids=repr,
    )
    def test_a_line_that_is_none(self, line):
        """Of another shape, with a weight that cannot be, or a recipe that is no bytes."""
        assert hot.decode(zlib.compress(line)) == []


class TestWarmHot:
    async def test_an_emptied_server_is_warmed_the_hottest_first(self, valkey):
        """The calls that saved the most are made again, for their tenants, the dearest first; what is there is skipped."""
        loads = []
        async with CacheManager(valkey.url, prefix="hot") as manager:

            @cache_menu(manager=manager)
            async def dish(n: int) -> int:
                loads.append(n)
                return n

            with tenant_scope(7):
                for n in range(5):
                    for _ in range(4 * (n + 1)):
                        await dish(n)
            hottest = [one.key for one in manager.recorder.heat.hottest()]
            with valkey.client() as client:
                client.flushall()
            loads.clear()
            warmer = CacheWarmer(manager=manager, concurrency=1)
            report = await warmer.warm_hot(limit=3)
            assert (report["menu"].loaded, len(loads)) == (3, 3)
            with tenant_scope(7):
                assert [dish.cache_key(n) for n in loads] == hottest[:3]
            report = await warmer.warm_hot()
            assert (report["menu"].loaded, report["menu"].skipped) == (2, 3)

    async def test_what_was_loaded_once_is_warm(self):
        """A load for a user counts as a hit does, with the recipe of its call; a refresh and a warmer's load do not."""
        async with CacheManager("memory://") as manager:

            @cache_menu(manager=manager)
            async def dish(n: int) -> int:
                await asyncio.sleep(0.001)
                return n

            warmer = CacheWarmer(manager=manager)

            @warmer.source("menu")
            async def source():
                yield dish(2)

            await dish(1)
            await manager.get_or_load("menu", "k", lambda: time.sleep(0.001))
            await manager.get_or_load("menu", "k", lambda: time.sleep(0.001) or "v")
            await warmer.warm_menu_cache()
            known = {one.key: one for one in manager.recorder.heat.hottest()}
            assert set(known) == {dish.cache_key(1), "aura:menu:=k"}
            assert Recipe.decode(known[dish.cache_key(1)].recipe).arguments == {"n": 1} and known["aura:menu:=k"].recipe is None
            before = known[dish.cache_key(1)].seconds
            await dish.using(refresh=True)(1)
            assert {one.key: one.seconds for one in manager.recorder.heat.hottest()}[dish.cache_key(1)] <= before

    async def test_a_function_that_changes_its_arguments(self):
        """The recipe is of the call as it was made."""
        async with CacheManager("memory://") as manager:

            @cache_menu(manager=manager)
            async def dishes(wanted: list) -> int:
                await asyncio.sleep(0.001)
                wanted.clear()
                return 1

            await dishes([1, 2])
            (known,) = manager.recorder.heat.hottest()
            assert Recipe.decode(known.recipe).arguments == {"wanted": [1, 2]}
            assert known.key == dishes.cache_key([1, 2])

    async def test_another_process_warms_what_was_published(self, valkey):
        """A new process learns it from the store."""
        loads = []
        async with CacheManager(valkey.url, prefix="hot") as old, CacheManager(valkey.url, prefix="hot") as new:
            for manager in (old, new):

                @cache_menu(manager=manager, name="dish")
                async def dish(n: int) -> int:
                    loads.append(n)
                    return n

                if manager is old:
                    first = dish
            for _ in range(3):
                await first(1)
            await hot.publish(old, "old")
            await old.invalidate("menu")
            assert (await CacheWarmer(manager=new).warm_hot())["menu"].loaded == 1
            assert loads == [1, 1]

    async def test_a_file_of_what_is_hot(self, tmp_path):
        """It is its owner's only, holds no values, and warms a manager that knows nothing."""
        path = tmp_path / "hot.jsonl"
        async with CacheManager("memory://") as manager:

            @cache_menu(manager=manager)
            async def dish(n: int) -> str:
                return "a value for the eyes of the caller"

            for _ in range(3):
                await dish(1)
            warmer = CacheWarmer(manager=manager)
            assert await warmer.save_hot(path) == 1
            assert path.stat().st_mode & 0o777 == 0o600 and "eyes" not in path.read_text()
            await manager.invalidate("menu")
            assert (await warmer.restore_hot(path))["menu"].loaded == 1
            for content in (b"", b"garbage", path.read_bytes() + b"[1]\n"):
                path.write_bytes(content)
                with pytest.raises(ConfigurationError, match="hot keys"):
                    await warmer.restore_hot(path)
            with pytest.raises(FileNotFoundError):
                await warmer.restore_hot(tmp_path / "none")

    @pytest.mark.parametrize("limit", [0, -1, True, "3", math.inf])
    async def test_a_limit_that_cannot_be(self, limit):
        """It is a number of keys."""
        async with CacheManager("memory://") as manager:
            with pytest.raises(ConfigurationError, match="limit"):
                await CacheWarmer(manager=manager).warm_hot(limit=limit)

    @pytest.mark.parametrize("concurrency", [0, -1, True, "3", 1.5])
    async def test_a_concurrency_that_cannot_be(self, concurrency):
        """It is a number of loads; none would never end."""
        async with CacheManager("memory://") as manager:
            with pytest.raises(ConfigurationError, match="concurrency"):
                await asyncio.wait_for(CacheWarmer(manager=manager).warm_hot(keys=[HotKey("menu", "k", 1.0)], concurrency=concurrency), 10)

    async def test_an_unknown_type(self):
        """A misspelt one is said, not found to be cold."""
        async with CacheManager("memory://") as manager:
            with pytest.raises(UnknownCacheTypeError, match="menu"):
                await CacheWarmer(manager=manager).warm_hot(cache_type="mneu")

    async def test_others_have_their_turn(self):
        """Also while no key can be loaded here."""
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        keys = [HotKey("menu", f"aura:menu:=item:{n}", 1.0) for n in range(MOST_PLACES)]
        async with CacheManager("memory://") as manager:
            task = asyncio.create_task(others())
            await CacheWarmer(manager=manager).warm_hot(limit=MOST_PLACES, keys=keys)
            task.cancel()
        assert turns > 10


class TestLoaders:
    @pytest.fixture
    async def manager(self, valkey):
        async with CacheManager(valkey.url, prefix="hot~{1}", budget=10) as manager:
            yield manager

    async def make_hot(self, manager, *keys, **options):
        async def load():
            await asyncio.sleep(0.001)
            return "first"

        for key in keys:
            for _ in range(5):
                await manager.get_or_load("menu", key, load, **options)

    async def test_keys_that_the_user_spelled(self, manager):
        """They are loaded for their tenant and user whatever scope the warmer is in, by the loader whose pattern matches, declared last."""
        seen = []

        @warm_loader("menu", "item:*")
        async def item(key):
            seen.append((key, current_tenant(), current_user()))
            return "again"

        @warm_loader("menu", "item:plain*")
        def plain(key):
            seen.append((key, current_tenant(), current_user()))
            return "plainly"

        await self.make_hot(manager, "item:a~b {c}:d%20", "item:plain")
        await self.make_hot(manager, "item:ours", "other", tenant="a+b:c", user=5, user_aware=True)
        await manager.invalidate("menu")
        with tenant_scope(99):
            report = await CacheWarmer(manager=manager).warm_hot()
        assert (report["menu"].loaded, report["menu"].failed) == (3, 0)
        assert sorted(seen) == [("item:a~b {c}:d%20", None, None), ("item:ours", "a+b:c", "5"), ("item:plain", None, None)]
        assert await manager.get("menu", "item:a~b {c}:d%20") == "again" and await manager.get("menu", "item:plain") == "plainly"
        assert await manager.get("menu", "item:ours", tenant="a+b:c") is None
        assert await manager.get_or_load("menu", "item:ours", "later", tenant="a+b:c", user=5, user_aware=True) == "again"

    async def test_what_is_one_users_stays_so(self, manager):
        """Whatever the policy and the loader's options say: the key tells whose it is."""

        @warm_loader("menu", user_aware=False, tenant_aware=False)
        async def any_key(key):
            return f"for {current_user()}"

        await self.make_hot(manager, "k", user=5, tenant=1, user_aware=True)
        await manager.invalidate("menu")
        assert (await CacheWarmer(manager=manager).warm_hot()).loaded == 1
        assert await manager.get_or_load("menu", "k", "mine", user=5, tenant=1, user_aware=True) == "for 5"
        for options in ({"tenant": 1}, {}, {"user": 6, "tenant": 1, "user_aware": True}, {"user": 5, "tenant": 2, "user_aware": True}):
            assert await manager.get_or_load("menu", "k", "mine", **options) == "mine"

    @pytest.mark.parametrize(
        "key",
        [
            "test:users:=k",  # another application's, which reads like a tenant, a user and a key
            "hot%7E%7B1%7D:other:t7:=k",
            "hot%7E%7B1%7D:menu:t:=k",
            "hot%7E%7B1%7D:menu:u:=k",
            "hot%7E%7B1%7D:menu:u5:t7:=k",
            "hot%7E%7B1%7D:menu:t7:t8:=k",
            "hot%7E%7B1%7D:menu:t7+8:=k",
            "hot%7E%7B1%7D:menu:t%37:=k",
            "hot%7E%7B1%7D:menu:=%6B",
            "hot%7E%7B1%7D:menu:=" + "k" * 500,
            "=k",
        ],
    )
    async def test_a_key_that_is_none_of_ours(self, manager, key):
        """It is not loaded as the key of somebody whom it does not name."""
        seen = []

        @warm_loader("menu")
        async def any_key(key):
            seen.append((key, current_tenant(), current_user()))

        await CacheWarmer(manager=manager).warm_hot(keys=[HotKey("menu", key, 1.0)])
        assert seen == []

    async def test_what_was_made_for_no_tenant_goes_with_each(self, manager):
        """An entry of no known tenant may hold the data of any, also if it was warmed."""

        @warm_loader("menu")
        async def any_key(key):
            return "again"

        await self.make_hot(manager, "k")
        await manager.invalidate("menu")
        assert (await CacheWarmer(manager=manager).warm_hot()).loaded == 1
        assert await manager.get("menu", "k") == "again"
        await manager.invalidate_menu(7)
        assert await manager.get("menu", "k") is None

    @pytest.mark.parametrize("aware", [True, False, "known"])
    async def test_what_was_left_out_by_the_caller(self, manager, aware):
        """A key without tenant and user is loaded for none, whatever is told."""
        manager.override("menu", tenant_aware=aware, user_aware=aware)

        @warm_loader("menu")
        async def any_key(key):
            return f"for {current_tenant()} and {current_user()}"

        await self.make_hot(manager, "k", tenant_aware=False, user_aware=False)
        await manager.invalidate("menu")
        with tenant_scope(7), user_scope(5):
            assert (await CacheWarmer(manager=manager).warm_hot()).loaded == 1
        assert await manager.get_or_load("menu", "k", "later", tenant_aware=False, user_aware=False) == "for None and None"

    async def test_its_options_are_those_of_the_entries(self, manager):
        """Tags, told by a function of the key, void what was warmed; the life is the one that was said."""

        @warm_loader("menu", tags=lambda key: [key.partition(":")[2]], ttl=50)
        async def any_key(key):
            return key.upper()

        await self.make_hot(manager, "item:7")
        await manager.invalidate("menu")
        assert (await CacheWarmer(manager=manager).warm_hot()).loaded == 1
        assert 40 < await manager.ttl("menu", "item:7") <= 50
        await manager.invalidate_tags("7")
        assert await manager.get("menu", "item:7") is None

    async def test_of_one_warmer(self, manager):
        """It is asked before those of modules, and serves no other warmer."""

        @warm_loader("menu")
        async def everywhere(key):
            return "module"

        await self.make_hot(manager, "k")
        ours, other = CacheWarmer(manager=manager), CacheWarmer(manager=manager)

        @ours.loader("menu", "k")
        async def here(key):
            return "ours"

        for warmer, expected in ((ours, "ours"), (other, "module")):
            await manager.invalidate("menu")
            await warmer.warm_hot()
            assert await manager.get("menu", "k") == expected

    async def test_one_that_raises_is_counted(self, manager):
        """The other keys are warmed, and the report has its error."""

        @warm_loader("menu")
        async def any_key(key):
            if key == "bad":
                raise RuntimeError("no such item")
            return key

        await self.make_hot(manager, "bad", "good")
        await manager.invalidate("menu")
        report = await CacheWarmer(manager=manager).warm_hot()
        assert (report["menu"].loaded, report["menu"].failed) == (1, 1) and "no such item" in report["menu"].errors[0]

    async def test_a_key_of_which_only_the_hash_is_left(self, manager):
        """It cannot be loaded again, and is not loaded as something else."""
        asked = []

        @warm_loader("menu")
        async def any_key(key):
            asked.append(key)

        await self.make_hot(manager, "x" * 500)
        await manager.invalidate("menu")
        report = await CacheWarmer(manager=manager).warm_hot()
        assert (report.loaded, report.failed, asked) == (0, 0, [])

    @pytest.mark.parametrize(
        ("arguments", "options", "match"),
        [
            (("no such name!",), {}, "cache type"),
            (("menu", 5), {}, "pattern"),
            (("menu",), {"tags": "letters"}, "tags"),
            (("menu",), {"tll": 5}, "tll"),
            (("menu",), {"ttl": -5}, "ttl"),
        ],
    )
    def test_what_cannot_be(self, arguments, options, match):
        """It is said where it is declared."""
        with pytest.raises((ConfigurationError, TypeError, ValueError), match=match):
            warm_loader(*arguments, **options)

    @pytest.mark.parametrize("function", [5, lambda: 1, lambda key, db: 1])
    def test_what_is_no_loader(self, function):
        """It is called with the key."""
        with pytest.raises((ConfigurationError, TypeError), match="loader"):
            warm_loader("menu")(function)

    @pytest.mark.parametrize("past", ["disabled", "bypass"])
    async def test_past_the_cache_nothing_is_warmed(self, manager, past):
        """Within `disabled()` and `bypass()` nothing is loaded that could not be stored, and nothing is said to be."""
        loads = []

        @warm_loader("menu")
        async def any_key(key):
            loads.append(key)

        await self.make_hot(manager, "k")
        await manager.invalidate("menu")
        with getattr(manager, past)():
            report = await CacheWarmer(manager=manager).warm_hot()
        assert (report["menu"].ended, report.loaded, loads) == ("skipped", 0, [])

    async def test_a_recipe_is_not_lost_for_the_callers_scope(self, manager):
        """A call that was made for no tenant is made again for none, in whatever scope the warmer is."""

        loads = []

        @cache_menu(manager=manager)
        async def dish(n: int) -> int:
            loads.append(current_tenant())
            await asyncio.sleep(0.001)
            return n

        for _ in range(5):
            await dish(1)
        await manager.invalidate("menu")
        with tenant_scope(7):
            await CacheWarmer(manager=manager).warm_hot()
        await dish(1)
        assert loads == [None, None]
