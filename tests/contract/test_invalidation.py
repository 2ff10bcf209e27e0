"""CONTRACT.md 3: what clears what, what an invalidation promises, and that an explicit write wins; over every store.

`elsewhere` is another process: a manager of its own on the same store. Over memory it is the same manager, so there both ways are one.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import fakeredis
import pytest

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.context import tenant_scope, user_scope
from aiocache_aura.decorators import cache_menu
from aiocache_aura.policy import CachePolicy
from aiocache_aura.types import ALL, FOREVER
from tests.clocks import ManualClock, running_time
from tests.contract.conftest import PATIENT, STORES, Store, opened
from tests.steps import Source, settled, soon


@pytest.fixture(params=[kind for kind in STORES if not kind.endswith("unix")])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each store in turn; what is sent over a unix socket is what is sent over TCP."""
    async for one in opened(request):
        yield one


@pytest.fixture
def clearers(store: Store, manager: CacheManager, peer: CacheManager) -> list[CacheManager]:
    """Who clears, in turn: the process that reads, where that makes a difference, and another."""
    return list(dict.fromkeys((manager, peer) if store.kind == "valkey-tcp" else (peer,)))


@pytest.fixture
def clearer(clearers: list[CacheManager]) -> CacheManager:
    """Another process than the one that reads."""
    return clearers[-1]


async def done_behind(*managers: CacheManager) -> None:
    """What works behind callers' backs has ended."""
    for manager in managers:
        tasks = manager._engines.place().behind
        if tasks:
            await asyncio.wait(set(tasks))


@dataclass(frozen=True)
class Entry:
    cache_type: str
    tenant: int | None
    user: int | None
    key: str
    tags: tuple[str, ...] = ()

    @property
    def where(self) -> dict[str, Any]:
        return {"tenant": self.tenant, "user": self.user}


ENTRIES = [
    Entry(cache_type, tenant, user, key, tags)
    for cache_type in ("menu", "permissions")
    for tenant in (1, 2, None)
    for user in (5, 6, None)
    for key, tags in (("a", ()), ("b", ("x",)), ("c", ("x", "y")))
]


async def fill(manager: CacheManager) -> None:
    await asyncio.gather(*(manager.set(one.cache_type, one.key, 1, tags=one.tags, **one.where) for one in ENTRIES))


async def gone(manager: CacheManager) -> set[Entry]:
    found = await asyncio.gather(*(manager.get(one.cache_type, one.key, **one.where) for one in ENTRIES))
    return {one for one, value in zip(ENTRIES, found, strict=True) if value is None}


def of_type(cache_type: str, *, tenant: int | None = None, user: int | None = None, tags: tuple[str, ...] = ()) -> set[Entry]:
    """By the contract: an entry made with none known goes with any tenant's (user's) invalidation of its type; one that leaves users out,
    as `menu` does unless one is given, goes with no user's."""

    def is_meant(one: Entry) -> bool:
        of_user = user is None or one.user == user or (one.user is None and cache_type == "permissions")
        return tenant in (None, one.tenant) or one.tenant is None if of_user else False

    return {one for one in ENTRIES if one.cache_type == cache_type and is_meant(one) and (not tags or set(tags) & set(one.tags))}


def having(**wanted: Any) -> set[Entry]:
    return {one for one in ENTRIES if all(getattr(one, name) == value for name, value in wanted.items())}


def tagged(*tags: str) -> set[Entry]:
    return {one for one in ENTRIES if set(tags) & set(one.tags)}


