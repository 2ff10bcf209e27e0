"""The blocks of the Redis caching guide of AuraConnect, one by one: written as its users write them, with its names, made awaitable.

Each runs over `memory://` and over a real server. The process-wide `cache_manager` is another one for each test, patched as users patch it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from unittest.mock import AsyncMock, MagicMock, patch

import pytest
from pydantic import BaseModel, ConfigDict
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import ForeignKey, Numeric, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from aiocache_aura import (
    ALL,
    FOREVER,
    MISSING,
    CacheManager,
    ConfigurationError,
    MissingTenantError,
    MissingUserError,
    tenant_scope,
    user_scope,
)
from aiocache_aura.cache_manager import CachePolicy, cache_manager
from aiocache_aura.decorators import (
    cache,
    cache_analytics,
    cache_api,
    cache_menu,
    cache_permissions,
    cache_reports,
    cache_search,
    cache_settings,
    cache_static,
    invalidate_cache,
)
from aiocache_aura.redis_client import RedisClient
from aiocache_aura.types import CacheTTL
from tests.clocks import ManualClock

NAME = "aiocache_aura.cache_manager.cache_manager"


class Shop:
    """A test's process-wide manager, `another` process over the same store, the clock of both, and a database that counts its queries."""

    def __init__(self, url: str, clock: ManualClock) -> None:
        self.url, self.clock, self.queries = url, clock, []
        self._processes: list[CacheManager] = []
        self.manager = self.process()

    def process(self) -> CacheManager:
        self._processes.append(CacheManager(self.url, prefix="guide", clock=self.clock))
        return self._processes[-1]

    @contextlib.contextmanager
    def another(self):
        """The block is run by another process; over memory, which no two share, by the same."""
        with patch(NAME, self.process() if self.url != "memory://" else self.manager):
            yield

    async def query(self, *what: object) -> list[dict[str, object]]:
        self.queries.append(what)
        await asyncio.sleep(0)
        return [{"id": len(self.queries), "of": list(what)}]

    async def aclose(self) -> None:
        for process in self._processes:
            await process.aclose()


@pytest.fixture(params=["memory", "valkey"])
async def shop(request, clock, monkeypatch):
    url = "memory://" if request.param == "memory" else request.getfixturevalue("valkey").url
    shop = Shop(url, clock)
    monkeypatch.setattr(NAME, shop.manager)
    yield shop
    await shop.aclose()


@pytest.fixture
async def redis_client(valkey, monkeypatch):
    """`RedisClient`, unconfigured, and as it was afterwards."""
    monkeypatch.delenv("AURA_CACHE_URL", raising=False)
    before = RedisClient._options
    yield RedisClient
    await RedisClient.aclose()
    RedisClient._options = before


# Basic decorators


async def test_basic_decorators(shop):
    """Block "basic decorators": one for each type, with empty brackets; the second call does not run the function."""

    @cache_menu()
    async def get_menu_items(restaurant_id: int) -> list[dict]:
        return await shop.query("menu", restaurant_id)

    @cache_permissions()
    async def get_user_permissions(user_id: int) -> list[dict]:
        return await shop.query("permissions", user_id)

    @cache_settings()
    async def get_restaurant_settings(restaurant_id: int) -> list[dict]:
        return await shop.query("settings", restaurant_id)

    @cache_analytics()
    async def get_sales(restaurant_id: int, day: datetime) -> list[dict]:
        return await shop.query("sales", restaurant_id, day.isoformat())

    @cache_api()
    async def get_page(path: str, page: int = 1) -> list[dict]:
        return await shop.query("page", path, page)

    @cache_search()
    async def search_items(text: str, *, limit: int = 10) -> list[dict]:
        return await shop.query("search", text, limit)

    @cache_reports()
    async def get_report(year: int, *sections: str) -> list[dict]:
        return await shop.query("report", year, *sections)

    @cache_static()
    async def get_image(name: str, **options: str) -> list[dict]:
        return await shop.query("image", name, *options)

    async def once() -> list:
        return [
            await get_menu_items(1),
            await get_user_permissions(5),
            await get_restaurant_settings(restaurant_id=1),
            await get_sales(1, datetime(2026, 11, 25)),
            await get_page("/", page=1),
            await search_items("pizza"),
            await get_report(2026, "a", "b"),
            await get_image("logo", size="s"),
        ]

    first = await once()
    assert len(shop.queries) == 8
    assert await once() == first and len(shop.queries) == 8
    with shop.another():
        assert await once() == first and len(shop.queries) == 8
    assert await get_page("/") == first[4] and await search_items("pizza", limit=10) == first[5]  # defaults are filled in
    assert len(shop.queries) == 8
    assert await get_menu_items(2) != first[0] and await get_report(2026, "a") != first[6]
    assert len(shop.queries) == 10


@pytest.mark.parametrize(
    ("decorator", "member"),
    [
        (cache_menu, CacheTTL.MENU_ITEMS),
        (cache_permissions, CacheTTL.USER_PERMISSIONS),
        (cache_settings, CacheTTL.RESTAURANT_SETTINGS),
        (cache_analytics, CacheTTL.ANALYTICS_AGGREGATIONS),
        (cache_api, CacheTTL.API_RESPONSE),
        (cache_search, CacheTTL.SEARCH_RESULTS),
        (cache_reports, CacheTTL.REPORT_DATA),
        (cache_static, CacheTTL.STATIC_CONTENT),
    ],
)
async def test_cache_types_and_their_ttl(shop, decorator, member):
    """Block "cache types": each of the eight decorators caches for the seconds of its member, and not a second longer."""

    @decorator
    async def get(n: int) -> list[dict]:
        return await shop.query(n)

    await get(1)
    assert get.cache_parameters() == {"cache_type": decorator.__name__[6:], "maxsize": None, "typed": True, "ttl": float(member)}
    shop.clock.advance(int(member) - 1)
    await get(1)
    assert len(shop.queries) == 1 and await get.exists(1)
    shop.clock.advance(1.001)
    assert not await get.exists(1)
    await get(1)
    assert len(shop.queries) == 2


def test_the_ttls_of_the_guide():
    """Block "cache types": the seconds of the guide's table."""
    assert {name: int(ttl) for name, ttl in CacheTTL.__members__.items()} == {
        "MENU_ITEMS": 3600,
        "USER_PERMISSIONS": 300,
        "RESTAURANT_SETTINGS": 600,
        "ANALYTICS_AGGREGATIONS": 300,
        "API_RESPONSE": 60,
        "SEARCH_RESULTS": 180,
        "REPORT_DATA": 900,
        "STATIC_CONTENT": 86400,
    }


