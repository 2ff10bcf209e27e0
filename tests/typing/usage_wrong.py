# pyright: strict
"""What users must not write: both checkers reject every line that is marked, and no other."""

from __future__ import annotations

from typing import Any, TypeVar

from aiocache_aura import (
    MISSING,
    CacheManager,
    CachePolicy,
    CacheTTL,
    RedisClient,
    TenantMiddleware,
    cache,
    cache_menu,
    cache_permissions,
    invalidate_cache,
    tenant_scope,
    user_scope,
)

T = TypeVar("T")
manager = CacheManager("memory://")


@cache_menu()
async def f(restaurant_id: int, page: int = 1) -> list[int]:
    return []


@cache_permissions
def plain(user_id: int) -> set[str]:
    return set()


class Repo:
    @cache(cache_type="api")
    async def m(self, x: int) -> str:
        return ""

    @classmethod
    @cache(cache_type="api")
    async def c(cls, x: int) -> str:
        return ""

    @staticmethod
    @cache(cache_type="api")
    async def s(x: int) -> str:
        return ""

    @invalidate_cache("menu")
    async def save(self, x: int) -> bool:
        return True

    @classmethod
    @invalidate_cache("menu")
    async def clear(cls, x: int) -> None: ...


@cache(cache_type="api")
async def generic(x: T) -> T:
    return x


@invalidate_cache("menu")
def update(item_id: int) -> int:
    return item_id


async def app(scope: Any, receive: Any = None, send: Any = None) -> None: ...


async def calls() -> None:
    await f("1")  # wrong: another class
    await f()  # wrong: an argument is missing
    await f(1, pag=2)  # wrong: an unknown keyword
    f(1)  # wrong: not awaited
    x: str = await f(1)  # wrong: the result is a list
    await f(1, ttl=5)  # wrong: options are not the function's keywords
    await plain("5")  # wrong: a plain function keeps its parameters
    await plain(5) + {"x"}  # wrong: sets are not added
    for _ in plain(5):  # wrong: it is awaited
        pass
    (await generic(1)).bit_length()
    (await generic("1")).bit_length()  # wrong: text has none
    print(x)


async def verbs() -> None:
    await f.invalidate("1")  # wrong: the verbs have the function's parameters
    await f.set_value("x", 1)  # wrong: not what the function returns
    await f.set_value([1])  # wrong: of which call?
    await f.set_value(value=[1], restaurant_id=1)  # wrong: the value comes by position
    (await f.peek(1)).sort()  # wrong: it may be None
    await f.exists()  # wrong: of which call?
    f.cache_key("1")  # wrong: another class
    f.cache_info().hist  # wrong: hits
    f.cache_clear()  # wrong: unlike functools', it is awaited
    f.cache_parameters()["tll"]  # wrong: ttl
    await f.forget(1)  # wrong: no such verb


async def freshness() -> None:
    await f.using(frsh=True)(1)  # wrong: misspelt
    await f.using(fresh=True)("1")  # wrong: another class
    await f.using(fresh="yes")(1)  # wrong: not a bool
    f.using(True)  # wrong: by keyword
    await f.using(ttl=lambda result: 5)(1)  # wrong: a function of the result is for decorators
    await Repo().m.using(refresh=True)()  # wrong: an argument is missing
    (await f.entry(1)).value  # wrong: it may be None
    await f.entry("1")  # wrong: another class
    (await f.explain(1)).verdit  # wrong: verdict
    await manager.explain("menu")  # wrong: of which key?
    await manager.invalidate("menu", keep_stale="yes")  # wrong: not a bool
    await manager.invalidate_tags(keep_stal=True)  # wrong: misspelt
    cache(stale=[5])  # wrong: not a time
    cache(stale_on=KeyError)  # wrong: a tuple of classes
    cache(cache_errors=(KeyboardInterrupt,))  # wrong: not an Exception
    cache(ttl=lambda: 5)  # wrong: it is given the result
    cache(provide={"db": 5})  # wrong: a function that makes one
    cache(provide=["db"])  # wrong: by parameter
    CachePolicy(ttl=lambda result: 5)  # wrong: for decorators
    CachePolicy(store_if=True)  # wrong: a function
    await manager.set("menu", "k", 1, ttl=lambda result: 5)  # wrong: for decorators
    manager.override("menu", ttl=lambda result: 5)  # wrong: for decorators


