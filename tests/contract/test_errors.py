"""CONTRACT.md 8, and 1's logger: what goes wrong is said, harms nobody who did not ask for it, and gives nothing away."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import fakeredis
import pytest
import redis

import aiocache_aura
from aiocache_aura import errors
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.context import tenant_scope, user_scope
from aiocache_aura.decorators import cache_menu, invalidate_cache
from aiocache_aura.errors import (
    BackendError,
    BackendTimeoutError,
    CacheError,
    ConfigurationError,
    KeyPartError,
    MissingTenantError,
    MissingUserError,
    RecursiveLoadError,
    SerializationError,
    UnknownCacheTypeError,
    ValueTooLargeError,
)
from aiocache_aura.policy import CachePolicy
from aiocache_aura.redis_client import RedisClient
from aiocache_aura.types import FOREVER
from tests.clocks import running_time
from tests.contract.conftest import PATIENT

KINDS = {
    errors.ConfigurationError: ValueError,
    errors.UnknownCacheTypeError: KeyError,
    errors.KeyPartError: TypeError,
    errors.MissingTenantError: LookupError,
    errors.MissingUserError: LookupError,
    errors.SerializationError: TypeError,
    errors.ValueTooLargeError: ValueError,
    errors.RecursiveLoadError: RuntimeError,
    errors.LoadTimeoutError: TimeoutError,
    errors.LoadDeadlineError: TimeoutError,
    errors.LoadFailedError: RuntimeError,
    errors.BackendError: Exception,
    errors.BackendTimeoutError: TimeoutError,
}


class TestHierarchy:
    @pytest.mark.parametrize(("error", "kind"), KINDS.items(), ids=lambda one: one.__name__)
    def test_each_is_a_cache_error_and_what_python_would_raise(self, error, kind):
        """None derives from redis-py's; each is public, can be pickled, and says its message as it is."""
        assert issubclass(error, CacheError)
        assert issubclass(error, kind)
        assert not any(base.__module__.startswith("redis") for base in error.__mro__)
        assert not issubclass(error, redis.RedisError)
        assert getattr(aiocache_aura, error.__name__) is error
        assert error.__name__ in aiocache_aura.__all__
        one = error("what, where, and what to do")
        assert str(one) == "what, where, and what to do"
        again = pickle.loads(pickle.dumps(one))
        assert (type(again), str(again)) == (error, str(one))

    def test_these_are_all(self):
        found = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, BaseException)}
        assert found == {CacheError, *KINDS}


class Odd:
    """Nothing that a key or a store knows."""


async def _recursive(manager: CacheManager) -> None:
    async def load() -> Any:
        return await manager.get_or_load("menu", "a", load)

    await manager.get_or_load("menu", "a", load)


def _keyed(manager: CacheManager, **options: Any) -> Any:
    return cache_menu(manager=manager, name="dish", **options)(lambda dish, db=None: dish)


SAID: dict[str, tuple[Callable[[CacheManager], Any], type[CacheError], list[str]]] = {
    "type": (lambda m: m.get("mneu", "a"), UnknownCacheTypeError, ["'mneu'", "'menu'", "register("]),
    "key": (lambda m: m.get("menu", 5), KeyPartError, ["int", "f'item:"]),
    "argument": (lambda m: _keyed(m)(Odd()), KeyPartError, ["'dish'", "Odd", "exclude=['dish']", "__cache_key__", "register_key_type"]),
    "nested argument": (lambda m: _keyed(m)([{"a": Odd()}]), KeyPartError, ["'dish'", "Odd", "exclude="]),
    "template": (lambda m: _keyed(m, key="{dish}", exclude=["db"])(None), KeyPartError, ["{dish}", "None", "pass a value"]),
    "tenant": (
        lambda m: m.get_or_load("menu", "a", lambda: 1, tenant_aware=True),
        MissingTenantError,
        ["menu", "tenant_scope(", "tenant_aware=False"],
    ),
    "user": (lambda m: _keyed(m, user_aware=True)(1), MissingUserError, ["user_id", "user_scope(", "user_aware=False"]),
    "value": (
        lambda m: m.set("menu", "a", {"dishes": [1, Odd()]}),
        SerializationError,
        ["value['dishes'][1]", "Odd", "as_type=", "returns=", "register_type("],
    ),
    "size": (lambda m: m.set("menu", "a", "x" * 2000, max_value_bytes=1000), ValueTooLargeError, ["menu", "2,002", "1,000", "raise it"]),
    "recursion": (_recursive, RecursiveLoadError, ["key that it is loading", "__wrapped__"]),
    "ttl": (lambda m: m.set("menu", "a", 1, ttl="5 minutes"), ConfigurationError, ["'5 minutes'", "'5m'"]),
    "endless ttl": (lambda m: m.set("menu", "a", 1, ttl=float("inf")), ConfigurationError, ["inf", "ttl=FOREVER"]),
    "later option": (lambda m: m.set("menu", "a", 1, encrypt=True), ConfigurationError, ["encrypt=True", "not in this version"]),
}


