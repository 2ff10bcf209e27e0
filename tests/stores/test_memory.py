"""What is special to `memory://`: its bounds, several event loops and threads at once, and that nobody can change what is stored."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading

import pytest

from aiocache_aura import FOREVER, BackendError, CacheManager, CachePolicy, cache
from aiocache_aura.stores import memory as module
from aiocache_aura.stores.base import Fill
from aiocache_aura.stores.memory import OVERHEAD_BYTES, MemoryStore
from tests.clocks import ManualClock


@pytest.fixture
async def manager(clock):
    async with CacheManager("memory://", clock=clock) as made:
        yield made


async def kept(manager, keys):
    return [key for key in keys if await manager.exists("menu", key)]


# Bounds


@pytest.mark.parametrize("limit", [1, 2, 10])
@pytest.mark.parametrize("by", [-1, 0, 1])
async def test_the_limit_of_entries(limit, by):
    """`l1_entries` is the number of entries that are kept: one more throws out one that nobody asked for."""
    async with CacheManager("memory://", l1_entries=limit) as manager:
        keys = [f"k{n}" for n in range(limit + by)]
        for key in keys:
            assert await manager.set("menu", key, key) is True
        assert len(await kept(manager, keys)) == min(limit + by, limit)
        if keys:
            assert await manager.get("menu", keys[-1]) == keys[-1]


async def weight_of(key, value):
    async with CacheManager("memory://") as manager:
        await manager.set("menu", key, value)
        return manager._memory.values.weight


@pytest.mark.parametrize(("by", "expected"), [(-1, 2), (0, 3), (1, 3)])
async def test_the_limit_of_bytes(by, expected):
    """`l1_bytes` bounds keys, values and what keeping them costs: three entries fit into thrice the weight of one, not into a byte less."""
    weight = await weight_of("k0", "x" * 1000)
    assert weight > OVERHEAD_BYTES + 1000
    async with CacheManager("memory://", l1_bytes=3 * weight + by) as manager:
        for n in range(3):
            assert await manager.set("menu", f"k{n}", "x" * 1000) is True
        assert len(await kept(manager, ["k0", "k1", "k2"])) == expected
        await manager.delete("menu", "k0", "k1", "k2")
        assert await manager.set("menu", "k3", "x" * 1000)
        assert manager._memory.values.weight == weight


@pytest.mark.parametrize(("by", "is_stored"), [(-1, False), (0, True), (1, True)])
async def test_an_entry_of_the_whole_memory(by, is_stored, caplog):
    """One that is larger is not stored, each verb says so, a function's value is returned all the same, and the others stay."""
    weight = await weight_of("large", "x" * 1000)
    async with CacheManager("memory://", l1_bytes=weight + by) as manager:

        @cache(cache_type="menu", key="larger", manager=manager)
        async def load():
            return "x" * 1100

        for write in (manager.set, manager.add):
            assert await manager.set("menu", "small", 1) is True
            assert await write("menu", "large", "x" * 1000) is is_stored
            assert await kept(manager, ["small", "large"]) == (["large"] if is_stored else ["small"])
            await manager.delete("menu", "large")
        before = manager.stats()["menu"]["sets"]
        assert await manager.set("menu", "small", 1) is True
        assert [await load() for _ in range(2)] == ["x" * 1100] * 2
        assert manager.stats()["menu"]["sets"] - before == 1
        assert load.cache_info()[:2] == (0, 2)
        assert await manager.exists("menu", "small")
    assert ("raise l1_bytes" in caplog.text) is not is_stored


async def test_a_value_that_was_overwritten_by_one_too_large_is_gone():
    """An explicit write wins, also where it cannot be kept: the old value does not come back."""
    async with CacheManager("memory://", l1_bytes=2000) as manager:
        await manager.set("menu", "k", "old")
        assert await manager.set("menu", "k", "x" * 2000) is False
        assert await manager.exists("menu", "k") is False
    async with CacheManager("memory://", l1_bytes=2000, strict=True) as manager:
        with pytest.raises(BackendError, match="l1_bytes"):
            await manager.set("menu", "k", "x" * 2000)


async def test_a_hot_entry_survives_a_scan():
    """R29: a crawl over more keys than there is room for leaves the entry that is asked for."""
    async with CacheManager("memory://", l1_entries=50) as manager:
        hot = cache(cache_type="menu", manager=manager, name="hot", ttl=5)(lambda: "hot")
        for _ in range(2):
            await hot()
        for n in range(500):
            await manager.set("menu", f"k{n}", n, ttl=3600)
        assert await hot() == "hot"
        assert hot.cache_info().misses == 1


