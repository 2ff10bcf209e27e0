"""CONTRACT.md 4: the decorated function, what is stored of it, and functions that invalidate; over every store."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import logging
import re
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import msgspec
import pydantic
import pytest

from aiocache_aura import decorators
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.cached_function import CachedFunction
from aiocache_aura.context import current_tenant, current_user, tenant_scope, user_scope
from aiocache_aura.decorators import cache, cache_menu, cache_permissions, cache_settings, invalidate_cache
from aiocache_aura.errors import ConfigurationError, KeyPartError, MissingTenantError, MissingUserError, SerializationError
from aiocache_aura.types import ALL, FOREVER, MISSING, CacheTTL, Call
from tests.steps import Source, settled, soon

if TYPE_CHECKING:
    from somewhere import Session  # type: ignore[import-not-found]  # as applications import what only annotations need

HERE = __name__
_numbers = itertools.count()
DEFAULT = "aiocache_aura.cache_manager.cache_manager"


class Row:
    """As an ORM gives it: nothing that can be stored."""

    def __init__(self, name: str, price: Decimal) -> None:
        self.name, self.price = name, price


@dataclass
class Dish:
    name: str
    price: Decimal


class DishOut(pydantic.BaseModel):
    name: str
    price: Decimal


class DishStruct(msgspec.Struct):
    name: str
    price: Decimal


class TestDecorating:
    @pytest.mark.parametrize("form", ["bare", "empty", "with options"])
    @pytest.mark.parametrize(
        ("name", "cache_type", "life"),
        [
            ("cache", "api", CacheTTL.API_RESPONSE),
            ("cache_menu", "menu", CacheTTL.MENU_ITEMS),
            ("cache_permissions", "permissions", CacheTTL.USER_PERMISSIONS),
            ("cache_settings", "settings", CacheTTL.RESTAURANT_SETTINGS),
            ("cache_analytics", "analytics", CacheTTL.ANALYTICS_AGGREGATIONS),
            ("cache_api", "api", CacheTTL.API_RESPONSE),
            ("cache_search", "search", CacheTTL.SEARCH_RESULTS),
            ("cache_reports", "reports", CacheTTL.REPORT_DATA),
            ("cache_static", "static", CacheTTL.STATIC_CONTENT),
        ],
    )
    async def test_every_decorator_in_every_form(self, name, cache_type, life, form):
        """Bare, with empty brackets, with options: the type and the life are those of the guide."""
        decorate, calls = getattr(decorators, name), []

        async def dishes(restaurant_id: int) -> list[int]:
            """The dishes."""
            calls.append(restaurant_id)
            return [restaurant_id]

        given = {"bare": decorate, "empty": decorate(), "with options": decorate(ttl="90s")}[form]
        function = given if form != "bare" else None
        async with CacheManager() as manager:
            with patch(DEFAULT, manager):
                cached = decorate(dishes) if function is None else function(dishes)
                assert [await cached(1), await cached(restaurant_id=1), await cached(2)] == [[1], [1], [2]]
                seconds = 90 if form == "with options" else life
                assert cached.cache_parameters() == {"cache_type": cache_type, "maxsize": None, "typed": True, "ttl": seconds}
                assert manager.stats()[cache_type]["sets"] == 2
        assert calls == [1, 2]

    async def test_it_is_an_async_function_that_looks_like_the_one_it_was(self):
        def plain(a: int, /, b: str = "x", *, c: float) -> dict[str, int]:
            """What it does."""

        for function in (plain, functools.wraps(plain)(lambda *args, **kwargs: None)):
            made = cache(name="plain")(function)
            assert inspect.iscoroutinefunction(made)
            assert (made.__name__, made.__doc__, made.__module__, made.__wrapped__) == ("plain", "What it does.", HERE, function)
            assert inspect.signature(made) == inspect.signature(plain)
            assert made.__qualname__.endswith("plain")
            del made
            gc.collect()

    def test_what_cannot_be_cached_is_refused_at_decoration(self):
        def values() -> Iterator[int]:
            yield 1

        async def async_values() -> AsyncIterator[int]:
            yield 1

        for function in (values, async_values, contextlib.contextmanager(values), contextlib.asynccontextmanager(async_values)):
            for decorate in (cache, cache_menu(ttl=5)):
                with pytest.raises(TypeError, match="generator or a context manager"):
                    decorate(function)
        for thing in (5, None.__class__(), [1]):
            with pytest.raises(TypeError, match=r"takes a function|required"):
                cache()(thing)
        with pytest.raises(ConfigurationError, match="cache_type='menu'"):
            cache("menu")
        with pytest.raises(TypeError, match="says the cache type already"):
            cache_menu(cache_type="api")
        with pytest.raises(ConfigurationError, match="cache_type=5"):
            cache(cache_type=5)

    @pytest.mark.parametrize(
        ("options", "error", "names"),
        [
            ({"tll": 5}, TypeError, "tll"),
            ({"ttl": -1}, ValueError, "TTL"),
            ({"ttl": True}, ValueError, "TTL"),
            ({"ttl": int}, ValueError, "TTL"),
            ({"stale": -5}, ConfigurationError, "stale"),
            ({"cache_none": 1}, ConfigurationError, "cache_none"),
            ({"cache_errors": KeyError}, ConfigurationError, "cache_errors"),
            ({"store_if": True}, ConfigurationError, "store_if"),
            ({"codec": "json"}, ConfigurationError, "codec.* not in this version"),
            ({"exclude": "db"}, ConfigurationError, "exclude=.'db'"),
            ({"exclude": ["session"]}, ConfigurationError, "session"),
            ({"secret": ["pin"]}, ConfigurationError, "pin"),
            ({"tags": "promo"}, ConfigurationError, "promo"),
            ({"tags": [5]}, ConfigurationError, "tags: .*int 5"),
            ({"key": 5}, ConfigurationError, "key: .*int 5"),
            ({"tags": ["dish:{dish}"]}, ConfigurationError, "dish"),
            ({"key": "dish:{dish}"}, ConfigurationError, "dish"),
            ({"key": "dishes"}, ConfigurationError, "page"),
            ({"provide": {"session": dict}}, ConfigurationError, "provide=.'session'"),
            ({"warm": 1}, ConfigurationError, "warm"),
        ],
        ids=lambda part: " ".join(part) if isinstance(part, dict) else str(part),
    )
    def test_options_that_cannot_work_are_refused_at_decoration(self, options, error, names):
        with pytest.raises(error, match=names):

            @cache_menu(**options)
            async def function(page: int, db: Any) -> None: ...

    async def test_an_unknown_type_is_an_error_when_it_is_used(self, manager):
        """Not at decoration: it may be registered later."""

        @cache(cache_type="ordres", manager=manager)
        async def function() -> int:
            return 1

        with pytest.raises(KeyError, match="register"):
            await function()
        manager.register("ordres", manager.policy("menu"))
        assert await function() == 1

    async def test_arguments_that_do_not_fit_are_the_function_s_type_error(self, manager):
        """On a miss and on a hit."""

        @cache_menu(manager=manager)
        async def function(a: int, *, b: int = 2) -> int:
            return a + b

        for _ in range(2):
            assert await function(1) == 3
            for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"c": 3}), ((1,), {"a": 1})):
                with pytest.raises(TypeError, match="function"):
                    await function(*args, **kwargs)


class TestVerbs:
    async def test_each_says_what_it_did(self, manager):
        """The verbs of one call, of all calls, and what looks without loading."""
        calls = []

        @cache_menu(manager=manager)
        async def dish(n: int, *, size: str = "m") -> list[int]:
            calls.append(n)
            return [n, len(calls)]

        assert (await dish.peek(1), await dish.exists(1), calls) == (None, False, [])
        assert await dish(1) == [1, 1]
        assert (await dish.peek(1), await dish.exists(n=1, size="m"), await dish.exists(1, size="l")) == ([1, 1], True, False)
        assert await dish.refresh(1) == [1, 2]
        assert await dish(1) == [1, 2]
        assert await dish.set_value([0], 1) is True
        assert await dish(1) == [0]
        assert await dish.invalidate(1) is True
        assert await dish.invalidate(1) is True
        assert await dish(1) == [1, 3]
        await dish(2)
        assert await dish.cache_clear() is True
        assert [await dish.exists(1), await dish.exists(2)] == [False, False]
        assert dish.cache_key(1).startswith(f"shop:menu:@{HERE}.TestVerbs.")
        assert dish.cache_key(1) == dish.cache_key(n=1, size="m") != dish.cache_key(2)
        assert dish.cache_info() == (0, 0, None, None)
        await dish(1), await dish(1), await dish(2)
        assert dish.cache_info() == (1, 2, None, None)
        for verb in (dish.invalidate, dish.refresh, dish.peek, dish.exists):
            with pytest.raises(TypeError, match="dish"):
                await verb()
        with pytest.raises(TypeError, match="dish"):
            dish.cache_key(1, 2)

    async def test_clearing_a_function_is_nobody_else_s(self, manager):
        """A function is a scope of its own: neither its type, nor a namesake with a version, nor a key by hand."""

        def make(**options: Any) -> Any:
            @cache_menu(manager=manager, **options)
            async def dish(n: int) -> int:
                return n

            return dish

        one, two, three = make(), make(version=2), make(name="other")
        for function in (one, two, three):
            await function(1)
        await manager.set("menu", "a", 1)
        assert await one.cache_clear() is True
        assert [await function.exists(1) for function in (one, two, three)] == [False, True, True]
        assert await manager.get("menu", "a") == 1

    async def test_what_set_value_stores_is_the_functions_too(self, manager, peer):
        @cache_menu(manager=manager, tags=["dish:{n}"])
        async def dish(n: int) -> int:
            raise AssertionError("it is stored")

        await dish.set_value(5, 1)
        await dish.set_value(6, 2)
        assert [await dish(1), await dish(2)] == [5, 6]
        await peer.invalidate("menu", tags=["dish:1"])
        assert [await dish.peek(1), await dish.peek(2)] == [None, 6]
        await dish.cache_clear()
        assert await dish.exists(2) is False

    async def test_verbs_use_the_scope(self, manager):
        @cache_menu(manager=manager)
        async def dish(n: int) -> str:
            return f"{current_tenant()}'s {n}"

        with tenant_scope(1):
            assert await dish(1) == "1's 1"
        with tenant_scope(2):
            assert await dish.peek(1) is None
            assert await dish.set_value("other", 1) is True
            assert await dish.invalidate(1) is True
        assert await dish.exists(1) is False
        with tenant_scope(1):
            assert await dish.peek(1) == "1's 1"
            assert ":t1:" in dish.cache_key(1)

    async def test_looking_counts_nothing(self, manager):
        @cache_menu(manager=manager)
        async def dish(n: int) -> int:
            return n

        await dish(1)
        before = manager.stats()["menu"]
        await dish.peek(1), await dish.peek(2), await dish.exists(1), await dish.exists(2)
        dish.cache_key(1), dish.cache_info(), dish.cache_parameters()
        assert manager.stats()["menu"] == before

    async def test_disabled_and_bypassed(self, manager):
        calls = []

        @cache_menu(manager=manager)
        async def dish(n: int) -> int:
            calls.append(n)
            return len(calls)

        assert await dish(1) == 1
        for off in (manager.disabled, manager.bypass):
            with off():
                calls.clear()
                assert (await dish.peek(1), await dish.exists(1)) == (None, False)
                assert [await dish(1), await dish.refresh(1), await dish(1)] == [1, 2, 3]
            assert await dish(1) == 1
        with manager.disabled():
            assert await dish.set_value(9, 1) is False
            assert await dish.invalidate(1) is True
        assert await dish.exists(1) is False

    async def test_a_ttl_of_the_function_s_own(self, store, clock):
        manager = store.open(clock=clock)
        calls = []

        @cache_menu(manager=manager, ttl="10s")
        async def short(n: int) -> int:
            calls.append(n)
            return n

        @cache_menu(manager=manager, ttl=FOREVER)
        async def for_ever(n: int) -> int:
            return n

        @cache_menu(manager=manager, ttl=0)
        async def never(n: int) -> int:
            return n

        assert for_ever.cache_parameters()["ttl"] is None
        await short(1), await for_ever(1), await never(1)
        assert [await short.exists(1), await for_ever.exists(1), await never.exists(1)] == [True, True, False]
        clock.advance(9.99)
        assert (await short(1), calls) == (1, [1])
        clock.advance(0.01)
        assert (await short(1), calls) == (1, [1, 1])
        clock.advance(10**8)
        assert [await short.exists(1), await for_ever.exists(1)] == [False, True]

    async def test_a_policy_that_changes_counts_from_then_on(self, store, clock):
        manager = store.open(clock=clock)

        @cache_menu(manager=manager)
        async def dish(n: int) -> int:
            return n

        await dish(1), await dish(3)
        assert [await dish(1), await dish(3)] == [1, 3]
        manager.override("menu", ttl=10)
        await manager.invalidate_pattern("menu", "*:n=i3")
        await dish(3), await dish(1), await dish(2)
        clock.advance(10)
        assert [await dish.exists(1), await dish.exists(2), await dish.exists(3)] == [True, False, False]
        assert dish.cache_parameters()["ttl"] == 10


def _menus(manager: CacheManager) -> tuple[type, type]:
    """Two classes, one derived from the other, with every kind of method."""

    class Menu:
        def __init__(self, number: int) -> None:
            self.number = number

        @cache_menu(manager=manager)
        async def method(self, n: int) -> list[Any]:
            return [type(self).__name__, self.number, n]

        @cache_menu(manager=manager, self_key=lambda self: self.number)
        async def keyed(self, n: int) -> list[Any]:
            return [type(self).__name__, self.number, n]

        @cache_menu(manager=manager)
        def plain(self, n: int) -> list[Any]:
            return [type(self).__name__, self.number, n]

        @classmethod
        @cache_menu(manager=manager)
        async def under(cls, n: int) -> list[Any]:
            return [cls.__name__, n]

        @cache_menu(manager=manager)
        @classmethod
        async def over(cls, n: int) -> list[Any]:
            return [cls.__name__, n]

        @staticmethod
        @cache_menu(manager=manager)
        async def static_under(n: int) -> list[Any]:
            return ["static", n]

        @cache_menu(manager=manager)
        @staticmethod
        async def static_over(n: int) -> list[Any]:
            return ["static", n]

    class Special(Menu):
        pass

    return Menu, Special


class TestMethods:
    @pytest.mark.parametrize("name", ["method", "plain"])
    async def test_the_class_of_self_is_in_the_key_and_self_is_not(self, manager, name):
        menu, special = _menus(manager)
        one, two, other = menu(1), menu(2), special(3)
        assert await getattr(one, name)(5) == ["Menu", 1, 5]
        assert await getattr(two, name)(5) == ["Menu", 1, 5]
        assert await getattr(other, name)(5) == ["Special", 3, 5]
        assert await getattr(menu, name)(two, 5) == ["Menu", 1, 5]
        assert await getattr(special, name)(other, 5) == ["Special", 3, 5]

    async def test_self_key_tells_instances_apart(self, manager):
        menu, special = _menus(manager)
        assert [await one.keyed(5) for one in (menu(1), menu(2), special(1), menu(1))] == [
            ["Menu", 1, 5],
            ["Menu", 2, 5],
            ["Special", 1, 5],
            ["Menu", 1, 5],
        ]
        assert await menu(1).keyed.invalidate(5) is True
        assert [await one.keyed.exists(5) for one in (menu(1), menu(2), special(1))] == [False, True, True]

    @pytest.mark.parametrize("name", ["under", "over"])
    async def test_class_methods(self, manager, name):
        """Under or over `@classmethod`: through the class, an instance, and a class that inherits it."""
        menu, special = _menus(manager)
        for through in (menu, menu(1)):
            assert await getattr(through, name)(5) == ["Menu", 5]
            assert await getattr(through, name).exists(5) is True
        assert await getattr(special, name).exists(5) is False
        assert await getattr(special(1), name)(5) == ["Special", 5]
        assert await getattr(menu, name).invalidate(5) is True
        assert [await getattr(one, name).exists(5) for one in (menu, special)] == [False, True]
        assert await getattr(special, name).refresh(5) == ["Special", 5]
        assert await getattr(special, name).set_value(["set"], 5) is True
        assert await getattr(special, name).peek(5) == ["set"]
        assert getattr(menu, name).cache_key(5) != getattr(special, name).cache_key(5)
        with pytest.raises(TypeError):
            await getattr(menu, name)()

    @pytest.mark.parametrize("name", ["static_under", "static_over"])
    async def test_static_methods(self, manager, name):
        """One set of entries, since no class is passed."""
        menu, special = _menus(manager)
        for through in (menu, menu(1), special, special(2)):
            assert await getattr(through, name)(5) == ["static", 5]
        assert manager.stats()["menu"]["loads"] == 1
        assert await getattr(special(2), name).invalidate(5) is True
        assert await getattr(menu, name).exists(5) is False
        assert await getattr(menu, name).set_value(["set"], 5) is True
        assert await getattr(menu(1), name).peek(5) == ["set"]

    async def test_verbs_through_an_instance_and_through_the_class(self, manager):
        """Through the class they demand the first argument."""
        menu, special = _menus(manager)
        one = menu(1)
        await one.method(5)
        assert await one.method.exists(5) is await menu.method.exists(one, 5) is True
        assert await menu.method.peek(one, n=5) == ["Menu", 1, 5]
        assert await menu.method.set_value(["set"], one, 5) is True
        assert await one.method(5) == ["set"]
        assert await menu.method.refresh(one, 5) == ["Menu", 1, 5]
        assert one.method.cache_key(5) == menu.method.cache_key(one, 5)
        assert await menu.method.invalidate(one, 5) is True
        assert await one.method.exists(5) is False
        for use in (menu.method, menu.method.invalidate, menu.method.exists, menu.method.peek, menu.method.refresh):
            with pytest.raises(TypeError):
                await use(5)
        with pytest.raises(TypeError):
            menu.method.cache_key(5)

    async def test_clearing_a_method_clears_it_for_every_class(self, manager):
        menu, special = _menus(manager)
        await menu(1).method(5), await special(1).method(5), await menu(1).plain(5)
        assert await menu.method.cache_clear() is True
        assert [await one.exists(5) for one in (menu(1).method, special(1).method, menu(1).plain)] == [False, False, True]
        assert menu.method.cache_parameters() == special(1).method.cache_parameters()

    async def test_a_method_that_calls_its_parent_s(self, manager):
        """Two functions with entries of their own, for the same instance."""

        class Base:
            @cache_menu(manager=manager)
            async def price(self, n: int) -> int:
                return n

        class Derived(Base):
            @cache_menu(manager=manager)
            async def price(self, n: int) -> int:
                return 10 * await super().price(n)

        assert [await Derived().price(2), await Derived().price(2), await Base().price(2)] == [20, 20, 2]

    async def test_instances_need_not_be_hashable_nor_have_a_dict(self, manager):
        class Menu(list[int]):
            __slots__ = ()

            @cache_menu(manager=manager)
            async def first(self, n: int) -> int:
                return n

        assert [await Menu().first(1), await Menu([1]).first(1)] == [1, 1]
        assert manager.stats()["menu"]["loads"] == 1

    async def test_a_class_that_says_what_stands_for_it(self, manager):
        class Menu:
            def __init__(self, number: int) -> None:
                self.number = number

            def __cache_key__(self) -> int:
                return self.number

            @cache_menu(manager=manager)
            async def number_of(self) -> int:
                return self.number

        changing = Menu(1)
        assert [await Menu(1).number_of(), await Menu(2).number_of(), await changing.number_of()] == [1, 2, 1]
        changing.number = 2
        assert await changing.number_of() == 2
        assert manager.stats()["menu"]["loads"] == 2

    async def test_it_looks_like_the_method_it_was(self, manager):
        menu, _ = _menus(manager)
        assert isinstance(vars(menu)["method"], CachedFunction)
        assert menu.method.__name__ == menu(1).method.__name__ == "method"
        assert list(inspect.signature(menu(1).method).parameters) == ["n"]
        assert list(inspect.signature(menu.method).parameters) == ["self", "n"]
        assert menu.method.__wrapped__ is menu(1).method.__wrapped__


class TestWhatIsStored:
    async def test_none_is_not(self, manager):
        calls = []

        @cache_menu(manager=manager)
        async def nothing(n: int) -> None:
            calls.append(n)

        assert [await nothing(1), await nothing(1)] == [None, None]
        assert calls == [1, 1]
        assert await nothing.exists(1) is False
        assert manager.stats()["menu"]["unstorable"] == 0

    @pytest.mark.parametrize("value", [0, "", [], False, {}], ids=repr)
    async def test_falsy_values_are(self, manager, value):
        calls = []

        @cache_menu(manager=manager)
        async def falsy(n: int) -> Any:
            calls.append(n)
            return value

        got = [await falsy(1), await falsy(1)]
        assert got == [value, value]
        assert [type(one) for one in got] == [type(value)] * 2
        assert calls == [1]

    async def test_errors_are_not_and_each_waiting_caller_has_it_once(self, manager):
        """One load fails all who wait for it; the next call loads anew. It is the loader's own exception."""
        source, error = Source(held=True), LookupError("no such dish")

        @cache_menu(manager=manager)
        async def dish(n: int) -> int:
            return await source.load()

        waiting = [asyncio.ensure_future(dish(1)) for _ in range(10)]
        load = await source.begun()
        await settled()
        load.fail(error)
        got = await asyncio.gather(*waiting, return_exceptions=True)
        assert got == [error] * 10
        assert source.loads == 1
        source.held = False
        assert await dish(1) == 1
        assert (source.loads, manager.stats()["menu"]["load_errors"]) == (2, 1)

    async def test_what_cannot_be_stored_is_returned_as_the_one_object(self, manager, caplog):
        """To all callers of the flight; warned about once for the function, with the path and the fixes; counted each time."""
        row, release = Row("Pizza", Decimal(1)), asyncio.Event()
        calls = []

        @cache_menu(manager=manager)
        async def rows(n: int) -> list[Any]:
            calls.append(n)
            await release.wait()
            return [1, {"row": row}]

        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            waiting = [asyncio.ensure_future(rows(1)) for _ in range(20)]
            await settled()
            release.set()
            got = await asyncio.gather(*waiting)
            assert all(one is got[0] for one in got)
            assert got[0][1]["row"] is row
            await rows(1), await rows(2)
        assert calls == [1, 1, 2]
        stats = manager.stats()["menu"]
        assert (stats["unstorable"], stats["loads"], stats["sets"]) == (3, 3, 0)
        assert await rows.exists(1) is False
        (said,) = [record.getMessage() for record in caplog.records]
        assert "rows" in said
        assert "value[1]['row'] is a " in said
        assert all(fix in said for fix in ("return annotation", "returns=", "register_type"))
        with pytest.raises(SerializationError, match=r"value\[1\]"):
            await rows.set_value([1, row], 1)

    async def test_each_function_is_warned_about_once(self, manager, caplog):
        """Two that have the same name in other places are two functions."""

        def make(module: str) -> Any:
            async def rows() -> Any:
                return object()

            rows.__module__, rows.__qualname__ = module, "rows"
            return cache_menu(manager=manager)(rows)

        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            for function in (make("shop.menus"), make("shop.orders")):
                await function(), await function()
        assert len(caplog.records) == 2

    async def test_a_value_above_the_limit_is_returned(self, manager, caplog):
        @cache_menu(manager=manager, max_value_bytes=20)
        async def text(n: int) -> str:
            return "x" * n

        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert [await text(18), await text(19)] == ["x" * 18, "x" * 19]
        assert [await text.exists(18), await text.exists(19)] == [True, False]
        assert "max_value_bytes=20" in caplog.text

    async def test_every_caller_owns_its_copy(self, manager):
        """Leaders, followers, and those that hit: what one does to its own, nobody else sees."""
        release = asyncio.Event()
        made = []

        @cache_menu(manager=manager)
        async def dish(n: int) -> dict[str, list[int]]:
            await release.wait()
            made.append({"sizes": [n]})
            return made[-1]

        waiting = [asyncio.ensure_future(dish(1)) for _ in range(5)]
        await settled()
        release.set()
        got = [*await asyncio.gather(*waiting), await dish(1), await dish(1), *made]
        assert len(made) == 1
        for n, one in enumerate(got):
            one["sizes"].append(n)
        assert [one["sizes"] for one in got] == [[1, n] for n in range(len(got))]
        assert await dish(1) == await dish.peek(1) == {"sizes": [1]}

    async def test_share_hands_all_who_wait_the_one_object(self, manager):
        release = asyncio.Event()
        made = []

        @cache_menu(manager=manager, share=True)
        async def dish(n: int) -> dict[str, int]:
            await release.wait()
            made.append({"n": n})
            return made[-1]

        waiting = [asyncio.ensure_future(dish(1)) for _ in range(5)]
        await settled()
        release.set()
        assert all(one is made[0] for one in await asyncio.gather(*waiting))
        assert await dish(1) == {"n": 1}
        assert len(made) == 1

    @pytest.mark.parametrize("out", [Dish, DishOut, DishStruct])
    async def test_returns_converts_for_every_caller(self, manager, peer, out):
        """The one that loads included; what is stored is the converted value."""
        source = Source(held=True)

        @cache_menu(manager=manager, returns=list[out])
        async def dishes(n: int) -> list[Any]:
            await source.load()
            return [Row("Pizza", Decimal("12.50"))]

        @cache_menu(manager=peer, returns=list[out], name=f"{HERE}.TestWhatIsStored.elsewhere")
        async def elsewhere(n: int) -> list[Any]:
            raise AssertionError("not asked here")

        waiting = [asyncio.ensure_future(dishes(1)) for _ in range(3)]
        load = await source.begun()
        await settled()
        load.finish()
        got = [*await asyncio.gather(*waiting), await dishes(1), await dishes.peek(1)]
        assert got == [[out(name="Pizza", price=Decimal("12.50"))]] * 5
        assert {type(one) for answer in got for one in answer} == {out}
        assert len({id(answer[0]) for answer in got}) == 5
        assert await dishes.set_value([Row("Pasta", Decimal(9))], 1) is True
        assert await dishes(1) == [out(name="Pasta", price=Decimal(9))]
        assert source.loads == 1

    async def test_what_returns_cannot_convert_is_an_error_that_says_so(self, manager):
        @cache_menu(manager=manager, returns=list[Dish])
        async def dishes(n: int) -> list[Any]:
            return [object()]

        with pytest.raises(SerializationError, match="Dish"):
            await dishes(1)
        assert await dishes.exists(1) is False

    async def test_returns_says_more_than_the_annotation(self, manager):
        @cache_menu(manager=manager, returns=tuple[int, ...])
        async def numbers(n: int) -> list[int]:
            return [1, 2]

        assert [await numbers(1), await numbers(1)] == [(1, 2), (1, 2)]


