"""Connections: what redis-py leaves open when it is interrupted, who may log in how, other people's clients, TLS, and letting go."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis.asyncio as redis_asyncio
from redis.credentials import CredentialProvider

from aiocache_aura import CacheManager, RedisClient, cache
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.stores import connections
from aiocache_aura.stores.base import FutureHandler
from aiocache_aura.stores.connections import Endpoint, Keeper, pool_of, safe_class
from aiocache_aura.stores.lanes import MultiplexedLane, State
from aiocache_aura.stores.pooled import PooledLane, PooledLink
from aiocache_aura.stores.scripts import END
from tests.clocks import running_time
from tests.proxy import FaultProxy, ScriptedServer
from tests.servers import Server

SOON = 10.0
SLACK = 0.2  # of a machine that has other things to do
TLS = Path(__file__).parent.parent / "tls"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def _guarded() -> Iterator[Server]:
    server = Server()
    with server.client() as client:
        client.config_set("requirepass", "pw")
    yield server
    server.close()


@pytest.fixture
def guarded(_guarded: Server) -> Server:
    """A server with a password, `pw`, for the default user, and a user `app`, `hush`; database 3 knows that it is database 3."""
    for db, name in ((0, "zero"), (3, "three")):
        with _guarded.client(password="pw", db=db) as client:
            client.flushdb()
            client.set("where", name)
            client.acl_setuser("app", enabled=True, passwords=["+hush"], commands=["+@all"], keys=["*"], channels=["*"])
    return _guarded


@pytest.fixture
async def shared() -> AsyncIterator[type[RedisClient]]:
    """RedisClient, as if nobody had used it, before and afterwards."""
    options = RedisClient._options
    await RedisClient.aclose()
    yield RedisClient
    await RedisClient.aclose()
    RedisClient._options = options


class Provider(CredentialProvider):
    """A credential provider that does something else first, once or several times."""

    def __init__(self, *acts: Callable[[], Awaitable[object]]) -> None:
        self.acts = list(acts)
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        return ("app", "hush")

    async def get_credentials_async(self) -> tuple[str, str]:
        self.asked += 1
        if self.acts:
            await self.acts.pop(0)()
        return ("app", "hush")


async def raise_odd() -> None:
    raise KeyError("the vault is sealed")


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def hang() -> None:
    await asyncio.sleep(60)


# R31, A1: dirty and dead connections of a pool


@pytest.mark.parametrize("protocol", [2, 3])
async def test_r31_a_connection_left_dirty_is_not_handed_on(valkey: Server, shared: type[RedisClient], protocol: int) -> None:
    """R31: after a pipeline whose callback raised in the middle of its replies, nobody is given another's reply."""
    shared.configure(url=valkey.url, protocol=protocol)
    client = shared.get_client()
    for n in range(5):
        await client.set(f"k{n}", f"v{n}")
    client.set_response_callback("GET", lambda reply, **options: 1 / 0)
    pipe = client.pipeline(transaction=False)
    for n in range(5):
        pipe.get(f"k{n}")
    with pytest.raises(ZeroDivisionError):
        await pipe.execute()
    del client.response_callbacks["GET"]
    assert [await client.execute_command("ECHO", f"mine{n}") for n in range(6)] == [b"mine%d" % n for n in range(6)]
    assert await asyncio.gather(*(client.get(f"k{n % 5}") for n in range(20))) == [b"v%d" % (n % 5) for n in range(20)]


async def test_r31_connections_that_the_server_closed(valkey: Server, shared: type[RedisClient]) -> None:
    """R31: idle connections that the server has closed fail nobody."""
    shared.configure(url=valkey.url, max_connections=10)
    client = shared.get_client()
    await asyncio.gather(*(client.ping() for _ in range(20)))
    with valkey.client() as other:
        assert other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") > 1
    while not all(connection._reader.at_eof() for connection in client.connection_pool._available_connections):
        await asyncio.sleep(0)
    assert await asyncio.gather(*(client.execute_command("ECHO", f"{n}") for n in range(20))) == [b"%d" % n for n in range(20)]


# R31, A2: interrupted handshakes


