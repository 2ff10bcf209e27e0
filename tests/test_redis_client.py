"""RedisClient, as section 5 of the contract has it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aiocache_aura import RedisClient
from aiocache_aura import redis_client as module
from aiocache_aura.errors import ConfigurationError
from tests.clocks import running_time
from tests.proxy import FaultProxy
from tests.servers import Server

SLACK = 0.3


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has used or configured it."""
    monkeypatch.setattr(RedisClient, "_options", dict(module.DEFAULTS))
    monkeypatch.setattr(RedisClient, "_clients", {})
    monkeypatch.setattr(RedisClient, "_keepers", {})
    monkeypatch.delenv("AURA_CACHE_URL", raising=False)
    yield


@pytest.fixture
async def configured(valkey: Server) -> AsyncIterator[type[RedisClient]]:
    RedisClient.configure(url=valkey.url)
    yield RedisClient
    await RedisClient.aclose()


def _count(server: Server, user: str = "default") -> int:
    with server.client() as admin:
        return sum(one["user"] == user for one in admin.client_list()) - 1


# As the guide has it


async def test_the_guides_block(configured: type[RedisClient]) -> None:
    """`client = RedisClient.get_client()`, a pipeline of gets, `results = await pipe.execute()`."""
    client = RedisClient.get_client()
    await client.mset({f"menu:item:{i}": f"pizza {i}" for i in (1, 2)})
    pipe = client.pipeline()
    for i in (1, 2, 3):
        pipe.get(f"menu:item:{i}")
    results = await pipe.execute()
    assert results == [b"pizza 1", b"pizza 2", None]


async def test_it_is_a_client_of_redis_py(configured: type[RedisClient]) -> None:
    """It is redis-py's own class: scripts, transactions, blocking commands and pub/sub are its."""
    client = RedisClient.get_client()
    assert isinstance(client, redis_asyncio.Redis)
    double = client.register_script("return ARGV[1] * 2")
    assert await double(args=[21]) == 42
    async with client.pipeline(transaction=True) as pipe:
        assert await pipe.set("a", 1).incr("a").execute() == [True, 2]
    waiting = asyncio.ensure_future(client.blpop(["queue"], timeout=5))
    await asyncio.sleep(0)
    await client.rpush("queue", "x")
    assert list(await waiting) == [b"queue", b"x"]
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("news")
        await client.publish("news", "hello")
        heard = [await pubsub.get_message(timeout=5) for _ in range(2)]
    assert [one["data"] for one in heard if one is not None] == [1, b"hello"]


async def test_the_defaults(configured: type[RedisClient]) -> None:
    """50 connections, socket_timeout 5 s, retry on timeout, health_check_interval 30 s."""
    pool = RedisClient.get_client().connection_pool
    assert isinstance(pool, redis_asyncio.BlockingConnectionPool)
    assert (pool.max_connections, pool.timeout) == (50, 20)
    connection = pool.make_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout, connection.health_check_interval) == (5, 5, 30)
    assert connection.retry._retries == 1
    assert RedisTimeoutError in connection.retry._supported_errors


async def test_callers_wait_instead_of_failing(configured: type[RedisClient], valkey: Server) -> None:
    """2,000 callers at once all have their answer, over no more than 50 connections."""
    client = RedisClient.get_client()
    before = _count(valkey)
    replies = await asyncio.gather(*(client.execute_command("ECHO", f"{n}") for n in range(2000)))
    assert replies == [b"%d" % n for n in range(2000)]
    assert 1 < _count(valkey) - before <= 50


# One for each process and loop


async def test_one_instance_in_a_loop(configured: type[RedisClient]) -> None:
    """Whoever asks in a loop has the same client."""
    client = RedisClient.get_client()
    assert RedisClient.get_client() is client

    async def ask() -> Any:
        return RedisClient.get_client()

    assert await asyncio.gather(ask(), ask()) == [client, client]
    assert RedisClient().get_client() is client