async def test_the_memory_is_freed_by_what_takes_entries_out(manager):
    """Deletion, patterns, clearing with reclaim, and asking for what has expired leave no weight behind; so does closing."""
    memory = manager.caches["menu"]
    for free in (
        lambda: memory.delete("a", "b"),
        lambda: memory.invalidate_pattern("*"),
        lambda: memory.mset({"a": 1, "b": 2}, ttl=0),
        lambda: memory.clear_namespace(reclaim=True),
    ):
        await memory.mset({"a": 1, "b": 2})
        assert manager._memory.values.weight > 2 * OVERHEAD_BYTES
        await free()
        while manager._engines.place().behind:
            await asyncio.sleep(0)
        assert (len(manager._memory.values), manager._memory.values.weight) == (0, 0)


async def test_generations_that_had_to_go_are_a_miss(monkeypatch, clock):
    """With more scopes than the store keeps, an entry whose generation is gone is not served, and never another tenant's."""
    monkeypatch.setattr(module, "MAX_TOKENS", 20)
    async with CacheManager("memory://", clock=clock) as manager:
        for _ in range(3):
            for tenant in range(40):
                await manager.set("menu", "k", tenant, tenant=tenant)
            found = [await manager.get("menu", "k", tenant=tenant) for tenant in range(40)]
            assert all(one in (None, tenant) for tenant, one in enumerate(found))
            assert None in found
        loaded = [await manager.get_or_load("menu", "k", str(tenant), tenant=tenant) for tenant in range(40)]
        assert all(one in (tenant, str(tenant)) for tenant, one in enumerate(loaded))
        assert await manager.get("menu", "k", tenant=39) is not None


# Whose object it is


async def test_r11_nobody_changes_what_is_stored(manager):
    """R11: the store keeps no caller's object and hands out none of its own: set, get, loaders, followers, batches and functions."""

    def fresh():
        return {"dishes": [{"name": "pizza", "tags": ["hot"]}]}

    @cache(cache_type="menu", manager=manager, name="menu")
    async def menu():
        await asyncio.sleep(0)
        return fresh()

    async def spoil(value):
        assert value == fresh()
        value["dishes"][0]["tags"].append("spoiled")
        value["dishes"].append("spoiled")
        value["spoiled"] = True

    given = fresh()
    await manager.set("menu", "set", given)
    await spoil(given)
    given = {"many": fresh()}
    await manager.mset("menu", given)
    await spoil(given["many"])
    kept_by_loader = []

    async def load():
        kept_by_loader.append(fresh())
        return kept_by_loader[-1]

    for _ in range(3):
        for key in ("set", "many"):
            await spoil(await manager.get("menu", key))
            await spoil((await manager.mget("menu", [key]))[0])
            await spoil((await manager.get_many("menu", [key]))[key])
        await spoil(await manager.get_or_load("menu", "loaded", load))
        for value in kept_by_loader:
            value.clear()
        await spoil((await manager.get_or_load_many("menu", ["batch"], lambda keys: dict.fromkeys(keys, fresh())))["batch"])
        for value in await asyncio.gather(*(menu() for _ in range(5))):
            await spoil(value)
        await spoil(await menu.peek())
    assert len(kept_by_loader) == 1
    assert menu.cache_info().misses == 5


# Time


@pytest.mark.parametrize("ttl", [1, 0.5, "5m", 3600])
async def test_an_entry_dies_at_the_end_of_its_life(manager, clock, ttl):
    """Not before and not after, by the manager's own clock, for reads of every kind."""
    life = 300 if ttl == "5m" else ttl
    loaded = cache(cache_type="menu", manager=manager, name="loaded", ttl=ttl)(lambda: "loaded")
    await manager.set("menu", "k", 1, ttl=ttl)
    assert await loaded() == "loaded"
    clock.advance(life * 0.99)
    assert await manager.get("menu", "k") == 1
    assert await manager.ttl("menu", "k") == pytest.approx(life * 0.01)
    assert await loaded.exists() is True
    clock.advance(life * 0.02)
    assert await manager.get("menu", "k") is None
    assert await manager.ttl("menu", "k") is None
    assert await manager.touch("menu", "k") is False
    assert await manager.add("menu", "k", 2) is True
    assert await loaded.exists() is False
    assert await loaded() == "loaded"
    assert loaded.cache_info().misses == 2