@pytest.mark.parametrize("act", [raise_odd, cancel_itself])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_r31_a_provider_that_fails_leaves_no_connection_for_the_pool(
    guarded: Server, shared: type[RedisClient], act: Callable[[], Awaitable[object]], kind: str
) -> None:
    """R31: where a credential provider raises, or is cancelled, the next command is not run on database 0, nor as the default user."""
    provider = Provider(act, act)
    url = f"redis://{guarded.host}:{guarded.port}/3" if kind == "tcp" else f"unix://{guarded.path}?db=3"
    shared.configure(url=url, credential_provider=provider, protocol=3)
    client = shared.get_client()
    with pytest.raises((KeyError, asyncio.CancelledError, redis_asyncio.RedisError)):
        await client.get("where")
    task = asyncio.current_task()
    assert task is not None
    while task.cancelling():
        task.uncancel()
    provider.acts.clear()
    assert await client.get("where") == b"three"
    assert await client.execute_command("ACL", "WHOAMI") == b"app"
    assert (await client.execute_command("HELLO"))[b"proto"] == 3


async def test_r31_a_connect_function_that_fails(guarded: Server, shared: type[RedisClient]) -> None:
    """R31: nor where a connect function of the user's is what fails."""
    failures = [KeyError("odd"), None]

    async def on_connect(connection: Any) -> None:
        failure = failures.pop(0)
        if failure is not None:
            raise failure
        await connection.on_connect()

    shared.configure(url=guarded.url[:-1] + "3", redis_connect_func=on_connect, username="app", password="hush")
    client = shared.get_client()
    with pytest.raises(KeyError):
        await client.get("where")
    assert await client.get("where") == b"three"


async def test_r31_commands_cancelled_at_every_step(guarded: Server, shared: type[RedisClient]) -> None:
    """R31: whatever step of the connecting a command is cancelled at, the next one is right about who and where it is."""
    url = f"redis://app:hush@{guarded.host}:{guarded.port}/3"
    for steps in range(40):
        shared.configure(url=url, max_connections=1)
        client = shared.get_client()
        call = asyncio.ensure_future(client.get("where"))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            assert await call == b"three"
        assert await client.get("where") == b"three", steps
        assert await client.execute_command("ACL", "WHOAMI") == b"app", steps
        await shared.aclose()


@pytest.mark.parametrize("act", [raise_odd, cancel_itself, hang])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_provider_that_fails_leaves_no_connection_for_a_lane(
    monkeypatch: pytest.MonkeyPatch, guarded: Server, act: Callable[[], Awaitable[object]], kind: str
) -> None:
    """A lane whose credential provider raises, hangs or is cancelled tells its callers so, and comes up as the right user on the right
    database with RESP3, or not at all."""
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 0.1)
    provider = Provider(act, act, act)
    where = {"host": guarded.host, "port": guarded.port} if kind == "tcp" else {"unix_socket_path": guarded.path}
    client = redis_asyncio.Redis(**where, db=3, credential_provider=provider, protocol=3)
    endpoint = Endpoint.from_client(client)
    assert endpoint is not None
    lane = MultiplexedLane(endpoint)
    failures = 0
    while provider.acts:
        (said,) = await asyncio.gather(lane.send([("GET", b"where")], timeout=SOON), return_exceptions=True)
        assert isinstance(said, BackendError)
        assert "hush" not in str(said)
        failures += 1
        await asyncio.sleep(0.01)
    assert failures >= 3
    assert await lane.send([("GET", b"where")], timeout=SOON, patient=True) == [b"three"]
    with guarded.client(password="pw") as admin:
        ours = [one for one in admin.client_list() if one["user"] == "app"]
    assert [(one["db"], one["resp"]) for one in ours] == [("3", "3")]
    await lane.aclose()
    await client.aclose()


async def test_lanes_closed_at_random(guarded: Server) -> None:
    """Of 150 lanes closed at a random step of their connecting none leaves a connection behind."""
    rng = random.Random(5)
    endpoint = Endpoint.from_url(f"redis://app:hush@{guarded.host}:{guarded.port}/3")
    answered = 0
    for _ in range(150):
        lane = MultiplexedLane(endpoint)
        call = lane.send([("GET", b"where")], timeout=SOON)
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
        await lane.aclose()
        (said,) = await asyncio.gather(call, return_exceptions=True)
        assert said == [b"three"] or isinstance(said, BackendError)
        answered += said == [b"three"]
    gc.collect()
    assert 0 < answered < 150
    with guarded.client(password="pw") as admin:
        ends = time.monotonic() + SOON
        while [one for one in admin.client_list() if one["user"] == "app"]:
            assert time.monotonic() < ends
            await asyncio.sleep(0.005)


