"""check_health on real servers with real faults: each is found, named, and told what to do about, in time."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis.asyncio as redis_asyncio

from aiocache_aura import FOREVER, CacheManager, CachePolicy, RedisClient, cache
from aiocache_aura import redis_client as redis_client_module
from aiocache_aura.diagnosis import (
    CHECKS,
    info_of,
    judge_errors,
    judge_eviction,
    judge_hit_rate,
    judge_loop,
    judge_memory,
    judge_replication,
    kind_of,
    replication_of,
    replication_of_role,
    version_of,
)
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.health import Health, HealthLimits, check_health
from aiocache_aura.integrations.prometheus import AuraCollector
from aiocache_aura.stats import Counts
from tests.clocks import ManualClock, running_time
from tests.proxy import FaultProxy, ScriptedServer, echo
from tests.servers import Server

SOON = 10.0
SLACK = 0.3  # of a machine that has other things to do
CALM = HealthLimits(round_trip=SOON, loop_lag=SOON, waiting=SOON)  # for tests that are not about time
TLS = Path(__file__).parent / "tls"
SOUND = ("--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru")


@pytest.fixture
def sound(own_server: Callable[..., Server]) -> Server:
    """A server that is as a cache's should be."""
    return own_server(*SOUND)


async def look(manager: CacheManager, *, timeout: float = SOON, thresholds: HealthLimits = CALM, **options: Any) -> Health:
    """A checkup that is in time and in order: plain values, an issue for whatever is not ok, a status that goes with them."""
    began = running_time()
    health = await check_health(manager, timeout=timeout, thresholds=thresholds, **options)
    assert running_time() - began < timeout + SLACK
    assert json.loads(json.dumps(health)) == health
    assert set(health) == {"status", "issues", "checks"}
    assert list(health["checks"]) == [name for name in CHECKS if name not in thresholds.ignore]
    for name, check in health["checks"].items():
        assert set(check) == {"status", "value", "issue", "seconds"}
        assert (check["status"] == "ok") == (check["issue"] is None), (name, check)
    assert (health["status"] == "healthy") == (health["issues"] == []) == health.is_healthy
    assert (health["status"] == "unhealthy") == any(check["status"] == "failed" for check in health["checks"].values())
    assert all(issue in str(health) for issue in health["issues"])
    return health


def _is_sound(health: Health) -> bool:
    assert health["status"] == "healthy", str(health)
    return True


def _trouble(health: Health) -> tuple[str | None, str | None]:
    """What is in the way of reads, and of writes."""
    ways = (health["checks"][name] for name in ("reads", "writes"))
    reads, writes = (way["value"]["trouble"] if way["status"] == "failed" else None for way in ways)
    return reads, writes


def _statuses(health: Health, *names: str) -> list[str]:
    return [health["checks"][name]["status"] for name in names]


async def _until(holds: Callable[[], object]) -> None:
    ends = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


def _as_user(server: Server, rules: str) -> str:
    """The URL of a user with these rights on every key and channel."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", *rules.split())
    return server.url.replace("//", "//app:pw@")


# A sound one


async def test_a_sound_server(sound: Server) -> None:
    """A server as it should be is healthy, each check has its figures, and what was asked leaves no key behind."""
    async with CacheManager(sound.url, prefix="sound") as manager:
        health = await look(manager)
        assert _is_sound(health)
        checks = health["checks"]
        assert {check["status"] for check in checks.values()} == {"ok"}
        assert 0 < checks["reads"]["value"]["round_trip_ms"] < 1000 * SOON
        assert checks["server"]["value"]["version"].startswith("valkey ")
        assert checks["server"]["value"]["role"] == "master"
        assert checks["memory"]["value"]["max_bytes"] == 200 * 2**20
        assert 0 < checks["memory"]["value"]["used_bytes"] < 200 * 2**20
        assert checks["eviction"]["value"]["policy"] == "allkeys-lru"
        assert [(one["role"], one["state"]) for one in checks["connections"]["value"]["lanes"]] == [("read", "ready"), ("write", "ready")]
        assert checks["tracking"]["value"] == "not in this version"
        assert str(health).startswith("healthy\n")
        assert "allkeys-lru" in str(health)
        with sound.client() as admin:
            assert admin.dbsize() == 0


async def test_over_every_engine(server: Server) -> None:
    """Each engine tells its version, role and memory; one without maxmemory is degraded, and the issue says what to set."""
    async with CacheManager(server.url, prefix="engines") as manager:
        health = await look(manager)
        assert health["status"] == "degraded"
        (issue,) = health["issues"]
        assert "no maxmemory" in issue
        assert "CONFIG SET maxmemory" in issue
        assert health["checks"]["server"]["value"]["version"].startswith(server.engine)
        assert _statuses(health, "reads", "writes", "memory", "eviction", "expiry", "replication") == ["ok"] * 3 + ["warning"] + ["ok"] * 2


async def test_in_this_process() -> None:
    """Over memory:// there is no server: its checks say so, and memory and evictions are the store's own."""
    async with CacheManager("memory://", l1_entries=10) as manager:
        for n in range(15):
            await manager.set("test", f"k{n}", n)
        health = await look(manager)
        assert _is_sound(health)
        assert health["checks"]["reads"]["value"] == health["checks"]["server"]["value"] == "in this process"
        memory = health["checks"]["memory"]["value"]
        assert memory["entries"] == 10
        assert 0 < memory["used_bytes"] < memory["max_bytes"]
        assert health["checks"]["eviction"]["value"]["evicted"] == {"entries": 5}
        assert health["checks"]["connections"]["value"] == {"lanes": [], "pool": None}