class TestWhatTheySay:
    @pytest.mark.parametrize(("use", "error", "words"), SAID.values(), ids=SAID)
    async def test_what_went_wrong_where_and_what_to_do(self, use, error, words):
        async with CacheManager() as manager:
            with pytest.raises(error) as caught:
                await use(manager)
            assert [word for word in words if word not in str(caught.value)] == []

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("localhost:6379", ["redis://", "memory://"]),
            ("http://localhost", ["'http://'", "redis://", "memory://"]),
            ("redis+cluster://h1:6379", ["redis+cluster://", "not in this version"]),
            ("redis://localhost:six/0", ["redis://", "port"]),
            ("redis://localhost/0?timeot=5", ["timeot="]),
        ],
    )
    def test_urls(self, url, words):
        with pytest.raises(ConfigurationError) as caught:
            CacheManager(url)
        assert [word for word in words if word not in str(caught.value)] == []

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"maxmemory": "1", "maxmemory-policy": "noeviction"}, ["PLANT", "OOM", "maxmemory"]),
            ({"min-replicas-to-write": "1"}, ["PLANT", "NOREPLICAS", "replicas"]),
        ],
        ids=["full", "too few replicas"],
    )
    async def test_what_a_server_refuses(self, own_server, config, words):
        """The command, what the server said, and what would help."""
        server = own_server()
        async with CacheManager(server.url, strict=True, budget=PATIENT) as manager:
            with server.client() as client:
                for name, value in config.items():
                    client.config_set(name, value)
                with pytest.raises(BackendError) as caught:
                    await manager.set("menu", "a", 1)
                assert [word for word in words if word not in str(caught.value)] == []

    async def test_where_nothing_answers(self, own_server):
        """The address, and why."""
        server = own_server()
        where = f"{server.host}:{server.port}"
        async with CacheManager(server.url, strict=True, budget=0.25) as manager:
            with suppress(BackendTimeoutError):
                await manager.set("menu", "a", 1)
            server.stop()
            with pytest.raises(BackendTimeoutError, match=where):
                await manager.get("menu", "a")
            server.cont()
        server.kill()
        async with CacheManager(server.url, strict=True, budget=0.1) as manager:
            with pytest.raises(BackendError, match=where) as caught:
                await manager.get("menu", "a")
            assert isinstance(caught.value.__cause__, Exception)


async def _refused(own_server: Any) -> str:
    server = own_server()
    server.kill()
    return str(server.url)


async def _hanging(own_server: Any) -> str:
    server = own_server()
    server.stop()
    return str(server.url)


async def _full(own_server: Any) -> str:
    return str(own_server("--maxmemory", "1", "--maxmemory-policy", "noeviction").url)


async def _wrong_password(own_server: Any) -> str:
    server = own_server("--requirepass", "right")
    return f"redis://default:wrong@{server.host}:{server.port}/0"


async def _no_login(own_server: Any) -> str:
    return str(own_server("--requirepass", "right").url)


async def _nothing_allowed(own_server: Any) -> str:
    server = own_server()
    with server.client() as client:
        client.acl_setuser("nobody", enabled=True, passwords=["+pw"], commands=["-@all", "+hello", "+auth"])
    return f"redis://nobody:pw@{server.host}:{server.port}/0"