async def test_an_interrupted_handshake_closes(guarded: Server) -> None:
    """A connection of ours whose `connect` was left by any exception does not count as connected."""
    for base in (redis_asyncio.Connection, redis_asyncio.UnixDomainSocketConnection):
        where = {"path": guarded.path} if "Unix" in base.__name__ else {"host": guarded.host, "port": guarded.port}
        for act in (raise_odd, cancel_itself):
            connection = safe_class(base)(**where, credential_provider=Provider(act), db=3)
            with pytest.raises((KeyError, redis_asyncio.RedisError, asyncio.CancelledError)):
                await connection.connect()
            task = asyncio.current_task()
            assert task is not None
            while task.cancelling():
                task.uncancel()
            assert not connection.is_connected
    assert safe_class(redis_asyncio.Connection) is safe_class(redis_asyncio.Connection)


# A8: slow handshakes


@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"client_name": "app"}])
async def test_a_slow_handshake_comes_up_behind_the_callers_backs(guarded: Server, options: dict[str, Any]) -> None:
    """With every reply 90 ms late no call takes longer than its budget, and a little while later calls are served from the cache."""
    async with FaultProxy(guarded.port) as proxy:
        proxy.delay = 0.09
        client = redis_asyncio.Redis(port=proxy.port, db=3, username="app", password="hush", **options)
        async with CacheManager(client=client, prefix="slow", budget=0.25) as manager:

            @cache(cache_type="test", manager=manager, name="slow")
            async def value_of(key: int) -> int:
                return key

            longest, ends = 0.0, running_time() + 8
            while manager.stats()["test"]["hits"] == 0 and running_time() < ends:
                began = running_time()
                assert await value_of(1) == 1
                longest = max(longest, running_time() - began)
            assert manager.stats()["test"]["hits"] == 1
            assert longest < 0.25 + SLACK
        assert proxy.connections <= 3
        await client.aclose()


# Logging in


def _urls(server: Server, login: str, db: int) -> list[str]:
    at = f"{login}@" if login else ""
    tcp = f"{at}{server.host}:{server.port}/{db}"
    return [f"redis://{tcp}", f"valkey://{tcp}", f"unix://{at}{server.path}?db={db}"]


@pytest.mark.parametrize("login", [":pw", "default:pw", "app:hush"])
@pytest.mark.parametrize("scheme", range(3))
async def test_urls_with_password_user_and_database(guarded: Server, login: str, scheme: int) -> None:
    """redis://, valkey:// and unix:// log in as their URL says, and keep to its database."""
    url = _urls(guarded, login, 5)[scheme]
    async with CacheManager(url, prefix="login", strict=True) as manager:
        assert await manager.set("test", "k", {"a": 1})
        assert await manager.get("test", "k") == {"a": 1}
        assert login.partition(":")[2] not in repr(manager)
        with guarded.client(password="pw", db=5) as five, guarded.client(password="pw") as zero:
            assert five.keys("login*")
            assert not zero.keys("login*")
            users = {one["user"] for one in five.client_list() if one["db"] == "5"} - {"default"}
        assert users == ({"app"} if login.startswith("app") else set())


async def test_escaped_characters_in_a_url(guarded: Server) -> None:
    """A password with characters that a URL escapes is what they stand for."""
    with guarded.client(password="pw") as admin:
        admin.acl_setuser("odd@user", enabled=True, passwords=["+p/@:#?%"], commands=["+@all"], keys=["*"])
    async with CacheManager(f"redis://odd%40user:p%2F%40%3A%23%3F%25@{guarded.host}:{guarded.port}/0", strict=True) as manager:
        assert await manager.set("test", "k", 1)