class TestAnnotations:
    async def test_the_annotation_decides_the_decoder(self, manager):
        """A class in it comes back as it was, nested and in a union."""

        @cache_menu(manager=manager)
        async def dishes(n: int) -> dict[str, list[Dish] | None]:
            return {"a": [Dish("Pizza", Decimal(1))], "b": None}

        first, second = await dishes(1), await dishes(1)
        assert first == second == {"a": [Dish("Pizza", Decimal(1))], "b": None}
        assert manager.stats()["menu"]["loads"] == 1

    async def test_one_that_cannot_be_resolved_warns_and_counts_as_absent(self, manager, caplog):
        @cache_menu(manager=manager)
        async def unknown(n: int) -> Session:
            return {"n": n}

        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert [await unknown(1), await unknown(1), await unknown(2)] == [{"n": 1}, {"n": 1}, {"n": 2}]
        (said,) = [record.getMessage() for record in caplog.records]
        assert "'Session'" in said
        assert "unknown" in said

    @pytest.mark.parametrize("annotation", ["list[", "1 / 0", "Dish.Size", "undefined", "list[Session]", "[]()"])
    async def test_whatever_is_wrong_with_it(self, manager, caplog, annotation):
        """A broken annotation never breaks the function."""

        async def broken(n: int) -> Any:
            return [n]

        broken.__annotations__["return"] = annotation
        cached = cache_menu(manager=manager)(broken)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert [await cached(1), await cached(1)] == [[1], [1]]
        assert manager.stats()["menu"]["loads"] == 1
        assert len(caplog.records) == 1

    async def test_parameters_that_cannot_be_resolved_say_nothing_about_what_is_returned(self, manager, caplog):
        """`db: Session`, imported for type checkers only, is how applications are written."""

        @cache_menu(manager=manager, exclude=["db"])
        async def dishes(n: int, db: Session) -> list[Dish]:
            return [Dish("Pizza", Decimal(n))]

        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert await dishes(1, None) == await dishes(1, None) == [Dish("Pizza", Decimal(1))]
        assert (manager.stats()["menu"]["loads"], caplog.records) == (1, [])

    async def test_another_annotation_is_a_miss(self, manager, peer):
        """The entry of an older or newer release: never another type than is declared, for any verb."""

        def release(on: CacheManager, annotation: Any, value: Any) -> Any:
            async def dish(n: int) -> Any:
                return value

            dish.__annotations__["return"] = annotation
            return cache_menu(manager=on, name="dish")(dish)

        old = release(manager, dict[str, int], {"n": 1})
        assert await old(1) == {"n": 1}
        del old
        gc.collect()
        new = release(peer, dict[str, float], {"n": 1.5})
        assert (await new.exists(1), await new.peek(1)) == (False, None)
        assert await new(1) == {"n": 1.5}
        assert await new.exists(1) is True
        assert peer.stats()["menu"]["undecodable"] > 0

    async def test_none_is_what_a_miss_is_not_told_from_by_peek_alone(self, manager):
        """A function's `None` is not stored, so `exists` says no."""

        @cache_menu(manager=manager)
        async def maybe(n: int) -> Dish | None:
            return None

        assert await maybe(1) is None
        assert (await maybe.peek(1), await maybe.exists(1)) == (None, False)