async def test_a_server_that_knows_no_info() -> None:
    """A server that has no INFO cannot be helped: what it would tell is unknown, says why, and the cache is healthy."""
    async with CacheManager(client=fakeredis.FakeAsyncRedis(), prefix="fake") as manager:
        await manager.set("test", "k", 1)
        health = await look(manager)
        assert _is_sound(health)
        assert _statuses(health, "reads", "writes", "expiry") == ["ok"] * 3
        assert health["checks"]["expiry"]["value"]["sampled"] > 0
        assert _statuses(health, "memory", "eviction", "replication") == ["unknown"] * 3
        assert "INFO" in health["checks"]["memory"]["issue"]
        assert [one["state"] for one in health["checks"]["connections"]["value"]["lanes"]] == ["ready", "ready"]


# Servers that cannot be used


@pytest.fixture(params=["lanes", "pooled"])
async def known(request: pytest.FixtureRequest, sound: Server) -> AsyncIterator[tuple[Server, CacheManager]]:
    """A server, and a manager that has used it, over lanes and over a client that only its own API can serve."""
    client = redis_asyncio.Redis.from_url(sound.url, protocol=2) if request.param == "pooled" else None
    options: dict[str, Any] = {"url": sound.url} if client is None else {"client": client}
    async with CacheManager(prefix="known", **options) as manager:
        await look(manager)  # which uses all connections at once
        yield sound, manager
    if client is not None:
        await client.aclose()


async def test_the_server_is_gone(known: tuple[Server, CacheManager]) -> None:
    """A killed server is unhealthy, in one issue that says that nobody listens; back again, it is healthy at once."""
    server, manager = known
    server.kill()
    for _ in range(3):
        health = await look(manager)
        assert health["status"] == "unhealthy"
        assert _trouble(health) == ("connection refused", "connection refused")
        (issue,) = health["issues"]
        assert "start the server" in issue
        assert str(server.port) in issue
        assert set(_statuses(health, "server", "memory", "eviction", "expiry", "replication")) == {"unknown"}
        assert {one["state"] for one in health["checks"]["connections"]["value"]["lanes"]} == {"down"}
    server.start()
    assert _is_sound(await look(manager))


async def test_the_server_is_paused(known: tuple[Server, CacheManager]) -> None:
    """A server stopped by SIGSTOP is unhealthy within the timeout, in one issue that says that it does not answer; then healthy again."""
    server, manager = known
    server.stop()
    try:
        health = await look(manager, timeout=0.4)
    finally:
        server.cont()
    assert health["status"] == "unhealthy"
    assert _trouble(health) == ("no answer", "no answer")
    (issue,) = health["issues"]
    assert "stopped" in issue
    assert "SLOWLOG" in issue
    lanes = health["checks"]["connections"]["value"]["lanes"]
    assert all(one["pending"] and one["waiting_seconds"] > 0.3 for one in lanes)
    assert _is_sound(await look(manager))


async def test_the_server_is_paused_before_it_was_used(sound: Server) -> None:
    """Nor does one answer that was never connected to."""
    async with CacheManager(sound.url, prefix="new") as manager:
        sound.stop()
        try:
            health = await look(manager, timeout=0.3)
        finally:
            sound.cont()
        assert _trouble(health) == ("no answer", "no answer")
        assert len(health["issues"]) == 1
        await _until(lambda: all(one.state != "connecting" for one in manager.engine_now().port.connections()))
        assert _is_sound(await look(manager))


@pytest.mark.parametrize("given", ["", ":wrong@", "nobody:secret@"])
async def test_a_wrong_password(own_server: Callable[..., Server], given: str) -> None:
    """A password that is wrong or missing is unhealthy, in one issue that says so and shows none; put right, it is healthy."""
    server = own_server(*SOUND)
    with server.client() as admin:
        admin.config_set("requirepass", "right")
    async with CacheManager(server.url.replace("//", f"//{given}"), prefix="pw") as manager:
        health = await look(manager)
        assert health["status"] == "unhealthy"
        assert _trouble(health) == ("login refused", "login refused")
        (issue,) = health["issues"]
        assert "check the user and password" in issue
        assert "wrong" not in str(health).replace("wrong password", "").replace("WRONGPASS", "")
        assert "secret" not in str(health)
    async with CacheManager(server.url.replace("//", "//:right@"), prefix="pw") as manager:
        assert _is_sound(await look(manager))


async def test_a_database_that_there_is_not(sound: Server) -> None:
    """A database beyond the server's is named."""
    async with CacheManager(sound.url[:-1] + "99", prefix="db") as manager:
        health = await look(manager)
        assert _trouble(health) == ("no such database",) * 2
        assert "databases" in health["issues"][0]


@pytest.mark.parametrize(
    ("url", "trouble"),
    [
        ("redis://localhost.invalid:6379/0", "host not found"),
        ("unix:///nowhere/s.sock", "no such socket"),
        ("redis://127.0.0.1:1/0", "connection refused"),
        ("redis://localhost:1/0", "connection refused"),
    ],
)
async def test_nothing_can_be_there(url: str, trouble: str) -> None:
    """A host without an address, a socket that is not there, a closed port: each is told apart, with what to do."""
    async with CacheManager(url, prefix="no") as manager:
        health = await look(manager)
        assert health["status"] == "unhealthy"
        assert _trouble(health) == (trouble, trouble)
        assert len(health["issues"]) == 1