async def test_bare_decorators(shop):
    """Block "basic decorators", without brackets: `@cache_menu`, and `@cache`, which is of type api; a plain function is awaited."""

    @cache_menu
    async def get_categories(restaurant_id: int) -> list[dict]:
        return await shop.query("categories", restaurant_id)

    @cache
    def get_version() -> str:
        shop.queries.append("version")
        return "1.2"

    assert await get_categories(1) == await get_categories(1)
    assert (await get_version(), await get_version()) == ("1.2", "1.2")
    assert len(shop.queries) == 2
    assert (get_categories.cache_parameters()["cache_type"], get_version.cache_parameters()["cache_type"]) == ("menu", "api")


# Custom TTL


@pytest.mark.parametrize(("ttl", "life"), [(300, 300), (0.5, 0.5), ("5m", 300), ("1h30m", 5400), (timedelta(days=2), 172800), (None, 300)])
async def test_custom_ttl(shop, ttl, life):
    """Block "custom TTL": seconds, text, a timedelta; None is the type's."""

    class Session: ...

    @cache(cache_type="analytics", ttl=ttl, tags=["revenue:{restaurant_id}"], exclude=["db"])
    async def get_daily_revenue(restaurant_id: int, date: datetime, db: Session) -> float:
        await shop.query(restaurant_id, date)
        return 12.5

    day = datetime(2026, 11, 25)
    assert await get_daily_revenue(1, day, Session()) == 12.5
    shop.clock.advance(life * 0.99)
    assert await get_daily_revenue(1, date=day, db=Session()) == 12.5
    assert len(shop.queries) == 1
    shop.clock.advance(life * 0.02)
    await get_daily_revenue(1, day, Session())
    assert len(shop.queries) == 2


async def test_custom_ttl_that_is_none_or_endless(shop):
    """Block "custom TTL": 0 stores nothing; without end must be said by name."""

    @cache(cache_type="api", ttl=0)
    async def now() -> list[dict]:
        return await shop.query("now")

    @cache(cache_type="static", ttl=FOREVER)
    async def logo() -> bytes:
        await shop.query("logo")
        return b"\x89PNG"

    await now()
    await now()
    assert len(shop.queries) == 2 and not await now.exists()
    assert await logo() == b"\x89PNG"
    shop.clock.advance(10 * 365 * 86400)
    assert await logo() == b"\x89PNG" and len(shop.queries) == 3
    assert logo.cache_parameters()["ttl"] is None
    for wrong in (-1, True, "5 minutes", float("inf"), float("nan")):
        with pytest.raises(ValueError, match="TTL"):
            cache(cache_type="api", ttl=wrong)(len)


async def test_custom_key(shop):
    """Block "custom key": the entry of a template is the manager's own, so that what is set there is found."""
    from aiocache_aura.cache_manager import cache_manager

    @cache(cache_type="api", key="customers:{restaurant_id}:{page}", ttl=CacheTTL.API_RESPONSE)
    async def get_customers(restaurant_id: int, page: int = 1) -> list[dict]:
        return await shop.query(restaurant_id, page)

    first = await get_customers(1)
    assert await cache_manager.get("api", "customers:1:1", tenant=1) == first
    await cache_manager.set("api", "customers:1:2", [{"id": 99}], tenant=1)
    assert await get_customers(1, 2) == [{"id": 99}] and len(shop.queries) == 1
    assert await cache_manager.delete("api", "customers:1:1", "customers:1:2", "customers:1:3", tenant=1) == 2
    assert await get_customers.peek(1) is None


# Tenants and users


async def test_tenant_aware(shop):
    """Block "tenant-aware": the tenant of the scope is part of the key; none is an error, and never a shared entry."""

    @cache(cache_type="settings", tenant_aware=True)
    async def get_settings() -> list[dict]:
        return await shop.query("settings")

    with tenant_scope(1):
        of_first = await get_settings()
    with tenant_scope(2):
        of_second = await get_settings()
    assert of_first != of_second and len(shop.queries) == 2
    with tenant_scope("1"):
        assert await get_settings() == of_first  # ids are compared as text
    with pytest.raises(MissingTenantError, match="get_settings"):
        await get_settings()
    assert len(shop.queries) == 2


async def test_user_aware(shop):
    """Block "user-aware": the user is part of the key, by argument or by scope; logging out clears what was made for them."""
    from aiocache_aura.cache_manager import cache_manager

    @cache(cache_type="permissions", user_aware=True)
    async def get_permissions(user_id: int | None = None) -> list[dict]:
        return await shop.query("permissions", user_id)

    ann = await get_permissions(user_id=5)
    with user_scope(6):
        bob = await get_permissions()
    assert ann != bob
    with pytest.raises(MissingUserError):
        await get_permissions()
    assert await cache_manager.invalidate_user(5) is True
    with user_scope(6):
        assert await get_permissions() == bob
    assert await get_permissions(user_id=5) != ann
    assert len(shop.queries) == 3


async def test_user_in_scope(shop):
    """Block "user-aware": a user in scope has permissions of their own without a word, and the menus of everybody."""

    @cache_permissions()
    async def get_permissions() -> list[dict]:
        return await shop.query("permissions")

    @cache_menu()
    async def get_menu() -> list[dict]:
        return await shop.query("menu")

    answers = []
    for user in (5, 6, 5):
        with user_scope(user):
            answers.append((await get_permissions(), await get_menu()))
    (ann, menu), (bob, same), again = answers
    assert ann != bob and menu == same and again == (ann, menu)
    assert await get_permissions() not in (ann, bob) and await get_menu() == menu


async def test_tenants_at_once(shop):
    """Block "tenant-aware": requests of many tenants at once, and each has its own; one load for each."""

    @cache_menu()
    async def get_menu(section: str) -> dict:
        from aiocache_aura import current_tenant

        await shop.query(section)
        return {"tenant": current_tenant()}

    async def request(tenant: int) -> dict:
        with tenant_scope(tenant):
            return await get_menu("pizza")

    answers = await asyncio.gather(*(request(n % 20) for n in range(400)))
    assert [answer["tenant"] for answer in answers] == [str(n % 20) for n in range(400)]
    assert len(shop.queries) == 20


# Invalidation


async def test_invalidation_by_decorator(shop):
    """Block "invalidation": after an update succeeded, that restaurant's menu is loaded anew, everywhere; nothing after one that failed."""

    @cache_menu()
    async def get_menu_items(restaurant_id: int) -> list[dict]:
        return await shop.query(restaurant_id)

    @invalidate_cache("menu")
    async def update_menu_item(item_id: int, restaurant_id: int, data: dict) -> dict:
        if not data:
            raise ValueError("nothing to update")
        return {"id": item_id, **data}

    first, other = await get_menu_items(1), await get_menu_items(2)
    with pytest.raises(ValueError, match="nothing"):
        await update_menu_item(1, 1, {})
    assert await get_menu_items(1) == first
    with shop.another():
        assert await update_menu_item(1, restaurant_id=1, data={"price": 5}) == {"id": 1, "price": 5}
    assert await get_menu_items(1) != first
    assert await get_menu_items(2) == other
    assert shop.queries == [(1,), (2,), (1,)]