def test_made_outside_a_loop(valkey: Server) -> None:
    """A client made outside a loop belongs to the first loop that asks; another loop has another one."""
    RedisClient.configure(url=valkey.url)
    client = RedisClient.get_client()
    assert RedisClient.get_client() is client

    async def ask() -> tuple[bool, bool]:
        ours = RedisClient.get_client()
        return ours is client, await ours.ping() is True

    assert asyncio.run(ask()) == (True, True)
    assert asyncio.run(ask()) == (False, True)


def test_a_client_used_in_one_loop_after_another(valkey: Server) -> None:
    """Loops one after another each work, and leave no connection behind, closed by hand or not."""
    RedisClient.configure(url=valkey.url)
    before = _count(valkey)

    async def use(close: bool) -> None:
        client = RedisClient.get_client()
        await asyncio.gather(*(client.ping() for _ in range(5)))
        assert _count(valkey) > before
        if close:
            await RedisClient.aclose()

    for close in (True, False, False, True):
        asyncio.run(use(close))
        gc.collect()
        assert _count(valkey) == before
    assert not RedisClient._clients
    assert not RedisClient._keepers


def test_loops_in_several_threads_at_once(valkey: Server) -> None:
    """Loops that run at once have clients of their own, and nobody is given another's reply."""
    RedisClient.configure(url=valkey.url)
    clients: list[Any] = []
    wrong: list[Any] = []
    together = threading.Barrier(4)

    async def use(name: str) -> None:
        client = RedisClient.get_client()
        clients.append(client)
        together.wait()
        for n in range(20):
            replies = await asyncio.gather(*(client.execute_command("ECHO", f"{name}{n}{m}") for m in range(10)))
            wrong.extend(one for m, one in enumerate(replies) if one != f"{name}{n}{m}".encode())
        await RedisClient.aclose()

    threads = [threading.Thread(target=lambda name=name: asyncio.run(use(name))) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, clients))) == 4
    assert wrong == []


# configure and aclose


async def test_configure(valkey: Server) -> None:
    """What is configured is what the pool and its connections have."""
    given: dict[str, Any] = {
        "max_connections": 3, "socket_timeout": 1.5, "socket_connect_timeout": 0.5, "health_check_interval": 7, "pool_timeout": 2,
        "decode_responses": True, "client_name": "orders",
    }  # fmt: skip
    RedisClient.configure(url=valkey.url[:-1] + "4", retry_on_timeout=False, **given)
    client = RedisClient.get_client()
    pool = client.connection_pool
    assert (pool.max_connections, pool.timeout) == (3, 2)
    await client.set("k", "é")
    assert await client.get("k") == "é"
    assert await client.client_getname() == "orders"
    assert (await client.client_info())["db"] == 4
    connection = pool.make_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout, connection.health_check_interval) == (1.5, 0.5, 7)
    await RedisClient.aclose()


async def test_configure_after_the_first_use(configured: type[RedisClient], valkey: Server) -> None:
    """It is configured before the first get_client, or after aclose; in between it says so."""
    client = RedisClient.get_client()
    with pytest.raises(ConfigurationError, match="in use already"):
        RedisClient.configure(url=valkey.url, max_connections=2)
    assert RedisClient.get_client() is client
    await RedisClient.aclose()
    RedisClient.configure(url=valkey.url, max_connections=2)
    assert RedisClient.get_client().connection_pool.max_connections == 2


async def test_configure_starts_from_the_defaults(valkey: Server) -> None:
    """What a second configure does not say is as it was by default; only what is said is set."""
    RedisClient.configure(url=valkey.url, max_connections=2)
    RedisClient.configure(url=valkey.url, socket_timeout=1)
    pool = RedisClient.get_client().connection_pool
    assert (pool.max_connections, pool.make_connection().socket_timeout) == (50, 1)
    await RedisClient.aclose()


@pytest.mark.parametrize("size", [0, -1, True, "5", 2.5])
def test_sizes_that_cannot_be(size: Any) -> None:
    """A pool has at least one connection."""
    with pytest.raises(ConfigurationError, match="max_connections"):
        RedisClient.configure(url="redis://localhost", max_connections=size)