@pytest.mark.parametrize("login", ["", ":hunter2", "app:hunter2", "nobody:hunter2"])
@pytest.mark.parametrize("scheme", range(3))
async def test_a_wrong_password(guarded: Server, login: str, scheme: int, caplog: pytest.LogCaptureFixture) -> None:
    """A refused login is a BackendError that says so and shows no secret; a decorated function works all the same, and logs one line."""
    url = _urls(guarded, login, 0)[scheme]
    async with CacheManager(url, prefix="wrong", strict=True) as manager, CacheManager(url, prefix="wrong", budget=0.1) as hasty:

        @cache(cache_type="test", manager=manager, name="wrong")
        async def value_of(key: int) -> int:
            return key

        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            assert [await value_of(n % 3) for n in range(20)] == [n % 3 for n in range(20)]
        with pytest.raises(BackendError, match=r"login|NOAUTH|Authentication") as raised:
            await manager.get("test", "k")
        warnings = len([record for record in caplog.records if record.name == "aiocache_aura.engine" and record.levelno == logging.WARNING])
        assert await hasty.invalidate("test") is False
    assert "hunter2" not in str(raised.value) + caplog.text
    assert warnings == 1


async def test_a_password_that_is_changed_back(guarded: Server) -> None:
    """A login that was refused is tried again: the cache recovers by itself."""
    with guarded.client(password="pw") as admin:
        admin.acl_setuser("late", enabled=False, passwords=["+hush"], commands=["+@all"], keys=["*"])
        async with CacheManager(f"redis://late:hush@{guarded.host}:{guarded.port}/0", prefix="late", budget=0.25) as manager:
            assert await manager.set("test", "k", 1) is False
            admin.acl_setuser("late", enabled=True)
            ends = time.monotonic() + SOON
            while not await manager.set("test", "k", 1):
                assert time.monotonic() < ends
            while await manager.get("test", "k") != 1:
                assert time.monotonic() < ends


# Endpoints


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "not a URL of a server"),
        ("localhost:6379", "not a URL of a server"),
        ("redis+sentinel://h/m", "not in this version"),
        ("redis+cluster://h", "not in this version"),
        ("redis://localhost:port/0", "cannot be read"),
        ("redis://localhost/0?db=x", "cannot be read"),
        ("redis://localhost/0?hozt=x", "hozt"),
    ],
)
def test_urls_that_cannot_work(url: str, says: str) -> None:
    """What is no URL of a server, or has options that nobody knows, is a ConfigurationError before anything is connected."""
    with pytest.raises(ConfigurationError, match=says):
        Endpoint.from_url(url)


def test_an_endpoint_shows_no_secret() -> None:
    """The text of an endpoint is its address and database."""
    assert repr(Endpoint.from_url("redis://app:hush@example.org:1/3")) == "example.org:1/3"
    assert repr(Endpoint.from_url("unix://app:hush@/tmp/s?db=3")) == "/tmp/s/3"


@pytest.mark.parametrize(
    "query",
    [
        "max_connections=7&timeout=2",
        "socket_timeout=0.001&socket_connect_timeout=0.001",
        "retry_on_timeout=yes",
        "protocol=2",
        "decode_responses=true",
    ],
)
async def test_options_of_a_url_that_lanes_have_no_use_for(valkey: Server, query: str) -> None:
    """Options of redis-py's in a URL are read and do no harm where a lane knows better."""
    async with CacheManager(f"{valkey.url}?{query}", prefix="query", strict=True) as manager:
        assert await manager.set("test", "k", b"bytes")
        assert await manager.get("test", "k") == b"bytes"


def test_which_clients_have_an_endpoint() -> None:
    """Lanes of ours go to the server of a client of redis-py's own making; its public API serves what else there is."""

    class Special(redis_asyncio.Connection):
        pass

    of_lanes = [redis_asyncio.Redis(protocol=3), redis_asyncio.Redis.from_url("redis://h/1", decode_responses=True)]
    of_lanes.append(redis_asyncio.Redis(connection_pool=pool_of(Endpoint.from_url("unix:///tmp/s"), max_connections=1, timeout=1)))
    others = [redis_asyncio.Redis(protocol=2), fakeredis.FakeAsyncRedis()]
    others.append(redis_asyncio.Redis(connection_pool=redis_asyncio.ConnectionPool(connection_class=Special)))
    assert all(Endpoint.from_client(client) is not None for client in of_lanes)
    assert all(Endpoint.from_client(client) is None for client in others)
    assert Endpoint.from_client(object()) is None