Clear = Callable[[CacheManager], Awaitable[Any]]
CLEARED: dict[str, tuple[Clear, set[Entry]]] = {
    "a type": (lambda m: m.invalidate("menu"), of_type("menu")),
    "a type of users": (lambda m: m.invalidate("permissions"), of_type("permissions")),
    "a tenant of a type": (lambda m: m.invalidate("menu", tenant=1), of_type("menu", tenant=1)),
    "a tenant by its text": (lambda m: m.invalidate("menu", tenant="1"), of_type("menu", tenant=1)),
    "a tenant who has nothing": (lambda m: m.invalidate("menu", tenant=9), of_type("menu", tenant=9)),
    "every tenant": (lambda m: m.invalidate("menu", tenant=ALL, user=ALL), of_type("menu")),
    "a user of a type": (lambda m: m.invalidate("menu", user=5), of_type("menu", user=5)),
    "a user of a type of users": (lambda m: m.invalidate("permissions", user=5), of_type("permissions", user=5)),
    "a tenant's user": (lambda m: m.invalidate("menu", tenant=1, user=5), of_type("menu", tenant=1, user=5)),
    "a tenant's user of a type of users": (
        lambda m: m.invalidate("permissions", tenant=1, user=5),
        of_type("permissions", tenant=1, user=5),
    ),
    "a tag of a type": (lambda m: m.invalidate("menu", tags=["y"]), of_type("menu", tags=("y",))),
    "any of several tags": (lambda m: m.invalidate("menu", tags=["y", "x", "z"]), of_type("menu", tags=("x", "y"))),
    "a tag that nothing has": (lambda m: m.invalidate("menu", tags=["z"]), set()),
    "a tenant's tag": (lambda m: m.invalidate("menu", tenant=1, tags=["x"]), of_type("menu", tenant=1, tags=("x",))),
    "a tenant's tags": (lambda m: m.caches["menu"].invalidate(tenant=2, tags={"y"}), of_type("menu", tenant=2, tags=("y",))),
    "a tenant, whatever the type": (lambda m: m.invalidate_tenant(1), having(tenant=1)),
    "a user, whatever the type": (lambda m: m.invalidate_user("6"), having(user=6)),
    "tags, whatever the type": (lambda m: m.invalidate_tags("y"), tagged("y")),
    "several tags, whatever the type": (lambda m: m.invalidate_tags("x", "z"), tagged("x")),
    "by the type's name": (lambda m: m.invalidate_menu(), of_type("menu")),
    "by the type's name a tenant": (lambda m: m.invalidate_menu(1), of_type("menu", tenant=1)),
    "by the type's name a tenant's user": (lambda m: m.invalidate_menu(1, user=5), of_type("menu", tenant=1, user=5)),
    "permissions of a user": (lambda m: m.invalidate_permissions(user=5), of_type("permissions", user=5)),
    "permissions of a tenant": (lambda m: m.invalidate_permissions(tenant=1), of_type("permissions", tenant=1)),
    "a namespace": (lambda m: m.caches["menu"].clear_namespace(), of_type("menu")),
    "a namespace and its memory": (lambda m: m.caches["menu"].clear_namespace(reclaim=True), of_type("menu")),
}
REMOVED: dict[str, tuple[Clear, set[Entry]]] = {
    "a key": (lambda m: m.invalidate_pattern("menu", "a"), having(cache_type="menu", key="a")),
    "a pattern": (
        lambda m: m.invalidate_pattern("menu", "[bc]"),
        having(cache_type="menu", key="b") | having(cache_type="menu", key="c"),
    ),
    "all": (lambda m: m.invalidate_pattern("permissions", "*"), having(cache_type="permissions")),
    "a tenant's": (lambda m: m.invalidate_pattern("menu", "*", tenant=1), having(cache_type="menu", tenant=1)),
    "a user's": (lambda m: m.invalidate_pattern("menu", "?", user=5), having(cache_type="menu", user=5)),
    "a tenant's user's": (
        lambda m: m.caches["menu"].invalidate_pattern("a*", tenant="1", user="5"),
        having(cache_type="menu", tenant=1, user=5, key="a"),
    ),
    "everybody's": (lambda m: m.invalidate_pattern("menu", "*", tenant=ALL, user=ALL), having(cache_type="menu")),
    "nobody's": (lambda m: m.invalidate_pattern("menu", "A"), set()),
}


class TestWhatClearsWhat:
    @pytest.mark.parametrize(("clear", "cleared"), CLEARED.values(), ids=CLEARED)
    async def test_conditions_narrow(self, manager, peer, clearers, clear, cleared):
        """Exactly what is meant, for whoever reads, whoever clears; the answer is True, a second time too."""
        for clearer in clearers:
            await fill(manager)
            with tenant_scope(2), user_scope(6):  # does not count
                assert await clear(clearer) is True
            assert await gone(manager) == await gone(peer) == cleared
            assert await clear(clearer) is True
            assert await gone(peer) == cleared
            await done_behind(clearer)

    @pytest.mark.parametrize(("clear", "removed"), REMOVED.values(), ids=REMOVED)
    async def test_patterns(self, manager, peer, clearers, clear, removed):
        """The answer is how many there were; here none known is none, not anybody."""
        for clearer in clearers:
            await fill(manager)
            with tenant_scope(2), user_scope(6):
                assert await clear(clearer) == len(removed)
            assert await gone(manager) == await gone(peer) == removed
            assert await clear(clearer) == 0

    async def test_a_shared_entry_goes_with_its_type_and_tags_alone(self, manager, clearer):
        """`tenant_aware=False`, said in so many words."""
        with tenant_scope(1):
            for clear, is_left in (
                (clearer.invalidate_tenant(1), True),
                (clearer.invalidate("menu", tenant=1), True),
                (clearer.invalidate("menu", tenant=1, tags=["x"]), True),
                (clearer.invalidate("menu", user=5), True),
                (clearer.invalidate("menu", tags=["x"]), False),
                (clearer.invalidate_tags("x"), False),
                (clearer.invalidate("menu"), False),
            ):
                await manager.set("menu", "a", 1, tags=["x"], tenant_aware=False)
                assert await clear is True
                assert (await manager.get_or_load("menu", "a", lambda: 2, tenant_aware=False, ttl=0) == 1) is is_left

    async def test_entries_made_afterwards_are_not_touched(self, manager, clearer):
        """An invalidation is of what there was, not of what will be."""
        entries = [one for one in ENTRIES if one.key == "c" and one.tenant in (1, None) and one.user in (5, None)]
        for clear, _ in CLEARED.values():
            assert await clear(clearer) is True
            await done_behind(clearer)
            for one in entries:
                await manager.set(one.cache_type, one.key, 1, tags=one.tags, **one.where)
            assert not await gone(manager) & set(entries)

    async def test_a_tag_is_any_text_and_no_other(self, manager, clearer):
        tags = ["x", "X", "x ", "x:y", "x,y", "x{y}", "*", "", "é", "日本", "x" * 60, "x" * 60 + "y", "y:menu", "t1", "\n", "%41", "A"]
        tags.remove("")
        for n, tag in enumerate(tags):
            await manager.set("menu", str(n), tag, tags=[tag])
        for n, tag in enumerate(tags):
            await clearer.invalidate("menu", tags=[tag])
            left = await manager.get_many("menu", map(str, range(len(tags))))
            assert set(left) == {str(m) for m in range(n + 1, len(tags))}

    async def test_types_whose_names_begin_alike(self, manager, clearer):
        for name in ("men", "menu2", "menu-item", "menu.x", "menu_", "m"):
            for one in (manager, clearer):
                one.register(name, CachePolicy())
            await manager.set(name, "a", name, tags=["x"], tenant=1)
        await manager.set("menu", "a", "menu", tags=["x"], tenant=1)
        for clear in (
            clearer.invalidate("menu"),
            clearer.invalidate("menu", tenant=1),
            clearer.invalidate("menu", tags=["x"]),
            clearer.invalidate_pattern("menu", "*"),
            clearer.caches["menu"].clear_namespace(reclaim=True),
        ):
            await clear
        await done_behind(clearer)
        for name in ("men", "menu2", "menu-item", "menu.x", "menu_", "m"):
            assert await manager.get(name, "a", tenant=1) == name
        assert await manager.get("menu", "a", tenant=1) is None


