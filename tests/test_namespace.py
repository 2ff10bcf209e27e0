"""The key verbs of a namespace, and whose entries they touch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from uuid import UUID

import fakeredis
import pytest

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.context import tenant_scope, user_scope
from aiocache_aura.errors import ConfigurationError, KeyPartError, MissingTenantError, SerializationError, ValueTooLargeError
from aiocache_aura.policy import CachePolicy
from aiocache_aura.types import ALL


@dataclass
class Dish:
    name: str


@pytest.fixture(params=["memory", "valkey", "fakeredis"])
async def manager(request):
    """The same behaviour, whatever is behind it."""
    if request.param == "memory":
        made = CacheManager("memory://", prefix="shop")
    elif request.param == "valkey":
        made = CacheManager(request.getfixturevalue("valkey").url, prefix="shop")
    else:
        made = CacheManager(client=fakeredis.FakeAsyncRedis(), prefix="shop")
    async with made:
        yield made
    if made.settings.client is not None:
        await made.settings.client.aclose()


@pytest.fixture
def menu(manager):
    return manager.caches["menu"]


class TestReading:
    @pytest.mark.parametrize("value", [0, "", False, [], {}, None, 0.0, "x", {"a": [1, None]}])
    async def test_falsy_values_are_values(self, menu, value):
        assert await menu.set("a", value) is True
        got = await menu.get("a", default="missing")
        assert got == value
        assert type(got) is type(value)

    async def test_none_is_told_from_a_miss(self, menu):
        await menu.set("a", None)
        assert await menu.mget(["a", "b"], default="missing") == [None, "missing"]
        assert await menu.exists("a")

    async def test_many(self, menu):
        assert await menu.mset({"item1": {"name": "Pizza"}, "item3": 3}, ttl=3600) is True
        assert await menu.mget(["item1", "item2", "item1"]) == [{"name": "Pizza"}, None, {"name": "Pizza"}]
        assert await menu.get_many(["item1", "item2"]) == {"item1": {"name": "Pizza"}}
        assert await menu.mget([]) == []
        assert await menu.mset({}) is True

    async def test_own_classes_need_as_type(self, menu):
        with pytest.raises(SerializationError):
            await menu.set("a", Dish("Pizza"))
        assert await menu.set("a", Dish("Pizza"), as_type=Dish)
        assert await menu.get("a", as_type=Dish) == Dish("Pizza")
        assert await menu.mget(["a"], as_type=Dish) == [Dish("Pizza")]
        assert await menu.get_or_load("b", lambda: Dish("Pasta"), as_type=Dish) == Dish("Pasta")
        assert await menu.get("b", as_type=Dish) == Dish("Pasta")

    @pytest.mark.parametrize("key", [5, None, b"a", ("a",)])
    async def test_keys_are_text(self, menu, key):
        for use in (menu.get(key), menu.set(key, 1), menu.delete(key), menu.get_or_load(key, 1), menu.mget([key])):
            with pytest.raises(KeyPartError):
                await use

    async def test_a_text_is_no_list_of_keys(self, menu):
        for use in (menu.mget("abc"), menu.get_many("abc"), menu.get_or_load_many("abc", dict), menu.set("a", 1, tags="abc")):
            with pytest.raises(TypeError, match="not one text"):
                await use


class TestWriting:
    async def test_add_only_if_absent(self, menu):
        assert await menu.add("a", 1) is True
        assert await menu.add("a", 2) is False
        assert await menu.get("a") == 1
        await menu.invalidate()
        assert await menu.add("a", 3) is True

    async def test_a_ttl_of_0_removes_what_was_there(self, menu):
        await menu.set("a", 1)
        assert await menu.set("a", 2, ttl=0) is True
        assert await menu.get("a") is None

    @pytest.mark.parametrize("ttl", [-1, True, "5 minutes", float("inf"), "x"])
    async def test_a_ttl_that_is_none(self, menu, ttl):
        with pytest.raises(ValueError, match="TTL"):
            await menu.set("a", 1, ttl=ttl)
        with pytest.raises(ValueError, match="TTL"):
            await menu.touch("a", ttl)

    async def test_true_is_not_taken_for_the_1_that_was_given_before(self, menu):
        await menu.set("a", 1, ttl=1)
        with pytest.raises(ConfigurationError):
            await menu.set("a", 1, ttl=True)

    async def test_touch(self, menu):
        assert await menu.touch("a") is False
        await menu.set("a", 1, ttl=5)
        assert await menu.touch("a", "1h") is True
        assert 3590 < await menu.ttl("a") <= 3600
        assert await menu.touch("a", 0) is True
        assert await menu.exists("a") is False

    async def test_delete_counts_what_was_stored(self, menu):
        await menu.mset({"a": 1, "b": 2})
        assert await menu.delete("a", "b", "c") == 2
        assert await menu.delete() == 0

    async def test_a_value_above_the_limit(self, menu):
        with pytest.raises(ValueTooLargeError):
            await menu.set("a", "x" * 100, max_value_bytes=50)

    async def test_an_unknown_option_names_those_there_are(self, menu):
        with pytest.raises(TypeError, match="tll"):
            await menu.set("a", 1, tll=5)


class TestLoading:
    async def test_async_plain_and_a_value(self, menu):
        async def load():
            return 1

        assert await menu.get_or_load("a", load) == 1
        assert await menu.get_or_load("b", lambda: 2) == 2
        assert await menu.get_or_load("c", 3) == 3
        assert await menu.get_or_load("d", lambda: load()) == 1
        assert await menu.mget(["a", "b", "c", "d"]) == [1, 2, 3, 1]

    async def test_a_coroutine_in_place_of_the_loader_is_refused(self, menu):
        async def load():
            return 1

        with pytest.raises(TypeError, match="pass `load`"):
            await menu.get_or_load("a", load())

    async def test_one_load_for_all_who_wait(self, menu):
        loads = 0

        async def load():
            nonlocal loads
            loads += 1
            await asyncio.sleep(0)
            return "x"

        assert await asyncio.gather(*(menu.get_or_load("a", load) for _ in range(50))) == ["x"] * 50
        assert loads == 1
        assert menu.stats()["loads"] == 1

    async def test_many_with_one_call_for_those_that_are_missing(self, menu):
        asked = []

        async def load(keys):
            asked.append(keys)
            return {"b": 2, "stranger": 9}

        await menu.set("a", 1)
        assert await menu.get_or_load_many(["a", "b", "c", "b"], load, tags=iter(["t"])) == {"a": 1, "b": 2}
        assert asked == [["b", "c"]]
        await menu.invalidate(tags=["t"])
        assert await menu.get("b") is None
        assert await menu.get_or_load_many([], load) == {}

    async def test_a_batch_loader_returns_a_mapping(self, menu):
        with pytest.raises(TypeError, match="mapping"):
            await menu.get_or_load_many(["a"], lambda keys: [1])

    async def test_an_error_is_raised_and_not_stored(self, menu):
        def fail():
            raise LookupError("no such dish")

        with pytest.raises(LookupError, match="no such dish"):
            await menu.get_or_load("a", fail)
        assert await menu.get_or_load("a", 1) == 1


class TestWhose:
    async def test_the_scope_of_the_task(self, menu):
        with tenant_scope(1):
            await menu.set("a", "one")
        with tenant_scope("2"):
            assert await menu.get("a") is None
            assert await menu.get("a", tenant=1) == "one"
        assert await menu.get("a") is None
        assert await menu.get("a", tenant="1") == "one"

    async def test_a_tenant_that_is_given_overrides_the_scope(self, menu):
        """Not both, as of a function's argument: the entry is the other tenant's alone."""
        with tenant_scope(1):
            await menu.set("a", "two", tenant=2)
            await menu.invalidate(tenant=1)
        assert await menu.get("a", tenant=2) == "two"

    async def test_a_user_in_scope_does_not_split_menus_but_permissions(self, manager, menu):
        with user_scope(5):
            await menu.set("a", 1)
            await manager.set("permissions", "a", 1)
        assert await menu.get("a") == 1
        assert await manager.get("permissions", "a") is None
        assert await manager.get("permissions", "a", user=5) == 1

    async def test_a_user_that_is_given_counts_in_any_type(self, menu):
        await menu.set("a", 1, user=5)
        assert await menu.get("a") is None
        assert await menu.get("a", user=UUID(int=5)) is None
        assert await menu.get("a", user=5) == 1

    async def test_aware_by_policy(self, manager):
        cache = manager.register("strictly", CachePolicy(tenant_aware=True))
        with pytest.raises(MissingTenantError, match="strictly"):
            await cache.get("a")
        shared = manager.register("shared", CachePolicy(tenant_aware=False))
        with tenant_scope(1):
            await shared.set("a", 1)
            await manager.invalidate_tenant(1)
        assert await shared.get("a") == 1

    @pytest.mark.parametrize("wrong", ["", True, 1.5, ALL, b"1"])
    async def test_what_is_no_id(self, menu, wrong):
        with pytest.raises(TypeError):
            await menu.get("a", tenant=wrong)
        with pytest.raises(TypeError):
            await menu.set("a", 1, user=wrong)


class TestInvalidating:
    async def test_it_clears_what_it_is_told_not_the_scope(self, menu):
        await menu.set("a", 1, tenant=2)
        with tenant_scope(1):
            assert await menu.invalidate() is True
        assert await menu.get("a", tenant=2) is None

    async def test_conditions_narrow(self, menu):
        async def left():
            return [await menu.get(k, tenant=t) for t in (1, 2) for k in "ab"]

        async def fill():
            for tenant in (1, 2):
                await menu.set("a", 1, tags=["x"], tenant=tenant)
                await menu.set("b", 1, tenant=tenant)

        await fill()
        await menu.invalidate(tenant=1, tags=["x"])
        assert await left() == [None, 1, 1, 1]
        await fill()
        await menu.invalidate(tags=["x", "y"])
        assert await left() == [None, 1, None, 1]
        await fill()
        await menu.invalidate(tenant=1)
        assert await left() == [None, None, 1, 1]
        await menu.invalidate(tenant=ALL, user=ALL)
        assert await left() == [None] * 4

    async def test_entries_with_nobody_known_go_with_any_tenant_of_the_type(self, menu):
        await menu.set("a", 1)
        await menu.invalidate(tenant=9)
        assert await menu.get("a") is None

    async def test_user_and_tags_do_not_go_together(self, menu):
        with pytest.raises(TypeError, match="user= or tags="):
            await menu.invalidate(user=5, tags=["x"])

    @pytest.mark.parametrize("wrong", ["", True, 1.5])
    async def test_ids_are_checked(self, menu, wrong):
        with pytest.raises(TypeError):
            await menu.invalidate(tenant=wrong)
        with pytest.raises(TypeError):
            await menu.invalidate_pattern("*", user=wrong)

    async def test_a_pattern_matches_the_key_that_was_given(self, menu):
        await menu.mset({"item:1": 1, "item:2": 2, "cat:1": 3}, tenant=1)
        await menu.set("item:1", 1, tenant=2)
        assert await menu.invalidate_pattern("item:*", tenant=1) == 2
        assert await menu.get_many(["item:1", "item:2", "cat:1"], tenant=1) == {"cat:1": 3}
        assert await menu.invalidate_pattern("item:?") == 1
        with pytest.raises(TypeError):
            await menu.invalidate_pattern(None)

    @pytest.mark.parametrize("reclaim", [False, True])
    async def test_clearing_never_touches_a_neighbour(self, manager, menu, reclaim):
        neighbour = manager.register("menu2", CachePolicy())
        await menu.mset({f"k{n}": n for n in range(10)})
        await neighbour.set("a", 1)
        assert await menu.clear_namespace(reclaim=reclaim) is True
        assert await menu.get("k1") is None
        assert await neighbour.get("a") == 1
        while manager._engines.place().behind:
            await asyncio.sleep(0.001)
        assert await menu.invalidate_pattern("*") == (0 if reclaim else 10)

    async def test_aclose_waits_for_what_is_reclaimed(self, manager, menu):
        await menu.set("a", 1)
        await menu.clear_namespace(reclaim=True)
        place = manager._engines.place()
        assert place.behind
        await manager.aclose()
        assert not place.behind


async def test_the_counters_add_up(menu):
    await menu.set("a", 1)
    await menu.get("a")
    await menu.get("b")
    await menu.delete("a")
    await menu.invalidate()
    stats = menu.stats()
    assert (stats["hits"], stats["misses"], stats["sets"], stats["deletes"], stats["invalidations"]) == (1, 1, 1, 1, 1)
    assert stats["hit_rate"] == 0.5