def test_an_option_that_nobody_knows() -> None:
    """A misspelt option is named when the client is made, not at its first command."""
    RedisClient.configure(url="redis://localhost", max_conections=5)
    with pytest.raises(ConfigurationError, match="max_conections"):
        RedisClient.get_client()


async def test_aclose(configured: type[RedisClient], valkey: Server) -> None:
    """aclose closes every connection, is idempotent, and keeps the settings; a later get_client begins anew."""
    await RedisClient.aclose()
    before = _count(valkey)
    client = RedisClient.get_client()
    await asyncio.gather(*(client.ping() for _ in range(20)))
    assert _count(valkey) > before
    await RedisClient.aclose()
    await RedisClient.aclose()
    ends = time.monotonic() + 10
    while _count(valkey) != before:
        assert time.monotonic() < ends
        await asyncio.sleep(0.005)
    other = RedisClient.get_client()
    assert other is not client
    assert await other.ping()


async def test_aclose_of_one_loop_leaves_the_others(configured: type[RedisClient]) -> None:
    """Only this loop's client is closed."""
    client = RedisClient.get_client()
    assert await client.ping()

    def elsewhere() -> None:
        async def use() -> None:
            assert await RedisClient.get_client().ping()
            await RedisClient.aclose()

        asyncio.run(use())

    await asyncio.to_thread(elsewhere)
    assert RedisClient.get_client() is client
    assert await client.ping()


# Where the server is


def test_without_a_url() -> None:
    """Without a URL it raises, saying how to set one; a cache in memory is no server."""
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"RedisClient\.configure\(url=.*AURA_CACHE_URL"):
            RedisClient.get_client()


def test_with_a_memory_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is `memory://` in the environment a server."""
    monkeypatch.setenv("AURA_CACHE_URL", "memory://")
    with pytest.raises(ConfigurationError, match="configure"):
        RedisClient.get_client()


async def test_the_url_of_the_environment(monkeypatch: pytest.MonkeyPatch, valkey: Server) -> None:
    """AURA_CACHE_URL is read at first use where none was configured; a configured one comes first."""
    monkeypatch.setenv("AURA_CACHE_URL", valkey.url[:-1] + "6")
    assert (await RedisClient.get_client().client_info())["db"] == 6
    await RedisClient.aclose()
    RedisClient.configure(url=valkey.url[:-1] + "7")
    assert (await RedisClient.get_client().client_info())["db"] == 7
    await RedisClient.aclose()
    RedisClient.configure(max_connections=2)
    assert (await RedisClient.get_client().client_info())["db"] == 6
    await RedisClient.aclose()


@pytest.mark.parametrize("scheme", ["redis", "valkey", "unix"])
async def test_schemes(valkey: Server, scheme: str) -> None:
    """redis://, valkey:// and unix:// are taken; what a URL's query says counts over what was configured, as with redis-py."""
    url = {"redis": valkey.url, "valkey": valkey.url.replace("redis", "valkey", 1), "unix": valkey.unix_url}[scheme]
    joined = "&" if "?" in url else "?"
    RedisClient.configure(url=f"{url}{joined}max_connections=4&timeout=3&socket_timeout=2&retry_on_timeout=no", max_connections=9)
    client = RedisClient.get_client()
    assert await client.ping()
    pool = client.connection_pool
    assert (pool.max_connections, pool.timeout, pool.make_connection().socket_timeout) == (4, 3, 2)
    await RedisClient.aclose()


@pytest.mark.parametrize("url", ["redis+sentinel://h/m", "http://h", "redis://h/0?db=x"])
def test_urls_that_cannot_work(url: str) -> None:
    """A URL that cannot work is a ConfigurationError."""
    RedisClient.configure(url=url)
    with pytest.raises(ConfigurationError):
        RedisClient.get_client()


def test_get_client_connects_nothing() -> None:
    """Making a client is no I/O: it is a plain function, and a server that is not there is met at the first command."""
    RedisClient.configure(url="redis://127.0.0.1:1")
    assert not inspect.iscoroutinefunction(RedisClient.get_client)
    client = RedisClient.get_client()
    with pytest.raises(RedisConnectionError):
        asyncio.run(client.ping())