# Other people's clients


def _clients(server: Server) -> dict[str, Callable[[], Any]]:
    url = server.url[:-1] + "2"
    return {
        "plain": lambda: redis_asyncio.Redis.from_url(url),
        "decoding": lambda: redis_asyncio.Redis.from_url(url, decode_responses=True),
        "resp2": lambda: redis_asyncio.Redis.from_url(url, protocol=2),
        "resp2 decoding": lambda: redis_asyncio.Redis.from_url(url, protocol=2, decode_responses=True),
        "resp2 blocking": lambda: redis_asyncio.Redis(
            connection_pool=redis_asyncio.BlockingConnectionPool.from_url(url, protocol=2, max_connections=1, timeout=1)
        ),
        "single": lambda: redis_asyncio.Redis.from_url(url, protocol=2, single_connection_client=True),
        "fake": fakeredis.FakeAsyncRedis,
        "fake decoding": lambda: fakeredis.FakeAsyncRedis(decode_responses=True),
    }


NAMES = ["plain", "decoding", "resp2", "resp2 decoding", "resp2 blocking", "single", "fake", "fake decoding"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_client_that_was_given(valkey: Server, name: str) -> None:
    """Whatever protocol, decoding or pool a client has, and even if it is a fake, the cache works over it; it stays as it was, is not used
    up, and is not closed."""
    client = _clients(valkey)[name]()
    await client.set("mine", "café")
    mine = await client.get("mine")
    loads = 0
    async with CacheManager(client=client, prefix="given", strict=True) as manager:

        @cache(cache_type="menu", manager=manager, name=f"given {name}", tags=["t"])
        async def value_of(key: int) -> dict[str, Any]:
            nonlocal loads
            loads += 1
            return {"key": key, "bytes": b"\xff\x00"}

        for _ in range(3):
            values = await asyncio.gather(*(value_of(n % 20) for n in range(200)))
            assert values == [{"key": n % 20, "bytes": b"\xff\x00"} for n in range(200)]
        assert loads == 20
        assert await manager.invalidate_tags("t")
        await value_of(1)
        assert loads == 21
        assert await manager.mset("test", {f"k{n}": n for n in range(50)})
        assert await manager.get_many("test", [f"k{n}" for n in range(60)]) == {f"k{n}": n for n in range(50)}
        assert await manager.invalidate_pattern("test", "k1*") == 11
        assert await manager.delete("test", "k2", "k3", "none") == 2
        assert await client.get("mine") == mine
    assert await client.get("mine") == mine
    pipe = client.pipeline()
    pipe.get("mine")
    assert await pipe.execute() == [mine]
    await client.aclose(close_connection_pool=True)


@pytest.mark.parametrize("name", NAMES)
async def test_a_client_that_was_given_leaves_nothing_of_ours(valkey: Server, name: str) -> None:
    """Closing the manager closes what it has opened beside the client."""
    with valkey.client() as admin:
        before = admin.info("clients")["connected_clients"]
        client = _clients(valkey)[name]()
        manager = CacheManager(client=client, prefix="given")
        await asyncio.gather(*(manager.set("test", f"{n}", n) for n in range(30)))
        await manager.aclose()
        await manager.aclose()
        await client.aclose(close_connection_pool=True)
        ends = time.monotonic() + SOON
        while admin.info("clients")["connected_clients"] != before:
            assert time.monotonic() < ends
            await asyncio.sleep(0.005)


async def test_what_is_no_client(valkey: Server) -> None:
    """Something else than a client is a ConfigurationError that says what is taken."""
    with pytest.raises(ConfigurationError, match=r"redis\.asyncio\.Redis"):
        PooledLink(object())


@pytest.mark.parametrize("name", ["plain", "resp2"])
async def test_a_client_whose_user_is_retrying_everything(name: str) -> None:
    """The retries of a given client are its owner's: a group of ours that may be sent once is sent once."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    async with ScriptedServer() as server:

        def answer(command: list[bytes]) -> bytes | None:
            if command[0] == b"MGET":
                return b"*%d\r\n" % (len(command) - 1) + b"$-1\r\n" * (len(command) - 1)
            if command[0] != b"SCRIPT":
                server.peers[-1].transport.abort()
            return b"$1\r\nx\r\n"

        server.answer = answer
        client = redis_asyncio.Redis(port=server.port, protocol=2 if name == "resp2" else 3, retry=Retry(NoBackoff(), 10))
        manager = CacheManager(client=client, prefix="once", budget=1.0)
        assert await manager.get_or_load("test", "k", lambda: 1) == 1
        assert await manager.set("test", "k", 1) is False
        sent = [tuple(command) for peer in server.peers for command in peer.commands if command[0] in (b"SET", b"EVALSHA")]
        seeds = [command for command in sent if command[1] != END.sha1.encode()]  # to end a lease may be said again
        assert seeds
        assert len(set(seeds)) == len(seeds)
        await manager.aclose()
        await client.aclose()


# The pooled lane


@pytest.fixture
async def pooled(valkey: Server) -> AsyncIterator[PooledLane]:
    link = PooledLink(redis_asyncio.Redis.from_url(valkey.url, protocol=2))
    yield link.writes
    await link.aclose()


async def test_a_pooled_lane_keeps_order(pooled: PooledLane) -> None:
    """What is put in one tick after another is run in that order, and answered in it."""
    futures = []
    for n in range(30):
        futures.append(pooled.send([("SET", b"ordered", b"%d" % n), ("GET", b"ordered")], timeout=SOON))
        if n % 3 == 0:
            await asyncio.sleep(0)
    assert [(await future)[1] for future in futures] == [b"%d" % n for n in range(30)]


async def test_a_pooled_lane_keeps_deadlines(own_server: Callable[..., Server]) -> None:
    """Each group fails at its own deadline, whatever it waits behind; a group that is late is given to nobody else."""
    server = own_server()
    link = PooledLink(redis_asyncio.Redis.from_url(server.url, protocol=2))
    lane = link.reads[0]
    assert await lane.send([("PING",)], timeout=SOON) == [b"PONG"]
    server.stop()
    began, ran = time.perf_counter(), running_time()
    short, long = lane.send([("ECHO", b"a")], timeout=0.05), lane.send([("ECHO", b"b")], timeout=0.3)
    await asyncio.sleep(0.01)
    behind = lane.send([("ECHO", b"c")], timeout=0.1)
    for future, least in ((short, 0.05), (behind, 0.11), (long, 0.3)):
        with pytest.raises(BackendError):
            await future
        assert running_time() - ran < least + SLACK
        assert time.perf_counter() - began >= least - 0.01
    server.cont()
    ends = time.monotonic() + SOON
    while True:
        (said,) = await asyncio.gather(lane.send([("ECHO", b"d")], timeout=0.25), return_exceptions=True)
        if said == [b"d"]:
            break
        assert isinstance(said, BackendError)
        assert time.monotonic() < ends
    await link.aclose()


async def test_a_pooled_lane_waits_for_a_server_with_the_patient(own_server: Callable[..., Server]) -> None:
    """While the server is away the patient wait for it within their time, and others fail at once; what may not be sent twice is not."""
    server = own_server()
    link = PooledLink(redis_asyncio.Redis.from_url(server.url, protocol=2))
    lane = link.writes
    assert await lane.send([("PING",)], timeout=SOON) == [b"PONG"]
    server.kill()
    began = running_time()
    patient = lane.send([("SET", b"k", b"v")], timeout=SOON, repeatable=True, patient=True)
    hasty = lane.send([("SET", b"k", b"w")], timeout=SOON)
    soon_over = lane.send([("SET", b"k", b"x")], timeout=0.15, patient=True)
    for future in (hasty, soon_over):
        with pytest.raises(BackendError):
            await future
    assert running_time() - began < 0.15 + SLACK
    server.start()
    assert await patient == [b"OK"]
    await link.aclose()
    with pytest.raises(BackendError, match="closed"):
        await lane.send([("PING",)], timeout=SOON)


async def test_a_pooled_lane_that_is_closed_tells_everybody(own_server: Callable[..., Server]) -> None:
    """Closing fails what is under way and what is queued."""
    server = own_server()
    link = PooledLink(redis_asyncio.Redis.from_url(server.url, protocol=2))
    lane = link.writes
    assert await lane.send([("PING",)], timeout=SOON) == [b"PONG"]
    server.stop()
    first = lane.send([("PING",)], timeout=SOON)
    await asyncio.sleep(0.02)
    second = lane.send([("PING",)], timeout=SOON)
    await link.aclose()
    server.cont()
    for future in (first, second):
        with pytest.raises(BackendError, match="closed"):
            await future


async def test_a_pooled_handler_that_does_not_believe_it(pooled: PooledLane) -> None:
    """A handler that says its replies cannot be its own has the connections of the pool made anew."""

    class Doubter(FutureHandler):
        def deliver(self, replies: list[object]) -> bool:
            super().deliver(replies)
            return False

    (one,) = await pooled.send([("EVAL", "return redis.call('CLIENT', 'ID')", 0)], timeout=SOON)
    doubter = Doubter()
    pooled.put([("PING",)], doubter, timeout=SOON, repeatable=True)
    behind = pooled.send([("ECHO", b"behind")], timeout=SOON, repeatable=True)
    assert await doubter.future == [b"PONG"]
    assert await behind == [b"behind"]
    (other,) = await pooled.send([("EVAL", "return redis.call('CLIENT', 'ID')", 0)], timeout=SOON)
    assert one != other


# TLS


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem", TLS / "key.pem")
    return context


@pytest.fixture
async def tls(valkey: Server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(valkey.port, tls=_tls()) as proxy:
        yield proxy


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_tls(tls: FaultProxy, scheme: str, host: str) -> None:
    """rediss:// and valkeys:// speak TLS, check the certificate, and carry big values; so does a client that was given, and RedisClient."""
    url = f"{scheme}://{host}:{tls.port}/0?ssl_ca_certs={TLS / 'ca.pem'}"
    blob = random.Random(2).randbytes(3 * 2**20)
    async with CacheManager(url, prefix="tls", strict=True, budget=SOON) as manager:
        assert await manager.set("test", "k", blob)
        assert await asyncio.gather(*(manager.get("test", "k") for _ in range(3))) == [blob] * 3
        began = running_time()
    assert running_time() - began < 1.0
    client = redis_asyncio.Redis(host=host, port=tls.port, ssl=True, ssl_ca_certs=str(TLS / "ca.pem"))
    async with CacheManager(client=client, prefix="tls", strict=True, budget=SOON) as manager:
        assert await manager.get("test", "k") == blob
    await client.aclose()


async def test_tls_for_redis_client(tls: FaultProxy, shared: type[RedisClient]) -> None:
    """RedisClient speaks TLS where its URL says so."""
    shared.configure(url=f"{tls.url}?ssl_ca_certs={TLS / 'ca.pem'}")
    assert await shared.get_client().ping()


@pytest.mark.parametrize("query", ["", f"?ssl_ca_certs={TLS / 'other_ca.pem'}", "?ssl_ca_certs=/nowhere.pem"])
async def test_tls_that_cannot_be_trusted(tls: FaultProxy, query: str) -> None:
    """An unknown authority, or no file of authorities: a clear error, nothing sent in the clear, and the decorated function
    works."""
    async with CacheManager(f"{tls.url}{query}", prefix="tls", strict=True) as manager:

        @cache(cache_type="test", manager=manager, name=f"tls{query}")
        async def value_of(key: int) -> int:
            return key

        assert [await value_of(n) for n in range(3)] == [0, 1, 2]
        with pytest.raises(BackendError, match=r"(?i)ssl|certificate|no such file"):
            await manager.get("test", "k")
    assert tls.reply_bytes == 0


async def test_tls_of_another_host(tls: FaultProxy) -> None:
    """A certificate that is another host's is refused."""
    async with CacheManager(f"rediss://localhost.localdomain:{tls.port}/0?ssl_ca_certs={TLS / 'ca.pem'}", strict=True) as manager:
        with pytest.raises(BackendError):
            await manager.get("test", "k")
    assert tls.reply_bytes == 0


async def test_tls_where_there_is_none(valkey: Server) -> None:
    """A server without TLS is not spoken to in the clear."""
    async with CacheManager(valkey.url.replace("redis", "rediss", 1), strict=True) as manager:
        with pytest.raises(BackendError):
            await manager.get("test", "k")


async def test_tls_to_a_silent_peer_ends_at_once(monkeypatch: pytest.MonkeyPatch, tls: FaultProxy) -> None:
    """A TLS connection to a peer that has gone silent is torn down and closed without waiting for its goodbye."""
    lane = MultiplexedLane(Endpoint.from_url(f"{tls.url}?ssl_ca_certs={TLS / 'ca.pem'}"))
    assert await lane.send([("ECHO", b"x")], timeout=SOON) == [b"x"]
    tls.swallow_replies = tls.swallow_requests = True
    began = running_time()
    stuck = lane._transport
    while lane._transport is stuck:
        (said,) = await asyncio.gather(lane.send([("ECHO", b"x" * 2**20)], timeout=0.05), return_exceptions=True)
        assert isinstance(said, BackendError)
    assert running_time() - began < 2.0
    tls.swallow_replies = tls.swallow_requests = False
    tls.drop()
    assert await lane.send([("ECHO", b"y")], timeout=SOON, patient=True) == [b"y"]
    tls.swallow_replies = tls.swallow_requests = True
    began = running_time()
    await lane.aclose()
    assert running_time() - began < 0.5
    assert lane.state is State.CLOSED


# Letting go


async def test_a_keeper_lets_go_once() -> None:
    """Closed twice, it lets go once; collected unclosed, it does so in its loop."""
    gone: list[str] = []

    async def first() -> None:
        gone.append("first")

    async def second() -> None:
        gone.append("second")

    keeper = Keeper(first, lambda: None)
    await keeper.aclose()
    await keeper.aclose()
    assert gone == ["first"]
    keeper = Keeper(second, lambda: None)
    del keeper
    gc.collect()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert gone == ["first", "second"]


_LOOPS = """
import asyncio, gc, sys, time, warnings
from aiocache_aura import CacheManager, RedisClient
import redis

url, kind, end = sys.argv[1:]
admin = redis.Redis.from_url(url)
before = admin.info("clients")["connected_clients"]
made = redis.asyncio.Redis.from_url(url, protocol=2)
where = {"client": made} if kind == "resp2" else {"url": url}
manager = CacheManager(**where, prefix="loops", budget=10)
RedisClient.configure(url=url)

async def forever():
    await asyncio.sleep(60)

async def main():
    if kind == "client":
        assert await RedisClient.get_client().ping()
        pipe = RedisClient.get_client().pipeline()
        pipe.ping()
        await asyncio.gather(*(RedisClient.get_client().ping() for _ in range(5)))
    else:
        assert await manager.set("test", "k", 1)
        assert await manager.get("test", "k") == 1
        if kind == "busy":
            global left
            left = [manager.get_or_load("test", "slow", forever), manager.get("test", "k")]
            left = [asyncio.ensure_future(one) for one in left]
            await asyncio.sleep(0.01)

for _ in range(4):
    if end == "run":
        asyncio.run(main())
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    gc.collect()
most = before if end == "run" else before + 5  # the last loop's are let go of when another one asks
ends = time.monotonic() + 10
while (last := admin.info("clients")["connected_clients"]) > most:  # until the server has heard of it
    assert time.monotonic() < ends, (last, before)
    time.sleep(0.01)
assert end != "run" or last == before, (last, before)
print("well")
"""


@pytest.mark.parametrize("kind", ["lanes", "busy", "resp2", "client"])
@pytest.mark.parametrize("end", ["run", "close"])
def test_several_loops_in_turn(valkey: Server, kind: str, end: str) -> None:
    """P6: one manager, or RedisClient, in one loop after another: each works, nothing warns, neither then nor at the end of the process,
    and what a loop had open ends with it, or when the next one asks."""
    if (kind, end) == ("busy", "close"):
        return  # tasks left pending in a closed loop warn whatever they wait for
    command = [sys.executable, "-W", "error", "-c", _LOOPS, valkey.url, kind, end]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")