async def _no_such_database(own_server: Any) -> str:
    server = own_server()
    return f"redis://{server.host}:{server.port}/99"


async def _no_redis(own_server: Any) -> str:
    return "redis://127.0.0.1:{http}/0"


BROKEN = {
    "refused": _refused,
    "hanging": _hanging,
    "full": _full,
    "wrong password": _wrong_password,
    "no login": _no_login,
    "nothing allowed": _nothing_allowed,
    "no such database": _no_such_database,
    "no redis": _no_redis,
}


@pytest.fixture
async def http() -> AsyncIterator[int]:
    """Something that listens and is no Redis."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@pytest.fixture(params=BROKEN.values(), ids=BROKEN)
async def broken_url(request: pytest.FixtureRequest, own_server: Any, http: int) -> str:
    """The URL of a server that cannot be asked, for one reason or another."""
    url: str = await request.param(own_server)
    return url.format(http=http)


EXPLICIT: dict[str, tuple[Callable[[CacheManager], Awaitable[Any]], Any]] = {
    "get": (lambda m: m.get("menu", "a", default="default"), "default"),
    "mget": (lambda m: m.mget("menu", ["a", "b"], default=0), [0, 0]),
    "get_many": (lambda m: m.get_many("menu", ["a"]), {}),
    "exists": (lambda m: m.exists("menu", "a"), False),
    "ttl": (lambda m: m.ttl("menu", "a"), None),
    "set": (lambda m: m.set("menu", "a", 1), False),
    "mset": (lambda m: m.mset("menu", {"a": 1}), False),
    "add": (lambda m: m.add("menu", "a", 1), False),
    "touch": (lambda m: m.touch("menu", "a", FOREVER), False),
    "delete": (lambda m: m.delete("menu", "a"), 0),
}
CLEARING: dict[str, tuple[Callable[[CacheManager], Awaitable[Any]], Any]] = {
    "invalidate": (lambda m: m.invalidate("menu"), False),
    "invalidate_tags": (lambda m: m.invalidate_tags("x"), False),
    "invalidate_menu": (lambda m: m.invalidate_menu(1), False),
    "clear_namespace": (lambda m: m.caches["menu"].clear_namespace(), False),
    "invalidate_pattern": (lambda m: m.invalidate_pattern("menu", "*"), 0),
}


class TestFailing:
    @pytest.mark.parametrize("strict", [False, True])
    async def test_a_decorated_function_is_called_as_if_nothing_were_cached(self, broken_url, strict, caplog):
        """Whatever is wrong with the server: within the budget, counted, and logged once."""

        async with CacheManager(broken_url, strict=strict, budget=0.05) as manager:
            calls = []

            @cache_menu(manager=manager, tags=["x"])
            async def dish(n: int) -> list[int]:
                calls.append(n)
                return [n]

            class Menu:
                @cache_menu(manager=manager)
                def plain(self, n: int) -> list[int]:
                    calls.append(n)
                    return [n]

            @invalidate_cache("menu", manager=manager)
            async def change(n: int) -> int:
                return n

            with caplog.at_level(logging.WARNING, "aiocache_aura"):
                started = running_time()
                assert [await dish(1), await dish(1), await Menu().plain(2), await dish.refresh(3)] == [[1], [1], [2], [3]]
                assert await manager.get_or_load("menu", "a", lambda: 4) == 4
                assert await manager.get_or_load_many("menu", ["a", "b"], lambda keys: dict.fromkeys(keys, 5)) == {"a": 5, "b": 5}
                assert await asyncio.gather(*(dish(6) for _ in range(50))) == [[6]] * 50
                assert running_time() - started < 2.5
                assert await change(7) == 7
                await asyncio.gather(*(dish(8) for _ in range(10)))
            assert calls[:4] == [1, 1, 2, 3]
            assert manager.stats()["menu"]["errors"] > 0
            assert len([record for record in caplog.records if record.levelno == logging.WARNING]) <= 3

    async def test_the_loader_s_errors_are_its_own(self):
        """Those that look like the cache's, too: they are not taken for a fault of the store."""
        async with CacheManager("redis://127.0.0.1:1/0") as manager:
            for error in (BackendError("of another cache"), redis.ConnectionError("of a queue"), TimeoutError(), LookupError("no dish")):

                def load(*keys: Any, error: Exception = error) -> Any:
                    raise error

                cached = cache_menu(manager=manager, name=type(error).__name__, exclude=["error"])(load)
                for use in (
                    manager.get_or_load("menu", "a", load),
                    manager.get_or_load_many("menu", ["a"], load),
                    cached(),
                    cached.refresh(),
                ):
                    with pytest.raises(type(error)) as caught:
                        await use
                    assert caught.value is error

    @pytest.mark.parametrize(("use", "otherwise"), (EXPLICIT | CLEARING).values(), ids=EXPLICIT | CLEARING)
    async def test_explicit_verbs_fail_open(self, use, otherwise):
        """As if nothing were cached; counted."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.05) as manager:
            got = await use(manager)
            assert (got, type(got)) == (otherwise, type(otherwise))

    @pytest.mark.parametrize(("use", "otherwise"), EXPLICIT.values(), ids=EXPLICIT)
    async def test_under_strict_they_raise(self, use, otherwise):
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.05, strict=True) as manager:
            with pytest.raises(BackendError, match="127.0.0.1:1") as caught:
                await use(manager)
            assert not isinstance(caught.value, redis.RedisError)
            assert manager.stats()["menu"]["errors"] == 1

    @pytest.mark.parametrize(("use", "otherwise"), CLEARING.values(), ids=CLEARING)
    async def test_under_strict_invalidations_never_raise(self, use, otherwise):
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.05, strict=True) as manager:
            assert await use(manager) == otherwise

    async def test_under_strict_the_verbs_of_a_function(self):
        """Those that look or write raise; those that load or clear do not."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.05, strict=True) as manager:

            @cache_menu(manager=manager)
            async def dish(n: int) -> int:
                return n

            for use in (dish.peek(1), dish.exists(1), dish.set_value(1, 1)):
                with pytest.raises(BackendError):
                    await use
            assert [await dish(1), await dish.refresh(1), await dish.invalidate(1), await dish.cache_clear()] == [1, 1, False, False]

    async def test_it_comes_back_by_itself(self, own_server):
        """Hits again, once the server is there again; nothing has to be made anew."""
        server = own_server()
        async with CacheManager(server.url, budget=PATIENT) as manager:
            calls = []

            @cache_menu(manager=manager)
            async def dish(n: int) -> int:
                calls.append(n)
                return n

            await dish(1), await dish(1)
            assert calls == [1]
            server.kill()
            await dish(1), await dish(1)
            assert calls == [1, 1, 1]
            server.start()
            async with asyncio.timeout(PATIENT):
                while not await dish.exists(1):
                    await dish(1)
                    await asyncio.sleep(0.01)
            calls.clear()
            assert (await dish(1), calls) == (1, [])

    async def test_over_fakeredis(self):
        """The same over a client's public API."""
        fake = fakeredis.FakeServer()
        fake.connected = False
        client = fakeredis.FakeAsyncRedis(server=fake)
        async with CacheManager(client=client, budget=0.1) as hasty, CacheManager(client=client, budget=PATIENT) as manager:

            @cache_menu(manager=manager)
            async def dish(n: int) -> int:
                return n

            assert [await dish(1), await manager.get("menu", "a"), await hasty.set("menu", "a", 1)] == [1, None, False]
            fake.connected = True
            assert await dish(1) == 1
            assert await dish.exists(1) is True
        await client.aclose()


