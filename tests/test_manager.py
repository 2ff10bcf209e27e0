"""The manager: its options, cache types, event loops, and what it does when the store fails."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import logging
import math
import os
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from unittest.mock import AsyncMock, MagicMock

import anyio.from_thread
import pytest

from aiocache_aura import cache_manager as module
from aiocache_aura.cache_manager import CacheManager, cache_manager
from aiocache_aura.context import tenant_scope
from aiocache_aura.errors import BackendError, ConfigurationError, UnknownCacheTypeError
from aiocache_aura.policy import CachePolicy
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.resilience.threads import THREADS, call_plain, is_async
from aiocache_aura.settings import BUDGET, Settings
from aiocache_aura.types import FOREVER, CacheTTL
from tests.clocks import running_time

REFUSED = "redis://127.0.0.1:1/0"


@pytest.fixture
async def manager():
    async with CacheManager("memory://", prefix="shop") as made:
        yield made


class BrokenPort:
    """A store that cannot be asked."""

    leases = None

    async def _fail(self, *args, **kwargs):
        raise BackendError("it is gone")

    lookup = claim = fill = generations = store = store_if = delete = invalidate = expire = purge = _fail

    async def aclose(self):
        return None

    def forget(self):
        return None


def broken(**options):
    made = CacheManager("memory://", **options)
    made._open_port = lambda tick: BrokenPort()
    return made


class TestOptions:
    def test_the_default_budget(self):
        """A quarter of a second; tests/conftest.py makes tests more patient than that."""
        (default,) = (one.default for one in dataclasses.fields(Settings) if one.name == "budget")
        assert default == BUDGET == 0.25

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"encryption_keys": {"a": b"k" * 32}}, "encryption_keys"),
            ({"l1_doubt": 2}, "l1_doubt"),
            ({"budget": 0}, "budget"),
            ({"budget": True}, "budget"),
            ({"l1_bytes": 0}, "l1_bytes"),
            ({"l1_entries": -1}, "l1_entries"),
            ({"lanes": 0}, "lanes"),
            ({"strict": 1}, "strict"),
            ({"tenant_args": "tenant_id"}, "tenant_args"),
            ({"exclude_types": ["Session"]}, "exclude_types"),
            ({"policies": {"orders": 60}}, "policies"),
            ({"prefix": ""}, "prefix"),
            ({"url": "localhost:6379"}, "memory://"),
            ({"url": "http://localhost"}, "memory://"),
            ({"url": "redis+sentinel://h1:26379/mymaster"}, "not in this version"),
            ({"url": "redis+cluster://h1:6379"}, "not in this version"),
            ({"url": "memory://somewhere"}, "l1_bytes"),
            ({"url": REFUSED, "l1_bytes": 10}, "l1_bytes"),
            ({"url": REFUSED, "client": object()}, "client"),
            ({"url": "redis://localhost:port"}, "redis://"),
        ],
    )
    def test_what_cannot_work_or_is_not_there_yet_is_refused(self, options, names):
        with pytest.raises(ConfigurationError, match=names):
            CacheManager(**options)

    def test_an_unknown_option_is_a_type_error(self):
        with pytest.raises(TypeError, match="prefx"):
            CacheManager(prefx="shop")

    def test_a_password_is_never_shown(self):
        manager = CacheManager("redis://ann:secret@localhost:6379/0")
        assert "secret" not in repr(manager)
        assert "secret" not in repr(manager.settings)
        with pytest.raises(ConfigurationError) as caught:
            CacheManager("http://ann:secret@localhost")
        assert "secret" not in str(caught.value)

    async def test_policy_options_that_are_not_here_yet_are_refused(self, manager):
        with pytest.raises(ConfigurationError, match="encrypt"):
            await manager.set("menu", "a", 1, encrypt=True)


class TestConfigure:
    async def test_before_the_first_use_it_changes_in_place(self):
        manager = CacheManager.from_environment()
        manager.configure(prefix="mine", policies={"orders": CachePolicy(ttl="5m")})
        assert manager.addresses.prefix == "mine"
        assert manager.policy("orders").life == 300

    async def test_after_the_first_use_it_raises(self, manager):
        await manager.get("menu", "a")
        with pytest.raises(ConfigurationError, match="in use"):
            manager.configure(prefix="other")

    async def test_the_environment_is_read_at_first_use(self, monkeypatch):
        manager = CacheManager.from_environment()
        monkeypatch.setenv("AURA_CACHE_URL", REFUSED)
        monkeypatch.setenv("AURA_CACHE_PREFIX", "env")
        assert await manager.get("menu", "a") is None
        assert manager.addresses.prefix == "env"
        assert manager.settings.url == REFUSED
        await manager.aclose()

    def test_configure_says_more_than_the_environment(self, monkeypatch):
        monkeypatch.setenv("AURA_CACHE_URL", REFUSED)
        monkeypatch.setenv("AURA_CACHE_PREFIX", "env")
        manager = CacheManager.from_environment()
        manager.configure(url="memory://")
        assert manager.addresses.prefix == "env"
        assert manager.settings.url == "memory://"

    def test_other_managers_do_not_read_the_environment(self, monkeypatch):
        monkeypatch.setenv("AURA_CACHE_PREFIX", "env")
        assert CacheManager().addresses.prefix == "aura"

    async def test_keys_in_the_environment_are_refused_not_ignored(self, monkeypatch):
        monkeypatch.setenv("AURA_CACHE_KEYS", "2026-11:abc")
        with pytest.raises(ConfigurationError, match="AURA_CACHE_KEYS"):
            await CacheManager.from_environment().get("menu", "a")

    def test_the_process_wide_one_is_had_from_its_module(self):
        assert module.cache_manager is cache_manager
        assert isinstance(cache_manager, CacheManager)

    @pytest.mark.parametrize(
        ("code", "imported"),
        [
            ("import aiocache_aura.cache_manager", False),
            ("from aiocache_aura.cache_manager import *; CacheManager('memory://')", False),
            ("from aiocache_aura.cache_manager import *; CacheManager('redis://localhost')", True),
        ],
    )
    def test_redis_is_imported_where_a_url_is_given(self, code, imported):
        script = f"import sys; {code}; print(any(m == 'redis' or m.startswith('redis.') for m in sys.modules))"
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert said.stdout.strip() == str(imported)

    async def test_callers_wait_for_the_import_within_their_budget(self, monkeypatch):
        """A slow import is a fault like any other: loads run uncached meanwhile, and nobody waits longer than the budget."""
        manager = CacheManager.from_environment()
        manager.configure(budget=0.02)
        monkeypatch.setenv("AURA_CACHE_URL", REFUSED)
        done = threading.Event()
        monkeypatch.setattr(manager, "_import_backend", lambda: (done.wait(5), setattr(manager, "_backend_is_here", True)))
        assert await manager.get_or_load("menu", "a", lambda: 7) == 7
        assert await manager.get("menu", "a", default="none") == "none"
        assert await manager.invalidate("menu") is False
        assert manager.engine_now() is None
        assert manager.counts("menu").errors == 2
        done.set()
        await asyncio.wait(set(manager._importing.values()))
        assert await manager.engine() is manager.engine_now()
        await manager.aclose()


class TestTypes:
    @pytest.mark.parametrize(
        ("name", "life"),
        [
            ("menu", CacheTTL.MENU_ITEMS),
            ("permissions", CacheTTL.USER_PERMISSIONS),
            ("settings", CacheTTL.RESTAURANT_SETTINGS),
            ("analytics", CacheTTL.ANALYTICS_AGGREGATIONS),
            ("api", CacheTTL.API_RESPONSE),
            ("search", CacheTTL.SEARCH_RESULTS),
            ("reports", CacheTTL.REPORT_DATA),
            ("static", CacheTTL.STATIC_CONTENT),
            ("test", 60),
        ],
    )
    async def test_the_presets_live_as_the_guide_says(self, manager, name, life):
        await manager.set(name, "a", 1)
        assert life - 2 < await manager.ttl(name, "a") <= life

    async def test_an_unknown_type_names_the_closest_when_it_is_used(self, manager):
        for use in (manager.get("mneu", "a"), manager.set("mneu", "a", 1), manager.invalidate("mneu"), manager.get_or_load("mneu", "a", 1)):
            with pytest.raises(UnknownCacheTypeError, match="did you mean 'menu'"):
                await use
        with pytest.raises(KeyError, match="zzzzz"):
            manager.policy("zzzzz")

    async def test_registering_and_overriding(self, manager):
        orders = manager.register("orders", CachePolicy(ttl="5m"))
        await orders.set("a", 1)
        assert await manager.get("orders", "a") == 1
        manager.override("orders", ttl=10)
        assert orders.policy.life == 10
        await orders.set("b", 1)
        assert await orders.ttl("b") <= 10
        manager.register("menu", CachePolicy(ttl=5))
        assert manager.policy("menu").life == 5
        with pytest.raises(ConfigurationError):
            manager.register("a b", CachePolicy())
        with pytest.raises(ConfigurationError):
            manager.register("orders", 60)
        with pytest.raises(UnknownCacheTypeError):
            manager.override("ordres", ttl=1)

    def test_the_mapping_of_caches(self, manager):
        assert set(manager.caches) >= {"menu", "test"}
        assert "menu" in manager.caches
        assert ["menu"] not in manager.caches
        assert manager.caches["menu"] is manager.caches["menu"]
        assert manager.caches.get("nothing") is None

    def test_stats_by_type(self, manager):
        assert manager.stats()["menu"]["hit_rate"] == 0.0


class TestInvalidations:
    @pytest.mark.parametrize("name", ["menu", "settings", "analytics", "api", "search", "reports", "static", "test"])
    async def test_one_for_each_type(self, manager, name):
        with tenant_scope(1):
            await manager.set(name, "a", 1)
        with tenant_scope(2):
            await manager.set(name, "a", 2)
        assert await getattr(manager, f"invalidate_{name}")(1) is True
        assert await manager.get(name, "a", tenant=1) is None
        assert await manager.get(name, "a", tenant=2) == 2
        assert await getattr(manager, f"invalidate_{name}")() is True
        assert await manager.get(name, "a", tenant=2) is None

    async def test_permissions_by_keyword_only(self, manager):
        await manager.set("permissions", "a", 1, user=5)
        with pytest.raises(TypeError):
            await manager.invalidate_permissions(5)
        assert await manager.invalidate_permissions(user=5)
        assert await manager.get("permissions", "a", user=5) is None

    def test_a_misspelt_one_names_the_closest(self, manager):
        with pytest.raises(AttributeError, match="did you mean 'invalidate_menu'"):
            _ = manager.invalidate_mneu
        manager.register("orders", CachePolicy())
        with pytest.raises(AttributeError, match=r"invalidate\('orders', \.\.\.\)"):
            _ = manager.invalidate_orders
        with pytest.raises(AttributeError, match="gett"):
            _ = manager.gett

    async def test_a_tenant_and_a_user_across_types(self, manager):
        for cache_type in ("menu", "api"):
            await manager.set(cache_type, "a", 1, tenant=1, user=5)
            await manager.set(cache_type, "b", 1, tenant=2, user=6)
        await manager.invalidate_tenant(1)
        assert [await manager.get(t, "a", tenant=1, user=5) for t in ("menu", "api")] == [None, None]
        await manager.invalidate_user(6)
        assert [await manager.get(t, "b", tenant=2, user=6) for t in ("menu", "api")] == [None, None]
        for wrong in (None, "", True, 1.5):
            with pytest.raises(TypeError):
                await manager.invalidate_tenant(wrong)

    async def test_tags_across_types_and_tenants(self, manager):
        await manager.set("menu", "a", 1, tags=["promo"], tenant=1)
        await manager.set("api", "a", 1, tags=["promo", "other"], tenant=2)
        await manager.set("api", "b", 1, tags=["other"])
        assert await manager.invalidate_tags("promo")
        assert await manager.get("menu", "a", tenant=1) is None
        assert await manager.get("api", "a", tenant=2) is None
        assert await manager.get("api", "b") == 1
        assert await manager.invalidate_tags() is True


class TestSwitches:
    async def test_disabled_neither_reads_nor_writes_but_invalidates(self, manager):
        await manager.set("menu", "a", 1)
        await manager.set("menu", "b", 1)
        with manager.disabled():
            with manager.disabled():
                assert manager.is_off
            assert manager.is_off
            assert await manager.get("menu", "a") is None
            assert await manager.mget("menu", ["a"], default=0) == [0]
            assert await manager.get_many("menu", ["a"]) == {}
            assert (await manager.set("menu", "a", 2), await manager.add("menu", "z", 2), await manager.touch("menu", "a", 5)) == (
                False,
            ) * 3
            assert (await manager.exists("menu", "a"), await manager.ttl("menu", "a")) == (False, None)
            assert await manager.get_or_load("menu", "a", lambda: 3) == 3
            assert await manager.get_or_load_many("menu", ["a", "c"], lambda ks: {"a": 3, "x": 0}) == {"a": 3}
            assert await manager.delete("menu", "b") == 1
        assert not manager.is_off
        assert await manager.get("menu", "a") == 1
        with manager.disabled():
            assert await manager.invalidate("menu") is True
        assert await manager.get("menu", "a") is None

    async def test_bypass_is_this_task_s_alone(self, manager):
        await manager.set("menu", "a", 1)
        with manager.bypass():
            assert await manager.get("menu", "a") is None
            assert await manager.get_or_load("menu", "a", lambda: 2) == 2
            await manager.set("menu", "b", 5)
        assert await manager.get("menu", "a") == 1
        assert await manager.get("menu", "b") == 5


class TestFailing:
    async def test_explicit_verbs_fail_open_and_are_counted(self, caplog):
        manager = broken()
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert await manager.get("menu", "a", default=0) == 0
            assert await manager.mget("menu", ["a", "b"]) == [None, None]
            assert await manager.get_many("menu", ["a"]) == {}
            assert await manager.set("menu", "a", 1) is False
            assert await manager.add("menu", "a", 1) is False
            assert await manager.touch("menu", "a") is False
            assert await manager.delete("menu", "a") == 0
            assert await manager.invalidate_pattern("menu", "*") == 0
            assert (await manager.exists("menu", "a"), await manager.ttl("menu", "a")) == (False, None)
        assert manager.counts("menu").errors == 10
        assert len([r for r in caplog.records if r.name == "aiocache_aura.manager"]) == 1
        await manager.aclose()

    async def test_strict_raises_but_loads_and_invalidates(self):
        manager = broken(strict=True)
        for use in (manager.get("menu", "a"), manager.set("menu", "a", 1), manager.delete("menu", "a"), manager.mset("menu", {"a": 1})):
            with pytest.raises(BackendError):
                await use
        assert await manager.get_or_load("menu", "a", lambda: 1) == 1
        assert await manager.get_or_load_many("menu", ["a"], lambda ks: {"a": 1}) == {"a": 1}
        assert await manager.invalidate("menu") is False
        assert await manager.caches["menu"].clear_namespace(reclaim=True) is False
        await manager.aclose()

    async def test_a_loader_s_own_backend_error_is_its_caller_s(self, manager):
        async def load():
            raise BackendError("of another cache")

        with pytest.raises(BackendError, match="another"):
            await manager.get_or_load("menu", "a", load)

    def test_a_fault_is_said_once_in_an_interval(self, caplog):
        class Clock:
            now = 0.0

            def monotonic(self):
                return self.now

        clock, log = Clock(), logging.getLogger("aiocache_aura.x")
        faults = FaultLog(log, 30.0, clock)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert [faults.report(BackendError("x"), "get") for _ in range(3)] == [True, False, False]
            assert faults.report(OSError("y"), "get") is True
            clock.now = 29.9
            assert faults.report(BackendError("x"), "get") is False
            clock.now = 30.0
            assert faults.report(BackendError("x"), "get") is True
        assert "3 more" in caplog.records[-1].getMessage()


class TestLoops:
    async def test_one_engine_for_each_loop_over_one_memory_store(self, manager):
        await manager.set("menu", "a", 1)

        async def elsewhere():
            return await manager.get("menu", "a"), manager.engine_now()

        value, engine = await asyncio.to_thread(asyncio.run, elsewhere())
        assert value == 1
        assert engine is not manager.engine_now()
        assert len(manager._engines) == 2

    def test_engines_of_closed_loops_are_forgotten_without_a_warning(self):
        manager = CacheManager("memory://")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                assert asyncio.run(manager.get("menu", "a")) is None
                asyncio.run(manager.set("menu", "a", 1))
                assert asyncio.run(manager.get("menu", "a")) == 1
                asyncio.run(manager.delete("menu", "a"))
        assert len(manager._engines) == 1

    async def test_aclose_is_idempotent_closes_every_loop_and_may_be_followed_by_use(self, manager):
        await manager.set("menu", "a", 1)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(manager.get("menu", "a"), loop))
            await manager.aclose()
            await manager.aclose()
            assert len(manager._engines) == 0
            assert await manager.get("menu", "a") is None
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_is_noticed(self, monkeypatch):
        """A child that goes on with its parent's very loop forgets the parent's engine and gets one of its own."""

        async def engine_again():
            return manager.engine_now(), await manager.engine()

        manager, loop, forgotten = CacheManager(), asyncio.new_event_loop(), []
        engine = loop.run_until_complete(manager.engine())
        monkeypatch.setattr(type(engine), "forget", lambda self: forgotten.append(self))
        child = os.fork()
        if not child:
            now, other = loop.run_until_complete(engine_again())
            os._exit(0 if now is None and other is not engine and forgotten == [engine] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert loop.run_until_complete(engine_again()) == (engine, engine)
        loop.run_until_complete(manager.aclose())
        loop.close()

    def test_lifespan_waits_until_redis_is_imported(self):
        """However small the budget is, the first request of an app finds an engine."""
        code = """