async def test_the_exact_end(manager, clock):
    """At the very end of its life an entry is gone, and once that was seen, its memory is free."""
    await manager.set("menu", "k", 1, ttl=8)
    clock.advance(8)
    assert await manager.get("menu", "k") is None
    assert len(manager._memory.values) == 0


async def test_a_life_without_end(manager, clock):
    """FOREVER outlives everything but an invalidation, and so does its generation."""
    await manager.set("menu", "k", 1, ttl=FOREVER)
    clock.advance(10**9)
    assert await manager.get("menu", "k") == 1
    assert await manager.ttl("menu", "k") == math.inf
    await manager.invalidate_menu()
    assert await manager.get("menu", "k") is None


async def test_jitter_only_shortens(manager, clock):
    """A jittered life is between what chance may take off and the whole of it, and is not the same for all."""
    manager.register("mixed", CachePolicy(ttl=100, jitter=0.5))
    keys = [f"k{n}" for n in range(200)]
    await manager.mset("mixed", dict.fromkeys(keys, 1))
    lives = [await manager.ttl("mixed", key) for key in keys]
    assert all(50 <= life <= 100 for life in lives)
    assert max(lives) - min(lives) > 25
    clock.advance(100)
    assert await manager.get_many("mixed", keys) == {}


# Loops and threads


def test_several_loops_see_one_store(clock):
    """What one event loop stores, another reads; what one invalidates or deletes is gone in the other."""
    manager = CacheManager("memory://", clock=clock)
    with asyncio.Runner() as one, asyncio.Runner() as other:
        for clear in (manager.invalidate_menu(1), manager.delete("menu", "k", tenant=1), manager.caches["menu"].clear_namespace()):
            assert one.run(manager.set("menu", "k", "value", tenant=1)) is True
            assert other.run(manager.get("menu", "k", tenant=1)) == "value"
            assert other.run(clear)
            assert one.run(manager.get("menu", "k", tenant=1)) is None
        one.run(manager.set("menu", "k", 1))
        one.run(manager.aclose())
        assert other.run(manager.get("menu", "k")) is None
        other.run(manager.aclose())


@pytest.mark.parametrize("act", ["set", "add", "delete", "invalidate", "tenant", "tag", "pattern", "function"])
def test_a_load_in_one_loop_is_voided_by_another(act):
    """A write or an invalidation in one loop voids the fill of a load that is under way in another: the old value is not stored."""
    manager = CacheManager("memory://")
    with asyncio.Runner() as one, asyncio.Runner() as other:
        entered, release = asyncio.Event(), asyncio.Event()

        @cache(cache_type="menu", key="k:{restaurant_id}", tags=["dish"], manager=manager)
        async def load(restaurant_id):
            entered.set()
            await release.wait()
            return "old"

        async def begin():
            task = asyncio.create_task(load(1))
            await entered.wait()
            return task

        async def end(task):
            release.set()
            return await task

        loading = one.run(begin())
        menu = manager.caches["menu"]
        done = other.run(
            {
                "set": lambda: menu.set("k:1", "new", tenant=1),
                "add": lambda: menu.add("k:1", "new", tenant=1),
                "delete": lambda: menu.delete("k:1", tenant=1),
                "invalidate": menu.invalidate,
                "tenant": lambda: manager.invalidate_tenant(1),
                "tag": lambda: manager.invalidate_tags("dish"),
                "pattern": lambda: menu.invalidate_pattern("k:*"),
                "function": load.cache_clear,
            }[act]()
        )
        assert done is (0 if act in ("delete", "pattern") else True)
        assert one.run(end(loading)) == "old"
        for runner in (one, other):
            assert runner.run(menu.get("k:1", tenant=1)) == ("new" if act in ("set", "add") else None)
        for runner in (one, other):
            runner.run(manager.aclose())


class SlowClock(ManualClock):
    """In one thread, reading the time takes until it is allowed to end."""

    def __init__(self):
        super().__init__()
        self.reading, self.may_end, self.slow = threading.Event(), threading.Event(), None

    def time(self):
        if threading.current_thread() is self.slow:
            self.reading.set()
            assert self.may_end.wait(20)
        return self.now


