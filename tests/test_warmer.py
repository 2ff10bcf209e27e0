"""Warmers: how sources are called, stepped, bounded and ended, and what is reported."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest

from aiocache_aura import (
    CacheManager,
    CachePolicy,
    CacheWarmer,
    TypeReport,
    WarmProgress,
    WarmReport,
    cache,
    cache_menu,
    current_tenant,
    tenant_scope,
    user_scope,
    warm_source,
)
from aiocache_aura.cache_manager import cache_manager
from aiocache_aura.context import identity
from aiocache_aura.errors import BackendError, ConfigurationError, UnknownCacheTypeError
from aiocache_aura.sources import registered
from tests.contract.test_warming import figures
from tests.leased import VirtualLoop

SOON = 10.0


@pytest.fixture(autouse=True)
def _no_sources_of_modules() -> Iterator[None]:
    registered.forget()
    yield
    registered.forget()


@pytest.fixture
async def manager() -> AsyncIterator[CacheManager]:
    async with CacheManager("memory://") as one:
        yield one


def keys_of(manager: CacheManager) -> list[str]:
    return [key.decode().rpartition("=")[2] for key in manager._memory.values]


class TestBeingCalled:
    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            (lambda got: lambda: got.append(()), ()),
            (lambda got: lambda db: got.append((db,)), ("db",)),
            (lambda got: lambda session: got.append((session,)), ("db",)),
            (lambda got: lambda whatever, /: got.append((whatever,)), ("db",)),
            (lambda got: lambda tenant_id: got.append((tenant_id,)), (7,)),
            (lambda got: lambda restaurant_id, db: got.append((restaurant_id, db)), (7, "db")),
            (lambda got: lambda a, b: got.append((a, b)), ("db", 7)),
            (lambda got: lambda db, tenant_id, *, user_id: got.append((db, tenant_id, user_id)), ("db", 7, "5")),
            (lambda got: lambda db, size=3, *more, **others: got.append((db, size)), ("db", 3)),
        ],
        ids=["nothing", "db", "session", "positional", "tenant", "turned", "places", "user", "defaults"],
    )
    async def test_a_source_is_given_what_it_takes(self, manager, make, expected):
        """By name, and else the session first and the tenant next."""
        warmer, got = CacheWarmer("db", manager=manager), []
        warmer.source("menu")(make(got))
        with user_scope(5):
            assert (await warmer.warm_menu_cache(tenant_id=7)).ok
        assert got == [expected]

    async def test_one_that_takes_more_is_refused_where_it_is_declared(self, manager):
        """And so is what is no function, or no name of a type, and tags that are one text."""
        warmer = CacheWarmer(manager=manager)
        with pytest.raises(ConfigurationError, match="'third'"):
            warmer.source("menu")(lambda first, second, third: None)
        with pytest.raises(TypeError, match="a source is a function"):
            warmer.source("menu")([1])  # type: ignore[type-var]
        with pytest.raises(ConfigurationError, match="not a name"):
            warm_source("no type")
        with pytest.raises(ConfigurationError, match="tags"):
            warmer.source("menu", tags="promo")

    async def test_it_runs_in_the_tenants_scope(self, manager):
        """With a tenant only if one is said, and the scope of the caller else."""
        warmer, seen = CacheWarmer(manager=manager), []

        @warmer.source("menu")
        def source(tenant_id):
            seen.append((tenant_id, current_tenant()))

        await warmer.warm_menu_cache(tenant_id=3)
        await warmer.warm_menu_cache()
        with tenant_scope("x"):
            await warmer.warm_menu_cache()
        assert seen == [(3, "3"), (None, None), (None, "x")]
        with pytest.raises(TypeError):
            await warmer.warm_menu_cache(tenant_id="")

    async def test_every_form_of_a_source(self, manager):
        """Async and plain generators, functions, lists, mappings, generators that are returned, objects that are called, and nothing."""
        warmer = CacheWarmer(manager=manager)

        async def async_steps(name: str) -> AsyncIterator[tuple[str, int]]:
            for n in range(3):
                yield f"{name}{n}", n

        def steps(name: str) -> Iterator[tuple[str, int]]:
            for n in range(3):
                yield f"{name}{n}", n

        class Called:
            async def __call__(self) -> list[tuple[str, int]]:
                return [("called", 1)]

        class Generating:
            async def __call__(self) -> AsyncIterator[tuple[str, int]]:
                yield "generating", 1

        async def returns(what: Any) -> Any:
            return what

        forms = [
            lambda: {"map0": 0, "map1": 1},
            lambda: [("list0", 0), ["list1", 1]],
            lambda: steps("plain"),
            lambda: async_steps("async"),
            lambda: returns({"awaited": 1}),
            lambda: returns(steps("late")),
            lambda: returns(async_steps("later")),
            lambda: None,
            lambda: returns(None),
            lambda: (),
            Called(),
            Generating(),
        ]
        for form in forms:
            warmer.source("menu")(form)
        warmer.source("menu")(lambda: 5)
        warmer.source("menu")(lambda: "text")
        report = await warmer.warm_menu_cache()
        assert report["menu"].loaded == 2 + 2 + 3 + 3 + 1 + 3 + 3 + 1 + 1
        assert [error.partition(": ")[2][:40] for error in report["menu"].errors] == ["ConfigurationError: a source gives pairs"] * 2

    async def test_what_is_no_pair_is_an_error_of_its_own(self, manager):
        """It is counted, with its class; its value is in no report."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def source():
            yield 5
            yield "secret-text"
            yield ("a", 1, 2)
            yield "b", 1

        report = await warmer.warm_menu_cache()
        assert figures(report) == (1, 0, 0, 3)
        assert "secret" not in str(report)


