"""What is said per policy, per function and per call about freshness, and what is told about an entry."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import math
import sqlite3
import threading
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest

from aiocache_aura import (
    FOREVER,
    BackendError,
    CacheEntry,
    CacheManager,
    CachePolicy,
    ConfigurationError,
    Explanation,
    MissingTenantError,
    Uncached,
)
from aiocache_aura import cache as cached
from aiocache_aura import invalidate_cache as invalidating
from aiocache_aura.context import tenant_scope, user_scope
from aiocache_aura.using import REMEMBERED
from tests.steps import settled


class Session:
    """Something that a load opens and closes, and what happened to it."""

    made: list[Session] = []

    def __init__(self) -> None:
        self.events: list[str] = []
        self.error: BaseException | None = None
        self.made.append(self)

    def enter(self) -> Session:
        self.events.append("open")
        return self

    def leave(self, error: BaseException | None) -> None:
        self.events.append("close")
        self.error = error


class Plain(Session):
    def __enter__(self) -> Session:
        return self.enter()

    def __exit__(self, cls: Any, error: Any, traceback: Any) -> None:
        self.leave(error)


class Async(Session):
    async def __aenter__(self) -> Session:
        return self.enter()

    async def __aexit__(self, cls: Any, error: Any, traceback: Any) -> None:
        await asyncio.sleep(0)
        self.leave(error)


def plain_generator():
    session = Session().enter()
    try:
        yield session
    except BaseException as error:
        session.leave(error)
        raise
    else:
        session.leave(None)


async def async_generator():
    session = Session().enter()
    try:
        yield session
    except BaseException as error:
        session.leave(error)
        raise
    else:
        session.leave(None)


async def opened() -> Async:
    return Async()


OPENING = {
    "context manager": Plain,
    "async context manager": Async,
    "generator": plain_generator,
    "async generator": async_generator,
    "contextmanager": contextlib.contextmanager(plain_generator),
    "asynccontextmanager": contextlib.asynccontextmanager(async_generator),
    "lambda of a generator": lambda: plain_generator(),
    "lambda of an async generator": lambda: async_generator(),
    "coroutine function": opened,
}


@pytest.fixture(autouse=True)
def no_session_yet():
    Session.made.clear()


class TestPolicy:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"stale": -1}, "stale=-1: it is how long past"),
            ({"stale": None}, "stale=None"),
            ({"stale": math.inf}, "stale=inf.*FOREVER"),
            ({"stale": lambda result: 5}, "a function of the result is for decorators"),
            ({"throttle": -1}, "throttle=-1"),
            ({"throttle": FOREVER}, "throttle=.*a pause that ends"),
            ({"soft_timeout": 0}, "soft_timeout=0: it is a time above 0"),
            ({"hard_timeout": 0.0}, "hard_timeout=0.0"),
            ({"load_deadline": 0}, "load_deadline=0"),
            ({"load_deadline": True}, "load_deadline=True"),
            ({"negative_ttl": 0}, "negative_ttl=0"),
            ({"negative_ttl": "5"}, "negative_ttl='5'.*'90s'"),
            ({"soft_timeout": 2, "hard_timeout": "1s"}, "soft_timeout=2 with hard_timeout='1s'"),
            ({"early_refresh": 0}, "early_refresh=0"),
            ({"early_refresh": -1.0}, "early_refresh=-1.0"),
            ({"early_refresh": math.inf}, "early_refresh=inf"),
            ({"early_refresh": "yes"}, "early_refresh='yes'"),
            ({"sliding": 1}, "sliding=1: it is True or False"),
            ({"keep_loading": None}, "keep_loading=None"),
            ({"cache_none": "yes"}, "cache_none='yes'"),
            ({"lease": 1}, "lease=1"),
            ({"stale_on": KeyError}, r"such as stale_on=\(KeyError,\)"),
            ({"stale_on": [OSError, KeyError]}, r"such as stale_on=\(OSError, KeyError,\)"),
            ({"stale_on": ("KeyError",)}, "stale_on="),
            ({"stale_on": (KeyError("x"),)}, "stale_on="),
            ({"stale_on": None}, "stale_on=None"),
            ({"cache_errors": KeyError}, r"such as cache_errors=\(KeyError,\)"),
            ({"cache_errors": (BaseException,)}, "derived from Exception"),
            ({"cache_errors": (KeyboardInterrupt,)}, "derived from Exception"),
            ({"store_if": True}, "store_if=True"),
        ],
        ids=lambda part: part if isinstance(part, str) else "",
    )
    def test_what_cannot_work_is_refused_and_says_what_would(self, options, says):
        """In a policy, in an override and at decoration alike."""
        with pytest.raises(ConfigurationError, match=says):
            CachePolicy(**options)
        with pytest.raises(ConfigurationError, match=says):
            CachePolicy().merged(options)
        if not callable(options.get("stale")):
            with pytest.raises(ConfigurationError, match=says):
                cached(**options)(lambda_of())

    def test_an_async_predicate_is_refused(self):
        """`store_if` is asked for an answer at once; a coroutine would always be true."""

        async def later(value: object) -> bool:
            return False

        with pytest.raises(ConfigurationError, match="store_if"):
            CachePolicy(store_if=later)

    def test_a_fallback_that_was_called_already_is_refused(self):
        """A coroutine can be awaited once only; it is closed, so nothing warns of it later."""

        async def load() -> int:
            return 1

        with pytest.raises(ConfigurationError, match="pass the function"):
            CachePolicy(fallback=load())
        gc.collect()

    def test_what_works_is_taken(self):
        """Each field at a limit of what it takes, in any form of a TTL."""
        policy = CachePolicy(
            stale=FOREVER,
            stale_on=(),
            soft_timeout=timedelta(seconds=1),
            hard_timeout="1s",
            load_deadline=FOREVER,
            keep_loading=True,
            throttle=0,
            early_refresh=0.01,
            sliding=True,
            cache_none=True,
            negative_ttl=0.001,
            cache_errors=(KeyError, LookupError),
            store_if=bool,
            fallback=None,
            lease=True,
        )
        assert policy.merged({"negative_ttl": None, "load_deadline": None}).negative_ttl is None
        assert CachePolicy(soft_timeout=1, hard_timeout=1).soft_timeout == 1

    def test_permissions_are_never_stale(self):
        """The preset says nothing of `stale`, whatever others say."""
        assert CacheManager().policy("permissions").stale == 0

    async def test_fallbacks_of_calls_are_kept_apart(self):
        """Fallbacks that are equal but not the same are not taken for one another."""
        async with CacheManager() as manager:

            async def fail() -> Any:
                raise KeyError("x")

            for fallback in ((1,), (True,), (1.0,), [1], [], 0, False, None):
                got = await manager.get_or_load("menu", "a", fail, fallback=fallback)
                assert got is fallback or repr(got) == repr(fallback)

    async def test_a_lease_over_memory_is_harmless(self):
        async with CacheManager() as manager:
            assert await manager.get_or_load("menu", "a", lambda: 1, lease=True) == 1
            assert await manager.get("menu", "a") == 1


def lambda_of() -> Any:
    async def function(x: int) -> int:
        return x

    return function


class TestLifeOfResult:
    async def test_each_result_says_how_long_it_lives(self, clocked):
        """`ttl=` of a decorator may be a function of the result, in any form of a TTL; 0 does not store."""

        @cached(cache_type="menu", manager=clocked, name="options.life", ttl=lambda result: {1: 5, 2: "1m", 3: FOREVER, 4: 0}[result])
        async def load(n: int) -> int:
            return n

        for n in (1, 2, 3, 4):
            assert await load(n) == n
        lefts = [entry and entry.left for entry in [await load.entry(n) for n in (1, 2, 3, 4)]]
        assert lefts == [5, 60, math.inf, None]
        assert load.cache_parameters()["ttl"] == 3600

    async def test_a_call_that_says_a_life_overrules_it(self, clocked):
        @cached(cache_type="menu", manager=clocked, name="options.overruled", ttl=lambda result: 5)
        async def load(n: int) -> int:
            return n

        await load.using(ttl="2m")(1)
        assert (await load.entry(1)).left == 120

    def test_only_a_decorator_takes_one(self):
        """A policy and a call do not; an async one, which gives no TTL at once, nobody."""

        async def later(result: object) -> int:
            return 5

        with pytest.raises(ConfigurationError, match="is for decorators"):
            CachePolicy(ttl=lambda result: 5)
        with pytest.raises(ConfigurationError, match="async function"):
            cached(ttl=later)(lambda_of())
        fn = cached(name="options.only")(lambda_of())
        with pytest.raises(ConfigurationError, match="is for decorators"):
            fn.using(ttl=lambda result: 5)

    async def test_a_stand_in_for_the_manager_is_told_it(self):
        """As an int where it is whole, as with any other ttl; what is Uncached, and what `store_if` refuses, it is not given."""
        stranger = AsyncMock()
        stranger.get.return_value = None

        @cached(manager=stranger, name="options.stranger", ttl=lambda result: result * 10, store_if=lambda result: result != 3, fallback=-1)
        async def load(n: int) -> Any:
            if n == 4:
                raise KeyError(n)
            return Uncached(n) if n == 2 else n

        assert [await load(n) for n in (1, 2, 3, 4)] == [1, 2, 3, -1]
        assert [call.kwargs["ttl"] for call in stranger.set.await_args_list] == [10]


class TestUncached:
    async def test_callers_get_the_value_and_nothing_is_stored(self, manager):
        """From decorated functions and loaders, one and many."""
        loads = []

        @cached(cache_type="menu", manager=manager, name="options.uncached")
        async def load(n: int) -> list[int] | Uncached[list[int]]:
            loads.append(n)
            return Uncached([n]) if n else [n]

        assert [await load(1), await load(1), await load(0), await load(0)] == [[1], [1], [0], [0]]
        assert loads == [1, 1, 0]
        assert await manager.get_or_load("menu", "a", lambda: Uncached(5)) == 5
        assert await manager.get("menu", "a") is None
        found = await manager.get_or_load_many("menu", ["a", "b"], lambda keys: {key: Uncached(key) if key == "a" else key for key in keys})
        assert found == {"a": "a", "b": "b"}
        assert await manager.mget("menu", ["a", "b"]) == [None, "b"]

    async def test_past_the_cache_too(self, manager):
        """Inside `disabled()` and `bypass()` callers get the value as well, and the fallback where a load fails."""

        @cached(cache_type="menu", manager=manager, name="options.past", fallback=lambda error: [str(error)])
        def load(n: int) -> list[Any] | Uncached[list[Any]]:
            if n == 2:
                raise ValueError("no")
            return Uncached.of([n])

        for past in (manager.disabled, manager.bypass):
            with past():
                assert await load(1) == [1]
                assert await load(2) == ["no"]
                assert await load.refresh(1) == [1]
                assert await manager.get_or_load("menu", "a", lambda: Uncached(5)) == 5
                assert await manager.get_or_load("menu", "a", lambda: 1 // 0, fallback=0) == 0
                assert await manager.get_or_load_many("menu", ["a"], lambda keys: {"a": Uncached(5)}) == {"a": 5}

    async def test_the_annotation_is_read_without_it(self, manager):
        """What is declared as `R | Uncached[R]`, or `Uncached[R]`, is stored and read as `R`, whatever stands beside it."""

        @cached(cache_type="menu", manager=manager, key="either")
        async def either() -> set[int] | Uncached[set[int]]:
            return {1}

        @cached(cache_type="menu", manager=manager, key="only")
        async def only() -> Uncached[set[int]]:
            return {2}  # type: ignore[return-value]

        @cached(cache_type="menu", manager=manager, key="optional")
        def optional() -> set[int] | None | Uncached[set[int]]:
            return {3}

        for _ in range(2):
            assert [await either(), await only(), await optional()] == [{1}, {2}, {3}]
        assert await manager.mget("menu", ["either", "only"], as_type=set[int]) == [{1}, {2}]
        assert await manager.get("menu", "optional", as_type=set[int] | None) == {3}


class TestProvide:
    @pytest.mark.parametrize("opening", OPENING.values(), ids=OPENING)
    @pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
    async def test_each_load_opens_its_own_and_closes_it(self, manager, opening, is_async):
        """A load is given what its factory opened, open; it is closed when the value is given. A hit opens nothing."""
        given = []

        async def load_async(n: int, db: Any = None) -> list[str]:
            given.append(db)
            return list(db.events)

        def load_plainly(n: int, db: Any = None) -> list[str]:
            given.append(db)
            return list(db.events)

        load = cached(cache_type="menu", manager=manager, name="options.opens", provide={"db": opening})(
            load_async if is_async else load_plainly
        )
        if not is_async and opening in (OPENING["lambda of an async generator"], Async):
            with pytest.raises(ConfigurationError, match="make one of the two like the other"):
                await load(1)
            return
        for n in (1, 2, 1):
            assert await load(n) == ["open"]
        assert [session.events for session in given] == [["open", "close"]] * 2
        assert given == Session.made
        assert [session.error for session in given] == [None, None]

    @pytest.mark.parametrize("opening", OPENING.values(), ids=OPENING)
    async def test_an_error_of_the_load_is_thrown_into_it(self, manager, opening):
        """And raised to the caller, the very one."""
        failure = ValueError("no")

        @cached(cache_type="menu", manager=manager, name="options.throws", provide={"db": opening})
        async def load(n: int, db: Any = None) -> int:
            raise failure

        with pytest.raises(ValueError, match="no") as caught:
            await load(1)
        assert caught.value is failure
        assert [session.error for session in Session.made] == [failure]
        assert Session.made[0].events == ["open", "close"]

    @pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
    async def test_an_error_that_is_swallowed_is_raised_all_the_same(self, manager, is_async):
        """There is no value then; a load never gives None for it."""

        def swallow():
            with contextlib.suppress(ValueError):
                yield 1

        async def load_async(n: int, db: int = 0) -> int:
            raise ValueError("no")

        def load_plainly(n: int, db: int = 0) -> int:
            raise ValueError("no")

        load = cached(manager=manager, name="options.swallows", provide={"db": swallow}, cache_none=True)(
            load_async if is_async else load_plainly
        )
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await load(1)

    @pytest.mark.parametrize("opening", [Async, async_generator, plain_generator], ids=["manager", "async generator", "generator"])
    async def test_it_is_closed_when_the_load_is_cancelled(self, manager, opening):
        started = asyncio.Event()

        @cached(cache_type="menu", manager=manager, name="options.cancelled", provide={"db": opening})
        async def load(n: int, db: Any = None) -> int:
            started.set()
            await asyncio.Event().wait()
            return n

        task = asyncio.ensure_future(load(1))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settled()
        assert [session.events for session in Session.made] == [["open", "close"]]
        assert isinstance(Session.made[0].error, asyncio.CancelledError)

    async def test_what_was_opened_last_is_closed_first(self, manager):
        order = []

        def named(name: str) -> Any:
            @contextlib.asynccontextmanager
            async def one():
                order.append(f"open {name}")
                try:
                    yield name
                finally:
                    order.append(f"close {name}")

            return one

        @cached(manager=manager, name="options.order", provide={"b": named("b"), "a": named("a"), "plain": lambda: 5})
        async def load(a: str = "", b: str = "", plain: int = 0) -> list[object]:
            return [a, b, plain]

        assert await load() == ["a", "b", 5]
        assert order == ["open b", "open a", "close a", "close b"]

    async def test_if_one_cannot_be_opened_those_before_are_closed(self, manager):
        @cached(manager=manager, name="options.halfway", provide={"a": Async, "b": lambda: 1 // 0})
        async def load(a: Any = None, b: Any = None) -> int:
            return 1

        with pytest.raises(ZeroDivisionError):
            await load()
        assert [session.events for session in Session.made] == [["open", "close"]]

    async def test_a_plain_function_has_it_all_in_one_thread(self, manager):
        """Opened, used and closed by the thread that runs the function: a driver that knows its thread works."""
        threads = []

        def connection():
            threads.append(threading.get_ident())
            db = sqlite3.connect(":memory:")
            try:
                yield db
            finally:
                db.close()
                threads.append(threading.get_ident())

        @cached(manager=manager, name="options.thread", provide={"db": connection})
        def load(n: int, db: sqlite3.Connection | None = None) -> int:
            threads.append(threading.get_ident())
            return db.execute("SELECT ?", (n,)).fetchone()[0]

        assert await load(7) == 7
        assert len(set(threads)) == 1
        assert threads[0] != threading.get_ident()
        assert len(threads) == 3

    @pytest.mark.parametrize("fails", [False, True])
    async def test_it_stays_open_for_an_awaitable_that_a_plain_function_returns(self, manager, fails):
        async def rows(db: Any) -> list[str]:
            await asyncio.sleep(0)
            if fails:
                raise ValueError("no")
            return list(db.events)

        @cached(manager=manager, name="options.awaitable", provide={"db": Plain})
        def load(db: Any = None) -> Any:
            return rows(db)

        if fails:
            with pytest.raises(ValueError, match="no"):
                await load()
        else:
            assert await load() == ["open"]
        assert Session.made[0].events == ["open", "close"]
        assert isinstance(Session.made[0].error, ValueError) is fails

    async def test_callers_need_not_pass_it_and_it_makes_no_difference(self, manager):
        """Wherever it stands among the parameters; what a caller passes all the same is not used."""
        given = []

        @cached(manager=manager, name="options.first", provide={"db": lambda: "own"})
        async def first(db: str, n: int, *, page: int = 1) -> int:
            given.append((db, n, page))
            return n

        @cached(manager=manager, name="options.only_by_name", provide={"db": lambda: "own"})
        async def by_name(n: int, *rest: int, db: str, **more: int) -> int:
            given.append((db, n, rest, more))
            return n

        assert await first(n=1) == await first("theirs", 1) == await first(db=object(), n=1, page=1) == 1
        assert given == [("own", 1, 1)]
        assert first.cache_key(n=1) == first.cache_key("x", 1)
        assert await by_name(1, 2, 3, k=4) == await by_name(1, 2, 3, db="theirs", k=4) == 1
        assert given[1:] == [("own", 1, (2, 3), {"k": 4})]
        for call in (lambda: first(), lambda: first("theirs"), lambda: first(page=2)):
            with pytest.raises(TypeError, match="missing 1 required argument: 'n'"):
                await call()
        with pytest.raises(TypeError, match="unexpected keyword"):
            await first(n=1, size=2)

    async def test_methods(self, manager):
        class Menu:
            @cached(manager=manager, name="options.method", provide={"db": Async})
            async def of(self, n: int, db: Any = None) -> list[str]:
                return list(db.events)

            @classmethod
            @cached(manager=manager, name="options.class_method", provide={"db": Async})
            async def all(cls, db: Any = None) -> list[str]:
                return [cls.__name__, *db.events]

        assert await Menu().of(1) == await Menu.of(Menu(), 1) == ["open"]
        assert await Menu.all() == ["Menu", "open"]
        assert len(Session.made) == 2

    async def test_verbs_need_not_be_given_it(self, manager):
        @cached(manager=manager, name="options.verbs", provide={"db": Async})
        async def load(n: int, db: Any = None) -> int:
            return n

        assert await load.refresh(1) == 1
        assert (await load.peek(1), await load.exists(1), (await load.entry(1)).value) == (1, True, 1)
        assert await load.set_value(5, 1)
        assert await load(1) == 5
        assert await load.invalidate(1)
        assert len(Session.made) == 1

    async def test_a_load_with_its_own_outlives_its_caller(self, manager):
        """Nothing of it is its caller's: the caller leaves, and others who wait get what that very load gives."""
        started, go = asyncio.Event(), asyncio.Event()

        @cached(manager=manager, name="options.outlives", provide={"db": Async}, exclude=["db"])
        async def load(n: int, db: Any = None) -> int:
            started.set()
            await go.wait()
            return n

        first = asyncio.ensure_future(load(1))
        await started.wait()
        second = asyncio.ensure_future(load(1))
        await settled()
        first.cancel()
        await settled()
        assert first.done()
        go.set()
        assert await second == 1
        assert [session.events for session in Session.made] == [["open", "close"]]

    async def test_a_load_that_uses_something_of_its_callers_ends_with_it(self, manager):
        """One provided parameter beside an excluded one does not make it anybody's."""
        started, loads = asyncio.Event(), []

        @cached(manager=manager, name="options.half", provide={"db": Async}, exclude=["request"])
        async def load(n: int, request: object, db: Any = None) -> int:
            loads.append(request)
            started.set()
            await asyncio.Event().wait()
            return n

        first = asyncio.ensure_future(load(1, "first"))
        await started.wait()
        second = asyncio.ensure_future(load(1, "second"))
        await settled()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await settled()
        assert loads == ["first", "second"]
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second

    async def test_arguments_of_excluded_types_count_by_the_call(self, store):
        """Under `exclude_types` a load is its caller's where the call has an argument of such a type, and only there."""
        manager = store.open(exclude_types=(Session,))
        started, go, loads = asyncio.Event(), asyncio.Event(), []

        @cached(manager=manager, name="options.types", provide={"db": Async})
        async def load(n: int, other: Session | None = None, db: Any = None) -> int:
            loads.append(other)
            started.set()
            await go.wait()
            return n

        async def lose_the_first(*other: Session) -> None:
            started.clear()
            go.clear()
            first = asyncio.ensure_future(load(len(loads), *other))
            await started.wait()
            second = asyncio.ensure_future(load(len(loads) - 1, *other))
            await settled()
            first.cancel()
            await settled()
            go.set()
            await second

        await lose_the_first()
        assert len(loads) == 1
        await lose_the_first(Session())
        assert len(loads) == 3

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"provide": {"session": dict}}, "provide=.'session'"),
            ({"provide": {"args": list}}, "'args' is not a parameter that a load can be given"),
            ({"provide": {"db": 5}}, "give a function"),
            ({"provide": ["db"]}, "it is a mapping"),
            ({"provide": {"db": dict}, "key": "k:{n}:{db}", "exclude": ["args"]}, "'db' that is no parameter"),
            ({"provide": {"db": dict}, "tags": ["{db}"]}, "'db' that is no parameter"),
            ({"exclude": ["db"], "keep_loading": True}, r"keep_loading=True.*provide={'db'"),
        ],
        ids=lambda part: part if isinstance(part, str) else "",
    )
    def test_what_cannot_work_is_refused_at_decoration(self, options, says):
        async def load(n: int, db: object, *args: int) -> int:
            return n

        with pytest.raises(ConfigurationError, match=says):
            cached(name="options.refused", **options)(load)

    def test_self_is_not_provided(self):
        with pytest.raises(ConfigurationError, match="'self' is not a parameter"):

            class Menu:
                @cached(name="options.self", provide={"self": dict})
                async def load(self) -> int:
                    return 1

    async def test_past_the_cache_it_is_provided_too(self, manager):
        @cached(manager=manager, name="options.provided_past", provide={"db": Async})
        async def load(n: int, db: Any = None) -> list[str]:
            return list(db.events)

        with manager.disabled():
            assert await load(1) == await load(1) == ["open"]
        assert [session.events for session in Session.made] == [["open", "close"]] * 2

    async def test_a_refresh_behind_opens_its_own(self, clocked):
        """A stale value is given at once, and the load behind is provided with what it needs after the caller has gone."""
        numbers = iter(range(10))

        @cached(cache_type="menu", manager=clocked, name="options.behind", ttl=10, stale=60, provide={"db": Async})
        async def load(n: int, db: Any = None) -> int:
            assert db.events == ["open"]
            return next(numbers)

        assert await load(1) == 0
        clocked.settings.clock.advance(11)
        assert await load(1) == 0
        async with asyncio.timeout(10):
            while (await load.entry(1)).value == 0:
                await asyncio.sleep(0.01)
        assert await load(1) == 1
        assert [session.events for session in Session.made] == [["open", "close"]] * 2