async def methods() -> None:
    await Repo().m("x")  # wrong: another class
    await Repo().m.refresh()  # wrong: an argument is missing
    await Repo.c("x")  # wrong: another class
    await Repo.s("x")  # wrong: another class
    await Repo.m.invalidate()  # wrong: of which instance and call?
    await Repo().save("x")  # wrong: another class
    await Repo.save(Repo(), "x")  # wrong: another class
    await Repo.clear("x")  # wrong: another class
    Repo().save(1)  # wrong: not awaited
    await update("1")  # wrong: another class
    update(1) + 1  # wrong: it is awaited


def options() -> None:
    cache(cache_type="api", ttl=[5])  # wrong: not a TTL
    cache(cache_type="api", tll=5)  # wrong: misspelt
    cache(cache_type=CacheTTL.MENU_ITEMS)  # wrong: a TTL for a type
    cache("menu")  # wrong: the type is given by keyword
    cache_menu("menu")  # wrong: the type is said already
    cache_menu(cache_type="menu")  # wrong: the type is said already
    cache_menu(tenant_aware="maybe")  # wrong: True, False or "known"
    cache_menu(manager=object())  # wrong: it has neither get nor set
    cache_menu(key=lambda call: 5)  # wrong: a key is text
    invalidate_cache(5)  # wrong: types are named
    invalidate_cache("menu", on_eror=True)  # wrong: misspelt
    invalidate_cache("menu", tenant=1.5)  # wrong: not an id
    CachePolicy(300)  # wrong: every field is named
    CachePolicy(ttl=None)  # wrong: None is not for ever
    CacheManager("memory://", prefixx="shop")  # wrong: misspelt
    CacheManager("memory://", client=None)  # wrong: a URL or a client


async def managers() -> None:
    await manager.get(CacheTTL.MENU_ITEMS, "k")  # wrong: a type is named by text
    await manager.get("menu", 1)  # wrong: a key is text
    await manager.get("menu", "k", tenant=1.5)  # wrong: not an id
    (await manager.get("menu", "k", as_type=str)).upper()  # wrong: it may be None
    (await manager.get("menu", "k", as_type=str, default=MISSING)).upper()  # wrong: it may be MISSING
    await manager.set("menu", "k", 1, tll=5)  # wrong: misspelt
    await manager.set("menu", "k", 1, ttl=b"5m")  # wrong: not a TTL
    await manager.delete("menu", ["a", "b"])  # wrong: keys come one by one
    await manager.caches["menu"].mset([("a", 1)])  # wrong: a mapping
    await manager.caches["menu"].get_or_load_many(["a"], lambda keys: 5)  # wrong: its loader gives a mapping
    await manager.invalidate_permissions(5)  # wrong: is 5 a user or a tenant?
    await manager.invalidate_mneu(1)  # wrong: misspelt
    await manager.invalidate("menu", tenat=1)  # wrong: misspelt
    await manager.invalidate_tenant(None)  # wrong: nobody
    manager.invalidate_menu(1)  # wrong: not awaited
    manager.register("orders", ttl=5)  # wrong: a policy
    with manager.deferred():  # wrong: async with
        pass
    manager.deferred(cache_type="menu")  # wrong: it holds everything of its manager
    with tenant_scope(None):  # wrong: nobody
        pass
    with user_scope(1.5):  # wrong: not an id
        pass
    RedisClient.configure("redis://localhost")  # wrong: the URL is named
    TenantMiddleware(app, tenant=5)  # wrong: a function or the name of a header
    TenantMiddleware(tenant="x-tenant")  # wrong: of which app?