async def test_tls_fails(sound: Server) -> None:
    """A certificate of somebody unknown is named as that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem", TLS / "key.pem")
    async with FaultProxy(sound.port, tls=context) as proxy:
        async with CacheManager(f"{proxy.url}?ssl_ca_certs={TLS / 'other_ca.pem'}", prefix="tls") as manager:
            health = await look(manager)
            assert _trouble(health) == ("TLS failed", "TLS failed")
            assert "ssl_ca_certs=" in health["issues"][0]


async def test_too_many_clients(sound: Server) -> None:
    """A server that takes no more clients is named; with room it is healthy."""
    with sound.client() as admin:
        admin.ping()
        admin.config_set("maxclients", 1)
        async with CacheManager(sound.url, prefix="many") as manager:
            health = await look(manager)
            assert health["status"] == "unhealthy"
            assert _trouble(health) == ("too many clients",) * 2
            assert "maxclients" in health["issues"][0]
            admin.config_set("maxclients", 100)
            assert _is_sound(await look(manager))


# Servers that refuse


async def test_memory_is_full(own_server: Callable[..., Server]) -> None:
    """maxmemory reached under noeviction: unhealthy, for nothing can be written; reads go on; the issues say what to set, and then all is
    well."""
    server = own_server("--maxmemory-policy", "noeviction", "--maxmemory", "200mb")
    async with CacheManager(server.url, prefix="full") as manager, _admin(server) as admin:
        (issue,) = (await look(manager))["issues"]
        assert "the server evicts nothing" in issue
        assert "CONFIG SET maxmemory-policy allkeys-lru" in issue
        await admin.config_set("maxmemory", 1)
        health = await look(manager)
        assert health["status"] == "unhealthy"
        assert _trouble(health) == (None, "memory full")
        assert any("OOM" in issue and "nothing can be written" in issue and "raise its maxmemory" in issue for issue in health["issues"])
        assert _statuses(health, "memory", "eviction") == ["warning", "warning"]
        assert health["checks"]["memory"]["value"]["max_bytes"] == 1
        await admin.config_set("maxmemory", "200mb")
        await admin.config_set("maxmemory-policy", "allkeys-lru")
        assert _is_sound(await look(manager))


@asynccontextmanager
async def _admin(server: Server) -> AsyncIterator[redis_asyncio.Redis]:
    async with redis_asyncio.Redis(host=server.host, port=server.port) as client:
        yield client


async def test_a_replica(own_server: Callable[..., Server]) -> None:
    """A read-only replica is unhealthy, and named as one, while its master lives and when that is gone; the master tells of its replica."""
    master, replica = own_server(*SOUND, "--repl-diskless-sync-delay", "0"), own_server(*SOUND)
    async with (
        CacheManager(replica.url, prefix="replica") as manager,
        CacheManager(master.url, prefix="replica") as above,
        _admin(replica) as admin,
    ):
        await admin.replicaof(master.host, master.port)
        with replica.client() as looked:
            await _until(lambda: looked.info("replication")["master_link_status"] == "up")
            health = await look(manager)
            assert health["status"] == "unhealthy"
            assert _trouble(health) == (None, "read-only replica")
            assert any("READONLY" in issue and "point the URL at the master" in issue for issue in health["issues"])
            assert health["checks"]["replication"]["value"]["link"] == "up"
            assert health["checks"]["server"]["value"]["role"] == "replica"
            with master.client() as there:
                await _until(lambda: there.info("replication").get("slave0", {}).get("state") == "online")
            assert (await look(above))["checks"]["replication"]["value"]["replicas"] == 1
            await asyncio.to_thread(master.kill)
            await _until(lambda: looked.info("replication")["master_link_status"] == "down")
        health = await look(manager)
        assert _trouble(health) == (None, "read-only replica")
        assert any("link to its master has been down" in issue for issue in health["issues"])
        await admin.config_set("replica-serve-stale-data", "no")
        health = await look(manager)
        assert _trouble(health)[0] == "master lost"
        await admin.execute_command("REPLICAOF", "NO", "ONE")
        assert _is_sound(await look(manager))


async def test_too_few_replicas(sound: Server) -> None:
    """min-replicas-to-write that is not met is named."""
    async with CacheManager(sound.url, prefix="few") as manager, _admin(sound) as admin:
        await admin.config_set("min-replicas-to-write", 1)
        health = await look(manager)
        assert health["status"] == "unhealthy"
        assert _trouble(health) == (None, "too few replicas")
        assert any("min-replicas-to-write" in issue for issue in health["issues"])


def _said(command: list[bytes]) -> bytes | None:
    """What a server says that knows what it is asked, but nothing of itself."""
    match command[0]:
        case b"MGET":
            return b"*2\r\n$-1\r\n$-1\r\n"
        case b"DEL":
            return b":1\r\n"
        case b"EVALSHA":
            return b"$6\r\npermit\r\n"
        case _:
            return echo(command)


@pytest.mark.parametrize(
    ("said", "trouble", "word"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading", "try again soon"),
        (b"-MISCONF Errors writing to the AOF file\r\n", "cannot save", "log"),
        (b"-BUSY Redis is busy running a script\r\n", "busy script", "SCRIPT KILL"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "cluster", "redis+cluster://"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "cluster down", "slots"),
        (b"-WEIRD of a kind that nobody foresaw\r\n", "refused", "WEIRD"),
    ],
)
async def test_what_a_server_may_say(said: bytes, trouble: str, word: str) -> None:
    """Whatever a server says to reads and writes is told by its kind, with what to do; INFO that makes no sense is unknown."""
    async with ScriptedServer(lambda command: said if command[0] in (b"MGET", b"SET", b"EVALSHA") else _said(command)) as server:
        async with CacheManager(server.url, prefix="said") as manager:
            health = await look(manager)
            assert _trouble(health) == (trouble, trouble)
            assert any(word in issue for issue in health["issues"])
            assert _statuses(health, "memory", "eviction", "expiry") == ["unknown"] * 3


# Rights


async def test_info_is_not_permitted(sound: Server) -> None:
    """Without the right to INFO the status is degraded, in one issue that names it and grants it; version and role are told otherwise."""
    async with CacheManager(_as_user(sound, "+@all -info"), prefix="acl") as manager:
        health = await look(manager)
        assert health["status"] == "degraded"
        (issue,) = health["issues"]
        assert "INFO is not permitted" in issue
        assert "+info" in issue
        assert _statuses(health, "server", "memory", "eviction", "replication") == ["ok", "unknown", "unknown", "ok"]
        assert health["checks"]["server"]["value"]["version"].startswith("valkey ")
        assert health["checks"]["server"]["value"]["role"] == "master"
    async with CacheManager(_as_user(sound, "-info -role"), prefix="acl") as manager:
        health = await look(manager)
        assert len(health["issues"]) == 1
        assert _statuses(health, "replication") == ["unknown"]


@pytest.mark.parametrize("rules", ["+@all -config -client", "+@all -@admin -script -config -client +info"])
async def test_config_and_client_are_not_permitted(sound: Server, rules: str) -> None:
    """A managed server that forbids CONFIG, CLIENT and SCRIPT, but tells INFO, is healthy."""
    async with CacheManager(_as_user(sound, rules), prefix="managed") as manager:
        assert _is_sound(await look(manager))


async def test_hardly_anything_is_permitted(sound: Server) -> None:
    """A user who may only GET, SET and run scripts is told that MGET, on which every hit depends, is missing; so is one who may only
    read, that nothing is written."""
    async with CacheManager(_as_user(sound, "-@all +get +set +evalsha +hello +script|load"), prefix="acl") as manager:
        health = await look(manager)
        assert health["status"] == "unhealthy"
        assert _trouble(health) == ("not permitted", "not permitted")
        assert any("nothing can be read" in issue and "MGET" in issue and "ACL SETUSER" in issue for issue in health["issues"])
        assert any("nothing can be written" in issue and "DEL" in issue for issue in health["issues"])
        assert any("SCAN is not permitted" in issue and "+scan" in issue for issue in health["issues"])
    async with CacheManager(_as_user(sound, "-@all +@read +@connection +info"), prefix="acl") as manager:
        health = await look(manager)
        assert _trouble(health) == (None, "not permitted")
    async with CacheManager(_as_user(sound, "-@all"), prefix="acl") as manager:
        assert (await look(manager))["status"] == "unhealthy"


async def test_the_subscription_is_not_permitted(sound: Server) -> None:
    """Where nobody may subscribe to the channel that wakes followers, the issue says so."""
    url = _as_user(sound, "+@all resetchannels")
    async with CacheManager(url, prefix="deaf") as manager, CacheManager(url, prefix="deaf") as other:
        may_end = asyncio.Event()

        async def load() -> int:
            await may_end.wait()
            return 1

        first = asyncio.ensure_future(manager.get_or_load("test", "k", load))
        with sound.client() as admin:
            await _until(lambda: admin.exists("deaf!p:{deaf:test:=k}"))
        second = asyncio.ensure_future(other.get_or_load("test", "k", load))
        port = (await other.engine()).port
        await _until(lambda: any(one.role == "listen" and one.last_error for one in port.connections()))
        health = await look(other)
        may_end.set()
        assert await first == await second == 1
        assert health["status"] == "degraded"
        assert any("subscription" in issue and "NOPERM" in issue for issue in health["issues"])


# Keys


async def test_keys_without_a_ttl(sound: Server) -> None:
    """What has no TTL under the prefix is found, whoever put it there; entries FOREVER and their generations are as they should be, and so
    are other prefixes; of a key no more is shown than its type."""
    async with CacheManager(sound.url, prefix="own", policies={"kept": CachePolicy(ttl=FOREVER)}) as manager, _admin(sound) as admin:
        await manager.set("kept", "a", 1)
        await manager.set("kept", "b", 2, tags=["t"])
        await manager.set("menu", "c", 3)
        await admin.set("other:menu:1", "x")
        health = await look(manager)
        assert _is_sound(health)
        found = health["checks"]["expiry"]["value"]
        assert found["without_ttl"] == 0
        assert found["for_ever"] >= 2
        await admin.set("own:menu:secret-customer", "planted")
        await admin.rpush("own:list", "planted")
        await admin.set("own!x", "planted")
        await admin.persist("own:menu:=c")
        health = await look(manager)
        assert health["status"] == "degraded"
        (issue,) = health["issues"]
        assert health["checks"]["expiry"]["value"]["without_ttl"] == 4
        assert "4 of" in issue
        assert "own:menu:*" in issue
        assert "secret-customer" not in str(health)
        await admin.delete("own:menu:secret-customer", "own:list", "own!x", "own:menu:=c")
        assert _is_sound(await look(manager))


async def test_many_keys_are_looked_at_in_part(sound: Server) -> None:
    """Of many keys a bounded number is looked at, in few steps, and of a share that is not small some are found; nor are there many steps
    where all keys are somebody else's."""

    async def scans() -> int:
        return int((await admin.info("commandstats")).get("cmdstat_scan", {}).get("calls", 0))

    async with CacheManager(sound.url, prefix="many") as manager, _admin(sound) as admin:
        pipeline = admin.pipeline(transaction=False)
        for n in range(20_000):
            pipeline.set(f"many:menu:={n}", b"x", px=None if n % 4 == 0 else 60_000)
        await pipeline.execute()
        value = (await look(manager))["checks"]["expiry"]["value"]
        assert await scans() == 1
        assert value["sampled"] == 200
        assert 20 <= value["without_ttl"] <= 90
    async with CacheManager(sound.url, prefix="another") as manager, _admin(sound) as admin:
        assert (await look(manager))["checks"]["expiry"]["value"]["sampled"] == 0
        assert await scans() == 11