async def test_invalidation_by_hand(shop):
    """Block "manual invalidation": by type, tenant, user, tag and pattern, through the manager's verbs of the guide."""
    from aiocache_aura.cache_manager import cache_manager

    @cache_menu(tags=["section:{section}"])
    async def get_section(restaurant_id: int, section: str) -> list[dict]:
        return await shop.query(restaurant_id, section)

    async def kept() -> list[tuple[int, str]]:
        return [(n, s) for n in (1, 2) for s in ("pizza", "pasta") if await get_section.exists(n, s)]

    async def fill() -> None:
        for n in (1, 2):
            for s in ("pizza", "pasta"):
                await get_section(n, s)

    for clear, left in [
        (lambda: cache_manager.invalidate_menu(1), [(2, "pizza"), (2, "pasta")]),
        (lambda: cache_manager.invalidate_menu(), []),
        (lambda: cache_manager.invalidate("menu", tenant=2), [(1, "pizza"), (1, "pasta")]),
        (lambda: cache_manager.invalidate("menu", tenant=1, tags=["section:pizza"]), [(1, "pasta"), (2, "pizza"), (2, "pasta")]),
        (lambda: cache_manager.invalidate_tags("section:pasta"), [(1, "pizza"), (2, "pizza")]),
        (lambda: cache_manager.invalidate_tenant(1), [(2, "pizza"), (2, "pasta")]),
        (lambda: cache_manager.invalidate_settings(), [(1, "pizza"), (1, "pasta"), (2, "pizza"), (2, "pasta")]),
        (lambda: cache_manager.caches["menu"].clear_namespace(), []),
        (lambda: get_section.cache_clear(), []),
        (lambda: get_section.invalidate(1, "pizza"), [(1, "pasta"), (2, "pizza"), (2, "pasta")]),
    ]:
        await fill()
        assert await clear() is True
        assert await kept() == left


async def test_invalidation_by_pattern(shop):
    """Block "pattern invalidation": keys that match, and how many there were."""
    from aiocache_aura.cache_manager import cache_manager

    menu = cache_manager.caches["menu"]
    await menu.mset({f"item:{n}": n for n in range(30)} | {"category:1": 1})
    await cache_manager.set("api", "item:1", 1)
    assert await cache_manager.invalidate_pattern("menu", "item:1*") == 11
    assert await menu.get_many(["item:1", "item:19", "item:2", "category:1"]) == {"item:2": 2, "category:1": 1}
    assert await cache_manager.get("api", "item:1") == 1


@dataclass
class Saved:
    id: int
    category: str


async def test_invalidation_of_tags_by_the_result(shop):
    """Block "tag invalidation": narrowed to tags of arguments and of what the function returned."""

    @cache_menu(tags=["item:{item_id}"])
    async def get_item(item_id: int) -> list[dict]:
        return await shop.query("item", item_id)

    @cache(cache_type="api", tags=["cat:{category}"])
    async def get_category(category: str) -> list[dict]:
        return await shop.query("category", category)

    @invalidate_cache("menu", "api", tags=["item:{item_id}", "cat:{result.category}"])
    async def move_item(item_id: int, data: dict) -> Saved:
        return Saved(item_id, **data)

    async def fill() -> None:
        await asyncio.gather(get_item(1), get_item(2), get_category("pizza"), get_category("pasta"))

    await fill()
    assert await move_item(1, {"category": "pasta"}) == Saved(1, "pasta")
    assert [await get_item.exists(1), await get_item.exists(2)] == [False, True]
    assert [await get_category.exists("pizza"), await get_category.exists("pasta")] == [True, False]

    @invalidate_cache("menu", "api", tags=["cat:{result.category}"])
    async def forget_item() -> None: ...

    await fill()
    await forget_item()  # its result has no category: nothing is left rather than something wrong
    assert [await get_item.exists(1), await get_category.exists("pizza")] == [False, False]


async def test_invalidation_of_keys(shop):
    """Block "invalidation", narrowed to keys: those of the tenant that the call names, and no others."""
    from aiocache_aura.cache_manager import cache_manager

    @invalidate_cache("api", keys=["customers:{restaurant_id}:1", "customer:{result}"])
    async def rename_customer(restaurant_id: int, customer: int) -> int:
        return customer

    @invalidate_cache("api", keys=lambda call: [f"customers:{call['restaurant_id']}:{n}" for n in range(1, call.result)])
    async def rename_all(restaurant_id: int) -> int:
        return 3

    keys = ["customers:1:1", "customers:1:2", "customers:1:3", "customer:9"]
    for tenant in (1, 2):
        await cache_manager.mset("api", dict.fromkeys(keys, True), tenant=tenant)
    await rename_customer(1, 9)
    assert await cache_manager.get_many("api", keys, tenant=1) == {"customers:1:2": True, "customers:1:3": True}
    await rename_all(1)
    assert await cache_manager.get_many("api", keys, tenant=1) == {"customers:1:3": True}
    assert len(await cache_manager.get_many("api", keys, tenant=2)) == 4


async def test_invalidation_of_keys_of_a_user(shop):
    """Block "invalidation", narrowed to keys, of a function with the same arguments: that user's entry, and the one without a user."""
    from aiocache_aura.cache_manager import cache_manager

    @cache(cache_type="permissions", key="roles:{user_id}")
    async def get_roles(user_id: int) -> list[dict]:
        return await shop.query(user_id)

    @cache_menu(key="item:{item_id}")
    async def get_item(item_id: int) -> list[dict]:
        return await shop.query(item_id)

    @invalidate_cache("permissions", "menu", keys=["roles:{user_id}", "item:{item_id}"])
    async def change(user_id: int, item_id: int) -> None: ...

    for n in (5, 6):
        await get_roles(n)
        await get_item(n)
    await change(5, item_id=6)
    assert [await get_roles.exists(n) for n in (5, 6)] == [False, True]
    assert [await get_item.exists(n) for n in (5, 6)] == [True, False]

    cache_manager.register("private", CachePolicy(user_aware=True))

    @invalidate_cache("private", keys=["k"])
    async def change_private(user_id: int | None = None) -> str:
        return "changed"

    await cache_manager.mset("private", {"k": 1, "l": 1}, user=5)
    await cache_manager.set("private", "k", 1, user=6)
    assert await change_private(5) == "changed"
    assert await cache_manager.get_many("private", ["k", "l"], user=5) == {"l": 1}
    assert await cache_manager.get_many("private", ["k", "l"], user=6) == {"k": 1}
    assert await change_private() == "changed"  # whose key is not known: all of the type
    assert [await cache_manager.get_many("private", ["k", "l"], user=user) for user in (5, 6)] == [{}, {}]