class TestSessions:
    async def test_each_reading_has_a_session_of_its_own_opened_behind_the_capture(self, manager):
        """A snapshot that is older than the generations would be stored as if it were not."""
        happened: list[str] = []
        engine = await manager.engine()
        generations = engine._port.generations

        async def watched(*args: Any, **options: Any) -> Any:
            happened.append("captured")
            return await generations(*args, **options)

        engine._port.generations = watched

        @asynccontextmanager
        async def session():
            happened.append("opened")
            yield "session"
            happened.append("closed")

        warmer = CacheWarmer(session, manager=manager)

        @warmer.source("menu")
        async def source(db):
            assert db == "session"
            yield "a", 1
            if happened.count("opened") == 1:
                await manager.invalidate("menu")
            yield "b", 1

        assert (await warmer.warm_menu_cache()).loaded == 2
        assert happened == ["captured", "opened", "closed", "captured", "opened", "closed"]

    @pytest.mark.parametrize("kind", ["async context", "context", "async generator", "generator", "awaitable", "value"])
    async def test_factories_of_every_kind_are_opened_and_closed(self, manager, kind):
        """As `provide=` does, for async sources and for plain ones."""
        closed = []

        async def async_generator():
            try:
                yield "session"
            finally:
                closed.append(1)

        def generator():
            try:
                yield "session"
            finally:
                closed.append(1)

        async def awaitable():
            return "session"

        made = {
            "async context": asynccontextmanager(async_generator),
            "context": contextmanager(generator),
            "async generator": async_generator,
            "generator": generator,
            "awaitable": awaitable,
            "value": lambda: "session",
        }
        warmer, got = CacheWarmer(made[kind], manager=manager), []

        @warmer.source("menu")
        async def source(db):
            got.append(db)
            yield "a", 1

        if kind in ("context", "generator", "value"):

            @warmer.source("menu")
            def plain(db):
                got.append(db)
                yield "b", 1

        @warmer.source("menu")
        async def without():
            yield "c", 1

        report = await warmer.warm_menu_cache()
        assert report.ok, report
        assert got == ["session"] * (report.loaded - 1)
        assert len(closed) == (0 if kind in ("awaitable", "value") else len(got))

    async def test_a_plain_source_and_its_session_stay_in_one_thread(self, manager, tmp_path):
        """sqlite3 refuses a connection that was made in another thread, at its use and at its end."""
        path = tmp_path / "db"
        with sqlite3.connect(path) as db:
            db.execute("create table item (id integer, name text)")
            db.executemany("insert into item values (?, ?)", [(n, f"name {n}") for n in range(1000)])
        threads = set()

        @contextmanager
        def session():
            connection = sqlite3.connect(path)
            threads.add(threading.get_ident())
            try:
                yield connection
            finally:
                threads.add(threading.get_ident())
                connection.close()

        warmer = CacheWarmer(session, manager=manager)

        @warmer.source("menu")
        def items(db):
            for n, name in db.execute("select id, name from item"):
                threads.add(threading.get_ident())
                yield f"item:{n}", name

        assert (await warmer.warm_menu_cache()).loaded == 1000
        assert len(threads) == 1
        assert threading.get_ident() not in threads
        assert await manager.get("menu", "item:999") == "name 999"

    async def test_one_session_is_given_to_one_source_at_a_time(self, manager):
        """One that is no factory is closed by nobody."""
        warmer, inside = CacheWarmer({"a": "session"}, manager=manager), 0

        for cache_type in ("menu", "settings", "api"):

            @warmer.source(cache_type)
            async def source(db):
                nonlocal inside
                inside += 1
                assert inside == 1
                await asyncio.sleep(0.001)
                yield "a", db["a"]
                inside -= 1

        assert (await warmer.warm_all()).loaded == 3