class TestPlainFunctions:
    async def test_it_runs_in_a_thread_and_is_awaited(self, manager):
        threads = []

        @cache_menu(manager=manager)
        def plain(n: int) -> int:
            threads.append(threading.current_thread())
            return n

        assert [await plain(1), await plain(1)] == [1, 1]
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()

    async def test_an_awaitable_that_it_returns_is_awaited(self, manager):
        async def later(n: int) -> int:
            return n

        @cache_menu(manager=manager)
        def plain(n: int) -> Any:
            return later(n)

        assert [await plain(1), await plain(1)] == [1, 1]
        assert manager.stats()["menu"]["loads"] == 1

    async def test_its_errors_are_its_callers(self, manager):
        @cache_menu(manager=manager)
        def plain(n: int) -> int:
            raise LookupError(n)

        with pytest.raises(LookupError, match="1"):
            await plain(1)

    async def test_a_stop_iteration_does_not_hang_its_callers(self, manager):
        """It cannot be put into a future: it arrives as the error that Python makes of it."""

        @cache_menu(manager=manager)
        def plain(n: int) -> int:
            return next(iter(()))

        for _ in range(2):
            with pytest.raises((RuntimeError, StopIteration)):
                await soon(plain(1))

        @cache_menu(manager=manager)
        async def coroutine(n: int) -> int:
            raise StopIteration

        with pytest.raises(RuntimeError):
            await soon(coroutine(1))

    async def test_objects_and_partials_can_be_cached_under_a_name(self, manager):
        class Loader:
            async def __call__(self, n: int) -> int:
                return n

        async def add(a: int, b: int) -> int:
            return a + b

        cached = [
            cache_menu(manager=manager, name="loader")(Loader()),
            cache_menu(manager=manager, name="partial")(functools.partial(add, 1)),
            cache_menu(manager=manager, name="lambda")(lambda n: n),
        ]
        assert [await function(5) for function in cached] == [5, 6, 5]
        assert [await function.exists(5) for function in cached] == [True] * 3
        for unnamed in (functools.partial(add, 1), lambda n: n, Loader()):
            with pytest.raises(ConfigurationError, match="name="):
                cache_menu(manager=manager)(unnamed)