async def test_a_generator_cannot_invalidate(shop):
    """Block "invalidation": a generator has done nothing yet when it is called, so invalidating then would be too early; it is refused."""

    async def steps():
        yield 1

    @contextlib.asynccontextmanager
    async def session():
        yield 1

    for wrong in (steps, session):
        with pytest.raises(TypeError, match="generator"):
            invalidate_cache("menu")(wrong)


async def test_invalidation_of_other_tenants(shop):
    """Block "invalidation" across tenants: of all, of the one that an argument names, and of one that the result names."""

    @cache_settings()
    async def get_settings(restaurant_id: int) -> list[dict]:
        return await shop.query(restaurant_id)

    @invalidate_cache("settings", tenant=ALL)
    async def deploy(restaurant_id: int) -> None: ...

    @invalidate_cache("settings", tenant="{to_id}")
    async def copy_settings(restaurant_id: int, to_id: int) -> None: ...

    @invalidate_cache("settings", tenant="{result.id}")
    async def give_settings(restaurant_id: int) -> Saved:
        return Saved(3, "")

    async def cleared_by(call) -> list[int]:
        for n in (1, 2, 3):
            await get_settings(n)
        await call
        return [n for n in (1, 2, 3) if not await get_settings.exists(n)]

    assert await cleared_by(deploy(1)) == [1, 2, 3]
    assert await cleared_by(copy_settings(1, to_id=2)) == [2]
    assert await cleared_by(give_settings(1)) == [3]


async def test_invalidation_on_error(shop):
    """Block "invalidation": `on_error=True` clears after exceptions, too, and the exception is the caller's."""

    @cache_menu()
    async def get_menu_items(restaurant_id: int) -> list[dict]:
        return await shop.query(restaurant_id)

    @invalidate_cache("menu", on_error=True)
    async def charge(restaurant_id: int) -> None:
        raise TimeoutError("the bank does not answer")

    await get_menu_items(1)
    await get_menu_items(2)
    with pytest.raises(TimeoutError, match="bank"):
        await charge(1)
    assert [await get_menu_items.exists(1), await get_menu_items.exists(2)] == [False, True]