# This process


async def test_few_hits() -> None:
    """A type of which few asks are hits is named, once it was asked often enough, and as long as that is not long ago."""
    clock = ManualClock()
    async with CacheManager("memory://", clock=clock) as manager:
        for n in range(99):
            await manager.get("menu", f"k{n}")
        assert _is_sound(await look(manager))
        await manager.get("menu", "k99")
        health = await look(manager)
        assert health["status"] == "degraded"
        (issue,) = health["issues"]
        assert "menu 0%" in issue
        assert "ttl" in issue
        clock.advance(CALM.window + 60)
        await manager.get("menu", "k")
        assert _is_sound(await look(manager))


def _counts(**figures: int) -> dict[str, Counts]:
    counts = Counts()
    for name, n in figures.items():
        setattr(counts, name, n)
    return {"menu": counts}


@pytest.mark.parametrize(
    ("hits", "misses", "status"), [(50, 50, "ok"), (49, 51, "warning"), (49, 50, "ok"), (0, 99, "ok"), (0, 100, "warning")]
)
def test_the_bound_of_the_hit_rate(hits: int, misses: int, status: str) -> None:
    """Half of a hundred is enough, one less is not, and of fewer than a hundred asks nothing is said."""
    assert judge_hit_rate(_counts(hits=hits, misses=misses), HealthLimits()).status == status