PATTERNS = [
    ("item:*", {"item:1", "item:12", "item:"}),
    ("item:?", {"item:1"}),
    ("item:[1-3]", {"item:1"}),
    ("item:[^1]*", set()),
    ("*:1*", {"item:1", "item:12", "x:1:y"}),
    ("x:?:y", {"x:1:y"}),
    ("\\*", {"*"}),
    ("\\?", set()),
    ("[*]", {"*"}),
    ("é*", {"é", "é~{%"}),
    ("é~{%", {"é~{%"}),
    ("", {""}),
    ("?", {"*", "é"}),
    ("=*", set()),
    ("long:*", {"long:" + "x" * 300}),
    ("long:xxx*", {"long:" + "x" * 300}),
    ("item:1", {"item:1"}),
    ("ITEM:*", set()),
]


class TestPatterns:
    @pytest.mark.parametrize(("pattern", "matching"), PATTERNS, ids=[pattern for pattern, _ in PATTERNS])
    async def test_a_glob_of_the_key_as_it_was_given(self, manager, clearer, pattern, matching):
        """As Redis reads it; of a key so long that its tail is hashed, of the readable part."""
        keys = ["item:1", "item:12", "item:", "x:1:y", "*", "é", "é~{%", "", "long:" + "x" * 300]
        await manager.mset("menu", dict.fromkeys(keys, 1))
        await manager.mset("api", dict.fromkeys(keys, 1))
        assert await clearer.invalidate_pattern("menu", pattern) == len(matching)
        assert set(await manager.get_many("menu", keys)) == set(keys) - matching
        assert len(await manager.get_many("api", keys)) == len(keys)

    async def test_of_a_function_its_name_and_arguments(self, manager, clearer):
        @cache_menu(manager=manager, name="shop.dish")
        async def dish(n: int, size: str = "m") -> int:
            return n

        await dish(1), await dish(2), await dish(1, "l")
        await manager.set("menu", "shop.dish:n=i1:size=sm", "by hand")
        assert await clearer.invalidate_pattern("menu", "shop.dish:n=i1:*", tenant=1) == 0
        assert await clearer.invalidate_pattern("menu", "shop.dish:n=i1:*") == 3
        assert [await dish.exists(1), await dish.exists(2), await dish.exists(1, "l")] == [False, True, False]

    async def test_it_counts_what_is_stored(self, manager, clearer):
        """Entries that an invalidation has voided are there until they are removed."""
        await manager.mset("menu", {"a": 1, "b": 2}, tags=["x"])
        await clearer.invalidate("menu", tags=["x"])
        assert await clearer.invalidate_pattern("menu", "*") == 2
        assert await clearer.invalidate_pattern("menu", "*") == 0

    async def test_thousands_of_keys(self, manager, clearer):
        """More than one bounded batch finds, and takes."""
        await asyncio.gather(*(manager.mset("menu", {f"item:{n}:{m}": m for m in range(500)}) for n in range(5)))
        await manager.mset("api", {f"item:{m}": m for m in range(500)})
        assert await clearer.invalidate_pattern("menu", "item:[1-4]:*") == 2000
        assert await clearer.invalidate_pattern("menu", "*") == 500
        assert len(await manager.get_many("api", [f"item:{m}" for m in range(500)])) == 500