class Counting:
    """A cached function that gives how many times it was called, in each way of being called."""

    def __init__(self, manager: CacheManager, **options: Any) -> None:
        self.loads = 0
        outer = self

        def decorated(name: str) -> Any:
            return cached(cache_type="menu", manager=manager, name=f"options.{name}", **options)

        @decorated("function")
        async def function(x: int) -> int:
            return outer.next()

        @decorated("plain")
        def plain(x: int) -> int:
            return outer.next()

        class Owner:
            @decorated("method")
            async def method(self, x: int) -> int:
                return outer.next()

            @decorated("by_class")
            @classmethod
            async def by_class(cls, x: int) -> int:
                return outer.next()

            @classmethod
            @decorated("under")
            async def under(cls, x: int) -> int:
                return outer.next()

            @decorated("static")
            @staticmethod
            async def static(x: int) -> int:
                return outer.next()

        self.owner = Owner()
        self.ways = {
            "function": lambda: function,
            "plain": lambda: plain,
            "method": lambda: self.owner.method,
            "class access": lambda: _with_self(Owner.method, self.owner),
            "class method": lambda: Owner.by_class,
            "class method under": lambda: Owner.under,
            "class method by instance": lambda: self.owner.under,
            "static": lambda: Owner.static,
        }

    def next(self) -> int:
        self.loads += 1
        return self.loads