@pytest.mark.parametrize(("errors", "calls", "status"), [(4, 4, "ok"), (5, 5, "warning"), (5, 500, "ok"), (6, 500, "warning")])
def test_the_bound_of_the_error_rate(errors: int, calls: int, status: str) -> None:
    """Five errors in more than one call of a hundred are an issue."""
    assert judge_errors(_counts(errors=errors, misses=calls), HealthLimits()).status == status


async def test_errors_of_an_outage_are_named_for_a_minute(sound: Server) -> None:
    """After an outage its errors are named by class until they are a minute old; then the cache is healthy."""
    clock = ManualClock()
    async with CacheManager(sound.url, prefix="out", clock=clock) as manager:
        sound.kill()
        for n in range(10):
            await manager.get("menu", f"k{n}")
        await asyncio.to_thread(sound.start)
        health = await look(manager)
        assert health["status"] == "degraded"
        (issue,) = health["issues"]
        assert "failed 10 times" in issue
        assert "BackendError 10" in issue
        clock.advance(CALM.error_window + 20)
        assert _is_sound(await look(manager))


async def test_what_cannot_be_stored() -> None:
    """A function whose results cannot be stored is named, with the reason."""
    async with CacheManager("memory://") as manager:

        @cache(cache_type="menu", manager=manager, name="rows_of")
        async def rows_of(n: int) -> Any:
            return {"lock": threading.Lock()}

        await rows_of(1)
        health = await look(manager)
        assert health["status"] == "degraded"
        (issue,) = health["issues"]
        assert "rows_of" in issue
        assert "lock" in issue


async def test_the_loop_is_blocked(sound: Server) -> None:
    """A loop that does not run for a while is named, with how to find who blocks it; so is a lag that somebody else has measured."""
    async with CacheManager(sound.url, prefix="loop") as manager:
        limits = HealthLimits(round_trip=SOON, waiting=SOON, loop_lag=0.25)

        async def block() -> None:
            await asyncio.sleep(0)
            time.sleep(0.4)

        blocking = asyncio.ensure_future(block())
        health = await look(manager, thresholds=limits)
        await blocking
        assert health["status"] == "degraded"
        assert health["checks"]["loop"]["status"] == "warning"
        assert health["checks"]["loop"]["value"]["lag_ms"] > 250
        assert any("to_thread" in issue for issue in health["issues"])
        assert (await look(manager, loop_lag=SOON + 1))["checks"]["loop"]["status"] == "warning"


@pytest.mark.parametrize(("lag", "status"), [(0.1, "ok"), (0.101, "warning")])
def test_the_bound_of_the_loops_lag(lag: float, status: str) -> None:
    """A tenth of a second is not too long."""
    assert judge_loop(lag, HealthLimits()).status == status


async def test_a_slow_server(sound: Server) -> None:
    """A round trip that takes too long is named."""
    async with FaultProxy(sound.port) as proxy, CacheManager(proxy.url, prefix="slow") as manager:
        proxy.delay = 0.1
        limits = HealthLimits(round_trip=0.08, loop_lag=SOON)
        health = await look(manager, thresholds=limits)
        assert health["status"] == "degraded"
        assert any("round trip" in issue for issue in health["issues"])
        assert 100 <= health["checks"]["reads"]["value"]["round_trip_ms"]
        assert (await look(manager, thresholds=CALM))["checks"]["reads"]["status"] == "ok"


async def test_connecting_is_no_round_trip(sound: Server) -> None:
    """The time that connecting takes is not held against a server whose round trips are within the limit."""
    async with FaultProxy(sound.port) as proxy, CacheManager(proxy.url, prefix="far") as manager:
        proxy.delay = 0.3
        health = await look(manager, thresholds=HealthLimits(round_trip=0.8, loop_lag=SOON, waiting=SOON))
        assert _is_sound(health)
        assert 300 <= health["checks"]["reads"]["value"]["round_trip_ms"] <= 800
        assert health["checks"]["reads"]["seconds"] > 0.8


@dataclass
class Job:
    name: str = "menus"
    next_run: datetime | float | None = None
    is_running: bool = False
    last_error: BaseException | None = None