class TestPlainGenerators:
    async def test_scopes_hold_over_its_steps(self, manager):
        """A tenant's scope that is open where a pair or a call is yielded counts, though others are yielded in between."""
        warmer, seen = CacheWarmer(manager=manager), []

        @cache_menu(manager=manager, name="whose")
        async def whose() -> str | None:
            seen.append(current_tenant())
            return current_tenant()

        @warmer.source("menu")
        def source():
            yield "a", "nobody"
            with tenant_scope(1):
                for n in range(600):
                    yield f"item:{n}", "one"
                yield whose()
            with tenant_scope(2):
                yield "a", "two"
                yield whose()
            yield whose()

        report = await warmer.warm_menu_cache()
        assert (report.ok, report.loaded) == (True, 605)
        assert [await manager.get("menu", "item:599", tenant=tenant) for tenant in (1, 2)] == ["one", None]
        assert await manager.get("menu", "a", tenant=2) == "two"
        assert sorted(seen, key=str) == ["1", "2", None]

    async def test_a_slow_one_is_stored_as_it_goes(self, manager):
        """Not only when a batch is full."""
        warmer, stored = CacheWarmer(manager=manager), 0

        @warmer.source("menu")
        def source():
            nonlocal stored
            for n in range(15):
                yield f"item:{n}", n
                time.sleep(0.03)
            stored = manager.counts("menu").sets

        assert (await warmer.warm_menu_cache()).loaded == 15
        assert stored > 0

    async def test_it_is_closed_in_its_thread_when_the_run_is_cancelled(self, manager):
        """With what it had yielded, and the thread is done when the run is; nothing warns of coroutines that nobody awaited."""
        warmer, ended, started = CacheWarmer(manager=manager), [], asyncio.Event()

        @cache_menu(manager=manager, name="slow")
        async def slow(n: int) -> int:
            started.set()
            await asyncio.sleep(60)
            return n

        @warmer.source("menu")
        def source():
            try:
                for n in range(10_000):
                    yield slow(n)
            finally:
                ended.append(threading.current_thread() is not threading.main_thread())

        run = asyncio.create_task(warmer.warm_menu_cache())
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert ended == [True]
        gc.collect()

    async def test_its_error_comes_behind_what_it_gave(self, manager):
        """What was yielded before is stored, calls too."""
        warmer = CacheWarmer(manager=manager)

        @cache_menu(manager=manager, name="given")
        async def given() -> int:
            return 1

        @warmer.source("menu")
        def source():
            yield "a", 1
            yield given()
            raise ValueError("broken")

        report = await warmer.warm_menu_cache()
        assert figures(report) == (2, 0, 0, 0)
        assert (report["menu"].ended, report.ok) == ("failed", False)
        assert "ValueError: broken" in report.errors[0]