_request: ContextVar[str] = ContextVar("_request", default="nobody's")


class TestContext:
    @pytest.mark.parametrize("kind", ["async", "plain"])
    async def test_it_runs_in_the_caller_s_context(self, manager, kind):
        """Tenant and user of the caller, and any other context variable; what it sets there stays its own."""

        async def seen(n: int) -> Any:
            found = [_request.get(), current_tenant(), current_user()]
            _request.set("the load's")
            return found

        def plain(n: int) -> Any:
            return [_request.get(), current_tenant(), current_user()]

        cached = cache_menu(manager=manager)(seen if kind == "async" else plain)
        token = _request.set("alice's")
        try:
            with tenant_scope(1), user_scope(5):
                assert await cached(1) == ["alice's", "1", "5"]
            assert _request.get() == "alice's"
        finally:
            _request.reset(token)
        assert await cached(2) == ["nobody's", None, None]

    async def test_a_scope_that_is_left_while_it_loads_makes_no_difference(self, manager):
        source = Source(held=True)

        @cache_menu(manager=manager)
        async def dish(n: int) -> str | None:
            await source.load()
            return current_tenant()

        with tenant_scope(1):
            waiting = asyncio.ensure_future(dish(1))
            load = await source.begun()
        load.finish()
        assert await waiting == "1"
        with tenant_scope(1):
            assert await dish.peek(1) == "1"
        assert await dish.exists(1) is False