async def test_warmers() -> None:
    """A warmer that is more than a minute late, or whose last run failed, is named; one that runs, or knows no next run, is not late."""
    clock = ManualClock()
    async with CacheManager("memory://", clock=clock) as manager:

        async def of(job: Job) -> tuple[str, list[str]]:
            health = await look(manager, jobs=[job])
            return health["status"], health["issues"]

        assert await of(Job()) == await of(Job(next_run=clock.now + 5)) == ("healthy", [])
        assert await of(Job(next_run=clock.now - 60)) == ("healthy", [])
        assert await of(Job(next_run=clock.now - 61, is_running=True)) == ("healthy", [])
        for late in (clock.now - 61, datetime.fromtimestamp(clock.now - 61, UTC)):
            status, (issue,) = await of(Job(next_run=late))
            assert status == "degraded"
            assert "menus is 61 s late" in issue
        status, (issue,) = await of(Job(last_error=ValueError("no such table")))
        assert status == "degraded"
        assert "ValueError: no such table" in issue


async def test_a_check_that_raises() -> None:
    """What a job of the user's raises makes its check unknown, and harms no other."""

    class Broken:
        is_running = False

        @property
        def next_run(self) -> float:
            raise ZeroDivisionError("mine")

    async with CacheManager("memory://") as manager:
        health = await look(manager, jobs=[Broken()])
        assert health["status"] == "degraded"
        assert _statuses(health, "warmers", "reads", "loop") == ["unknown", "ok", "ok"]
        assert "ZeroDivisionError: mine" in health["issues"][0]


# Connections


async def test_connections_are_counted(sound: Server) -> None:
    """A lane that was made anew says how often; one whose server hangs, for how long it has owed an answer."""
    async with CacheManager(sound.url, prefix="lanes", lanes=2) as manager:
        await look(manager)
        port = (await manager.engine()).port
        assert [(one.role, one.reconnects) for one in port.connections()] == [("read", 0), ("read", 0), ("write", 0)]
        for n in range(1, 3):
            with sound.client() as admin:
                admin.client_kill_filter(_type="normal", skipme=True)
            await _until(lambda: all(one.state != "ready" for one in port.connections()))
            assert _is_sound(await look(manager))
            assert [one.reconnects for one in port.connections()] == [n] * 3
        assert {(one.pending, one.queued, one.failures, one.last_error, one.waiting_seconds) for one in port.connections()} == {
            (0, 0, 0, None, 0.0)
        }
        sound.stop()
        asked = asyncio.ensure_future(manager.get("test", "k"))
        try:
            await _until(lambda: sum(one.waiting_seconds > 0.2 for one in port.connections()) == 1)
            health = await look(manager, timeout=0.2, thresholds=HealthLimits(waiting=0.2))
        finally:
            sound.cont()
        assert health["checks"]["connections"]["status"] == "warning"
        assert "not answered for" in health["checks"]["connections"]["issue"]
        await asked
        await _until(lambda: not any(one.waiting_seconds for one in port.connections()))


async def test_connections_are_exported(sound: Server) -> None:
    """What the connections tell is what is exported of them, read in another thread while the server owes an answer."""
    async with CacheManager(sound.url, prefix="export") as manager:
        await look(manager)
        port = (await manager.engine()).port
        sound.stop()
        asked = asyncio.ensure_future(manager.get("test", "k"))
        try:
            await _until(lambda: any(one.waiting_seconds > 0.1 for one in port.connections()))
            families = await asyncio.to_thread(lambda: {one.name: one.samples for one in AuraCollector(manager).collect()})
        finally:
            sound.cont()
        await asked
        assert families["aura_pool_wait_seconds"][0].value > 0.1
        assert families["aura_pool_pending"][0].value == 1
        assert [(one.labels, one.value) for one in families["aura_pool_connections"] if one.value] == [({"state": "ready"}, 2)]


async def test_a_down_lane_says_why(own_server: Callable[..., Server]) -> None:
    """A lane that is down tells how often in a row it has tried, and why it is, without a credential."""
    server = own_server("--requirepass", "right")
    async with CacheManager(server.url.replace("//", "//:hidden@"), prefix="down") as manager:
        for _ in range(3):
            await look(manager)
        for one in (await manager.engine()).port.connections():
            assert (one.state, one.failures) == ("down", 3)
            assert "refuses the login" in str(one.last_error)
            assert "hidden" not in repr(one)
    assert {one.state for one in (await manager.engine()).port.connections()} == {"idle"}
    await manager.aclose()


async def test_a_read_lane_of_several_that_is_cut_off(sound: Server) -> None:
    """Each of several lanes for reads is tried: one that answers nobody is trouble, though the others do, and writes are not."""
    async with FaultProxy(sound.port) as proxy, CacheManager(proxy.url, prefix="cut", lanes=3) as manager:
        await look(manager)
        lane: Any = (await manager.engine()).port._link.reads[2]  # type: ignore[attr-defined]
        lane._transport.pause_reading()
        health = await look(manager, timeout=2.0)
        assert _trouble(health) == ("no answer", None)
        assert any(issue.startswith("nothing can be read") for issue in health["issues"])
        lane._transport.resume_reading()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has used or configured RedisClient."""
    monkeypatch.setattr(RedisClient, "_options", dict(redis_client_module.DEFAULTS))
    monkeypatch.setattr(RedisClient, "_clients", {})
    monkeypatch.setattr(RedisClient, "_keepers", {})
    yield


@pytest.mark.usefixtures("fresh")
async def test_the_pool_is_exhausted(sound: Server) -> None:
    """RedisClient's pool is told as it is; where callers wait for a connection, how many, and what to do."""
    RedisClient.configure(url=sound.url, max_connections=2)
    async with CacheManager(sound.url, prefix="pool") as manager:
        assert (await look(manager))["checks"]["connections"]["value"]["pool"] is None
        client = RedisClient.get_client()
        assert RedisClient.pool() is not None
        waiting = [asyncio.ensure_future(client.blpop([f"q{n}"], timeout=SOON)) for n in range(3)]
        await _until(lambda: (pool := RedisClient.pool()) is not None and (pool.in_use, pool.waiting) == (2, 1))
        health = await look(manager)
        assert health["status"] == "degraded"
        assert health["checks"]["connections"]["value"]["pool"] == {"in_use": 2, "idle": 0, "most": 2, "waiting": 1}
        assert "max_connections" in health["issues"][0]
        async with _admin(sound) as admin:
            for n in range(3):
                await admin.rpush(f"q{n}", "x")
        await asyncio.gather(*waiting)
        assert _is_sound(await look(manager))
        assert RedisClient.pool().in_use == 0  # type: ignore[union-attr]
    await RedisClient.aclose()