PASSWORD = "hunter2pw"
VALUE = "the-stored-value"
SECRET = "the-secret-argument"
ARGUMENTS = ["an-argument", "tenant-of-mine", "user-of-mine", "tag-of-mine", "key-of-mine"]


class Row:
    """Nothing that can be stored, and that says too much."""

    def __repr__(self) -> str:
        return VALUE

    __str__ = __repr__


async def workload(manager: CacheManager, spoil: Callable[[], Any]) -> None:
    """Everything that a cache does, and most of what can go wrong in it."""
    argument, tenant, user, tag, key = ARGUMENTS

    @cache_menu(manager=manager, secret=["api_key"], tags=["{dish}", "{api_key}", tag])
    async def dish(dish: str, api_key: str, restaurant_id: str) -> list[str]:
        return [VALUE]

    @cache_menu(manager=manager)
    async def rows(dish: str) -> list[Any]:
        return [Row()]

    @cache_menu(manager=manager)
    async def fails(dish: str) -> Undefined:  # type: ignore[name-defined]  # noqa: F821 - cannot be resolved
        raise LookupError(VALUE)

    @invalidate_cache("menu", "api", tags=["{dish}", "{result.category}"], manager=manager)
    async def change(dish: str, restaurant_id: str) -> Row:
        return Row()

    @invalidate_cache("menu", tenant="{result}", manager=manager)
    async def move(dish: str) -> Row:
        return Row()

    @invalidate_cache("menu", tags=lambda call: [{}[call["dish"]]], manager=manager)
    async def rename(dish: str) -> None: ...

    async def load() -> list[str]:
        await asyncio.sleep(0)
        return [VALUE]

    with tenant_scope(tenant), user_scope(user):
        for _ in range(2):
            await asyncio.gather(*(dish(argument, SECRET, tenant) for _ in range(3)))
            await dish.refresh(argument, SECRET, tenant)
            await dish.peek(argument, SECRET, tenant), await dish.exists(argument, SECRET, tenant)
            await manager.set("menu", key, VALUE, tags=[tag])
            await manager.mget("menu", [key, key + "2"])
            spoil()
            await manager.get("menu", key), await manager.get_or_load("menu", key, load)
            await manager.get("menu", key, as_type=int), await manager.add("menu", key + "3", VALUE), await manager.touch("menu", key)
            await manager.get_or_load_many("menu", [key, key + "4"], lambda keys: dict.fromkeys(keys, VALUE))
            await rows(argument), await rows(argument + "2")
            await manager.get_or_load("menu", key + "5", lambda: VALUE * 10, max_value_bytes=10)
            for failing in (fails(argument), manager.get_or_load("menu", key + "6", lambda: 1 / 0), manager.set("menu", key, Row())):
                with pytest.raises((LookupError, ZeroDivisionError, SerializationError)):
                    await failing
            await change(argument, tenant), await move(argument), await rename(argument)
            await manager.delete("menu", key), await dish.invalidate(argument, SECRET, tenant), await dish.cache_clear()
            await manager.invalidate("menu", tenant=tenant, tags=[tag]), await manager.invalidate_tags(tag)
            await manager.invalidate_tenant(tenant), await manager.invalidate_user(user)
            await manager.invalidate_pattern("menu", key + "*"), await manager.caches["menu"].clear_namespace(reclaim=True)