class TestEnding:
    @pytest.mark.parametrize("how", ["timeout", "cancelled", "anyio"])
    async def test_nothing_is_left_half_open(self, manager, how):
        """The source, its session and its calls are ended; calls that were not begun are closed; loads that nobody wants are cancelled."""
        open_, cancelled = [], []

        @asynccontextmanager
        async def session():
            open_.append("session")
            try:
                yield
            finally:
                await asyncio.sleep(0)
                open_.remove("session")

        warmer = CacheWarmer(session, manager=manager, concurrency=2, timeout=0.2 if how == "timeout" else None)
        started = asyncio.Event()

        @cache_menu(manager=manager, name="endless")
        async def endless(n: int) -> int:
            if n == 1:
                started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(n)
                raise
            return n

        @warmer.source("menu")
        async def source(db):
            open_.append("source")
            try:
                yield "stored", 1
                for n in range(100):
                    yield endless(n)
            finally:
                open_.remove("source")

        @warmer.source("settings")
        def listed():
            return [endless(n) for n in range(100, 200)]

        if how == "timeout":
            report = await warmer.warm_all()
            assert (report["menu"].ended, report["settings"].ended, report["api"].ended) == ("timeout", "timeout", "skipped")
            assert not report.ok
            assert "timeout=0.2" in report.errors[0]
        elif how == "cancelled":
            run = asyncio.create_task(warmer.warm_all())
            await started.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        else:
            with anyio.move_on_after(0.2):
                await warmer.warm_all()
        assert open_ == []
        async with asyncio.timeout(SOON):
            while len(cancelled) < 2:
                await asyncio.sleep(0)
        assert len(cancelled) == 2
        gc.collect()  # a coroutine that nobody awaited would warn

    async def test_a_user_who_waits_keeps_the_load(self, manager):
        """A run that ends lets go of a load; who has joined it gets its value."""
        started, go = asyncio.Event(), asyncio.Event()

        @cache_menu(manager=manager, name="shared")
        async def shared() -> int:
            started.set()
            await go.wait()
            return 1

        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def source():
            yield shared()

        run = asyncio.create_task(warmer.warm_menu_cache())
        await started.wait()
        user = asyncio.create_task(shared())
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        go.set()
        assert await user == 1

    async def test_a_task_that_is_yielded_twice_is_awaited_once_more(self, manager):
        """What is awaitable twice may be yielded twice; a task is counted for the cached calls that are made in it."""
        warmer = CacheWarmer(manager=manager)

        async def work() -> int:
            await asyncio.sleep(0)
            return 1

        @warmer.source("menu")
        async def source():
            task = asyncio.create_task(work())
            yield task
            yield task
            yield work()

        assert figures(await warmer.warm_menu_cache()) == (1, 0, 0, 0)

    async def test_one_failing_source_stops_no_other(self, manager, caplog):
        """Nor other sources of its type; what else went wrong is logged once, and counted."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def broken():
            yield "a", 1
            raise RuntimeError("broken")

        @warmer.source("menu")
        async def good():
            yield "b", 1

        @warmer.source("api")
        async def other():
            yield "c", 1

        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            report = await warmer.warm_all()
        assert (figures(report), figures(report, "api")) == ((2, 0, 0, 0), (1, 0, 0, 0))
        assert (report["menu"].ended, report["api"].ended) == ("failed", "done")
        assert report["menu"].errors == ("TestEnding.test_one_failing_source_stops_no_other.<locals>.broken: RuntimeError: broken",)
        assert len([record for record in caplog.records if "broken" in record.message]) == 1

    async def test_a_store_that_does_not_answer_ends_a_source(self, own_server):
        """Its generations cannot be captured: an error that says so, and no load at all."""
        server = own_server()
        async with CacheManager(server.url, budget=0.2) as manager:
            await manager.set("menu", "a", 1)
            server.kill()
            warmer, loads = CacheWarmer(manager=manager), []

            @warmer.source("menu")
            async def source():
                loads.append(1)
                yield "b", 1

            report = await warmer.warm_menu_cache()
        assert (report["menu"].ended, loads) == ("failed", [])
        assert "BackendError" in report.errors[0]
        assert "is the server there?" in report.errors[0]

    async def test_batches_that_are_not_taken_are_counted_and_end_it_in_the_end(self, manager):
        """One may fail; three in a row end the source."""
        warmer, engine, failing = CacheWarmer(manager=manager), await manager.engine(), [True, False, True, True, True]
        plant = engine._port.plant

        async def failing_plant(items: Any, scopes: Any, *, timeout: float) -> Any:
            if failing.pop(0):
                raise BackendError("not now")
            return await plant(items, scopes, timeout=timeout)

        engine._port.plant = failing_plant

        @warmer.source("menu")
        async def source():
            for n in range(10_000):
                yield f"item:{n}", n

        report = await warmer.warm_menu_cache()
        assert report["menu"].ended == "failed"
        assert 0 < report["menu"].loaded < report["menu"].failed
        assert failing == []


class TestBounds:
    async def test_loads_take_turns_over_all_types(self, manager):
        """At most `concurrency` at once, yielded, awaited and gathered ones together."""
        warmer, running, most = CacheWarmer(manager=manager, concurrency=3), 0, 0

        @cache(cache_type="api", manager=manager, name="counted")
        async def counted(n: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.002)
            running -= 1
            return n

        for first, cache_type in enumerate(("menu", "settings", "api")):

            @warmer.source(cache_type)
            async def source(first: int = first):
                for n in range(10):
                    yield counted(100 * first + n)
                await asyncio.gather(*(counted(100 * first + n) for n in range(10, 20)))

        assert (await warmer.warm_all()).loaded == 60
        assert most == 3

    def test_keys_are_bounded_by_a_rate(self):
        """So many in a second, pairs and loads; what is fresh is free. In virtual time."""
        took = {}

        async def main() -> None:
            clock = asyncio.get_running_loop().time
            async with CacheManager("memory://") as manager:
                warmer = CacheWarmer(manager=manager, rate=100)

                @cache_menu(manager=manager, name="rated")
                async def rated(n: int) -> int:
                    return n

                @warmer.source("menu")
                async def pairs():
                    for n in range(1000):
                        yield f"item:{n}", n

                @warmer.source("settings")
                async def calls():
                    for n in range(200):
                        yield rated(n)

                for name in ("menu", "settings", "menu"):
                    began = clock()
                    report = await warmer.warm(name)
                    took.setdefault(name, []).append((clock() - began, report.loaded))

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
        (cold, loaded), (fresh, none) = took["menu"]
        assert (loaded, none) == (1000, 0)
        assert 9 <= cold <= 11
        assert fresh < 1
        ((seconds, loaded),) = took["settings"]
        assert loaded == 200
        assert 1.5 <= seconds <= 2.5

    async def test_the_event_loop_is_given_back(self, manager):
        """No step of a warmer keeps it for long: others go on a hundred times while it stores thousands of keys."""
        warmer, turns, done = CacheWarmer(manager=manager), 0, False

        @warmer.source("menu")
        async def source():
            for n in range(4000):
                yield f"item:{n}", {"n": n}

        async def other() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await warmer.warm_menu_cache()
        done = True
        await task
        assert turns > 40

    async def test_parallel_false_warms_one_type_after_the_other(self, manager):
        """In the order of the types."""
        warmer, order = CacheWarmer(manager=manager), []
        for cache_type in ("menu", "settings", "api"):

            @warmer.source(cache_type)
            async def source(cache_type: str = cache_type):
                order.append(cache_type)
                await asyncio.sleep(0.001)
                order.append(cache_type)
                yield "a", 1

        await warmer.warm_all(parallel=False)
        assert order == ["menu", "menu", "settings", "settings", "api", "api"]
        order.clear()
        await warmer.warm_all()
        assert order[:3] == ["menu", "settings", "api"]


class TestNames:
    async def test_every_type_has_its_method(self, manager):
        """The nine that are built in, and at run time those that were registered; a type without a source is skipped."""
        manager.register("orders", CachePolicy(ttl="5m"))
        warmer = CacheWarmer(manager=manager)
        names = "menu permissions settings analytics api search reports static test orders".split()
        for name in names:
            report = await getattr(warmer, f"warm_{name}_cache")(tenant_id=1)
            assert (list(report.types), report[name].ended, report.ok) == ([name], "skipped", True)
        report = await warmer.warm_all()
        assert list(report.types) == names
        assert {one.ended for one in report.types.values()} == {"skipped"}

        @warmer.source("orders")
        async def source():
            yield "a", 1

        assert (await warmer.warm_orders_cache(refresh_within="1m")).loaded == 1
        assert (await warmer.warm("orders")).skipped == 1

    async def test_misspelt_names_say_which_was_meant(self, manager):
        """A method, a type that is asked for, and the type of a source."""
        warmer = CacheWarmer(manager=manager)
        with pytest.raises(AttributeError, match="did you mean 'warm_menu_cache'"):
            warmer.warm_menus_cache  # noqa: B018
        assert not hasattr(warmer, "warm_all_of_it")
        with pytest.raises(UnknownCacheTypeError, match="'menu'"):
            await warmer.warm("menus")
        with pytest.raises(UnknownCacheTypeError, match="'menu'"):
            await warmer.warm_all(types=["menus"])
        with pytest.raises(TypeError, match="types are a list"):
            await warmer.warm_all(types="menu")

        @warmer.source("ordres")
        async def source():
            yield "a", 1

        with pytest.raises(UnknownCacheTypeError, match="'ordres'"):
            await warmer.warm_all()

    @pytest.mark.parametrize(
        "options",
        [{"concurrency": 0}, {"concurrency": True}, {"concurrency": 1.5}, {"rate": 0}, {"rate": True}, {"timeout": -1}, {"progress": 5}],
        ids=str,
    )
    def test_options_that_cannot_work_are_refused(self, options):
        """With the option's name."""
        with pytest.raises(ConfigurationError, match=r"|".join([*options, "TTL"])):
            CacheWarmer(**options)

    async def test_without_a_manager_it_is_the_process_wide_one(self):
        """Looked up for each run, so that patching works; a stand-in is refused."""
        warmer = CacheWarmer()
        assert warmer.manager is cache_manager
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("aiocache_aura.cache_manager.cache_manager", object())
            with pytest.raises(ConfigurationError, match="needs a CacheManager"):
                await warmer.warm_all()

    async def test_a_disabled_manager_is_not_warmed(self, manager):
        """Nothing that it loads would be stored."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def source():
            raise AssertionError("not to be read")
            yield

        with manager.disabled():
            assert (await warmer.warm_menu_cache())["menu"].ended == "skipped"


class TestDeclared:
    async def test_calls_are_declared_in_many_ways(self, manager):
        """A list of tuples, mappings and single arguments; functions and generators, async or not; each run anew."""

        async def numbers(db, tenant_id):
            for n in (1, 2):
                yield (n,)

        def plain():
            yield {"n": 3}
            yield 4

        made = []
        for at, warm in enumerate(([(1,), {"n": 2}, 3], iter([(1,), (2,)]), numbers, plain, lambda: [(5,)])):

            @cache_menu(manager=manager, name=f"declared{at}", warm=warm)
            async def function(n: int) -> int:
                return n

            made.append(function)
        warmer = CacheWarmer(manager=manager)
        assert figures(await warmer.warm_menu_cache()) == (10, 0, 0, 0)
        assert figures(await warmer.warm_menu_cache()) == (0, 0, 10, 0)
        assert await made[1].exists(2)

    async def test_they_are_those_of_their_manager_and_of_functions_that_are_there(self, manager):
        """Another manager's function is not called, and one that nobody can call any more is forgotten."""
        async with CacheManager("memory://", prefix="other") as other:

            @cache_menu(manager=other, warm=[(1,)], name="of.other")
            async def theirs(n: int) -> int:
                return n

            assert (await CacheWarmer(manager=manager).warm_menu_cache())["menu"].ended == "skipped"
            assert (await CacheWarmer(manager=other).warm_menu_cache()).loaded == 1
            del theirs
            gc.collect()
            assert (await CacheWarmer(manager=other).warm_menu_cache())["menu"].ended == "skipped"
            assert len(registered) == 0

    def test_what_cannot_be_called_is_refused_at_decoration(self):
        """Methods, whose object a warmer has not got, and what is no list of calls."""
        for warm in (5, "text", {"a": 1}):
            with pytest.raises(ConfigurationError, match="warm="):
                cache_menu(warm=warm, name="refused")(_nothing)
        with pytest.raises(ConfigurationError, match="object"):

            class Shop:
                @cache_menu(warm=[(1,)])
                async def menu(self, n: int) -> int:
                    return n

        with pytest.raises(ConfigurationError, match="'third'"):
            cache_menu(warm=lambda db, tenant_id, third: [], name="refused")(_nothing)

    async def test_calls_that_share_a_session_are_made_one_after_the_other(self, manager):
        """It is lent to one load at a time."""
        inside = []

        @cache_menu(manager=manager, exclude=["db"], name="sharing", warm=[(n,) for n in range(5)])
        async def sharing(n: int, db: list[int]) -> int:
            db.append(n)
            assert len(db) == 1
            await asyncio.sleep(0.001)
            db.remove(n)
            return n

        assert figures(await CacheWarmer(inside, manager=manager).warm_menu_cache()) == (5, 0, 0, 0)