# How it asks


async def test_users_do_not_wait_for_it() -> None:
    """Over the lane for reads goes nothing but one lookup; all else goes over the one for writes, in a bounded number of commands."""
    async with ScriptedServer(_said) as server:
        async with CacheManager(server.url, prefix="quiet") as manager:
            await look(manager)
            await look(manager)
            reads, writes = sorted(([command[0] for command in peer.commands] for peer in server.peers), key=len)
            assert reads == [b"MGET", b"MGET"]
            assert set(writes) <= {b"SCRIPT", b"SET", b"EVALSHA", b"DEL", b"INFO", b"ROLE", b"SCAN"}
            assert len([name for name in writes if name != b"SCRIPT"]) < 30


async def test_it_may_be_cancelled(sound: Server) -> None:
    """A checkup that is cancelled leaves nothing behind, and the next is made as ever."""
    async with CacheManager(sound.url, prefix="cancel") as manager:
        for steps in range(12):
            checking = asyncio.ensure_future(check_health(manager, timeout=SOON))
            for _ in range(steps):
                await asyncio.sleep(0)
            checking.cancel()
            with suppress(asyncio.CancelledError):
                await checking
        assert _is_sound(await look(manager))


async def test_many_at_once(sound: Server) -> None:
    """Checkups at the same time do not see each other's probes."""
    async with CacheManager(sound.url, prefix="at once") as manager, CacheManager(sound.url, prefix="at once") as other:
        for health in await asyncio.gather(*(check_health(one, timeout=SOON, thresholds=CALM) for one in (manager, other) * 10)):
            assert _is_sound(health)


async def test_after_it_was_closed(sound: Server) -> None:
    """A manager that was closed is opened again, as by any use."""
    manager = CacheManager(sound.url, prefix="closed")
    await manager.aclose()
    assert _is_sound(await look(manager))
    await manager.aclose()
    assert _is_sound(await look(manager))
    await manager.aclose()


def test_in_another_loop(sound: Server) -> None:
    """A second loop is checked over its own connections."""
    manager = CacheManager(sound.url, prefix="loops")

    async def check() -> None:
        assert _is_sound(await look(manager))

    asyncio.run(check())
    asyncio.run(check())

    async def close() -> None:
        await manager.aclose()

    asyncio.run(close())


async def test_redis_takes_long_to_import(monkeypatch: pytest.MonkeyPatch, valkey: Server) -> None:
    """While redis is still being imported the cache is unhealthy, within the timeout, and says why."""
    monkeypatch.setenv("AURA_CACHE_URL", valkey.url)
    manager = CacheManager.from_environment()
    real, may_go = manager._import_backend, threading.Event()
    monkeypatch.setattr(manager, "_import_backend", lambda: (may_go.wait(SOON), real()))
    try:
        health = await look(manager, timeout=0.2)
    finally:
        may_go.set()
    assert health["status"] == "unhealthy"
    assert len(health["issues"]) == 1
    assert "not imported" in health["issues"][0]
    assert (await look(manager))["status"] == "degraded"
    await manager.aclose()


async def test_redis_is_not_installed(monkeypatch: pytest.MonkeyPatch, valkey: Server) -> None:
    """Where redis is not installed the issue says what to install."""
    monkeypatch.setenv("AURA_CACHE_URL", valkey.url)
    manager = CacheManager.from_environment()

    def fail() -> None:
        raise ConfigurationError("a Redis cache needs redis: pip install 'redis[hiredis]'")

    monkeypatch.setattr(manager, "_import_backend", fail)
    health = await look(manager)
    assert health["issues"] == ["a Redis cache needs redis: pip install 'redis[hiredis]'"]
    assert health["status"] == "unhealthy"
    await manager.aclose()


async def test_what_is_ignored(valkey: Server) -> None:
    """Checks that are left out are not made, and name nothing."""
    async with CacheManager(valkey.url, prefix="ignore") as manager:
        for ignored in (["eviction"], ["server", "memory", "eviction", "replication"]):
            limits = HealthLimits(round_trip=SOON, loop_lag=SOON, ignore=ignored)
            assert _is_sound(await look(manager, thresholds=limits))