class TestWhose:
    async def test_known_is_what_arguments_and_scope_say(self, manager):
        """Both count; where they differ, the entry depends on both. None is absent."""

        @cache_menu(manager=manager)
        async def dish(restaurant_id: int | None = None) -> str:
            return f"{restaurant_id} in {current_tenant()}"

        assert await dish(1) == "1 in None"
        with tenant_scope(1):
            assert await dish(1) == "1 in None"
        with tenant_scope(2):
            assert await dish(1) == "1 in 2"
            assert await dish() == "None in 2"
        assert await dish() == "None in None"
        with tenant_scope(2):
            await manager.invalidate_tenant(2)
            assert [await dish.exists(1), await dish.exists()] == [False, False]
            await dish(1)
            await manager.invalidate_menu(1)
            assert await dish.exists(1) is False
        assert await dish.exists(1) is False
        await dish(1)
        await manager.invalidate_tenant(2)
        assert await dish.exists(1) is True

    async def test_aware_functions_must_know(self, manager):
        @cache_settings(manager=manager, tenant_aware=True)
        async def setting(name: str) -> str:
            return name

        @cache_permissions(manager=manager, user_aware=True)
        async def rights(user_id: int | None = None) -> list[str]:
            return []

        for use in (setting("a"), setting.invalidate("a"), setting.peek("a")):
            with pytest.raises(MissingTenantError, match="tenant_scope"):
                await use
        with pytest.raises(MissingUserError, match="user_scope"):
            await rights(None)
        with tenant_scope(1), user_scope(5):
            assert await setting("a") == "a"
            assert await rights() == []
        assert await rights(5) == []

    async def test_only_false_shares(self, manager):
        @cache_menu(manager=manager, tenant_aware=False)
        async def shared(n: int) -> str:
            return "everybody's"

        with tenant_scope(1):
            await shared(1)
            await manager.invalidate_tenant(1)
            await manager.invalidate_menu(1)
        with tenant_scope(2):
            assert await shared.exists(1) is True
        await manager.invalidate_menu()
        assert await shared.exists(1) is False

    async def test_logging_out(self, manager):
        """`invalidate_user` reaches what a `user_id` argument names, in every type, and permissions in scope."""

        @cache_menu(manager=manager)
        async def favourites(user_id: int) -> list[int]:
            return [user_id]

        @cache_permissions(manager=manager)
        async def rights() -> list[str]:
            return [str(current_user())]

        for user in (5, 6):
            with user_scope(user):
                await rights()
            await favourites(user)
        await manager.invalidate_user(5)
        assert [await favourites.exists(5), await favourites.exists(6)] == [False, True]
        for user in (5, 6):
            with user_scope(user):
                assert await rights.exists() is (user == 6)

    async def test_names_of_arguments_are_the_manager_s(self, store):
        manager = store.open(tenant_args=("shop",), user_args=("who",))

        @cache_menu(manager=manager)
        async def dish(shop: int, restaurant_id: int, who: int) -> int:
            return shop

        await dish(1, 2, 3)
        await manager.invalidate_tenant(2)
        assert await dish.exists(1, 2, 3) is True
        for clear in (manager.invalidate_tenant(1), manager.invalidate_user(3)):
            assert await dish(1, 2, 3) == 1
            await clear
            assert await dish.exists(1, 2, 3) is False

    async def test_what_is_no_id_is_refused(self, manager):
        @cache_menu(manager=manager)
        async def dish(restaurant_id: Any) -> int:
            return 1

        for wrong in ("", True, 1.0, b"1", [1]):
            with pytest.raises(KeyPartError, match="restaurant_id"):
                await dish(wrong)


class TestNames:
    def test_a_second_live_function_of_the_same_name_warns(self):
        def make(**options: Any) -> Any:
            @cache_menu(**options)
            async def dish(n: int) -> int:
                return n

            return dish

        manager = CacheManager()
        kept = [make(manager=manager), make(manager=CacheManager()), make(manager=manager, name="dish"), make(manager=manager, version=2)]
        with pytest.warns(UserWarning, match=r"second function .*make.*name=") as caught:
            kept.append(make(manager=manager))
        assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match="second function"):
            kept.append(make(manager=manager, name="dish"))

    def test_of_another_type_too(self):
        """They would share a scope: clearing one would clear the other."""

        async def dish(n: int) -> int:
            return n

        async def other(n: int) -> int:
            return n

        manager = CacheManager()
        kept = [cache_menu(manager=manager, name="dish")(dish)]
        with pytest.warns(UserWarning, match="second function"):
            kept.append(cache_settings(manager=manager, name="dish")(other))

    def test_one_that_is_gone_does_not_count(self):
        """A module that is loaded again, a test that defines its own."""
        manager = CacheManager()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):

                @cache_menu(manager=manager)
                async def dish(n: int) -> int:
                    return n

                del dish
                gc.collect()

    async def test_name_and_version_keep_and_change_keys(self, manager):
        """A function that was renamed keeps its entries under `name=`; a `version=` leaves them behind."""

        def make(**options: Any) -> Any:
            async def renamed(n: int) -> list[int]:
                return [n, len(options)]

            return cache_menu(manager=manager, **options)(renamed)

        original = make(name="shop.dish")
        assert await original(1) == [1, 1]
        del original
        gc.collect()
        assert await make(name="shop.dish", ttl=5)(1) == [1, 1]
        gc.collect()
        assert await make(name="shop.dish", version=2)(1) == [1, 2]
        gc.collect()
        assert await make(name="shop.dish")(1) == [1, 1]
        assert make(name="x", version=1).cache_key(1) != make(name="x", version=2).cache_key(1) != make(name="x;2").cache_key(1)