async def _nothing(n: int) -> int:
    return n


class TestReports:
    def test_a_report_is_a_table_and_sums(self):
        """With the errors below it; true if everything went well."""
        menu = TypeReport(cache_type="menu", loaded=1000, skipped=5, seconds=0.5)
        api = TypeReport(cache_type="api", refreshed=2, failed=1, seconds=2.0, errors=("a.b: ValueError: x",), ended="failed")
        idle = TypeReport(cache_type="static", ended="skipped")
        report = WarmReport(types={"menu": menu, "api": api, "static": idle}, tenant_id="7", seconds=2.0)
        assert (report.loaded, report.refreshed, report.skipped, report.failed) == (1000, 2, 5, 1)
        assert (menu.keys_per_second, idle.keys_per_second, report.keys_per_second) == (2010, 0, 504)
        assert report["api"] is api
        assert not report
        assert WarmReport(types={"menu": menu, "static": idle})
        text = str(report).splitlines()
        assert text[0] == "warmed 1,002 of 1,008 keys for tenant 7 in 2.00 s"
        assert "1,000 loaded" in text[1]
        assert "2,010 keys/s" in text[1]
        assert text[2].endswith("failed")
        assert text[3:] == ["  without a source: static", "  ! api: a.b: ValueError: x"]

    async def test_errors_are_bounded(self, manager):
        """At most ten are told; all are counted."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def source():
            for n in range(50):
                yield f"item:{n}", object()

        report = await warmer.warm_menu_cache()
        assert (report.failed, len(report.errors)) == (50, 10)

    async def test_progress_is_told_a_few_times(self, manager):
        """Never for each key; the last word is the whole."""
        told: list[WarmProgress] = []
        warmer = CacheWarmer(manager=manager, progress=told.append)

        @warmer.source("menu")
        async def source():
            for n in range(2000):
                yield f"item:{n}", n

        report = await warmer.warm_all()
        assert [one.is_over for one in told][-1]
        assert (told[-1].cache_type, told[-1].loaded) == ("menu", 2000)
        assert len(told) <= 2 + 10 * report.seconds

    async def test_a_progress_callback_that_raises_is_logged_and_left(self, manager, caplog):
        """The run goes on."""
        warmer = CacheWarmer(manager=manager, progress=lambda told: 1 / 0)

        @warmer.source("menu")
        async def source():
            yield "a", 1

        assert (await warmer.warm_all()).ok
        assert "told no more" in caplog.text

    async def test_a_bar_is_drawn_by_rich(self, manager, capsys, monkeypatch):
        """If it is installed; else the error says how to have it."""
        warmer = CacheWarmer(manager=manager, progress="bar")

        @warmer.source("menu")
        async def source():
            yield "a", 1

        assert (await warmer.warm_all()).ok
        assert "menu" in capsys.readouterr().out
        monkeypatch.setitem(sys.modules, "rich.progress", None)
        with pytest.raises(ConfigurationError, match=r"aiocache-aura\[cli\]"):
            await warmer.warm_all()


class TestTheHotPath:
    async def test_calls_of_a_warmer_are_not_remembered(self, manager):
        """The way of a call that has been made before is users': a warmer's call never takes it, and pushes nothing out of it."""
        warmer, due = CacheWarmer(manager=manager), []

        @cache_menu(manager=manager, name="remembered")
        async def remembered(n: int) -> int:
            due.append(n)
            return n

        await remembered(1)
        core = remembered.cache_key.__self__._core
        known = dict(core.state.memo)

        @warmer.source("menu")
        async def source():
            await remembered(1)
            await remembered(1)
            await remembered(2)
            assert identity.get().warming is not None

        assert figures(await warmer.warm("menu", only_missing=False)) == (1, 2, 0, 0)
        assert core.state.memo == known
        assert due == [1, 1, 1, 2]
        assert identity.get().warming is None
        await remembered(1)
        assert (manager.counts("menu").hits, manager.counts("menu").misses) == (1, 1)

    async def test_leaving_a_scope_in_a_source_does_not_end_the_warming(self, manager):
        """Scopes of tenants that it opens and closes change the tenant, and nothing else."""
        warmer = CacheWarmer(manager=manager)

        @cache_menu(manager=manager, name="scoped")
        async def scoped() -> str | None:
            return current_tenant()

        @warmer.source("menu")
        async def source():
            for tenant in (1, 2):
                with tenant_scope(tenant):
                    assert await scoped() == str(tenant)
            await scoped()

        assert figures(await warmer.warm_menu_cache()) == (3, 0, 0, 0)
        assert (manager.counts("menu").hits, manager.counts("menu").misses) == (0, 0)