FILL = Fill(b"k", b"raw", 1.0, b"permit", (b"s",))
STEPS = {
    "lookup": lambda store: store.lookup(b"k", (b"s",)),
    "claim": lambda store: store.claim([(b"k", (b"s",))], life=1.0, timeout=1),
    "fill": lambda store: store.fill([FILL], written=lambda: None, timeout=1),
    "generations": lambda store: store.generations((b"s",), life=1.0, timeout=1),
    "store": lambda store: store.store([(b"k", b"raw", 1.0)], timeout=1),
    "store_if": lambda store: store.store_if(b"k", b"raw", 1.0, seen=None, timeout=1),
    "expire": lambda store: store.expire(b"k", b"raw", 1.0, seen=b"raw", timeout=1),
    "delete": lambda store: store.delete([b"k"], timeout=1),
    "invalidate": lambda store: store.invalidate([b"s"], timeout=1),
    "purge": lambda store: store.purge(b"*", lambda key: True, timeout=1),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_method_is_one_step_for_all_threads(step):
    """While one thread is inside the store, no method of another begins; afterwards each does."""
    clock = SlowClock()
    store = MemoryStore(clock, max_bytes=None, max_entries=None)
    clock.slow = threading.Thread(target=asyncio.run, args=(STEPS["store"](store),))
    other = threading.Thread(target=asyncio.run, args=(STEPS[step](store),))
    clock.slow.start()
    assert clock.reading.wait(20)
    other.start()
    other.join(0.05)  # time to do wrong in; none that would be too short to do right
    got_in = not other.is_alive()
    clock.may_end.set()
    clock.slow.join(20)
    other.join(20)
    assert not got_in
    assert not clock.slow.is_alive()
    assert not other.is_alive()


@pytest.fixture
def switching():
    """Threads take turns at almost every step."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_at_once(switching, caplog):
    """Loops in several threads hammer one manager: no error, no wrong value, one winner of each `add`, and the bound holds all the time."""
    caplog.set_level(logging.WARNING, "aiocache_aura")
    manager = CacheManager("memory://", l1_entries=64)
    threads, rounds = 4, 120
    barrier = threading.Barrier(threads)
    winners, errors = [], []

    @cache(cache_type="menu", manager=manager, name="of")
    async def of(number):
        await asyncio.sleep(0)
        return {"number": number}

    async def work(me):
        for n in range(rounds):
            key = n % 80
            assert await manager.set("menu", f"mine {me}", n) in (True, False)
            assert await manager.get("menu", f"mine {me}") in (n, None)  # thrown out or invalidated, never another's
            assert await of(key) == {"number": key}
            assert await manager.get_or_load("menu", f"shared {key}", lambda key=key: key) == key
            assert (await manager.get_many("menu", [f"shared {key}", "nothing"])) in ({}, {f"shared {key}": key})
            if n % 10 == me:
                await manager.invalidate_menu()
                await manager.invalidate_pattern("menu", "shared 7*")
            assert len(manager._memory.values) <= 64
        return True

    async def race():
        return [n for n in range(30) if await manager.add("settings", f"race {n}", 1)]

    def run(me):
        try:
            with asyncio.Runner() as runner:
                barrier.wait(20)
                winners.extend(runner.run(race()))
                barrier.wait(20)
                assert runner.run(work(me))
                barrier.wait(60)
                runner.run(manager.aclose())
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    running = [threading.Thread(target=run, args=(me,)) for me in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert not errors
    assert sorted(winners) == list(range(30))
    assert not caplog.records


async def test_managers_have_a_store_each():
    """A memory store belongs to its manager: neither the same prefix nor the same URL shares one."""
    async with CacheManager("memory://") as one, CacheManager("memory://") as other:
        await one.set("menu", "k", 1)
        assert await other.get("menu", "k") is None
        await other.invalidate_menu()
        assert await one.get("menu", "k") == 1


async def test_closing_empties_it_and_it_opens_again():
    """After `aclose` nothing is left, and the manager works on."""
    manager = CacheManager("memory://")
    for _ in range(2):
        await manager.set("menu", "k", 1)
        await manager.aclose()
        await manager.aclose()
        assert await manager.get("menu", "k") is None
    await manager.aclose()


def test_its_repr_says_how_full_it_is():
    """State can be printed."""
    store = MemoryStore(ManualClock(), max_bytes=10_000, max_entries=None)
    asyncio.run(store.store([(b"k", b"value", None)], timeout=1))
    assert repr(store) == f"MemoryStore(Sieve(1 items, weight {OVERHEAD_BYTES + 6}, 0 evictions))"