_numbers = itertools.count()


class Reads:
    """One entry - of tenant 1, user 5, with the tag x - in the ways in which it can be loaded."""

    def __init__(self, managers: list[CacheManager], how: str) -> None:
        self.source, self.how, self.keys = Source(held=True), how, ["a", "z"]
        self.functions = {}
        for manager in dict.fromkeys(managers):

            @cache_menu(manager=manager, key="a", tags=["x"], name=f"dish-{how}-{next(_numbers)}")
            async def dish(restaurant_id: int, user_id: int) -> int:
                return await self.source.load()

            self.functions[manager] = dish

    async def read(self, manager: CacheManager) -> Any:
        if self.how in ("decorated", "refresh"):
            return await self.functions[manager](1, 5)
        if self.how == "get_or_load":
            return await manager.get_or_load("menu", "a", self.source.load, tags=["x"], **WHERE)

        async def load(keys: list[str]) -> dict[str, int]:
            return dict.fromkeys(keys, await self.source.load())

        return (await manager.get_or_load_many("menu", self.keys, load, tags=["x"], **WHERE))["a"]

    async def first(self, manager: CacheManager) -> Any:
        return await (self.functions[manager].refresh(1, 5) if self.how == "refresh" else self.read(manager))


WHERE = {"tenant": 1, "user": 5}
HOW = ["get_or_load", "get_or_load_many", "decorated", "refresh"]
VOIDS: dict[str, Callable[[CacheManager, Reads], Awaitable[Any]]] = {
    "type": lambda m, reads: m.invalidate("menu"),
    "type's tenant": lambda m, reads: m.invalidate("menu", tenant=1),
    "type's user": lambda m, reads: m.invalidate("menu", user=5),
    "type's tenant's user": lambda m, reads: m.invalidate_menu(1, user=5),
    "type's tag": lambda m, reads: m.invalidate("menu", tags=["y", "x"]),
    "tenant's tag": lambda m, reads: m.invalidate("menu", tenant=1, tags=["x"]),
    "tenant": lambda m, reads: m.invalidate_tenant(1),
    "user": lambda m, reads: m.invalidate_user(5),
    "tag": lambda m, reads: m.invalidate_tags("x"),
    "namespace": lambda m, reads: m.caches["menu"].clear_namespace(),
    "key": lambda m, reads: m.delete("menu", "other", "a", **WHERE),
    "pattern": lambda m, reads: m.invalidate_pattern("menu", "a*"),
    "tenant's pattern": lambda m, reads: m.invalidate_pattern("menu", "?", **WHERE),
    "call": lambda m, reads: reads.functions[m].invalidate(1, 5),
}
WRITES: dict[str, Callable[[CacheManager, Reads], Awaitable[Any]]] = {
    "set": lambda m, reads: m.set("menu", "a", 7, **WHERE),
    "mset": lambda m, reads: m.mset("menu", {"b": 0, "a": 7}, tags=["y"], **WHERE),
    "add": lambda m, reads: m.add("menu", "a", 7, **WHERE),
    "set_value": lambda m, reads: reads.functions[m].set_value(7, 1, 5),
}
SPARES: dict[str, Callable[[CacheManager, Reads], Awaitable[Any]]] = {
    "another type": lambda m, reads: m.invalidate("api"),
    "another tenant": lambda m, reads: m.invalidate("menu", tenant=2),
    "another user": lambda m, reads: m.invalidate_user(6),
    "another tag": lambda m, reads: m.invalidate("menu", tags=["y"]),
    "another tenant's tag": lambda m, reads: m.invalidate("menu", tenant=2, tags=["x"]),
    "another key": lambda m, reads: m.delete("menu", "b", "aa", **WHERE),
    "another tenant's key": lambda m, reads: m.delete("menu", "a", tenant=2, user=5),
    "another pattern": lambda m, reads: m.invalidate_pattern("menu", "b*"),
    "another's pattern": lambda m, reads: m.invalidate_pattern("menu", "*", tenant=2),
    "another set": lambda m, reads: m.set("menu", "b", 7, **WHERE),
    "another's set": lambda m, reads: m.set("menu", "a", 7, tenant=2, user=5),
    "a failed add": lambda m, reads: m.touch("menu", "a", 5, **WHERE),
}


def each_way(manager: CacheManager, peer: CacheManager, clearers: list[CacheManager]) -> list[tuple[CacheManager, Reads]]:
    return [(clearer, Reads([manager, peer], how)) for clearer in clearers for how in HOW]