class _with_self:
    """`Class.method` with its first argument at hand."""

    def __init__(self, method: Any, owner: Any) -> None:
        self._method, self._owner = method, owner

    def __call__(self, *args: Any) -> Any:
        return self._method(self._owner, *args)

    def using(self, **options: Any) -> Any:
        return _with_self(self._method.using(**options), self._owner)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: getattr(self._method, name)(self._owner, *args)


WAYS = ["function", "plain", "method", "class access", "class method", "class method under", "class method by instance", "static"]


class TestUsing:
    @pytest.mark.parametrize("way", WAYS)
    async def test_however_a_function_is_reached(self, manager, way):
        """`refresh=True` loads anew and stores; the plain function then gives that, and hits are hits."""
        fn = Counting(manager).ways[way]()
        assert [await fn(1), await fn(1)] == [1, 1]
        assert await fn.using(refresh=True)(1) == 2
        assert [await fn(1), await fn.using(fresh=True)(1), await fn.using(l1=False)(1), await fn.using()(1)] == [2] * 4

    async def test_nothing_stale_or_not_so_stale(self, clocked):
        """`fresh` takes nothing stale, `max_stale` so much of it; the policy's `stale` stays the limit."""
        counting = Counting(clocked, ttl=10, stale=100, keep_loading=True)
        fn = counting.ways["function"]()
        assert await fn(1) == 1
        clocked.settings.clock.advance(30)
        assert (await fn.using(max_stale="1h").entry(1)).is_fresh is False
        assert (await fn.using(max_stale=21).entry(1)).value == 1
        assert await fn.using(max_stale=19).entry(1) is None
        assert await fn.using(fresh=True).entry(1) is None
        assert await fn.using(max_stale=19)(1) == 2
        clocked.settings.clock.advance(30)
        assert await fn.using(fresh=True)(1) == 3
        clocked.settings.clock.advance(200)
        assert await fn.using(max_stale=FOREVER).entry(1) is None

    async def test_another_life(self, clocked):
        """`ttl` is the life of what the call loads or sets, not of what is there."""
        fn = Counting(clocked, ttl=10).ways["function"]()
        await fn.using(ttl="1m")(1)
        await fn.using(ttl="2m")(1)
        assert (await fn.entry(1)).left == 60
        await fn.using(ttl=FOREVER).set_value(5, 2)
        assert (await fn.entry(2)).left == math.inf
        await fn.using(ttl=0)(3)
        assert await fn.exists(3) is False
        await fn.using(ttl=None)(4)
        assert (await fn.entry(4)).left == 10
        assert fn.using(ttl=5).cache_parameters()["ttl"] == 5
        assert fn.cache_parameters()["ttl"] == 10

    async def test_the_verbs_are_those_of_the_function(self, manager):
        """Same keys, same entries, same counters."""
        fn = Counting(manager).ways["function"]()
        using = fn.using(fresh=True)
        assert using.cache_key(1) == fn.cache_key(1)
        await using.set_value(9, 1)
        assert (await fn.peek(1), await using.exists(1), (await fn.entry(1)).value) == (9, True, 9)
        assert await using(1) == 9
        assert fn.cache_info().hits == using.cache_info().hits == 1
        assert await using.invalidate(1)
        assert await fn.exists(1) is False
        await fn(1)
        assert await using.cache_clear()
        assert await fn.exists(1) is False

    async def test_the_same_terms_are_the_same_function(self, manager):
        """As bound methods are equal; options said one after the other add up; what differs from call to call is not kept for ever."""
        counting = Counting(manager)
        fn = counting.ways["function"]()
        assert fn.using(max_stale="1m", fresh=False) == fn.using(max_stale=60)
        assert fn.using(fresh=True) != fn.using(refresh=True)
        assert counting.owner.method.using(fresh=True) == counting.owner.method.using(fresh=True)
        assert counting.owner.method.using(fresh=True) != counting.owner.method
        assert fn.using(fresh=True).using(ttl=5) == fn.using(ttl=5, fresh=True)
        assert fn.using(refresh=True).using(refresh=False) == fn.using()
        for n in range(3 * REMEMBERED):
            await fn.using(ttl=n + 1)(n)
        assert len(fn.using()._core.plain.altered) <= REMEMBERED

    async def test_a_policy_that_changes_afterwards(self, manager):
        """What was asked for before follows the policy as the function does."""
        fn = Counting(manager).ways["function"]()
        using = fn.using(fresh=True)
        await using(1)
        manager.override("menu", ttl=5)
        await using(2)
        assert using.cache_parameters()["ttl"] == 5
        assert (await fn.entry(2)).left <= 5
        with manager.disabled():
            assert await using(2) != await using(2)

    async def test_a_refresh_that_fails(self, manager):
        """Gives the policy's fallback, as any call does; the verb raises. What is wrong with the call itself is raised in any case."""

        @cached(cache_type="menu", manager=manager, name="options.fails", fallback=lambda error: [error], tenant_aware=True)
        async def load(n: int) -> list[Any]:
            raise KeyError(n)

        with tenant_scope(1):
            assert repr(await load.using(refresh=True)(1)) == "[KeyError(1)]"
            with pytest.raises(KeyError):
                await load.using(refresh=True).refresh(1)
        with pytest.raises(MissingTenantError):
            await load.using(refresh=True)(1)

    async def test_tenants_of_the_scope(self, manager):
        fn = Counting(manager).ways["function"]()
        with tenant_scope(1):
            assert await fn.using(fresh=True)(1) == 1
        with tenant_scope(2):
            assert await fn.using(fresh=True)(1) == 2
        with tenant_scope(1):
            assert await fn.using(fresh=True)(1) == 1

    @pytest.mark.parametrize("option", ["frsh", "stale", "tenant", "lease"])
    async def test_an_unknown_option_is_a_type_error(self, manager, option):
        """That names those there are; and what is none of its kind is refused."""
        fn = Counting(manager).ways["function"]()
        with pytest.raises(TypeError, match=rf"'{option}'.*fresh, max_stale, refresh, l1, ttl"):
            fn.using(**{option: True})
        for wrong in ({"fresh": 1}, {"refresh": None}, {"l1": "no"}, {"max_stale": -1}, {"max_stale": True}, {"ttl": "5"}):
            with pytest.raises(ConfigurationError):
                fn.using(**wrong)

    async def test_a_stand_in_for_the_manager(self):
        """Is asked as ever; `refresh=True` does not ask it, and sets."""
        stranger = AsyncMock()
        stranger.get.return_value = 7

        @cached(manager=stranger, name="options.mocked")
        async def load(n: int) -> int:
            return n

        assert await load.using(fresh=True)(1) == 7
        assert await load.using(refresh=True)(1) == 1
        assert stranger.get.await_count == stranger.set.await_count == 1

    async def test_it_is_known_to_be_async(self, manager):
        """Frameworks and schedulers ask before they await."""
        counting = Counting(manager)
        assert inspect.iscoroutinefunction(counting.owner.method.using(fresh=True)) or asyncio.iscoroutinefunction(
            counting.owner.method.using(fresh=True)
        )