import asyncio, sys
from aiocache_aura.cache_manager import cache_manager
async def main():
    async with cache_manager.lifespan():
        print("redis" in sys.modules, cache_manager.engine_now() is not None)
cache_manager.configure(budget=0.0001)
asyncio.run(main())
"""
        environment = {**os.environ, "AURA_CACHE_URL": "redis://127.0.0.1:1/0"}
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ("True True\n", "")

    async def test_lifespan_fits_starlette(self):
        from starlette.applications import Starlette

        manager = CacheManager("memory://")
        app = Starlette(lifespan=manager.lifespan)
        async with app.router.lifespan_context(app):
            assert len(manager._engines) == 1
        assert len(manager._engines) == 0


class TestRealServer:
    def test_loops_come_and_go_without_a_warning(self, valkey):
        """A closed loop's connections are let go of; each loop has its own."""
        manager = CacheManager(valkey.url)

        async def use(n):
            await manager.set("menu", f"k{n}", n)
            return await manager.mget("menu", [f"k{m}" for m in range(n + 1)])

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [asyncio.run(use(n)) for n in range(3)] == [[0], [0, 1], [0, 1, 2]]
            gc.collect()
        assert len(manager._engines) == 1
        asyncio.run(manager.aclose())

    async def test_two_loops_at_once(self, valkey):
        async with CacheManager(valkey.url) as manager:
            await manager.set("menu", "a", 1)

            async def elsewhere():
                got = await manager.get("menu", "a")
                await manager.set("menu", "a", 2)
                return got

            assert await asyncio.to_thread(asyncio.run, elsewhere()) == 1
            assert await manager.get("menu", "a") == 2

    async def test_a_refused_connection_answers_at_once(self):
        async with CacheManager(REFUSED, budget=BUDGET) as manager:
            started = running_time()
            assert await manager.get("menu", "a") is None
            assert await manager.get_or_load("menu", "a", lambda: 1) == 1
            assert await manager.set("menu", "a", 1) is False
            assert await manager.invalidate("menu") is False
            assert running_time() - started < 4 * BUDGET

    async def test_a_hanging_server_costs_the_budget(self, own_server):
        server = own_server()
        async with CacheManager(server.url, strict=True, budget=BUDGET) as manager:
            with suppress(BackendError):
                await manager.set("menu", "a", 1)
            server.stop()
            started, ran = time.monotonic(), running_time()
            with pytest.raises(BackendError):
                await manager.get("menu", "a")
            assert running_time() - ran < 0.6
            assert time.monotonic() - started > 0.2
            assert await manager.get_or_load("menu", "b", lambda: 1) == 1
            server.cont()

    async def test_a_client_that_is_given_stays_open(self, valkey):
        from redis.asyncio import Redis

        client = Redis.from_url(valkey.url)
        async with CacheManager(client=client) as manager:
            await manager.set("menu", "a", 1)
            assert await client.dbsize() > 0
        assert await client.ping()
        await client.aclose()

    async def test_the_import_happens_in_a_thread_at_first_use(self, valkey, monkeypatch):
        monkeypatch.setenv("AURA_CACHE_URL", valkey.url)
        manager = CacheManager.from_environment()
        assert not manager._backend_is_here
        async with manager.lifespan():
            assert await manager.set("menu", "a", 1) is True
            assert await manager.get("menu", "a") == 1