def reprs() -> str:
    """What every object of this library that is alive says of itself."""
    ours = [one for one in gc.get_objects() if str(getattr(type(one), "__module__", "")).startswith("aiocache_aura")]
    assert len(ours) > 50
    return "\n".join(map(repr, ours))


def assert_none_in(text: str, *words: str) -> None:
    assert [line for line in text.splitlines() if any(word in line for word in words)] == []


class TestSecrecy:
    @pytest.mark.parametrize("log_keys", [False, True])
    @pytest.mark.parametrize("way", ["tcp", "unix", "memory"])
    async def test_logs_never_show_values_or_credentials(self, own_server, caplog, way, log_keys):
        """At DEBUG, in all that a cache does, on a server that is there, refuses, and is gone; arguments are hashed unless `log_keys`."""
        server = own_server("--requirepass", PASSWORD)
        url = {
            "tcp": f"redis://default:{PASSWORD}@{server.host}:{server.port}/0",
            "unix": f"unix://default:{PASSWORD}@{server.path}?db=0",
            "memory": "memory://",
        }[way]

        def spoil() -> None:
            if way != "memory":
                with server.client(password=PASSWORD) as client:
                    client.set(f"shop:menu:t{ARGUMENTS[1]}:=key-of-mine", f"{VALUE} of another program")

        with caplog.at_level(logging.DEBUG):
            async with (
                CacheManager(url, prefix="shop", log_keys=log_keys, budget=PATIENT) as manager,
                CacheManager(url, prefix="shop", log_keys=log_keys, budget=0.25) as hasty,
            ):
                await workload(manager, spoil)
                stats = manager.stats()["menu"]
                assert min(stats["hits"], stats["misses"], stats["unstorable"], stats["load_errors"], stats["deletes"]) > 0
                assert stats["undecodable"] >= (2 if way == "memory" else 4)
                if way != "memory":
                    with server.client(password=PASSWORD) as client:
                        client.config_set("maxmemory", 1), client.config_set("maxmemory-policy", "noeviction")
                    await manager.set("menu", ARGUMENTS[4], VALUE)
                    await asyncio.gather(*manager._engines.place().behind)
                    server.kill()
                    with tenant_scope(ARGUMENTS[1]):
                        await hasty.set("menu", ARGUMENTS[4], VALUE), await hasty.invalidate("menu", tags=[ARGUMENTS[3]])
                        await manager.get_or_load("menu", ARGUMENTS[4], lambda: VALUE)
                    assert min(one.stats()["menu"]["errors"] for one in (manager, hasty)) > 0
                assert_none_in(reprs(), VALUE, PASSWORD, SECRET)
        assert_none_in(caplog.text, VALUE, PASSWORD, SECRET)
        if log_keys:
            assert all(argument in caplog.text for argument in ARGUMENTS)
        else:
            assert_none_in(caplog.text, *ARGUMENTS)
        ours = [record for record in caplog.records if record.name.startswith("aiocache_aura")]
        said = "\n".join(record.getMessage() for record in ours)
        assert all(word in said for word in ("hit ", "miss ", "key of a call of ", "invalidated ", "deleted ", "not cached"))
        assert {record.name.partition(".")[0] for record in ours} == {"aiocache_aura"}

    @pytest.mark.parametrize("command", ["HELLO", "AUTH", "MGET", "SET", "GETEX", "EVALSHA"])
    async def test_nor_what_a_server_repeats(self, own_server, caplog, command):
        """One that does not know a command answers with its arguments: keys, values, passwords."""
        server = own_server("--rename-command", command, "")
        with caplog.at_level(logging.DEBUG):
            async with CacheManager(f"redis://default:{PASSWORD}@{server.host}:{server.port}/0", budget=PATIENT, strict=True) as manager:
                for use in (manager.get("menu", ARGUMENTS[4]), manager.set("menu", ARGUMENTS[4], VALUE)):
                    try:
                        await use
                    except CacheError as error:
                        chain, link = [], error
                        while link is not None:
                            chain.append(str(link))
                            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
                        assert_none_in("\n".join(chain), VALUE, PASSWORD, ARGUMENTS[4])
                assert await manager.get_or_load("menu", ARGUMENTS[4], lambda: VALUE) == VALUE
        assert_none_in(caplog.text, VALUE, PASSWORD, ARGUMENTS[4])

    @pytest.mark.parametrize(
        "url",
        [
            "redis://ann:hunter2pw@localhost:6379/0",
            "redis://:hunter2pw@localhost:6379/0",
            "redis://localhost:6379/0?password=hunter2pw",
            "redis://localhost:6379/0?password=a@hunter2pw",
            "redis://ann:x#hunter2pw@localhost:6379/0",
            "redis://ann:x/hunter2pw@localhost:6379/0",
            "redis://ann:hunter2pw#x@localhost:6379/0",
            "redis://ann:hunter2pw/x@localhost:6379/0",
            "redis://ann:hunter2pw?x@localhost:6379/0",
            "redis://ann:x?y=hunter2pw@localhost:6379/0",
            "redis://ann:hunter2pw@localhost:port/0",
            "redis://ann:hunter2pw@localhost\u2100:6379/0",
            "redis://ann:hunter2pw@[::1",
            "redis://ann:hunter2pw@localhost/0?socket_timeout=soon",
            "redis://ann:hunter2pw@localhost/0?nonsense=1",
            "redis://ann:hunter2pw@localhost/zero",
            "unix://ann:hunter2pw@/tmp/s.sock?db=0",
            "redis+sentinel://ann:hunter2pw@h1:26379/mymaster",
            "http://ann:hunter2pw@localhost",
            "ann:hunter2pw@localhost:6379",
            "memory://ann:hunter2pw@localhost",
        ],
    )
    async def test_urls_are_shown_without_what_is_secret_in_them(self, url, monkeypatch):
        """Right ones and wrong ones, in errors and in what a manager says of itself, however it was told."""
        told: list[str] = []

        def tell(make: Callable[[], Any]) -> None:
            try:
                made = make()
                told.extend((repr(made), repr(getattr(made, "settings", None))))
            except CacheError as error:
                told.append(str(error))
                assert error.__suppress_context__ or error.__context__ is None

        tell(lambda: CacheManager(url))
        tell(lambda: CacheManager(url=url, prefix="shop"))
        manager = CacheManager()
        tell(lambda: manager.configure(url=url))
        told.append(repr(manager))
        monkeypatch.setenv("AURA_CACHE_URL", url)
        manager = CacheManager.from_environment()
        tell(lambda: manager.addresses)
        told.append(repr(manager))
        await RedisClient.aclose()
        RedisClient.configure(url=url)
        tell(RedisClient.get_client)
        await RedisClient.aclose()
        RedisClient.configure()
        tell(RedisClient.get_client)
        await RedisClient.aclose()
        assert len(told) > 5
        assert_none_in("\n".join(told), "hunter2")

    async def test_a_configuration_that_is_refused_changes_nothing(self):
        manager = CacheManager()
        for wrong in ({"url": "redis://localhost:port/0", "prefix": "x"}, {"budget": 0, "prefix": "x"}):
            with pytest.raises(ConfigurationError):
                manager.configure(**wrong)
        assert (manager.settings.url, manager.settings.prefix) == (None, "aura")
        assert await manager.set("menu", "a", 1) is True
        await manager.aclose()

    async def test_a_client_s_credentials(self, valkey):
        """A client that is given: what it logs in with stays with it."""
        from redis.asyncio import Redis

        client = Redis.from_url(f"redis://ann:{PASSWORD}@{valkey.host}:{valkey.port}/0")
        async with CacheManager(client=client, budget=0.1) as manager:
            assert await manager.get("menu", "a") is None
            assert_none_in(repr(manager) + repr(manager.settings) + reprs(), PASSWORD)
        await client.aclose()