class TestEntry:
    async def test_a_cached_none_is_told_from_a_miss(self, clocked):
        """`entry` is None only where a read would find nothing; it never loads, and counts nothing."""

        @cached(cache_type="menu", manager=clocked, name="options.none", cache_none=True, ttl=10, stale=20)
        async def load(n: int) -> None:
            return None

        assert await load.entry(1) is None
        await load(1)
        assert await load.entry(1) == CacheEntry(value=None, age=0.0, left=10.0, is_fresh=True)
        clocked.settings.clock.advance(4)
        assert await load.entry(1) == CacheEntry(value=None, age=4.0, left=6.0, is_fresh=True)
        clocked.settings.clock.advance(10)
        assert await load.entry(1) == CacheEntry(value=None, age=14.0, left=0.0, is_fresh=False)
        clocked.settings.clock.advance(20)
        assert await load.entry(1) is None
        assert load.cache_info()[:2] == (0, 1)

    async def test_the_managers_own(self, clocked):
        """By type and key, and as a declared type."""
        assert await clocked.entry("menu", "a") is None
        await clocked.set("menu", "a", {"x": 1}, ttl=FOREVER)
        assert await clocked.entry("menu", "a") == CacheEntry({"x": 1}, 0.0, math.inf, True)
        assert await clocked.caches["menu"].entry("a", tenant=1) is None
        await clocked.set("menu", "b", {1, 2}, as_type=set[int])
        assert (await clocked.entry("menu", "b", as_type=set[int])).value == {1, 2}

    async def test_past_the_cache_there_is_none(self, manager):
        fn = Counting(manager).ways["function"]()
        await fn(1)
        await manager.set("menu", "a", 1)
        for past in (manager.disabled, manager.bypass):
            with past():
                assert await fn.entry(1) is None
                assert await manager.entry("menu", "a") is None