class TestPlainFunctions:
    async def test_nested_plain_functions_that_come_back_do_not_deadlock(self, manager):
        """R36, with more callers than there are threads."""

        def inner(n):
            return n * 2

        def outer(n):
            return anyio.from_thread.run(manager.get_or_load, "menu", f"inner:{n}", functools.partial(inner, n))

        async with asyncio.timeout(20):
            got = await asyncio.gather(
                *(manager.get_or_load("menu", f"outer:{n}", functools.partial(outer, n)) for n in range(3 * THREADS))
            )
        assert got == [n * 2 for n in range(3 * THREADS)]

    async def test_a_deadlock_that_depth_does_not_solve_gets_out_of_itself(self, manager, monkeypatch):
        """Outer loads hold every thread and wait for a flight that somebody at their own depth founded."""
        monkeypatch.setattr("aiocache_aura.resilience.threads.STARVED_AFTER", 0.02)
        everybody = threading.Barrier(THREADS + 1)

        def outer(n):
            everybody.wait(5)
            return anyio.from_thread.run(manager.get_or_load, "menu", "shared", lambda: "x")

        async with asyncio.timeout(20):
            loads = [asyncio.ensure_future(manager.get_or_load("menu", f"outer:{n}", functools.partial(outer, n))) for n in range(THREADS)]
            while everybody.n_waiting < THREADS:
                await asyncio.sleep(0.001)
            founder = asyncio.ensure_future(manager.get_or_load("menu", "shared", lambda: "x"))
            await asyncio.sleep(0.01)
            await asyncio.to_thread(everybody.wait, 5)
            assert await asyncio.gather(founder, *loads) == ["x"] * (THREADS + 1)

    async def test_the_context_is_carried_along(self):
        from aiocache_aura.context import current_tenant

        with tenant_scope(7):
            assert await call_plain(current_tenant) == "7"

    async def test_an_awaitable_that_is_returned_is_awaited(self):
        async def later():
            return 5

        assert await call_plain(lambda: later()) == 5

    async def test_who_is_cancelled_waits_until_the_thread_is_done(self):
        begun, go, done = threading.Event(), threading.Event(), []

        def slow():
            begun.set()
            go.wait(5)
            done.append(1)

        task = asyncio.ensure_future(call_plain(slow))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == [1]

    def test_what_is_async(self):
        async def function():
            pass

        class Async:
            async def __call__(self):
                pass

            async def method(self):
                pass

        class Plain:
            def __call__(self):
                pass

        assert all(map(is_async, (function, functools.partial(functools.partial(function)), Async(), Async().method, AsyncMock())))
        assert not any(map(is_async, (Plain(), Async, print, MagicMock(), len, functools.partial(print), 5, lambda: function())))


async def test_forever_has_no_end(manager):
    await manager.set("menu", "a", 1, ttl=FOREVER)
    assert await manager.ttl("menu", "a") == math.inf