class TestLogging:
    async def test_faults_are_said_once_in_a_while(self, caplog, clock):
        """One line for a kind in 30 seconds, and then how many there were; each at DEBUG."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.05, clock=clock) as manager:

            @cache_menu(manager=manager)
            async def dish(n: int) -> int:
                return n

            with caplog.at_level(logging.WARNING, "aiocache_aura"):
                for _ in range(30):
                    await dish(1), await manager.get("menu", "a")
                lines = [record.getMessage() for record in caplog.records]
                assert len(lines) <= 4
                caplog.clear()
                clock.advance(31)
                await dish(1), await manager.get("menu", "a")
                assert 1 <= len(caplog.records) <= 4
                assert "more of this kind" in caplog.text
        assert manager.stats()["menu"]["errors"] >= 62

    async def test_an_undelivered_invalidation_is_an_error_each_time(self, caplog):
        """It is no mere slowness: somebody may go on seeing the old data."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.05) as manager:
            with caplog.at_level(logging.ERROR, "aiocache_aura"):
                for _ in range(3):
                    await manager.invalidate("menu")
        assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3

    async def test_nothing_is_logged_where_nothing_is_wrong(self, manager, caplog):
        """Below DEBUG, a cache is silent."""
        manager.register("orders", CachePolicy())
        with caplog.at_level(logging.INFO, "aiocache_aura"):
            for _ in range(2):
                await manager.get_or_load("orders", "a", lambda: 1)
                await manager.set("orders", "b", 1, tags=["x"])
                await manager.invalidate("orders", tags=["x"])
                await manager.delete("orders", "a", "b")
        assert caplog.records == []

    def test_without_a_handler_nothing_is_printed(self):
        """As a library does: who does not set logging up sees at most Python's own last resort for warnings."""
        assert logging.getLogger("aiocache_aura").level == logging.NOTSET
        assert logging.getLogger("aiocache_aura").propagate is True