class TestExplain:
    async def test_a_hit_a_stale_one_and_misses(self, clocked):
        """What is stored, for whom, and why; `str` says it in lines."""
        load = cached(cache_type="menu", manager=clocked, name="options.told", ttl=10, stale=20)(lambda_of())
        told = await load.explain(1)
        assert (told.verdict, told.key, told.size) == ("miss", load.cache_key(1), None)
        await load(1)
        told = await load.explain(1)
        assert (told.verdict, told.age, told.ttl, told.left, told.stale_left) == ("hit", 0.0, 10.0, 10.0, 30.0)
        assert told.size is not None
        assert told.size > 0
        assert told.scopes["f:options.told"] is True
        assert "  life: 0 s old, 10 s to live, 10 s left, 20 s more as stale" in str(told).splitlines()
        clocked.settings.clock.advance(15)
        assert (await load.explain(1)).verdict == "stale"
        assert (await load.using(fresh=True).explain(1)).verdict == "miss"
        shown = str(await load.explain(1)).splitlines()
        assert shown[0] == load.cache_key(1)
        assert shown[1].startswith("  stale: ")
        assert any(line.startswith("  life: 15 s old, 10 s to live, past its life, 15 s more as stale") for line in shown)
        assert "f:options.told has a generation" in [" ".join(line.split()) for line in shown]
        clocked.settings.clock.advance(20)
        assert (await load.explain(1)).verdict == "miss"

    async def test_by_type_and_key(self, manager):
        await manager.set("menu", "a", 1, tenant=1, tags=["x"])
        assert (await manager.explain("menu", "a")).verdict == "miss"
        told = await manager.explain("menu", "a", tenant=1)
        assert told.verdict == (await manager.caches["menu"].explain("a", tenant=1)).verdict == "hit"
        assert {"y:menu", "t:1", "g:x"} <= told.scopes.keys()
        await manager.invalidate_tags("x")
        told = await manager.explain("menu", "a", tenant=1)
        assert (told.verdict, told.scopes["g:x"], told.scopes["t:1"]) == ("miss", False, True)
        assert "g:x" in told.why

    async def test_it_neither_loads_nor_counts(self, manager):
        fn = Counting(manager).ways["function"]()
        await fn.explain(1)
        assert fn.cache_info()[:2] == (0, 0)
        assert manager.stats()["menu"]["misses"] == 0

    async def test_past_the_cache_nothing_is_a_hit(self, manager):
        await manager.set("menu", "a", 1)
        with manager.disabled():
            told = await manager.explain("menu", "a")
        assert told.verdict == "miss"
        assert "else it would be a hit" in told.why

    async def test_a_store_that_is_down(self, own_server):
        """Is a miss that says so; BackendError under `strict`."""
        server = own_server()
        server.stop()
        async with CacheManager(server.url) as manager, CacheManager(server.url, strict=True) as strict:
            load = cached(cache_type="menu", manager=manager, name="options.down")(lambda_of())
            for told in (await manager.explain("menu", "a"), await load.explain(1)):
                assert (told.verdict, told.size) == ("miss", None)
                assert told.why.startswith("the store did not answer")
            assert await load.entry(1) is None
            with pytest.raises(BackendError):
                await strict.explain("menu", "a")
            with pytest.raises(BackendError):
                await strict.entry("menu", "a")

    def test_for_ever_and_big(self):
        """Numbers as people write them."""
        told = Explanation(key="k", verdict="hit", why="it is", size=12345, codec="JSON", age=0.5, ttl=math.inf, left=math.inf, cost=0.25)
        assert str(told) == "\n".join(
            [
                "k",
                "  hit: it is",
                "  value: 12,345 bytes, JSON",
                "  life: 0.5 s old, for ever to live, for ever left",
                "  cost: 0.25 s to load",
            ]
        )