class TestKeysAndTags:
    async def test_with_key_the_entry_is_the_manager_s(self, manager, peer):
        """What a `set` or a warmer put there is found, and the other way round."""

        @cache(cache_type="api", key="customers:{restaurant_id}:{page}", manager=manager)
        async def customers(restaurant_id: int, page: int = 1) -> list[int]:
            return [restaurant_id, page]

        assert await customers(1) == [1, 1]
        assert await peer.get("api", "customers:1:1", tenant=1) == [1, 1]
        await peer.set("api", "customers:1:2", [9], tenant=1)
        assert await customers(1, 2) == [9]
        assert await peer.delete("api", "customers:1:1", tenant=1) == 1
        assert await customers.exists(1) is False
        assert await customers.invalidate(1, 2) is True
        assert await peer.exists("api", "customers:1:2", tenant=1) is False
        with tenant_scope(1):
            assert await customers(1) == await manager.get("api", "customers:1:1")

    async def test_key_by_a_function_of_the_call(self, manager):
        @cache_menu(manager=manager, key=lambda call: f"dish:{call['n'] % 10}", exclude=["db"])
        async def dish(n: int, size: str = "m", db: Any = None) -> int:
            return n

        assert [await dish(1), await dish(11), await dish(2, db=object())] == [1, 1, 2]
        assert await manager.get("menu", "dish:1") == 1
        for wrong in (5, None, b"x"):
            with pytest.raises(KeyPartError, match=type(wrong).__name__):
                await cache_menu(manager=manager, key=lambda call, wrong=wrong: wrong, name=f"dish{wrong}")(lambda n: n)(1)

    async def test_a_call_has_all_arguments(self, manager):
        """By name, defaults filled in, those that are left out of the key too."""
        seen: list[Any] = []

        def tags_of(call: Call) -> list[str]:
            seen.append((call["n"], call["size"], call["db"], call["rest"], call["more"], call.result))
            return [f"dish:{call['n']}"]

        @cache_menu(manager=manager, tags=tags_of, exclude=["db"])
        async def dish(n: int, size: str = "m", *rest: int, db: Any = None, **more: int) -> int:
            return n

        await dish(1, "l", 7, db="session", x=8)
        assert seen[-1] == (1, "l", "session", (7,), {"x": 8}, MISSING)
        await dish(n=2)
        assert seen[-1] == (2, "m", None, (), {}, MISSING)
        await manager.invalidate("menu", tags=["dish:1"])
        assert [await dish.exists(1, "l", 7, x=8), await dish.exists(2)] == [False, True]
        with pytest.raises(KeyError):
            Call({"a": 1})["b"]

    async def test_tags_by_template(self, manager):
        class Who:
            id = 7

            def __cache_key__(self) -> int:
                return self.id

        @cache_menu(manager=manager, tags=["dish:{n}", "all", "by:{who.id}", "page:{n:03d}"])
        async def dish(n: int, who: Who) -> int:
            return n

        for tag in ("dish:1", "all", "by:7", "page:001"):
            await dish(1, Who())
            await manager.invalidate("menu", tags=["dish:2", "by:8", "page:1"])
            assert await dish.exists(1, Who()) is True
            await manager.invalidate("menu", tags=[tag])
            assert await dish.exists(1, Who()) is False

    async def test_one_text_in_place_of_tags_by_a_function_is_refused(self, manager):
        """It would be taken letter by letter, and no invalidation would ever find it."""

        @cache_menu(manager=manager, tags=lambda call: "promo")
        async def dish(n: int) -> int:
            return n

        with pytest.raises(TypeError, match="not one text"):
            await dish(1)

    async def test_a_secret_is_hashed_in_keys_and_tags(self, manager):
        """It makes a difference, and stands nowhere."""

        @cache_menu(manager=manager, secret=["api_key"], tags=["key:{api_key}"])
        async def dish(n: int, api_key: str) -> str:
            return api_key[-1]

        @cache_menu(manager=manager, secret=["password"], key="user:{name}:{password}")
        async def user(name: str, password: str) -> str:
            return password[-1]

        assert [await dish(1, "hunter2"), await dish(1, "hunter3"), await dish(1, "hunter2")] == ["2", "3", "2"]
        assert [await user("ann", "hunter2"), await user("ann", "hunter3")] == ["2", "3"]
        assert "hunter" not in dish.cache_key(1, "hunter2") + user.cache_key("ann", "hunter2")
        assert dish.cache_key(1, "hunter2") == dish.cache_key(n=1, api_key="hunter2") != dish.cache_key(1, "hunter3")

    @pytest.mark.parametrize("name", ["password", "token", "api_key", "apikey", "client_secret", "credentials", "authorization"])
    def test_what_is_named_like_a_secret_warns(self, name):
        namespace: dict[str, Any] = {}
        exec(f"async def call(n, {name}): return n", namespace)
        with pytest.warns(UserWarning, match=rf"'{name}' .*secret=\['{name}'\].*exclude="):
            cache_menu(manager=CacheManager())(namespace["call"])
        for options in ({"secret": [name]}, {"exclude": [name]}):
            cache_menu(manager=CacheManager(), **options)(namespace["call"])