# Time


async def test_an_exhausted_pool_waits_and_then_fails(valkey: Server) -> None:
    """Where no connection becomes free a caller waits for `pool_timeout`, and then is told; who waits meanwhile gets the next free one."""
    for pool_timeout in (0.1, 10):
        RedisClient.configure(url=valkey.url, max_connections=1, pool_timeout=pool_timeout)
        client = RedisClient.get_client()
        blocked = asyncio.ensure_future(client.blpop(["nothing"], timeout=4))
        with valkey.client() as admin:
            while not admin.info("clients")["blocked_clients"]:
                await asyncio.sleep(0.005)
        if pool_timeout == 0.1:
            began, ran = time.perf_counter(), running_time()
            with pytest.raises(RedisConnectionError):
                await client.ping()
            assert running_time() - ran < 0.1 + SLACK
            assert time.perf_counter() - began > 0.09
            await client_unblock(valkey)
        else:
            waiting = asyncio.ensure_future(client.ping())
            await asyncio.sleep(0)
            await client_unblock(valkey)
            assert await waiting
        assert await blocked is None
        await RedisClient.aclose()


async def client_unblock(server: Server) -> None:
    with server.client() as admin:
        for one in admin.client_list():
            admin.client_unblock(one["id"])


async def test_socket_timeout_and_retry(own_server: Callable[..., Server]) -> None:
    """A command of a server that hangs fails after socket_timeout, twice that with the retry on timeout; then the client works again."""
    server = own_server()
    for retry, least in ((False, 1.0), (True, 2.0)):
        RedisClient.configure(url=server.url, socket_timeout=1.0, socket_connect_timeout=1.0, retry_on_timeout=retry)
        client = RedisClient.get_client()
        assert await client.ping()
        server.stop()
        began, ran = time.perf_counter(), running_time()
        with pytest.raises(RedisTimeoutError):
            await client.ping()
        assert running_time() - ran < least + 0.1 + SLACK
        assert time.perf_counter() - began > least - 0.01
        server.cont()
        assert await asyncio.gather(*(client.execute_command("ECHO", f"{n}") for n in range(10))) == [b"%d" % n for n in range(10)]
        await RedisClient.aclose()


async def test_a_timeout_is_retried_once(valkey: Server) -> None:
    """Retry on timeout: a reply that is late once goes unnoticed."""
    async with FaultProxy(valkey.port) as proxy:
        RedisClient.configure(url=proxy.url, socket_timeout=1.5)
        client = RedisClient.get_client()
        assert await client.ping()
        proxy.garble_replies = lambda data: data if proxy.connections > 1 else b""
        assert await client.execute_command("ECHO", "late") == b"late"
        assert proxy.connections == 2
        await RedisClient.aclose()


async def test_health_checks(own_server: Callable[..., Server]) -> None:
    """A connection that was idle for longer than the interval is asked whether it lives before it is used."""
    server = own_server()
    RedisClient.configure(url=server.url, health_check_interval=1, max_connections=1)
    client = RedisClient.get_client()
    await client.get("k")
    with server.client() as admin:
        admin.config_resetstat()
        await client.get("k")
        assert "cmdstat_ping" not in admin.info("commandstats")
        connection = client.connection_pool._available_connections[0]
        connection.next_health_check = 0  # as if it had been idle for a second
        await client.get("k")
        assert admin.info("commandstats")["cmdstat_ping"]["calls"] == 1
    await RedisClient.aclose()


async def test_a_server_that_comes_back(own_server: Callable[..., Server]) -> None:
    """A restarted server fails at most the calls that were under way: the next one works."""
    server = own_server()
    RedisClient.configure(url=server.url)
    client = RedisClient.get_client()
    await asyncio.gather(*(client.ping() for _ in range(10)))
    server.kill()
    with pytest.raises(RedisConnectionError):
        await client.ping()
    server.start()
    assert await asyncio.gather(*(client.ping() for _ in range(30))) == [True] * 30
    await RedisClient.aclose()