async def test_invalidation_by_a_function_that_is_cancelled(shop):
    """Block "invalidation": of a function cancelled half-way nobody knows how far it came, so it invalidates."""
    began = asyncio.Event()

    @cache_menu()
    async def get_menu_items(restaurant_id: int) -> list[dict]:
        return await shop.query(restaurant_id)

    @invalidate_cache("menu")
    async def update(restaurant_id: int) -> None:
        began.set()
        await asyncio.Event().wait()

    await get_menu_items(1)
    task = asyncio.create_task(update(1))
    await began.wait()
    assert await get_menu_items.exists(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await get_menu_items.exists(1)


async def test_invalidation_is_shielded_once_the_function_has_returned(shop):
    """Block "invalidation": a client that hangs up after the commit does not stop it, however often it is cancelled."""
    asked, may = asyncio.Event(), asyncio.Event()

    class Slow(CacheManager):
        async def drop(self, *args, **options):
            asked.set()
            await may.wait()
            return await super().drop(*args, **options)

    @cache_menu()
    async def get_menu_items(restaurant_id: int) -> list[dict]:
        return await shop.query(restaurant_id)

    async with Slow(shop.url, prefix="guide", clock=shop.clock) as slow:
        with patch(NAME, slow):

            @invalidate_cache("menu")
            async def update(restaurant_id: int) -> str:
                return "committed"

            await get_menu_items(1)
            task = asyncio.create_task(update(1))
            await asked.wait()
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done()
            may.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not await get_menu_items.exists(1)


# Cache-aside, batches


async def test_cache_aside(shop):
    """Block "cache-aside": get, load, set by hand; a default tells a stored None from a miss."""
    from aiocache_aura.cache_manager import cache_manager

    async def get_restaurant_settings(restaurant_id: int) -> dict:
        key = f"restaurant:{restaurant_id}"
        cached = await cache_manager.get("settings", key)
        if cached is not None:
            return cached
        settings = {"rows": await shop.query(restaurant_id), "currency": "EUR", "tax": Decimal("0.19")}
        await cache_manager.set("settings", key, settings, ttl=CacheTTL.RESTAURANT_SETTINGS)
        return settings

    first = await get_restaurant_settings(1)
    assert await get_restaurant_settings(1) == first and len(shop.queries) == 1
    assert type(first["tax"]) is type((await get_restaurant_settings(1))["tax"]) is Decimal
    assert await cache_manager.ttl("settings", "restaurant:1") == pytest.approx(600)
    assert await cache_manager.get("settings", "restaurant:2", default=MISSING) is MISSING
    assert await cache_manager.set("settings", "restaurant:2", None)
    assert await cache_manager.get("settings", "restaurant:2", default=MISSING) is None
    assert await cache_manager.delete("settings", "restaurant:1") == 1
    assert await get_restaurant_settings(1) != first


async def test_cache_aside_in_one_call(shop):
    """Block "cache-aside", as one call: however many ask at once, one loads."""
    from aiocache_aura.cache_manager import cache_manager

    async def load() -> list[dict]:
        return await shop.query("settings")

    answers = await asyncio.gather(*(cache_manager.get_or_load("settings", "restaurant:1", load, ttl=300) for _ in range(50)))
    assert len(shop.queries) == 1 and answers == [answers[0]] * 50
    answers[0][0]["id"] = "changed by its caller"
    assert await cache_manager.get("settings", "restaurant:1") == answers[1]


async def test_batch_get_and_set(shop):
    """Block "batch operations": many values in one go, in the order of their keys, or those only that are there."""
    from aiocache_aura.cache_manager import cache_manager

    menu = cache_manager.caches["menu"]
    assert await menu.mset({"item1": {"name": "Pizza"}, "item3": None}, ttl=3600) is True
    assert await menu.mget(["item1", "item2", "item1"]) == [{"name": "Pizza"}, None, {"name": "Pizza"}]
    assert await menu.mget(["item2", "item3"], default=MISSING) == [MISSING, None]
    assert await menu.get_many(["item1", "item2"]) == {"item1": {"name": "Pizza"}}
    assert await cache_manager.mget("menu", ["item1"]) == [{"name": "Pizza"}]

    async def load_missing(keys: list[str]) -> dict[str, dict]:
        shop.queries.append(keys)
        return {key: {"name": key} for key in keys if key != "item9"}

    found = await menu.get_or_load_many(["item1", "item2", "item4", "item9"], load_missing)
    assert shop.queries == [["item2", "item4", "item9"]]
    assert found == {"item1": {"name": "Pizza"}, "item2": {"name": "item2"}, "item4": {"name": "item4"}}
    assert await menu.get_many(["item4", "item9"]) == {"item4": {"name": "item4"}}


# The client


async def test_pipeline(redis_client, valkey):
    """Block "pipeline": many commands on the shared client, in one round trip."""
    RedisClient.configure(url=valkey.url)
    ids = [1, 2, 3]
    client = RedisClient.get_client()
    pipe = client.pipeline()
    for i in ids:
        pipe.set(f"menu:item:{i}", json.dumps({"id": i}), ex=3600)
    await pipe.execute()
    pipe = client.pipeline()
    for i in [*ids, 4]:
        pipe.get(f"menu:item:{i}")
    results = await pipe.execute()
    assert [json.loads(result) if result else None for result in results] == [{"id": 1}, {"id": 2}, {"id": 3}, None]
    assert RedisClient.get_client() is client


async def test_pool_settings(redis_client, valkey):
    """Block "connection pool": the guide's figures are the defaults, all can be set, and more callers than connections wait."""
    RedisClient.configure(url=valkey.url)
    pool = RedisClient.get_client().connection_pool
    assert (pool.max_connections, pool.connection_kwargs["socket_timeout"], pool.connection_kwargs["health_check_interval"]) == (50, 5, 30)
    with pytest.raises(ConfigurationError, match="in use"):
        RedisClient.configure(max_connections=3)
    await RedisClient.aclose()
    RedisClient.configure(url=valkey.url, max_connections=3, socket_timeout=2, retry_on_timeout=False, health_check_interval=10)
    client = RedisClient.get_client()
    await client.set("counter", 0)
    counted = await asyncio.gather(*(client.incr("counter") for _ in range(200)))
    assert sorted(counted) == list(range(1, 201))
    with valkey.client() as plain:
        assert len(plain.client_list()) - 1 <= 3


def test_without_a_url_the_client_says_how_to_set_one(monkeypatch):
    """Block "connection pool": there is no server behind `memory://` to have a client of."""
    monkeypatch.setenv("AURA_CACHE_URL", "memory://")
    monkeypatch.setattr(RedisClient, "_options", {})
    with pytest.raises(ConfigurationError, match=r"RedisClient\.configure\(url="):
        RedisClient.get_client()


# When something is wrong


async def test_error_fallback(monkeypatch, caplog):
    """Block "error handling": without Redis, everything answers from the database, without an exception, and it is logged."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with CacheManager(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0", budget=0.25) as manager:
            monkeypatch.setattr(NAME, manager)
            from aiocache_aura.cache_manager import cache_manager

            loads = []

            @cache_menu()
            async def get_menu_items(restaurant_id: int) -> list[str]:
                loads.append(restaurant_id)
                return ["Pizza"]

            @invalidate_cache("menu")
            async def update_menu(restaurant_id: int) -> str:
                return "updated"

            async def get_menu_with_fallback(restaurant_id: int) -> list[str]:
                try:
                    return await get_menu_items(restaurant_id)
                except RedisConnectionError:
                    return ["from the fallback"]

            assert [await get_menu_with_fallback(1), await get_menu_with_fallback(1)] == [["Pizza"], ["Pizza"]]
            assert loads == [1, 1]
            assert await update_menu(1) == "updated"
            assert await cache_manager.get("menu", "k", default="none") == "none"
            assert await cache_manager.set("menu", "k", 1) is False
            assert await cache_manager.invalidate_menu(1) is False
            assert (await get_menu_items.peek(1), await get_menu_items.exists(1), await get_menu_items.invalidate(1)) == (
                None,
                False,
                False,
            )
            assert await get_menu_items.refresh(1) == ["Pizza"] and await get_menu_items.set_value([], 1) is False
    assert {record.name.partition(".")[0] for record in caplog.records} == {"aiocache_aura"}
    assert any(record.levelno >= logging.WARNING for record in caplog.records)


async def test_error_of_the_function(shop):
    """Block "error handling": the function's own error is its caller's, and is not cached."""

    @cache_menu()
    async def get_menu_items(restaurant_id: int) -> list[dict]:
        if len(await shop.query(restaurant_id)) and len(shop.queries) == 1:
            raise LookupError("no such restaurant")
        return []

    with pytest.raises(LookupError, match="no such"):
        await get_menu_items(1)
    assert await get_menu_items(1) == []


async def test_debug_logging(shop, caplog):
    """Block "debug logging": at DEBUG the library shows hits, misses, keys and invalidations; never values, and arguments hashed."""
    caplog.set_level(logging.DEBUG, logger="aiocache_aura")
    from aiocache_aura.cache_manager import cache_manager

    @cache_menu()
    async def get_menu_items(restaurant_id: int, coupon: str) -> list[str]:
        return ["a value for the eyes of the caller"]

    await get_menu_items(1, "SUMMER")
    await get_menu_items(1, "SUMMER")
    await cache_manager.invalidate_menu(1)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("aiocache_aura")]
    shown = "\n".join(ours)
    assert [line.split()[0] for line in ours if line.split()[0] in ("miss", "hit", "invalidated")] == ["miss", "hit", "invalidated"]
    assert "get_menu_items" in shown
    assert "eyes" not in shown and "SUMMER" not in shown


async def test_debug_logging_of_keys(caplog, clock):
    """Block "debug logging": `log_keys=True` shows the arguments, too."""
    caplog.set_level(logging.DEBUG, logger="aiocache_aura")
    async with CacheManager("memory://", log_keys=True) as manager:

        @cache_menu(manager=manager)
        async def get_menu_items(restaurant_id: int, coupon: str) -> list[str]:
            return ["a value for the eyes of the caller"]

        await get_menu_items(1, "SUMMER")
    assert get_menu_items.cache_key(1, "SUMMER") in caplog.text and "SUMMER" in caplog.text
    assert "eyes" not in caplog.text


# Tests of an application


@cache_menu()
async def get_menu_of_module(restaurant_id: int) -> dict:
    return {"loaded": restaurant_id}


@cache_api
async def get_nothing() -> None: ...


@patch(NAME)
async def test_unit_test_with_patch(mocked):
    """Block "unit test": `patch` of the name puts a MagicMock in the manager's place; its answers are taken as they are."""
    mocked.get.return_value = {"mocked": True}
    assert await get_menu_of_module(1) == {"mocked": True}
    assert mocked.get.call_args.args[0] == "menu"
    mocked.get.return_value = None
    assert await get_menu_of_module(1) == {"loaded": 1}
    (cache_type, key, value), options = mocked.set.call_args
    assert (cache_type, value, options) == ("menu", {"loaded": 1}, {"ttl": 3600})
    assert key == mocked.get.call_args.args[1] and "get_menu_of_module" in key


@pytest.mark.parametrize("make", [AsyncMock, MagicMock, lambda: AsyncMock(spec=CacheManager), lambda: MagicMock(spec=CacheManager)])
async def test_unit_test_with_any_mock(make):
    """Block "unit test": AsyncMock as well as MagicMock, with `spec=` or without; a failing one costs nothing but a load."""
    with patch(NAME, make()) as mocked:
        for answer in ({"mocked": True}, {}, 0, ""):
            mocked.get.return_value = answer
            assert await get_menu_of_module(1) == answer
        mocked.get.return_value = None
        assert await get_menu_of_module(2) == {"loaded": 2}
        mocked.set.assert_called_once()
        assert await get_nothing() is None
        mocked.set.assert_called_once()
        mocked.get.side_effect = ConnectionError("Redis is down")
        assert await get_menu_of_module(3) == {"loaded": 3}


@pytest.mark.parametrize("make", [AsyncMock, MagicMock, lambda: AsyncMock(spec=CacheManager), lambda: MagicMock(spec=CacheManager)])
async def test_unit_test_of_an_invalidation(make):
    """Block "unit test": what a function invalidates is told to the mock."""

    @invalidate_cache("menu")
    async def update_menu(restaurant_id: int) -> str:
        return "updated"

    with patch(NAME, make()) as mocked:
        assert await update_menu(1) == "updated"
        mocked.invalidate.assert_called_once()
        assert mocked.invalidate.call_args.args == ("menu",) and mocked.invalidate.call_args.kwargs["tenant"] == "1"


async def test_functions_that_tests_define(shop):
    """Block "unit test": a test that decorates functions of its own is not told that there is another of that name, if that one is gone."""

    async def test(n: int) -> int:
        @cache_menu()
        async def get_item(item_id: int) -> int:
            return n

        try:
            raise LookupError
        except LookupError as error:
            kept = error  # a cycle: the error knows its frame, the frame the error
        assert await get_item(n) == n and kept
        return n

    assert [await test(1), await test(2), await test(3)] == [1, 2, 3]


@pytest.fixture
async def clean_cache():
    """The guide's own fixture: the process-wide manager, emptied after the test."""
    yield cache_manager
    await cache_manager.aclose()


@pytest.mark.parametrize("again", [1, 2])
async def test_integration_fixture(clean_cache, again):
    """Block "integration test": a fixture that leaves the process-wide manager empty; no test sees what the one before it cached."""
    assert await clean_cache.get("menu", "left by another test", default=MISSING) is MISSING
    before = get_menu_of_module.cache_info()
    assert await get_menu_of_module(1) == {"loaded": 1}
    assert await get_menu_of_module(1) == {"loaded": 1}
    after = get_menu_of_module.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
    await clean_cache.set("menu", "left by another test", again)


@pytest.fixture
async def redis_cache(valkey):
    """The guide's other fixture: a manager over a real server, put in the process-wide one's place."""
    async with CacheManager(valkey.url, prefix="test") as manager:
        with patch(NAME, manager):
            yield manager
        await manager.caches["menu"].clear_namespace()


@pytest.mark.parametrize("again", [1, 2])
async def test_integration_fixture_over_redis(redis_cache, valkey, again):
    """Block "integration test", over Redis: what is cached is in the server, under the prefix of the fixture."""
    assert await get_menu_of_module(1) == {"loaded": 1}
    assert redis_cache.stats()["menu"]["loads"] == 1
    with valkey.client() as plain:
        assert plain.exists(get_menu_of_module.cache_key(1)) == 1
    assert get_menu_of_module.cache_key(1).startswith("test:menu:")


# ORM rows


class Base(DeclarativeBase): ...


class MenuItem(Base):
    __tablename__ = "menu_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    restaurant_id: Mapped[int]
    category_id: Mapped[int] = mapped_column(ForeignKey("categories.id"))
    name: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))
    category: Mapped[Category] = relationship()