class TestLoadsUnderWay:
    """A load that read the old data, and what is cleared or written while it runs."""

    @pytest.mark.parametrize("void", VOIDS.values(), ids=VOIDS)
    async def test_what_was_cleared_is_neither_served_nor_stored(self, manager, peer, clearers, void):
        """To those who ask afterwards; those who asked before may still have it."""
        for clearer, reads in each_way(manager, peer, clearers):
            await peer.delete("menu", "a", "z", **WHERE)
            first = asyncio.ensure_future(reads.first(manager))
            load = await reads.source.begun()
            reads.source.version, reads.source.held = 2, False
            assert await void(clearer, reads) in (True, 0)
            late = asyncio.ensure_future(reads.read(manager))
            await settled()
            load.finish()
            assert await soon(first) in (1, 2)
            assert await soon(late) == 2
            for one in (manager, peer):
                assert await one.get("menu", "a", **WHERE) in (2, None)
                assert await reads.read(one) == 2

    @pytest.mark.parametrize("void", VOIDS.values(), ids=VOIDS)
    async def test_what_another_has_loaded_anew_is_not_overwritten(self, manager, peer, clearers, void):
        """The newer value stays, also where the older load ends last."""
        for clearer, reads in each_way(manager, peer, clearers):
            await peer.delete("menu", "a", "z", **WHERE)
            first = asyncio.ensure_future(reads.first(manager))
            load = await reads.source.begun()
            reads.source.version, reads.source.held = 2, False
            reads.keys = ["a"]  # z may not have been cleared: who asks for it waits for the load that is under way
            await void(clearer, reads)
            if peer is not manager:
                assert await soon(reads.read(peer)) == 2
            load.finish()
            assert await soon(first) in (1, 2)
            assert [await reads.read(one) for one in (peer, manager, peer)] == [2] * 3

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    async def test_an_explicit_write_wins(self, manager, peer, clearers, write):
        """Over loads begun before it, in every process."""
        for clearer, reads in each_way(manager, peer, clearers):
            await peer.delete("menu", "a", "z", **WHERE)
            first = asyncio.ensure_future(reads.first(manager))
            load = await reads.source.begun()
            reads.source.version, reads.source.held = 2, False
            assert await write(clearer, reads) is True
            late = asyncio.ensure_future(reads.read(manager))
            await settled()
            load.finish()
            assert await soon(first) in (1, 7)
            assert await soon(late) == 7
            for one in (manager, peer):
                assert await one.get("menu", "a", **WHERE) == 7
                assert await reads.read(one) == 7

    @pytest.mark.parametrize("spare", SPARES.values(), ids=SPARES)
    async def test_what_is_not_meant_is_not_disturbed(self, manager, peer, clearers, spare):
        """One load, whose result is stored and served."""
        for clearer, reads in each_way(manager, peer, clearers):
            await peer.delete("menu", "a", "z", **WHERE)
            first = asyncio.ensure_future(reads.first(manager))
            load = await reads.source.begun()
            reads.source.version, reads.source.held = 2, False
            await spare(clearer, reads)
            late = asyncio.ensure_future(reads.read(manager))
            await settled()
            load.finish()
            assert (await soon(first), await soon(late)) == (1, 1)
            assert [await reads.read(one) for one in (manager, peer)] == [1, 1]
            assert reads.source.loads == 1

    async def test_clearing_a_function(self, manager, clearer):
        """`cache_clear` is of everything that the function made, and is making."""
        source = Source(held=True)

        @cache_menu(manager=manager)
        async def dish(n: int) -> int:
            return await source.load()

        first = asyncio.ensure_future(dish(1))
        load = await source.begun()
        source.version, source.held = 2, False
        assert await dish.cache_clear() is True
        late = asyncio.ensure_future(dish(1))
        await settled()
        load.finish()
        assert await soon(first) in (1, 2)
        assert (await soon(late), await dish(1)) == (2, 2)

    async def test_a_set_is_no_younger_than_the_miss_before_it(self, remote):
        """Cache-aside: what was read from the database before another process invalidated is void, whoever reads."""
        manager = remote.open()
        peer = remote.peer_of(manager)
        await peer.set("menu", "seed", 1, tenant=1)
        for clear in (lambda: peer.invalidate("menu"), lambda: peer.invalidate_tenant(1), lambda: peer.invalidate("menu", tenant=1)):
            assert await manager.get("menu", "a", tenant=1) is None
            assert await clear() is True
            await manager.set("menu", "a", "old", tenant=1)
            assert [await one.get("menu", "a", tenant=1) for one in (manager, peer)] == [None, None]
            await manager.set("menu", "a", "new", tenant=1)
            await manager.set("menu", "a", "new", tenant=1)
            assert [await one.get("menu", "a", tenant=1) for one in (manager, peer)] == ["new", "new"]
            await manager.delete("menu", "a", tenant=1)

    @pytest.mark.parametrize(
        "clear",
        [
            lambda m: m.invalidate("menu"),
            lambda m: m.invalidate("menu", tags=["x"]),
            lambda m: m.invalidate_tags("x"),
            lambda m: m.delete("menu", "a"),
            lambda m: m.invalidate_pattern("menu", "*"),
            lambda m: m.caches["menu"].clear_namespace(),
        ],
        ids=["type", "type's tag", "tag", "key", "pattern", "namespace"],
    )
    async def test_under_load_nobody_sees_anything_older(self, store, clear):
        """Three processes read, load, change and clear at once: each read sees what was cleared for before it began, or newer."""
        first = store.open()
        managers = [first, store.peer_of(first), store.peer_of(first)]
        version = cleared = reads = 0

        async def load() -> int:
            seen = version
            await asyncio.sleep(0)
            return seen

        async def change(manager: CacheManager) -> None:
            nonlocal version, cleared
            for _ in range(25):
                version += 1
                mine = version
                assert await clear(manager) is not False
                cleared = max(cleared, mine)
                await asyncio.sleep(0)

        async def read(manager: CacheManager, until: list[asyncio.Task[None]]) -> None:
            nonlocal reads
            while not all(task.done() for task in until):
                floor = cleared
                assert await manager.get_or_load("menu", "a", load, tags=["x"]) >= floor
                floor = cleared
                assert (await manager.get("menu", "a", default=version)) >= floor
                reads += 1
                await asyncio.sleep(0)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            changes = [group.create_task(change(manager)) for manager in managers]
            for manager in managers * 3:
                group.create_task(read(manager, changes))
        assert (version, cleared) == (75, 75)
        assert reads >= 9


