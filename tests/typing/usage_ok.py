# pyright: strict
"""What users write: every line must type in strict mode of mypy and pyright, and `main` runs over `memory://`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, NewType, TypedDict, TypeVar, assert_type
from unittest.mock import AsyncMock, MagicMock, patch
from uuid import UUID

from aiocache_aura import (
    ALL,
    FOREVER,
    MISSING,
    TTL,
    BoundCached,
    Cache,
    CachedFunction,
    CacheEntry,
    CacheInfo,
    CacheManager,
    CacheParameters,
    CachePolicy,
    CacheTTL,
    Call,
    Clock,
    Explanation,
    ManagerLike,
    RedisClient,
    TenantMiddleware,
    Uncached,
    cache,
    cache_analytics,
    cache_api,
    cache_menu,
    cache_permissions,
    cache_reports,
    cache_search,
    cache_settings,
    cache_static,
    current_tenant,
    current_user,
    invalidate_cache,
    register_key_type,
    register_type,
    tenant_scope,
    user_scope,
)
from aiocache_aura.cache_manager import cache_manager
from aiocache_aura.types import Missing

T = TypeVar("T")
ItemId = NewType("ItemId", int)


class Row(TypedDict):
    id: int
    name: str


@dataclass
class Item:
    id: int


class Session: ...


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


class FakeManager:
    async def get(self, cache_type: str, key: str) -> object:
        return None

    async def set(self, cache_type: str, key: str, value: object, ttl: object = None) -> None: ...


class PlainFake:
    """A stand-in need not be async."""

    def get(self, cache_type: str, key: str) -> object:
        return 1

    def set(self, cache_type: str, key: str, value: object, ttl: object = None) -> None: ...


class FixedClock:
    def time(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 0.0


register_key_type(Money, lambda money: money.cents)  # 1 a class of the user's in keys
assert_type(register_type(Item), type[Item])  # 2 and in values
manager = CacheManager("memory://", prefix="typed", policies={"orders": CachePolicy(ttl="5m", jitter=0.1)})  # 3
clock: Clock = FixedClock()  # 4 any object with the two methods
stranger: ManagerLike = FakeManager()  # 5
also_stranger: ManagerLike = manager  # 6 a manager is one, too
life: TTL = timedelta(minutes=5)  # 7


@cache_menu()  # 8 the guide's first
async def get_menu_items(restaurant_id: int) -> list[Row]:
    return [{"id": restaurant_id, "name": "Pizza"}]


@cache_menu  # 9 bare, named
async def bare_menu(restaurant_id: int) -> list[Row]:
    return []


@cache  # 10 bare, general
async def bare(x: int, /, y: str = "a", *, z: bool = False) -> Item:
    return Item(x)


@cache()  # 11 empty brackets
async def empty(x: int) -> int:
    return x


@cache_permissions()  # 12 a plain function is awaited
def get_user_permissions(user_id: int) -> set[str]:
    return {"read"}


@cache(cache_type="analytics", ttl=300, tags=["revenue:{restaurant_id}"], exclude=["db"])  # 13
async def get_daily_revenue(restaurant_id: int, date: datetime, db: Session) -> float:
    return 1.0


@cache(cache_type="api", key="customers:{restaurant_id}:{page}", ttl=CacheTTL.API_RESPONSE)  # 14
async def customers(restaurant_id: int, page: int = 1) -> list[Item]:
    return [Item(page)]


@cache(cache_type="api", ttl="5m")  # 15
async def text_ttl() -> int:
    return 1


@cache(cache_type="api", ttl=timedelta(minutes=5), jitter=0.1, tenant_aware="known", user_aware=False)  # 16
async def policy_fields() -> int:
    return 1


@cache(cache_type="static", ttl=FOREVER)  # 17
async def for_ever() -> None:
    return None


@cache(cache_type="api", ttl=None)  # 18 the policy's
async def policys_ttl() -> int:
    return 1


def tags_of(call: Call) -> list[str]:
    return [f"x:{call['x']}"]


@cache(cache_type="api", tags=lambda call: [f"x:{call['x']}"], key=lambda call: f"k{call['x']}")  # 19 callables get one typed Call
async def by_call(x: int) -> int:
    return x


@cache(cache_type="api", tags=tags_of)  # 20
async def by_function(x: int) -> int:
    return x


@cache(cache_type="api")  # 21 *args, **kwargs
async def variadic(*ids: int, **flags: bool) -> dict[int, bool]:
    return dict.fromkeys(ids, True)


@cache(cache_type="api")  # 22 NewType
async def of_new_type(i: ItemId) -> ItemId:
    return i


@cache(cache_type="api")  # 23 Optional
async def optional(i: int) -> Item | None:
    return Item(i)


@cache_api(secret=["token"], name="api.login", version=2)  # 24
async def login(token: str) -> bool:
    return True


@cache_search(returns=list[Item])  # 25
async def search(text: str) -> list[Item]:
    return [Item(1)]


@cache_settings(max_value_bytes=1024, share=True)  # 26
async def settings(restaurant_id: int, *, zone: str = "UTC") -> dict[str, str]:
    return {"zone": zone}


@cache_reports(exclude=("db",), tags=("reports",))  # 27 any iterable of names
def report(db: Session, year: int) -> bytes:
    return b"%d" % year


@cache_analytics(tenant_aware=True)  # 28
async def analytics() -> tuple[int, ...]:
    return (1, 2)


@cache_static(manager=FakeManager())  # 29 any object with get and set
async def mocked(x: int) -> int:
    return x


@cache_static(manager=PlainFake())  # 30
async def plainly_mocked(x: int) -> int:
    return x


@cache_menu(manager=AsyncMock())  # 31
async def async_mocked(x: int) -> int:
    return x


@cache_permissions(manager=manager)  # 32
async def managed(user_id: int) -> int:
    return 1


@cache_api(key="same:{x}", exclude=["db"])  # 33 an awaitable that a plain function returns is awaited
def returns_awaitable(x: int, db: Session | None = None) -> Coroutine[Any, Any, int]:
    return empty(x)


@cache_api()  # 34 a generic function stays one
async def same(x: T) -> T:
    return x


@cache_api()  # Any in a signature does not spread over the rest of it
async def loose(x: Any, y: int = 1) -> dict[str, Any]:
    return {"x": x}


def retried(fn: Callable[[int], Awaitable[int]]) -> Callable[[int], Coroutine[Any, Any, int]]:
    async def again(x: int) -> int:
        return await fn(x)

    return again


@cache_api(name="typed.retry")  # over another decorator
@retried
async def retry(x: int) -> int:
    return x


@invalidate_cache("menu")  # 35
async def update_menu_item(item_id: int, restaurant_id: int, data: dict[str, object]) -> Item:
    return Item(item_id)


@invalidate_cache("menu", "analytics", tags=["item:{item_id}", "cat:{result.id}"], on_error=True)  # 36 sync
def update_sync(item_id: int) -> Item:
    return Item(item_id)


@invalidate_cache("settings", tenant=ALL, manager=manager)  # 37
async def update_all() -> None: ...


@invalidate_cache("api", keys=["customers:{from_id}:1"], tenant="{to_id}", user=None)  # 38
async def transfer(from_id: int, to_id: int) -> bool:
    return True


@invalidate_cache("api", keys=lambda call: [f"k{call['x']}", f"r{call.result}"], tags=lambda call: [str(call.result)])  # 39
async def by_calls(x: int) -> int:
    return x


@cache_menu()
@invalidate_cache("api")  # 40 stacked
async def stacked(x: int) -> int:
    return x


async def open_session() -> AsyncIterator[Session]:
    yield Session()


def first_of(error: Exception) -> list[int]:
    return []


@cache(
    cache_type="orders", ttl=lambda result: 5 if result else "1m", stale="1h", soft_timeout=0.2, hard_timeout=timedelta(seconds=2)
)  # 115
async def fresh(x: int) -> list[int]:
    return [x]


@cache_menu(
    stale_on=(TimeoutError, OSError), throttle="5s", early_refresh=True, sliding=True, load_deadline=None, keep_loading=True, lease=True
)  # 116
async def revalidated(x: int) -> int:
    return x


@cache_api(cache_none=True, negative_ttl="10s", cache_errors=(KeyError,), store_if=bool, fallback=first_of)  # 117
async def negative(x: int) -> list[int] | None:
    return None


@cache_api(provide={"db": open_session})  # 118 opened by each load
async def provided(x: int, db: Session | None = None) -> int:
    assert db is not None
    return x


@cache_api()  # 119 a value that is not stored
async def uncached(x: int) -> list[int]:
    return Uncached.of([x])


@invalidate_cache("menu", keep_stale=True)  # 120
async def touch_menu() -> None: ...


class Repo:
    @cache(cache_type="api")  # 41
    async def m(self, x: int) -> str:
        return "m"

    @cache(cache_type="api")  # 42
    def plain(self, x: int) -> str:
        return "plain"

    @classmethod
    @cache(cache_type="api")  # 43
    async def c1(cls, x: int) -> str:
        return "c1"

    @cache(cache_type="api")  # 44
    @classmethod
    async def c2(cls, x: int) -> str:
        return "c2"

    @staticmethod
    @cache(cache_type="api")  # 45
    async def s1(x: int) -> str:
        return "s1"

    @cache_menu  # 46 bare
    async def bare(self, restaurant_id: int) -> list[Row]:
        return []

    @cache_api(self_key=lambda repo: "one")  # 47
    async def keyed(self, x: int) -> int:
        return x

    @invalidate_cache("menu")  # 48
    async def save(self, x: int) -> bool:
        return True

    @invalidate_cache("menu")  # 49
    def save_plain(self, x: int) -> bool:
        return True


class Sub(Repo):
    async def m2(self) -> str:
        return await self.m(1)  # 50


class Base(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value

    @cache(cache_type="api", exclude=["self"])  # 51 a generic repository
    async def one(self, id: int) -> T:
        return self.value


async def takes_callback(f: Callable[[int], Awaitable[str]]) -> str:
    return await f(1)


async def takes_coroutine(f: Callable[[int], Coroutine[Any, Any, str]]) -> str:
    return await f(1)


async def load() -> Item:
    return Item(1)


def load_plainly() -> Item:
    return Item(1)


async def load_many(keys: list[str]) -> dict[str, Item]:
    return {key: Item(1) for key in keys}


def load_many_plainly(keys: list[str]) -> dict[str, Item]:
    return {key: Item(2) for key in keys}


def texts() -> Iterator[str]:
    yield "a"


async def functions() -> None:
    assert_type(await get_menu_items(1), list[Row])  # 52
    assert_type(await get_menu_items(restaurant_id=1), list[Row])  # 53
    assert_type(await bare_menu(1), list[Row])  # 54
    assert_type(await bare(1, "b", z=True), Item)  # 55
    assert_type(await empty(1), int)
    assert_type(await get_user_permissions(1), set[str])  # 56
    assert_type(await get_daily_revenue(1, datetime(2026, 11, 1), Session()), float)  # 57
    assert_type(await customers(1), list[Item])  # 58
    assert_type(await optional(1), Item | None)  # 59
    assert_type(await variadic(1, 2, a=True), dict[int, bool])  # 60
    assert_type(await of_new_type(ItemId(1)), ItemId)  # 61
    assert_type(await returns_awaitable(1), int)
    assert_type(await loose("x", y=2), dict[str, Any])
    exact: Callable[[Any, int], Coroutine[Any, Any, dict[str, Any]]] = loose
    assert_type(await exact("x", 1), dict[str, Any])
    assert_type(await retry(1), int)
    assert_type(await same("x"), str)  # 62
    assert_type(await same(1), int)
    assert_type(await for_ever(), None)
    assert_type(await report(Session(), year=2026), bytes)
    assert_type(await update_menu_item(1, 2, {}), Item)  # 63
    assert_type(await update_sync(1), Item)  # 64
    assert_type(await transfer(1, to_id=2), bool)
    assert_type(await by_calls(1), int)
    assert_type(await stacked(1), int)  # 65
    assert_type(await mocked(1), int)
    assert_type(await managed(1), int)
    assert_type(await plainly_mocked(1), int)


async def verbs() -> None:
    assert_type(await customers.peek(1), list[Item] | None)  # 66
    assert_type(await customers.refresh(1, page=2), list[Item])  # 67
    assert_type(await customers.invalidate(1), bool)  # 68
    assert_type(await customers.exists(1, page=2), bool)  # 69
    assert_type(await customers.set_value([], 1, page=2), bool)  # 70
    assert_type(customers.cache_key(1), str)  # 71
    assert_type(customers.cache_info(), CacheInfo)  # 72
    assert_type(customers.cache_info().hits, int)
    assert_type(customers.cache_parameters(), CacheParameters)  # 73
    assert_type(customers.cache_parameters()["ttl"], float | None)
    assert_type(await customers.cache_clear(), bool)  # 74
    name: str = customers.__name__ + customers.__qualname__ + update_sync.__name__  # 75
    wrapped: Callable[..., Any] = customers.__wrapped__
    print(name, wrapped)
    assert_type(await bare_menu.peek(restaurant_id=1), list[Row] | None)
    assert_type(await get_user_permissions.refresh(1), set[str])
    assert_type(await stacked.invalidate(1), bool)


async def freshness() -> None:
    assert_type(await customers.using(fresh=True, max_stale="5s")(1, page=2), list[Item])  # 121
    assert_type(await Repo().m.using(refresh=True)(1), str)  # 122
    assert_type(await Repo.m.using(l1=False)(Repo(), 1), str)  # 123
    assert_type(await Repo.c2.using(ttl="5m")(1), str)
    assert_type(await Repo.s1.using(ttl=FOREVER, max_stale=None)(1), str)
    named: BoundCached[[int], list[Row]] = bare_menu.using(fresh=True)  # 124
    assert_type(await named.peek(1), list[Row] | None)
    assert_type(await customers.using(fresh=True).using(ttl=5).set_value([], 1), bool)
    assert_type(await optional.entry(1), CacheEntry[Item | None] | None)  # 125
    entry = await optional.entry(1)
    if entry is not None:
        assert_type(entry.value, Item | None)
        assert_type(entry.is_fresh, bool)
        assert_type(entry.age + entry.left, float)
    assert_type(await Repo.m.entry(Repo(), 1), CacheEntry[str] | None)
    assert_type(await Repo().m.explain(1), Explanation)  # 126
    assert_type(await Repo.m.explain(Repo(), 1), Explanation)
    assert_type((await manager.explain("menu", "k", tenant=1)).scopes["y:menu"], bool)
    assert_type(await manager.caches["menu"].explain("k", as_type=Item), Explanation)
    assert_type(await manager.entry("menu", "k"), CacheEntry[Any] | None)  # 127
    assert_type(await manager.caches["menu"].entry("k", as_type=Item), CacheEntry[Item] | None)
    assert_type(await manager.invalidate("menu", tenant=1, keep_stale=True), bool)  # 128
    await manager.caches["menu"].invalidate(tags=["x"], keep_stale=True)
    await manager.invalidate_tags("a", keep_stale=True)
    await manager.invalidate_menu(1, keep_stale=True)
    await manager.invalidate_tenant(1, keep_stale=True)
    await manager.invalidate_user(1, keep_stale=True)
    await manager.invalidate_permissions(user=5, keep_stale=True)
    assert_type(await provided(1), int)  # 129 and need not be passed
    assert_type(await provided(1, Session()), int)
    assert_type(await uncached(1), list[int])
    assert_type(await revalidated(1), int)
    assert_type(await negative(1), list[int] | None)
    assert_type(await touch_menu(), None)
    manager.register("orders", CachePolicy(ttl="5m", stale=60, stale_on=(KeyError,), negative_ttl=None))  # 130
    assert_type(await manager.get_or_load("orders", "k", load, stale="1m", fallback=None), Item)
    cache_manager.register("orders", CachePolicy(ttl=5))
    assert_type(await fresh(1), list[int])


async def methods() -> None:
    repo = Repo()
    assert_type(await repo.m(1), str)  # 76
    assert_type(await repo.plain(x=1), str)
    nameable: BoundCached[[int], str] = repo.m  # 77
    print(nameable)
    await repo.m.invalidate(1)  # 78
    await repo.m.set_value("v", 1)
    assert_type(await Sub().m.peek(1), str | None)
    assert_type(await Sub().m2(), str)
    assert_type(await Repo.c1(1), str)  # 79
    assert_type(await Repo.c2(1), str)
    assert_type(await repo.c1(1), str)
    assert_type(await Repo.s1(1), str)  # 80
    assert_type(await Repo.m(repo, 1), str)  # 81
    await Repo.c1.invalidate(1)  # 82
    await Repo.c2.invalidate(1)
    await Repo.s1.invalidate(1)
    await Repo.m.refresh(repo, 1)
    assert_type(Repo.m.cache_key(repo, 1), str)
    assert_type(await Repo.m.exists(repo, 1), bool)
    assert_type(await repo.keyed(1), int)
    assert_type(await repo.bare(1), list[Row])
    assert_type(repo.m.cache_info().misses, int)
    assert_type(await repo.save(1), bool)  # 83
    assert_type(await repo.save_plain(x=1), bool)
    assert_type(await Base(Item(1)).one(1), Item)  # 84


async def as_values() -> None:
    repo = Repo()
    await takes_callback(repo.m)  # 85 passes as a callable
    await takes_coroutine(repo.m)
    a, b = await asyncio.gather(customers(1), repo.m(1))  # 86
    assert_type(a, list[Item])
    assert_type(b, str)
    task = asyncio.create_task(get_menu_items(1))  # 87
    assert_type(await task, list[Row])
    bound = functools.partial(customers, 1)  # 88
    assert_type(await bound(), list[Item])
    named: CachedFunction[[int], list[Row]] = bare_menu  # 89
    functions_of_all: list[CachedFunction[..., Any]] = [bare_menu, customers, get_user_permissions]  # 90
    print(named, functions_of_all)
    async with asyncio.TaskGroup() as group:
        group.create_task(customers(1))
        group.create_task(update_menu_item(1, 2, {}))  # 91


async def reading() -> None:
    x = await manager.get("menu", "k", default=MISSING)  # 92
    if x is not MISSING:
        print(x)
    assert_type(await manager.get("menu", "k", as_type=Item), Item | None)  # 93
    found = await manager.get("menu", "k", as_type=Item, default=MISSING)
    assert_type(found, Item | Missing)  # 94
    if found is not MISSING:
        assert_type(found, Item)
    assert_type(await manager.get("menu", "k", as_type=Item, default=0, tenant=UUID(int=1)), Item | int)
    assert_type(await manager.get("menu", "k", as_type=dict[str, list[int]]), dict[str, list[int]] | None)
    menu = manager.caches["menu"]
    assert_type(menu, Cache)  # 95
    assert_type(await menu.get("k", as_type=Item), Item | None)
    assert_type(await menu.mget(["a"], as_type=Item), list[Item | None])  # 96
    assert_type(await menu.mget(texts(), as_type=Item, default=MISSING), list[Item | Missing])
    assert_type(await menu.get_many({"a": 1}, as_type=Item), dict[str, Item])  # 97
    assert_type(await manager.get_or_load("menu", "k", load, ttl=300), Item)  # 98
    assert_type(await manager.get_or_load("menu", "k", lambda: load(), as_type=Item), Item)  # 99
    assert_type(await manager.get_or_load("menu", "k", load_plainly), Item)  # 100 plain
    assert_type(await menu.get_or_load("n", 5), int)  # 101 a value
    assert_type(await menu.get_or_load_many(["a"], load_many), dict[str, Item])  # 102
    assert_type(await menu.get_or_load_many(["a"], load_many_plainly, ttl="5m"), dict[str, Item])
    assert_type(await manager.exists("menu", "k"), bool)
    assert_type(await manager.ttl("menu", "k"), float | None)  # 103


async def writing() -> None:
    assert_type(await manager.caches["menu"].mset({"a": 1}, ttl=3600), bool)  # 104
    assert_type(await manager.set("analytics", "k", {"total": 1.5}, ttl=300, tags=["revenue"], tenant=1), bool)  # 105
    assert_type(await manager.add("analytics", "k", Item(1), as_type=Item, user="5"), bool)
    assert_type(await manager.touch("analytics", "k", "5m"), bool)
    assert_type(await manager.delete("analytics", "k", "l"), int)
    assert_type(manager.register("orders", CachePolicy(ttl="5m", jitter=0.1)), Cache)  # 106
    assert_type(manager.override("menu", ttl=120), Cache)
    assert_type(await manager.invalidate("orders", tenant=1), bool)  # 107 registered types
    assert_type(await manager.invalidate("orders", tenant=ALL, tags=["x"]), bool)
    await manager.invalidate_menu(1)  # 108
    await manager.invalidate_menu()
    await manager.invalidate_permissions(user=5)  # 109
    await manager.invalidate_user(UUID(int=5))
    await manager.invalidate_tags("a", "b")
    assert_type(await manager.invalidate_pattern("menu", "item:*"), int)
    assert_type(await manager.caches["menu"].clear_namespace(reclaim=True), bool)
    assert_type(await manager.clear_namespace("menu", reclaim=True), bool)
    with manager.disabled(), manager.bypass(), tenant_scope(7), user_scope("5"), tenant_scope(UUID(int=7)):  # 110
        assert_type(current_tenant(), str | None)
        assert_type(current_user(), str | None)
    async with manager.deferred():  # what is invalidated inside goes out when the block has ended well
        assert_type(await manager.invalidate_menu(1), bool)
    later: AbstractAsyncContextManager[None] = manager.deferred()
    async with later as nothing:
        assert_type(nothing, None)
    assert_type(manager.stats()["menu"], dict[str, Any])


async def around() -> None:
    async with CacheManager("memory://", clock=clock, budget=0.1, strict=True) as one:  # 111
        assert_type(one, CacheManager)
    lifespan: Callable[[object], AbstractAsyncContextManager[None]] = cache_manager.lifespan  # 112
    async with lifespan(None):
        await TenantMiddleware(app, tenant="x-tenant", user=lambda scope: scope.get("user"))({"type": "lifespan"}, receive, send)  # 113
    with patch("aiocache_aura.cache_manager.cache_manager", MagicMock()):  # 114
        pass
    configured: Callable[..., None] = cache_manager.configure
    client: Callable[[], object] = RedisClient.get_client  # 115
    names: Iterable[str] = manager.caches
    print(configured, client, list(names))


async def app(scope: Any, receive: Any, send: Any) -> None: ...


async def receive() -> dict[str, Any]:
    return {}


async def send(message: Any) -> None: ...


async def main() -> None:
    async with manager:
        for part in (functions, verbs, freshness, methods, as_values, reading, writing, around):
            await part()


if __name__ == "__main__":
    asyncio.run(main())