class Category(Base):
    __tablename__ = "categories"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class CategoryOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    name: str


class MenuOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    name: str
    price: Decimal
    category: CategoryOut


@pytest.fixture
async def sessions():
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine)
    async with sessions() as db:
        db.add(Category(id=1, name="Pizza"))
        db.add(MenuItem(id=1, restaurant_id=7, category_id=1, name="Margherita", price=Decimal("12.50")))
        db.add(MenuItem(id=2, restaurant_id=7, category_id=1, name="Marinara", price=Decimal("9.00")))
        await db.commit()
    yield sessions
    await engine.dispose()


async def test_orm_rows(shop, sessions):
    """Block "ORM rows": `returns=` says what to store them as, and every caller is given that, hit or miss, in every process."""

    @cache_menu(returns=list[MenuOut], exclude=["db"])
    async def get_menu_items(db: AsyncSession, restaurant_id: int) -> list:
        shop.queries.append(restaurant_id)
        chosen = select(MenuItem).where(MenuItem.restaurant_id == restaurant_id).options(selectinload(MenuItem.category))
        return list(await db.scalars(chosen))

    @invalidate_cache("menu")
    async def reprice(db: AsyncSession, restaurant_id: int, item_id: int, price: Decimal) -> None:
        (await db.get_one(MenuItem, item_id)).price = price
        await db.commit()

    async def ask() -> list:
        async with sessions() as db:
            return await get_menu_items(db, 7)

    first, second = await ask(), await ask()
    with shop.another():
        third = await ask()
    pizza = CategoryOut(name="Pizza")
    expected = [
        MenuOut(id=1, name="Margherita", price=Decimal("12.50"), category=pizza),
        MenuOut(id=2, name="Marinara", price=Decimal("9.00"), category=pizza),
    ]
    assert first == second == third == expected and shop.queries == [7]
    assert {type(item) for item in (*first, *second, *third)} == {MenuOut}
    async with sessions() as db:
        await reprice(db, 7, 1, Decimal("13.00"))
    assert [item.price for item in await ask()] == [Decimal("13.00"), Decimal("9.00")]


async def test_orm_rows_without_returns(shop, sessions, caplog):
    """Block "ORM rows", as the guide first has it: rows cannot be stored, so each call has its own, and a warning says what to do."""

    @cache_menu(exclude=["db"])
    async def get_menu_items(db: AsyncSession, restaurant_id: int) -> list:
        shop.queries.append(restaurant_id)
        return list(await db.scalars(select(MenuItem).where(MenuItem.restaurant_id == restaurant_id)))

    for _ in range(3):
        async with sessions() as db:
            assert [item.name for item in await get_menu_items(db, 7)] == ["Margherita", "Marinara"]
    assert shop.queries == [7, 7, 7]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "MenuItem" in warned[0] and "returns=" in warned[0]


# Migration


async def test_before_and_after_the_migration(redis_client, valkey, shop):
    """Block "migration": the same function by hand on a client, and decorated; both answer alike, the second without the plumbing."""
    RedisClient.configure(url=valkey.url)

    async def before(restaurant_id: int) -> list[dict]:
        client = RedisClient.get_client()
        key = f"menu:{restaurant_id}"
        cached = await client.get(key)
        if cached:
            return json.loads(cached)
        items = await shop.query("menu", restaurant_id)
        await client.set(key, json.dumps(items), ex=3600)
        return items

    @cache_menu()
    async def after(restaurant_id: int) -> list[dict]:
        return await shop.query("menu", restaurant_id)

    by_hand = [await before(1), await before(1)]
    decorated = [await after(1), await after(1)]
    assert by_hand == [by_hand[0]] * 2 and decorated == [decorated[0]] * 2
    assert by_hand[0] == [{"id": 1, "of": ["menu", 1]}] and decorated[0] == [{"id": 2, "of": ["menu", 1]}]