class TestLoopsOfOneProcess:
    """A memory store may be used from several event loops: what one clears or writes, a load in another does not bring back."""

    @pytest.mark.parametrize("change", (VOIDS | WRITES).values(), ids=VOIDS | WRITES)
    async def test_a_load_in_another_loop(self, change):
        """As if they were processes."""
        async with CacheManager(prefix="shop") as manager:
            for how in HOW:
                await manager.delete("menu", "a", "z", **WHERE)
                reads = Reads([manager], how)
                first = asyncio.ensure_future(reads.first(manager))
                load = await reads.source.begun()
                reads.source.version, reads.source.held = 2, False
                await asyncio.to_thread(asyncio.run, change(manager, reads))
                expected = 7 if change in WRITES.values() else 2
                late = asyncio.ensure_future(reads.read(manager))
                await settled()
                load.finish()
                assert await soon(first) in (1, expected)
                assert await soon(late) == expected
                assert await asyncio.to_thread(asyncio.run, reads.read(manager)) == await reads.read(manager) == expected


class TestDelivery:
    @pytest.mark.parametrize("strict", [False, True])
    async def test_the_answer_is_false_when_the_server_is_gone(self, own_server, strict):
        """None of them raises, under `strict` neither; once it is back they are delivered again."""
        server = own_server()
        async with (
            CacheManager(server.url, prefix="shop", strict=strict, budget=0.05) as hasty,
            CacheManager(server.url, prefix="shop", strict=strict, budget=PATIENT) as patient,
        ):

            def uses_of(manager: CacheManager) -> list[Callable[[], Awaitable[Any]]]:
                @cache_menu(manager=manager)
                async def dish(n: int) -> int:
                    return n

                return [
                    lambda: manager.invalidate("menu"),
                    lambda: manager.invalidate("menu", tenant=1, tags=["x"]),
                    lambda: manager.invalidate_menu(1),
                    lambda: manager.invalidate_permissions(user=5),
                    lambda: manager.invalidate_tenant(1),
                    lambda: manager.invalidate_user(5),
                    lambda: manager.invalidate_tags("x"),
                    lambda: manager.caches["menu"].clear_namespace(),
                    lambda: manager.caches["menu"].clear_namespace(reclaim=True),
                    lambda: dish.invalidate(1),
                    lambda: dish.cache_clear(),
                ]

            uses = uses_of(patient)
            assert [await use() for use in uses] == [True] * len(uses)
            await done_behind(patient)
            uses = uses_of(hasty)
            async with asyncio.timeout(PATIENT):
                while not await hasty.invalidate("menu"):
                    pass
            server.kill()
            started = running_time()
            assert [await use() for use in uses] == [False] * len(uses)
            await done_behind(hasty)
            assert running_time() - started < 5 * len(uses) * hasty.settings.budget
            assert await hasty.get_or_load("menu", "a", lambda: 1) == 1
            server.start()
            async with asyncio.timeout(PATIENT):
                while not await hasty.invalidate("menu"):
                    await asyncio.sleep(0.01)

    async def test_over_fakeredis_too(self):
        fake = fakeredis.FakeServer()
        client = fakeredis.FakeAsyncRedis(server=fake)
        async with CacheManager(client=client, budget=0.1) as hasty, CacheManager(client=client, budget=PATIENT) as manager:
            await manager.set("menu", "a", 1)
            fake.connected = False
            assert await hasty.invalidate("menu") is False
            assert await hasty.caches["menu"].clear_namespace(reclaim=True) is False
            assert (await hasty.get("menu", "a"), await hasty.delete("menu", "a")) == (None, 0)
            await done_behind(hasty)
            fake.connected = True
            assert await manager.get("menu", "a") == 1
            assert await manager.invalidate("menu") is True
            assert await manager.get("menu", "a") is None
            await done_behind(manager)
        await client.aclose()

    async def test_who_knows_no_server_yet(self):
        """The first thing that a process ever does."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.1) as manager:
            assert await manager.invalidate_tags("x") is False
            assert await manager.invalidate_pattern("menu", "*") == 0

    async def test_inside_disabled_and_bypass_they_go_out(self, manager, peer):
        for block in (manager.disabled, manager.bypass):
            await manager.mset("menu", {"a": 1, "b": 2}, tags=["x"])
            with block():
                assert await manager.delete("menu", "b") == 1
                assert await manager.invalidate("menu", tags=["x"]) is True
            assert await peer.mget("menu", ["a", "b"]) == [None, None]


FOREIGN = [
    *("a", "shop", "shop:", "shop:menu", "shop:menus:=a", "shop:men:=a", "shopping:menu:=a", "Shop:menu:=a", "xshop:menu:=a", "menu:=a"),
    *("shop:api:=a", "shop2:menu:=a", "shop2!g:y:menu", "sshop!g:y:menu", "s*p:menu:=a", "sh?p:menu:=a", "session:1", "celery"),
]


def plant_foreign(client: Any) -> dict[bytes, Any]:
    """Keys of other applications, of every kind, some of which look like ours."""
    for n, name in enumerate(FOREIGN):
        (
            lambda name=name: client.set(name, b"theirs"),
            lambda name=name: client.hset(name, "field", "theirs"),
            lambda name=name: client.rpush(name, "theirs"),
            lambda name=name: client.sadd(name, "theirs"),
            lambda name=name: client.zadd(name, {"theirs": 1}),
        )[n % 5]()
    return {name.encode(): client.dump(name) for name in FOREIGN}


CLEAR_ALL: list[Clear] = [
    *(clear for clear, _ in CLEARED.values()),
    *(clear for clear, _ in REMOVED.values()),
    lambda m: m.delete("menu", "a", "b"),
    lambda m: m.set("menu", "a", 1, ttl=0),
    lambda m: m.touch("menu", "a", 0),
]


def all_scopes_outlive_all_entries(client: Any) -> int:
    """How many scopes there are; each lives longer than any entry does."""
    lives = {name: client.pttl(name) for name in client.scan_iter() if not name.startswith(b"shop!p:")}
    endless = {name: math.inf if life == -1 else life for name, life in lives.items()}
    scopes = [life for name, life in endless.items() if name.startswith(b"shop!g:")]
    assert min(scopes) >= max(life for name, life in endless.items() if name.startswith(b"shop:")), lives
    return len(scopes)


class TestPeers:
    """PEERS.md, by its numbers."""

    @pytest.mark.parametrize("prefix", ["shop", "s*p", "sh?p", "[s]hop", "sho\\p", "*"])
    async def test_r21_clearing_never_touches_what_is_not_ours(self, server, prefix):
        """Neighbours and foreign keys stay, byte for byte, whatever our prefix would match as a glob."""
        async with CacheManager(server.url, prefix=prefix, budget=PATIENT) as manager:
            with server.client() as client:
                foreign = plant_foreign(client)
                ours = [name for name in foreign if name.startswith(prefix.encode() + b":menu:=")]
                await fill(manager)
                for clear in CLEAR_ALL:
                    await manager.mset("menu", {"a": 1, "b": 1}, tenant=1, tags=["x"])
                    await manager.get_or_load("permissions", "a", lambda: 1, user=5)
                    await clear(manager)
                await done_behind(manager)
                await manager.invalidate_pattern("menu", "*")
                await manager.mset("menu", {"a": 1, "b": 1})
                assert await manager.invalidate_pattern("menu", "*") == 2
                for name in ours:
                    foreign[name] = client.dump(name)
                assert {name: client.dump(name) for name in foreign} == foreign

    async def test_r21_nothing_sweeps_the_server(self, server):
        """No FLUSHDB, no FLUSHALL, no KEYS; another database is never selected."""
        async with CacheManager(server.url, prefix="shop", budget=PATIENT) as manager:
            await fill(manager)
            with server.client() as client:
                client.config_resetstat()
                for clear in CLEAR_ALL:
                    await clear(manager)
                await done_behind(manager)
                used = {name.removeprefix("cmdstat_").lower() for name in client.info("commandstats")}
        assert {"del", "unlink", "scan"} <= used
        assert not used & {"flushdb", "flushall", "keys", "swapdb", "select", "rename", "randomkey", "sort", "eval"}

    async def test_r22_no_index_grows(self, remote):
        """A thousand entries with tags leave a token for each scope and nothing else, and an invalidation leaves fewer."""
        manager = remote.open()
        with remote.client() as client:

            def not_values() -> dict[bytes, int]:
                names = [name for name in client.scan_iter(count=1000) if not name.startswith(b"shop:")]
                assert {client.type(name) for name in names} == {b"string"}
                return {name: client.strlen(name) for name in names}

            async def store(round_: int) -> None:
                for n in range(20):
                    items = {f"{round_}:{n}:{m}": m for m in range(50)}
                    assert await manager.mset("menu", items, tags=[f"tag{n % 10}", f"other{n % 5}"], tenant=n % 4)

            await store(1)
            after_one = not_values()
            scopes = 1 + 4 * 2 + 15 * 2 + 4 * 15  # the type; tenants, and they in it; tags, and they in it; tenants' tags
            assert len(after_one) <= scopes
            assert set(after_one.values()) == {16}
            assert all(client.pttl(name) > 3600_000 for name in after_one)
            await store(2)
            assert not_values().keys() == after_one.keys()
            assert await manager.invalidate("menu", tags=["tag1"]) is True
            assert await manager.invalidate_tags("other1") is True
            assert len(not_values()) == len(after_one) - 2
            assert client.dbsize() == 2000 + len(after_one) - 2

    async def test_r22_what_loads_leave_behind_expires(self, remote):
        """A permit for each key that was loaded, for seconds."""
        manager = remote.open()
        await manager.get_or_load_many("menu", map(str, range(1000)), lambda keys: dict.fromkeys(keys, 1), tags=["x"])
        with remote.client() as client:
            permits = list(client.scan_iter(match="shop!p:*", count=1000))
            assert len(permits) <= 1000
            assert all(0 < client.pttl(name) <= 30_000 for name in permits)
            assert client.dbsize() - len(permits) <= 1000 + 10

    async def test_r22_reclaimed_memory_is_free(self, remote):
        """`clear_namespace(reclaim=True)`: values and permits of the type are gone, and those of no other."""
        manager = remote.open()
        keys = [str(n) for n in range(1200)]
        await manager.mset("menu", dict.fromkeys(keys, 1), tenant=1)
        await manager.get_or_load_many("menu", keys, lambda keys: dict.fromkeys(keys, 1))
        await manager.mset("api", dict.fromkeys(keys, 1))
        assert await manager.caches["menu"].clear_namespace(reclaim=True) is True
        await done_behind(manager)
        with remote.client() as client:
            assert [name for name in client.scan_iter(count=1000) if b"shop:menu:" in name] == []
        assert len(await manager.get_many("api", keys)) == 1200

    async def test_r6_a_later_shorter_life_does_not_shorten_a_tag_s(self, remote):
        """Whatever is stored after it, a scope lives longer than every entry that depends on it, so it can always be invalidated."""
        for first, later in ((3600, 0.05), (FOREVER, 0.05), (60, FOREVER), (60, "9d")):
            manager = remote.open()
            with remote.client() as client:
                client.flushall()
                await manager.set("menu", "long", 1, ttl=first, tags=["x"], tenant=1)
                await manager.set("menu", "other", 1, ttl=later, tags=["x"], tenant=1)
                await manager.get_or_load("menu", "short", lambda: 1, ttl=0.02, tags=["x"], tenant=1)
                assert all_scopes_outlive_all_entries(client) == 6
                while client.exists("shop:menu:t1:=short"):
                    await asyncio.sleep(0.005)
                assert await manager.get("menu", "long", tenant=1) == 1
                assert await manager.invalidate("menu", tags=["x"]) is True
                assert await manager.get("menu", "long", tenant=1) is None

    @pytest.mark.parametrize("ttl", ["9d", FOREVER], ids=str)
    @pytest.mark.parametrize(
        "give",
        [
            lambda m, ttl: m.set("menu", "a", 1, ttl=ttl, tags=["x"], tenant=1),
            lambda m, ttl: m.add("menu", "a", 1, ttl=ttl, tags=["x"], tenant=1),
            lambda m, ttl: m.get_or_load("menu", "a", lambda: 1, ttl=ttl, tags=["x"], tenant=1),
            lambda m, ttl: m.touch("menu", "short", ttl, tenant=1),
        ],
        ids=["set", "add", "get_or_load", "touch"],
    )
    async def test_r6_nor_does_an_earlier_one(self, remote, give, ttl):
        """Scopes that were made for a short life live longer with what is given a longer one, also where this process knows them."""
        manager = remote.open()
        await manager.set("menu", "short", 1, ttl=50, tags=["x"], tenant=1)
        assert await manager.get("menu", "a", tenant=1) is None
        assert await give(manager, ttl)
        with remote.client() as client:
            assert all_scopes_outlive_all_entries(client) == 6

    async def test_r19_clocks_that_differ_make_no_difference_to_an_invalidation(self, remote):
        """An hour ahead or behind: nothing compares the clocks of two machines."""
        for offset in (-3600.0, 3600.0):
            one, other = (remote.open(clock=ManualClock(1_000_000.0 + by)) for by in (0.0, offset))
            await one.set("menu", "a", 1, ttl="1d", tags=["x"])
            assert await other.get("menu", "a") == 1
            assert await other.invalidate_tags("x") is True
            assert await one.get("menu", "a") is None
            await other.set("menu", "a", 2, ttl="1d", tags=["x"])
            assert await one.get("menu", "a") == 2
            assert await one.invalidate("menu") is True
            assert await other.get("menu", "a") is None