class Fake:
    """A hand-written stand-in, with the two methods that a decorator asks for."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], Any] = {}
        self.asked: list[Any] = []

    def get(self, cache_type: str, key: str) -> Any:
        self.asked.append(("get", cache_type, key))
        return self.stored.get((cache_type, key))

    def set(self, cache_type: str, key: str, value: Any, *, ttl: Any = None) -> None:
        self.asked.append(("set", cache_type, key, value, ttl))
        self.stored[cache_type, key] = value


class AsyncFake(Fake):
    async def get(self, cache_type: str, key: str) -> Any:
        return super().get(cache_type, key)

    async def set(self, cache_type: str, key: str, value: Any, *, ttl: Any = None) -> None:
        super().set(cache_type, key, value, ttl=ttl)


class TestStrangers:
    """`unittest.mock.patch("aiocache_aura.cache_manager.cache_manager")` works: what is no `CacheManager` is asked by `get` and `set`."""

    @pytest.fixture
    def dish(self):
        @cache_menu(name=f"dish{next(_numbers)}")  # what a test logged may keep the last one alive
        async def dish(restaurant_id: int) -> list[int]:
            return [restaurant_id]

        return dish

    @pytest.mark.parametrize("make", [MagicMock, AsyncMock])
    async def test_a_mock_s_answer_is_taken_as_it_is(self, dish, make):
        with patch(DEFAULT, new_callable=make) as mock:
            mock.get.return_value = {"cached": True}
            got = await dish(1)
            assert got is mock.get.return_value
            mock.get.assert_called_once()
            cache_type, key = mock.get.call_args.args
            assert (cache_type, mock.get.call_args.kwargs) == ("menu", {})
            assert re.fullmatch(r"t1:dish\d+:restaurant_id=i1", key)
            mock.set.assert_not_called()

    @pytest.mark.parametrize("make", [MagicMock, AsyncMock, Mock])
    async def test_none_is_a_miss(self, dish, make):
        with patch(DEFAULT, new_callable=make) as mock:
            mock.get.return_value = None
            assert [await dish(1), await dish(1)] == [[1], [1]]
            assert mock.get.call_count == 2
            mock.set.assert_called_with("menu", mock.get.call_args.args[1], [1], ttl=3600)

    async def test_falsy_answers_are_hits(self, dish):
        with patch(DEFAULT) as mock:
            for value in ([], 0, "", False):
                mock.get.return_value = value
                assert await dish(1) is value
            mock.set.assert_not_called()

    @pytest.mark.parametrize("make", [Fake, AsyncFake])
    async def test_a_hand_written_one(self, dish, make):
        """Asked by position and keyword as it is declared; a None that the function returned is not stored."""

        @cache(cache_type="api", key="list:{page}", ttl="90s")
        async def page_of(page: int) -> list[int] | None:
            return [page] if page else None

        fake = make()
        with patch(DEFAULT, fake):
            assert [await dish(1), await dish(1), await dish(2)] == [[1], [1], [2]]
            assert [await page_of(3), await page_of(3), await page_of(0)] == [[3], [3], None]
        assert ("set", "api", "list:3", [3], 90) in fake.asked
        assert ("api", "list:0") not in fake.stored
        assert len(fake.stored) == 3

    async def test_the_key_says_whose_it_is(self, dish):
        """No two tenants share an entry of a stand-in either."""
        fake = Fake()
        with patch(DEFAULT, fake):
            for tenant in (1, 2):
                with tenant_scope(tenant):
                    await dish(1)
        assert len(fake.stored) == 2

    @pytest.mark.parametrize("make", [MagicMock, AsyncMock])
    async def test_one_that_raises_is_as_none(self, dish, make, caplog):
        with patch(DEFAULT, new_callable=make) as mock, caplog.at_level(logging.WARNING, "aiocache_aura"):
            mock.get.side_effect = mock.set.side_effect = ConnectionError("Redis is down")
            assert await dish(1) == [1]
            mock.get.return_value = None
            mock.get.side_effect = None
            assert await dish(1) == [1]
        assert caplog.text.count("went on without the cache") == 3

    async def test_errors_of_the_function_are_its_caller_s(self):
        @cache_menu
        async def fails(n: int) -> None:
            raise LookupError(n)

        with patch(DEFAULT, Fake()) as fake, pytest.raises(LookupError):
            await fails(1)
        assert fake.stored == {}

    async def test_nothing_is_memoised(self, dish):
        """The real manager, a mock, the real one again: each call asks whoever is there."""
        async with CacheManager() as manager:
            with patch(DEFAULT, manager):
                assert [await dish(1), await dish(1)] == [[1], [1]]
                with patch(DEFAULT) as mock:
                    mock.get.return_value = ["mock"]
                    assert await dish(1) == ["mock"]
                assert await dish(1) == [1]
                async with CacheManager() as other:
                    with patch(DEFAULT, other):
                        await dish(1)
                        assert other.stats()["menu"]["loads"] == 1
            assert (manager.stats()["menu"]["loads"], manager.stats()["menu"]["hits"]) == (1, 2)

    @pytest.mark.parametrize("make", [MagicMock, AsyncMock, Mock, Fake])
    async def test_given_or_patched_at_decoration(self, make):
        """A stand-in says nothing about names of tenants; the function is decorated all the same."""
        stranger = make()
        for decorate in (
            lambda **options: cache_menu(manager=stranger, **options),
            lambda **options: cache_menu(**options),
        ):
            with patch(DEFAULT, make()):

                @decorate(key="dishes:{page}", name=f"shop.dishes{id(decorate)}")
                async def dishes(restaurant_id: int, page: int) -> list[int]:
                    return [restaurant_id, page]

            with patch(DEFAULT, Fake()):
                assert await dishes.__wrapped__(1, 2) == [1, 2]
                assert inspect.iscoroutinefunction(dishes)

    async def test_a_manager_is_no_stranger_however_it_is_made(self, dish):
        """A subclass is a manager; a mock that claims to be one is not."""

        class Mine(CacheManager):
            pass

        async with Mine() as mine:
            with patch(DEFAULT, mine):
                await dish(1)
                assert await dish.exists(1) is True
        with patch(DEFAULT, MagicMock(spec=CacheManager)) as mock:
            mock.get.return_value = ["mock"]
            assert await dish(1) == ["mock"]
            with pytest.raises(ConfigurationError, match="CacheManager"):
                await dish.exists(1)

    async def test_methods(self):
        fake = Fake()

        class Menu:
            @cache_menu(manager=fake)
            async def dish(self, n: int) -> int:
                return n

            @cache_menu(manager=fake)
            @classmethod
            def other(cls, n: int) -> int:
                return n

        assert [await Menu().dish(1), await Menu().dish(1), await Menu.other(1), await Menu.dish(Menu(), 1)] == [1, 1, 1, 1]
        assert len(fake.stored) == 2

    @pytest.mark.parametrize("make", [MagicMock, AsyncMock])
    async def test_invalidating_through_a_stranger(self, make):
        @invalidate_cache("menu", tags=["dish:{n}"])
        async def change(n: int, restaurant_id: int) -> int:
            return n

        @invalidate_cache("menu", keys=["dish:{n}"])
        async def rename(n: int) -> int:
            return n

        with patch(DEFAULT, new_callable=make) as mock:
            assert [await change(1, 7), await rename(2)] == [1, 2]
            mock.invalidate.assert_called_once_with("menu", tenant="7", tags=["dish:1"])
            mock.delete.assert_called_once_with("menu", "dish:2")
            mock.invalidate.side_effect = ConnectionError
            assert await change(1, 7) == 1

    @pytest.mark.parametrize("make", [MagicMock, Mock])
    async def test_invalidating_through_a_mock_that_claims_to_be_a_manager(self, make):
        @invalidate_cache("menu")
        async def change(restaurant_id: int) -> int:
            return restaurant_id

        with patch(DEFAULT, make(spec=CacheManager)) as mock:
            assert await change(7) == 7
            mock.invalidate.assert_called_once_with("menu", tenant="7", tags=())


async def _entries(manager: CacheManager) -> None:
    """In `menu` and `api`, for tenants 1 and 2 and nobody: a key each, with a tag."""
    whose = [(cache_type, tenant) for cache_type in ("menu", "api") for tenant in (1, 2, None)]
    await asyncio.gather(
        *(manager.mset(cache_type, {"dish:1": 1, "other": 1}, tenant=tenant, tags=["x"]) for cache_type, tenant in whose),
        *(manager.set(cache_type, "dish:2", 1, tenant=tenant, tags=["dish:2"]) for cache_type, tenant in whose),
    )


async def _gone(manager: CacheManager) -> set[tuple[str, int | None, str]]:
    return {
        (cache_type, tenant, key)
        for cache_type in ("menu", "api")
        for tenant in (1, 2, None)
        for key in ("dish:1", "dish:2", "other")
        if not await manager.exists(cache_type, key, tenant=tenant)
    }


KEYS = ("dish:1", "dish:2", "other")


def _all(cache_type: str, *tenants: int | None, keys: tuple[str, ...] = KEYS) -> set[tuple[str, int | None, str]]:
    return {(cache_type, tenant, key) for tenant in tenants for key in keys}


CLEARED: dict[str, tuple[dict[str, Any], dict[str, Any], set[tuple[str, int | None, str]]]] = {
    # how it is decorated ("types" are positional), how it is called, what is gone
    "a type": ({"types": ["menu"]}, {}, _all("menu", 1, 2, None)),
    "several types": ({"types": ["menu", "api"]}, {}, _all("menu", 1, 2, None) | _all("api", 1, 2, None)),
    "of the tenant that an argument names": ({"types": ["menu"]}, {"restaurant_id": 1}, _all("menu", 1, None)),
    "of the tenant in scope": ({"types": ["menu"]}, {"scope": 2}, _all("menu", 2, None)),
    "of both": ({"types": ["menu"]}, {"scope": 2, "restaurant_id": 1}, _all("menu", 1, 2, None)),
    "every tenant's": ({"types": ["menu"], "tenant": ALL}, {"restaurant_id": 1, "scope": 1}, _all("menu", 1, 2, None)),
    "another tenant's": ({"types": ["menu"], "tenant": "{to_id}"}, {"restaurant_id": 1, "to_id": 2}, _all("menu", 2, None)),
    "a told tenant's": ({"types": ["menu"], "tenant": 2}, {"restaurant_id": 1}, _all("menu", 2, None)),
    "a tag": ({"types": ["menu"], "tags": ["dish:{n}"]}, {"n": 2}, _all("menu", 1, 2, None, keys=("dish:2",))),
    "a tenant's tag": ({"types": ["menu"], "tags": ["x"]}, {"restaurant_id": 1}, _all("menu", 1, None, keys=("dish:1", "other"))),
    "a tag of the result": ({"types": ["menu"], "tags": ["dish:{result}"]}, {"n": 2}, _all("menu", 1, 2, None, keys=("dish:2",))),
    "no tags of any type": ({"types": [], "tags": lambda call: []}, {"restaurant_id": 1}, set()),
    "a tag of any type that cannot be told": (
        {"types": [], "tags": ["{result.id}"]},
        {"restaurant_id": 1},
        _all("menu", 1, 2, None) | _all("api", 1, 2, None),
    ),
    "a tenant in every type": ({"types": [], "tenant": "{to_id}"}, {"restaurant_id": 1, "to_id": 2}, _all("menu", 2) | _all("api", 2)),
    "a user in every type": ({"types": [], "user": "{n}"}, {"restaurant_id": 1, "n": 5}, set()),
    "everybody in every type": ({"types": [], "tenant": ALL}, {}, _all("menu", 1, 2, None) | _all("api", 1, 2, None)),
    "a tag of any type": (
        {"types": [], "tags": ["dish:2"]},
        {"restaurant_id": 1},
        _all("menu", 1, 2, None, keys=("dish:2",)) | _all("api", 1, 2, None, keys=("dish:2",)),
    ),
    "tags by a function": (
        {"types": ["menu"], "tags": lambda call: [f"dish:{call['n']}", f"dish:{call.result}"]},
        {"n": 2},
        _all("menu", 1, 2, None, keys=("dish:2",)),
    ),
    "no tags at all": ({"types": ["menu"], "tags": lambda call: []}, {}, set()),
    "a key": (
        {"types": ["menu", "api"], "keys": ["dish:{n}"]},
        {"n": 2},
        _all("menu", None, keys=("dish:2",)) | _all("api", None, keys=("dish:2",)),
    ),
    "a tenant's key": (
        {"types": ["menu"], "keys": ["dish:1", "dish:{n}"]},
        {"n": 2, "restaurant_id": 1},
        _all("menu", 1, keys=("dish:1", "dish:2")),
    ),
    "a key of another tenant's": (
        {"types": ["menu"], "keys": ["other"], "tenant": "{to_id}"},
        {"scope": 1, "to_id": 2},
        _all("menu", 2, keys=("other",)),
    ),
    "keys and tags": (
        {"types": ["menu"], "keys": ["other"], "tags": ["dish:2"]},
        {"restaurant_id": 1},
        _all("menu", 1, keys=("other", "dish:2")) | {("menu", None, "dish:2")},
    ),
    "what cannot be told is all": ({"types": ["menu"], "tags": ["dish:{result.category}"]}, {"restaurant_id": 1}, _all("menu", 1, None)),
    "one text instead of tags is all": ({"types": ["menu"], "tags": lambda call: "dish:2"}, {"restaurant_id": 1}, _all("menu", 1, None)),
    "a tag that is none is all": ({"types": ["menu"], "tags": lambda call: [None]}, {"restaurant_id": 1}, _all("menu", 1, None)),
    "keys that cannot be told are all": ({"types": ["menu"], "keys": ["dish:{result.id}"]}, {"restaurant_id": 1}, _all("menu", 1, None)),
    "a tenant that cannot be told is every tenant": (
        {"types": ["menu"], "tenant": "{result.id}"},
        {"restaurant_id": 1},
        _all("menu", 1, 2, None),
    ),
}


class TestInvalidateCache:
    @pytest.mark.parametrize(("options", "call", "gone"), CLEARED.values(), ids=CLEARED)
    async def test_what_it_clears(self, manager, peer, options, call, gone):
        """With a tenant known that tenant's; narrower by tags and keys; wider where it cannot be told."""
        options, call = dict(options), dict(call)
        scope = call.pop("scope", None)

        @invalidate_cache(*options.pop("types"), manager=manager, **options)
        async def change(n: int = 0, restaurant_id: int | None = None, to_id: int = 0) -> int:
            return n

        await _entries(peer)
        with tenant_scope(scope) if scope else contextlib.nullcontext():
            assert await change(**call) == call.get("n", 0)
        assert await _gone(peer) == gone

    async def test_nothing_where_it_raised(self, manager):
        calls = []

        @invalidate_cache("menu", manager=manager)
        async def change() -> None:
            calls.append(await manager.exists("menu", "a"))
            raise LookupError

        @invalidate_cache("menu", manager=manager, on_error=True)
        async def change_anyhow() -> None:
            raise LookupError

        await manager.set("menu", "a", 1)
        with pytest.raises(LookupError):
            await change()
        assert (calls, await manager.exists("menu", "a")) == ([True], True)
        with pytest.raises(LookupError):
            await change_anyhow()
        assert await manager.exists("menu", "a") is False

    async def test_a_function_cancelled_half_way_invalidates(self, manager):
        """Nobody knows how far it came."""
        begun = asyncio.Event()

        @invalidate_cache("menu", manager=manager)
        async def change() -> None:
            begun.set()
            await asyncio.Event().wait()

        await manager.set("menu", "a", 1)
        task = asyncio.ensure_future(change())
        await begun.wait()
        assert await manager.exists("menu", "a") is True
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await manager.exists("menu", "a") is False

    async def test_once_it_has_returned_it_is_not_stopped(self, manager):
        """However often its caller is cancelled: the invalidation goes out, then the cancellation counts."""
        on_its_way, go = asyncio.Event(), asyncio.Event()
        drop = manager.drop

        async def slow_drop(*args: Any, **options: Any) -> bool:
            on_its_way.set()
            await go.wait()
            return await drop(*args, **options)

        @invalidate_cache("menu", manager=manager)
        async def change() -> int:
            return 1

        await manager.set("menu", "a", 1)
        with patch.object(manager, "drop", slow_drop):
            task = asyncio.ensure_future(change())
            await on_its_way.wait()
            for _ in range(3):
                task.cancel()
                await settled()
                assert not task.done()
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await manager.exists("menu", "a") is False

    async def test_plain_functions_and_methods(self, manager):
        class Menu:
            @invalidate_cache("menu", manager=manager)
            def plain(self, n: int) -> int:
                return n

            @classmethod
            @invalidate_cache("menu", manager=manager)
            async def under(cls, n: int) -> list[Any]:
                return [cls.__name__, n]

            @invalidate_cache("menu", manager=manager)
            @classmethod
            async def over(cls, n: int) -> list[Any]:
                return [cls.__name__, n]

            @invalidate_cache("menu", manager=manager)
            @staticmethod
            async def static(n: int) -> int:
                return n

        for call, answer in (
            (lambda: Menu().plain(1), 1),
            (lambda: Menu.under(1), ["Menu", 1]),
            (lambda: Menu().over(1), ["Menu", 1]),
            (lambda: Menu.static(1), 1),
        ):
            await manager.set("menu", "a", 1)
            assert await call() == answer
            assert await manager.exists("menu", "a") is False
        assert Menu.plain.__name__ == "plain"
        assert inspect.iscoroutinefunction(Menu.plain)

    async def test_what_is_wrong_in_a_call_is_said_before_the_function_runs(self, manager):
        ran = []

        @invalidate_cache("mneu", manager=manager)
        async def misspelt() -> None:
            ran.append(1)

        @invalidate_cache("menu", tenant="{to_id}", manager=manager)
        async def wrong_id(to_id: Any) -> None:
            ran.append(1)

        with pytest.raises(KeyError, match="'menu'"):
            await misspelt()
        for wrong in (True, "", 1.5):
            with pytest.raises(TypeError):
                await wrong_id(wrong)
        with pytest.raises(TypeError, match="wrong_id"):
            await wrong_id(1, 2)
        assert ran == []

    @pytest.mark.parametrize(
        ("types", "options", "error", "names"),
        [
            ([], {}, ConfigurationError, "nothing to invalidate"),
            ([5], {}, ConfigurationError, "name the cache types"),
            (["menu"], {"tags": "x"}, ConfigurationError, "x"),
            (["menu"], {"keys": "x"}, ConfigurationError, "x"),
            ([], {"keys": ["x"]}, ConfigurationError, "name it first"),
            (["menu"], {"keys": ["x"], "tenant": ALL}, ConfigurationError, "ALL"),
            (["menu"], {"tags": ["x"], "user": 5}, TypeError, "not both"),
            (["menu"], {"tags": ["{dish}"]}, ConfigurationError, "dish"),
            (["menu"], {"tenant": "{dish}"}, ConfigurationError, "dish"),
            (["menu"], {"tenant": 1.5}, TypeError, "float"),
            (["menu"], {"tll": 5}, TypeError, "tll"),
        ],
        ids=str,
    )
    def test_options_that_cannot_work_are_refused_at_decoration(self, types, options, error, names):
        with pytest.raises(error, match=names):

            @invalidate_cache(*types, **options)
            async def change(n: int) -> None: ...

    def test_bare_is_refused(self):
        """`@invalidate_cache` without brackets would take the function for a cache type."""

        async def change() -> None: ...

        with pytest.raises((TypeError, ConfigurationError)):
            invalidate_cache(change)(change)


class TestNothingFound:
    async def test_returns_converts_a_value_and_leaves_none_alone(self, manager):
        """A function that finds nothing returns None, whatever `returns=` says of what it finds; it is asked again."""
        asked = []

        @cache(cache_type="menu", returns=list[int], manager=manager)
        async def dishes(found: bool) -> list[int] | None:
            asked.append(found)
            return (1, 2) if found else None

        assert [await dishes(False), await dishes(False), await dishes(True), await dishes(True)] == [None, None, [1, 2], [1, 2]]
        assert asked == [False, False, True]

    async def test_the_manager_clears_a_namespace_by_its_type(self, manager):
        """As the type's own cache does, and nobody else's."""
        await manager.set("menu", "a", 1)
        await manager.set("api", "a", 2)
        assert await manager.clear_namespace("menu") is True
        assert (await manager.get("menu", "a"), await manager.get("api", "a")) == (None, 2)