async def test_migration_of_own_types(shop):
    """Block "migration": cache types of one's own beside the eight, registered once; an unknown one names the closest."""
    from aiocache_aura.cache_manager import cache_manager

    cache_manager.register("orders", CachePolicy(ttl="2m"))

    @cache(cache_type="orders")
    async def get_orders(restaurant_id: int) -> list[dict]:
        return await shop.query(restaurant_id)

    first = await get_orders(1)
    shop.clock.advance(119)
    assert await get_orders(1) == first
    await cache_manager.invalidate("orders", tenant=1)
    assert await get_orders(1) != first

    @cache(cache_type="order")
    async def misspelt() -> int:
        return 1

    with pytest.raises(KeyError, match="'orders'"):
        await misspelt()


# Security


async def test_security_no_shared_entry_without_a_tenant(shop):
    """Block "security": what was made without a tenant is nobody's who has one, and the other way round."""
    from aiocache_aura.cache_manager import cache_manager

    @cache_settings()
    async def get_settings(restaurant_id: int | None = None) -> list[dict]:
        return await shop.query("settings", restaurant_id)

    with tenant_scope(1):
        own = await get_settings()
        await cache_manager.set("settings", "theme", "dark")
    assert await get_settings() != own
    assert await cache_manager.get("settings", "theme") is None
    with tenant_scope(2):
        assert await get_settings() != own
        assert await cache_manager.get("settings", "theme") is None
        assert await cache_manager.mget("settings", ["theme"]) == [None]
        assert await cache_manager.exists("settings", "theme") is False
        assert await cache_manager.delete("settings", "theme") == 0
    assert len({get_settings.cache_key(), get_settings.cache_key(1), get_settings.cache_key(restaurant_id=2)}) == 3
    with tenant_scope(1):
        assert await cache_manager.get("settings", "theme") == "dark"
        assert get_settings.cache_key() != get_settings.cache_key(2) and await get_settings() == own
    with pytest.raises(TypeError, match="tenant"), tenant_scope(None):
        pass


@pytest.mark.parametrize("smuggled", ["1:u9", "1%3Au9", "None", "*", "t1", "1+2", "\u0661"])
async def test_security_no_tenant_can_be_smuggled_in(shop, smuggled):
    """Block "security": no spelling of an id, a key or an argument reaches another tenant's entry."""
    from aiocache_aura.cache_manager import cache_manager

    @cache_menu()
    async def get_menu(section: str) -> list[dict]:
        return await shop.query(section)

    with tenant_scope(1), user_scope(9):
        own = await get_menu("a")
        await cache_manager.set("menu", "k", "own")
    with tenant_scope(smuggled):
        assert await get_menu("a") != own
        assert await cache_manager.get("menu", "k") is None
        await cache_manager.invalidate_menu(smuggled)
    assert await cache_manager.get("menu", f"t1:{smuggled}:k") is None
    assert await get_menu(f"a:{smuggled}") != own
    with tenant_scope(1), user_scope(9):
        assert await get_menu("a") == own and await cache_manager.get("menu", "k") == "own"


async def test_security_only_false_shares(shop):
    """Block "security": `tenant_aware=False`, in so many words, is the one way to share an entry."""

    @cache_static(tenant_aware=False)
    async def get_allergens() -> list[dict]:
        return await shop.query("allergens")

    with tenant_scope(1):
        first = await get_allergens()
    with tenant_scope(2):
        assert await get_allergens() == first
    assert await get_allergens() == first and len(shop.queries) == 1


# What a decorated function carries


async def test_verbs_of_a_decorated_function(shop):
    """Block "working with one entry": what the decorated function carries beside being called."""

    @cache_menu(ttl=60)
    async def get_item(item_id: int, *, size: str = "m") -> list[dict]:
        return await shop.query(item_id, size)

    assert await get_item.peek(1) is None and not await get_item.exists(1) and shop.queries == []
    first = await get_item(1)
    assert await get_item.peek(1, size="m") == first and await get_item.exists(1)
    refreshed = await get_item.refresh(1)
    assert refreshed != first and await get_item(1) == refreshed and len(shop.queries) == 2
    assert await get_item.set_value([{"id": 99}], 1) is True
    with shop.another():
        assert await get_item(1) == [{"id": 99}] and len(shop.queries) == 2
        assert await get_item.invalidate(1) is True
    assert not await get_item.exists(1)
    before = get_item.cache_info()
    await get_item(1)
    await get_item(2)
    await get_item(1, size="m")
    assert get_item.cache_key(1) == get_item.cache_key(1, size="m") != get_item.cache_key(2)
    assert get_item.cache_key(1).startswith("guide:menu:")
    info = get_item.cache_info()
    assert (info.hits - before.hits, info.misses - before.misses, info.maxsize, info.currsize) == (1, 2, None, None)
    assert await get_item.cache_clear() is True
    assert [await get_item.exists(1), await get_item.exists(2)] == [False, False]
    assert get_item.cache_info()[:2] == (0, 0)
    assert get_item.cache_parameters() == {"cache_type": "menu", "maxsize": None, "typed": True, "ttl": 60.0}
    assert (await get_item.__wrapped__(1))[0]["of"] == [1, "m"]


async def test_stats(shop):
    """Block "what happens": the manager counts by type."""
    from aiocache_aura.cache_manager import cache_manager

    @cache_menu()
    async def get_menu(restaurant_id: int) -> list[dict]:
        return await shop.query(restaurant_id)

    for _ in range(4):
        await get_menu(1)
    await cache_manager.set("menu", "k", 1)
    await cache_manager.invalidate_menu(1)
    stats = cache_manager.stats()["menu"]
    assert {name: stats[name] for name in ("hits", "misses", "hit_rate", "loads", "sets")} == {
        "hits": 3,
        "misses": 1,
        "hit_rate": 0.75,
        "loads": 1,
        "sets": 2,
    }
    assert cache_manager.stats()["api"]["hit_rate"] == 0.0


# Cache warming


@pytest.fixture
async def running(valkey, monkeypatch):
    """The application as it runs: the process-wide manager over a real server, by the time of day."""
    async with CacheManager(valkey.url, prefix="guide") as manager:
        monkeypatch.setattr(NAME, manager)
        yield manager