@pytest.mark.parametrize(
    "options", [{"hit_rate": -1}, {"asks": True}, {"memory": "much"}, {"loop_lag": math.nan}, {"ignore": "reads"}, {"ignore": ["red"]}]
)
def test_limits_that_cannot_be(options: dict[str, Any]) -> None:
    """A limit is a number that is not below 0, and only checks that there are can be left out."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        HealthLimits(**options)


# What is said


@pytest.mark.parametrize(
    ("text", "version"),
    [("redis_version:7.2.4\r\nvalkey_version:9.1.2", "valkey 9.1.2"), ("redis_version:7.0.15", "redis 7.0.15"), ("nothing", None)],
)
def test_versions(text: str, version: str | None) -> None:
    """A Valkey server says that it is a Redis, too."""
    assert version_of(info_of(f"# Server\r\n{text}\r\n".encode())) == version


@pytest.mark.parametrize("reply", [None, 5, b"", b"garbage", b"\xff\xfe:\xff", [], {}])
def test_an_info_that_is_none(reply: object) -> None:
    """Whatever comes for an INFO is read without an error."""
    assert "used_memory" not in info_of(reply)


@pytest.mark.parametrize(
    ("info", "status", "word"),
    [
        ({"maxmemory": "100", "maxmemory_policy": "allkeys-lfu"}, "ok", ""),
        ({"maxmemory": "100", "maxmemory_policy": "volatile-ttl"}, "ok", ""),
        ({"maxmemory": "100", "maxmemory_policy": "noeviction"}, "warning", "maxmemory-policy allkeys-lru"),
        ({"maxmemory": "0", "maxmemory_policy": "noeviction"}, "warning", "maxmemory-policy allkeys-lru"),
        ({"maxmemory": "0", "maxmemory_policy": "allkeys-lru"}, "warning", "CONFIG SET maxmemory"),
        ({}, "unknown", "does not tell"),
    ],
)
def test_eviction(info: dict[str, str], status: str, word: str) -> None:
    """A memory without a bound, and one from which nothing is evicted, are issues with what to set."""
    check = judge_eviction(info)
    assert check.status == status
    assert word in (check.issue or "")


@pytest.mark.parametrize(
    ("used", "policy", "status"),
    [(90, "noeviction", "ok"), (91, "noeviction", "warning"), (100, "allkeys-lru", "ok")],
)
def test_memory(used: int, policy: str, status: str) -> None:
    """Nine tenths in use are an issue where nothing is evicted; where something is, a memory is full as it should be."""
    info = {"used_memory": str(used), "maxmemory": "100", "maxmemory_policy": policy}
    assert judge_memory(info, HealthLimits()).status == status


MASTER = {"role": "master", "master_repl_offset": "1000"}


@pytest.mark.parametrize(
    ("info", "status", "word"),
    [
        (MASTER, "ok", ""),
        (MASTER | {"slave0": "ip=10.0.0.2,port=6379,state=online,offset=1000,lag=10"}, "ok", ""),
        (MASTER | {"slave0": "ip=10.0.0.2,port=6379,state=online,offset=400,lag=11"}, "warning", "11 s and 600 bytes behind"),
        (MASTER | {"slave0": "ip=10.0.0.2,port=6379,state=wait_bgsave,offset=0,lag=0"}, "warning", "1 of 1 replicas"),
        (MASTER | {"slave0": "nonsense"}, "warning", "1 of 1"),
        ({"role": "slave", "master_link_status": "up", "master_last_io_seconds_ago": "1"}, "warning", "point the URL at the master"),
        ({"role": "slave", "master_link_status": "down", "master_link_down_since_seconds": "7"}, "warning", "down for 7 s"),
        ({"role": "slave", "master_link_status": "down", "master_link_down_since_seconds": "-1"}, "warning", "down for 0 s"),
    ],
)
def test_replication(info: dict[str, str], status: str, word: str) -> None:
    """A replica is an issue whatever it does; of a master, one that lags or is not in step."""
    check = judge_replication(replication_of(info), HealthLimits())
    assert check.status == status
    assert word in (check.issue or "")


@pytest.mark.parametrize(
    ("role", "known"),
    [
        ([b"master", 100, []], {"role": "master", "replicas": 0, "behind_bytes": 0}),
        ([b"master", 100, [[b"10.0.0.2", b"6379", b"60"]]], {"role": "master", "replicas": 1, "behind_bytes": 40}),
        ([b"slave", b"10.0.0.1", 6379, b"connected", 100], {"role": "replica", "link": "up"}),
        ([b"slave", b"10.0.0.1", 6379, b"connect", -1], {"role": "replica", "link": "down"}),
        ([b"sentinel", [b"mymaster"]], None),
        (BackendError("no"), None),
        (None, None),
    ],
)
def test_roles(role: object, known: dict[str, Any] | None) -> None:
    """What ROLE tells stands in for INFO; what it cannot, nothing does."""
    told = replication_of_role(role)
    assert told is None if known is None else told is not None and known.items() <= told.items()
    if told is not None:
        assert judge_replication(told, HealthLimits()).status == ("ok" if told["role"] == "master" else "warning")


def test_a_chain_of_errors_in_a_circle() -> None:
    """Errors that cause each other are looked at once."""
    one, two = BackendError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert kind_of(one)[0] == "unreachable"


async def test_the_code_of_an_error_is_kept(sound: Server) -> None:
    """A BackendError has the word that the server's answer began with, and none where there was no answer."""

    async def code_of(manager: CacheManager, verb: Awaitable[object]) -> str:
        with pytest.raises(BackendError) as caught:
            await verb
        return caught.value.code

    async with CacheManager(sound.url, prefix="code", strict=True) as manager, _admin(sound) as admin:
        assert await manager.set("test", "k", 1)
        await admin.config_set("min-replicas-to-write", 1)
        assert await code_of(manager, manager.set("test", "k", 1)) == "NOREPLICAS"
        await admin.execute_command("ACL", "SETUSER", "default", "-mget")
        assert await code_of(manager, manager.get("test", "k")) == "NOPERM"
        sound.kill()
        assert await code_of(manager, manager.get("test", "k")) == ""