class TestKeepStale:
    WAYS = {
        "type": lambda m: m.invalidate("menu", keep_stale=True),
        "cache": lambda m: m.caches["menu"].invalidate(keep_stale=True),
        "tenant of the type": lambda m: m.invalidate("menu", tenant=1, keep_stale=True),
        "menu": lambda m: m.invalidate_menu(1, keep_stale=True),
        "tag": lambda m: m.invalidate("menu", tags=["x"], keep_stale=True),
        "tags": lambda m: m.invalidate_tags("x", keep_stale=True),
        "tenant": lambda m: m.invalidate_tenant(1, keep_stale=True),
        "user": lambda m: m.invalidate_user(5, keep_stale=True),
        "decorator": lambda m: invalidating("menu", keep_stale=True, manager=m)(lambda_of())(1),
        "decorator of tags": lambda m: invalidating("menu", tags=["x"], keep_stale=True, manager=m)(lambda_of())(1),
    }

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    async def test_readers_that_take_stale_values_are_given_them(self, clocked, way):
        """And refresh behind; readers that do not, miss. A hard invalidation afterwards leaves nothing."""
        counting = Counting(clocked, ttl=100, stale=50, tags=["x"], tenant_aware="known", user_aware="known")
        fn = counting.ways["function"]()
        with tenant_scope(1), user_scope(5):
            assert await fn(1) == 1
            assert await way(clocked)
            assert (await fn.explain(1)).verdict == "stale"
            assert await fn.using(fresh=True).entry(1) is None
            assert await fn(1) == 1
            async with asyncio.timeout(10):
                while not (await fn.entry(1)).is_fresh:
                    await asyncio.sleep(0.01)
            assert await fn(1) == 2
            assert await way(clocked)
            assert await clocked.invalidate("menu")
            assert await fn.entry(1) is None

    async def test_verbs_that_take_nothing_stale_miss(self, manager):
        """`get` and `exists`, and any reader whose policy has no `stale`."""
        await manager.set("menu", "a", 1, stale=60)
        assert await manager.invalidate("menu", keep_stale=True)
        assert await manager.get("menu", "a") is None
        assert await manager.exists("menu", "a") is False
        assert await manager.get_or_load("menu", "a", lambda: 2) == 2

    async def test_deferred(self, manager):
        """A block holds it back and sends it as what it is."""
        fn = Counting(manager, ttl=100, stale=50).ways["function"]()
        await fn(1)
        async with manager.deferred():
            assert await manager.invalidate("menu", keep_stale=True) is False
            assert (await fn.entry(1)).is_fresh is True
        assert (await fn.entry(1)).is_fresh is False

    def test_keys_are_deleted_and_not_kept(self):
        """A decorator that says both is refused, as is what is no bool."""
        with pytest.raises(ConfigurationError, match="keep_stale=True.*tags="):
            invalidating("menu", keys=["a"], keep_stale=True)(lambda_of())
        with pytest.raises(ConfigurationError, match="keep_stale=1"):
            invalidating("menu", keep_stale=1)(lambda_of())

    async def test_a_stand_in_for_the_manager_is_told(self):
        """Only if it was asked for: one that knows no such word is not confused."""
        stranger = AsyncMock()
        await invalidating("menu", manager=stranger)(lambda_of())(1)
        await invalidating("menu", keep_stale=True, manager=stranger)(lambda_of())(1)
        plain, soft = stranger.invalidate.await_args_list
        assert "keep_stale" not in plain.kwargs
        assert soft.kwargs["keep_stale"] is True