async def test_cache_warmer(running, sessions):
    """Block "cache warming": a warmer with the session, a type warmed by its name, then all in parallel; another process finds it."""
    from aiocache_aura.cache_warmer import CacheWarmer

    queries = []

    @cache_menu(exclude=["db"])
    async def get_menu_items(restaurant_id: int, db: AsyncSession) -> list[str]:
        queries.append(restaurant_id)
        rows = await db.execute(select(MenuItem.name).where(MenuItem.restaurant_id == restaurant_id).order_by(MenuItem.id))
        return list(rows.scalars())

    async with sessions() as db:
        warmer = CacheWarmer(db)

        @warmer.source("menu")
        async def menu_of(db: AsyncSession, tenant_id: int) -> None:
            await get_menu_items(tenant_id, db)

        @warmer.source("settings")
        async def settings_of(db: AsyncSession, tenant_id: int):
            yield "timezone", "Europe/Rome"
            yield "currency", "EUR"

        await warmer.warm_menu_cache(tenant_id=7)
        await warmer.warm_settings_cache(tenant_id=7)
        report = await warmer.warm_all(tenant_id=7, parallel=True)
        assert queries == [7]
        assert (report["menu"].skipped, report["settings"].skipped, report["analytics"].ended, report.ok) == (1, 2, "skipped", True)
        async with CacheManager(running.settings.url, prefix="guide") as another:
            with patch(NAME, another):
                assert await get_menu_items(7, db) == ["Margherita", "Marinara"]
                assert await another.get("settings", "timezone", tenant=7) == "Europe/Rome"
        assert queries == [7]


async def test_cache_warmer_with_a_session_factory(running, sessions):
    """Block "cache warming": a factory is opened for each source, so that they run in parallel; one that fails stops no other."""
    from aiocache_aura.cache_warmer import CacheWarmer

    opened = []

    @contextlib.asynccontextmanager
    async def session_factory():
        async with sessions() as db:
            opened.append(db)
            try:
                yield db
            finally:
                opened.remove(db)

    warmer = CacheWarmer(session_factory)

    @warmer.source("menu")
    async def items(db: AsyncSession, tenant_id: int):
        for row in (await db.execute(select(MenuItem))).scalars():
            yield f"item:{row.id}", {"name": row.name, "price": row.price}

    @warmer.source("reports")
    async def broken(db: AsyncSession):
        raise LookupError("no such table")

    report = await warmer.warm_all(tenant_id=7)
    assert opened == []
    assert (report["menu"].loaded, report["reports"].ended, report.ok) == (2, "failed", False)
    assert "no such table" in str(report)
    assert await running.get("menu", "item:1", tenant=7) == {"name": "Margherita", "price": Decimal("12.50")}


async def test_scheduled_warming(running):
    """Block "scheduled warming": as the guide has it, at the start of the application; the first run is at once, and it ends with it."""
    from aiocache_aura.cache_warmer import schedule_cache_warming, warm_source

    warmed = asyncio.Event()

    @warm_source("menu")
    async def menus(db, tenant_id):
        yield "today", {"tenant": tenant_id}
        warmed.set()

    job = schedule_cache_warming(tenant_id=1, interval_minutes=30)
    async with asyncio.timeout(10):
        await warmed.wait()
        while job.last_report is None:
            await asyncio.sleep(0.01)
    assert (job.last_report["menu"].loaded, job.runs, job.is_running) == (1, 1, False)
    assert timedelta(minutes=29) < job.next_run - job.last_run <= timedelta(minutes=30)
    assert await running.get("menu", "today", tenant=1) == {"tenant": 1}
    await job.cancel()


# Monitoring


async def test_cache_metrics(running):
    """Block "monitoring": the figures of a type in the last hour."""
    from aiocache_aura.monitoring import cache_monitor

    @cache_menu()
    async def get_menu(restaurant_id: int) -> list[str]:
        await asyncio.sleep(0.001)
        return ["Margherita"]

    for _ in range(4):
        await asyncio.gather(*(get_menu(n) for n in range(5)))
    metrics = await cache_monitor.get_metrics(cache_type="menu", last_minutes=60)
    assert (metrics["hits"], metrics["misses"], metrics["hit_rate"], metrics["loads"]) == (15, 5, 0.75, 5)
    assert 0 < metrics["latency_ms"]["p50"] <= metrics["latency_ms"]["p95"] <= metrics["latency_ms"]["p99"]
    assert metrics["load_seconds"] >= 0.005 and metrics["slow_operations"] == []
    assert f"{metrics['hit_rate']:.2%}" == "75.00%" and "75.0%" in str(metrics)
    assert (await cache_monitor.get_metrics("api"))["hit_rate"] == 0.0
    for minutes in (0, 1441, True, "60"):
        with pytest.raises(ValueError, match="1 to 1440"):
            await cache_monitor.get_metrics("menu", last_minutes=minutes)
    with pytest.raises(KeyError, match="menu"):
        await cache_monitor.get_metrics("menus")


async def test_health_check(own_server, monkeypatch):
    """Block "health check": a status and issues that say what to do; a server that stops is unhealthy, and healthy when it is back."""
    from aiocache_aura.monitoring import cache_monitor

    server = own_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    async with CacheManager(server.url, prefix="guide") as manager:
        monkeypatch.setattr(NAME, manager)
        health = await cache_monitor.check_health()
        assert (health["status"], health["issues"]) == ("healthy", [])
        server.kill()
        health = await cache_monitor.check_health()
        assert health["status"] == "unhealthy" and health["issues"] and health["checks"]
        server.start()
        assert (await cache_monitor.check_health())["status"] == "healthy"


async def test_cache_report(running):
    """Block "cache report": everything at once, as plain values and as text."""
    from aiocache_aura.monitoring import cache_monitor

    await running.get_or_load("menu", "a", lambda: 1)
    report = await cache_monitor.get_cache_report()
    assert json.loads(json.dumps(report))["types"]["menu"]["misses"] == 1
    text = str(report)
    assert all(title in text for title in ("by type", "health", "memory", "connections", "advice"))
    fleet = await cache_monitor.get_cache_report(fleet=True)
    assert fleet["fleet"]["processes"] == 1


async def test_monitoring_in_the_background(own_server, monkeypatch):
    """Block "background monitoring": `alert` is called once when the server goes, once when it is back; the block ends cleanly."""
    from aiocache_aura.monitoring import cache_monitor

    server = own_server()
    went, came = asyncio.Event(), asyncio.Event()
    calls = []

    async def alert(health):
        calls.append(health["status"])
        went.set()

    def recovered(health):
        calls.append(health["status"])
        came.set()

    async with CacheManager(server.url, prefix="guide") as manager:
        monkeypatch.setattr(NAME, manager)
        async with asyncio.timeout(30), cache_monitor.running(interval=0.05, on_unhealthy=alert, on_recovered=recovered):
            await manager.set("menu", "a", 1)
            server.kill()
            await went.wait()
            server.start()
            await came.wait()
    assert calls[0] == "unhealthy" and len(calls) == 2 and calls[1] != "unhealthy"
