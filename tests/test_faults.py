"""The fault matrix on real servers: whatever becomes of Redis, functions answer in time and rightly, and the cache comes back."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from aiocache_aura import CacheManager, cache
from aiocache_aura.errors import BackendError
from tests.clocks import ManualClock, running_time
from tests.proxy import FaultProxy
from tests.servers import Server

BUDGET = 0.25
SLACK = 0.3  # of a machine that has other things to do
STALL = 1.0  # for which a server may not be run; what this process is not run, `running_time` leaves out
SOON = 10.0
ROOT = Path(__file__).parents[1]
TLS = Path(__file__).parent / "tls"


class World:
    """A database behind a cache, and callers that look at what they are given: it is of their key, and no older than what was there when
    they began, if its invalidation was acknowledged."""

    def __init__(self, manager: CacheManager, keys: int = 20) -> None:
        self.manager = manager
        self.versions = [0] * keys
        self.acknowledged = [0] * keys
        self.longest = 0.0
        self.calls = self.undelivered = 0
        self.loads: list[int] = []

        @cache(cache_type="menu", manager=manager, tags=["t{key}"])
        async def value_of(key: int) -> dict[str, int]:
            version = self.versions[key]
            self.loads.append(key)
            await asyncio.sleep(0)
            return {"key": key, "version": version}

        self.value_of = value_of

    async def ask(self, key: int) -> None:
        least, began = self.acknowledged[key], running_time()
        found = await self.value_of(key)
        self.longest = max(self.longest, running_time() - began)
        self.calls += 1
        assert found["key"] == key
        assert least <= found["version"] <= self.versions[key], f"{found} while at least {least} was acknowledged"

    async def change(self, key: int) -> bool:
        self.versions[key] += 1
        version = self.versions[key]
        began = running_time()
        delivered = await self.manager.invalidate("menu", tags=[f"t{key}"])
        self.longest = max(self.longest, running_time() - began)
        if delivered:
            self.acknowledged[key] = max(self.acknowledged[key], version)
        else:
            self.undelivered += 1
        return delivered

    async def ask_all(self) -> None:
        await asyncio.gather(*(self.ask(key) for key in range(len(self.versions))))

    @asynccontextmanager
    async def load(self, callers: int = 20, *, changes: float = 0.0, pause: float = 0.001) -> AsyncIterator[None]:
        """Callers that ask, and change with that probability, while the block runs; the first that is wronged ends it."""
        over = asyncio.Event()
        rng = random.Random(callers)

        async def caller() -> None:
            while not over.is_set():
                key = rng.randrange(len(self.versions))
                await (self.change(key) if rng.random() < changes else self.ask(key))
                await asyncio.sleep(pause)

        tasks = [asyncio.ensure_future(caller()) for _ in range(callers)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def warm(self) -> None:
        """Ask until all are hits."""
        ends, hits = time.monotonic() + SOON, 0
        while self.stats["hits"] < hits + len(self.versions):
            assert time.monotonic() < ends
            hits = self.stats["hits"]
            await self.ask_all()
        self.longest = 0.0
        self.loads.clear()

    async def until_hits(self, within: float) -> None:
        """Hits again, that soon."""
        hits, ends = self.stats["hits"], running_time() + within + STALL
        while self.stats["hits"] <= hits:
            assert running_time() < ends, f"no hit: {self.manager.engine_now()}, {self.stats}"
            await self.ask(0)
            await asyncio.sleep(0.005)

    @property
    def stats(self) -> dict[str, Any]:
        return self.manager.stats()["menu"]

    def was_in_time(self, longer: float = 0.0) -> bool:
        assert self.longest < BUDGET + SLACK + longer, f"{self.longest:.3f} s"
        return True


@pytest.fixture
async def one(own_server: Callable[..., Server]) -> AsyncIterator[tuple[Server, CacheManager, World]]:
    """A server of its own, a manager that waits no longer than the budget, and a world that is warm."""
    server = own_server()
    async with CacheManager(server.url, prefix="faults", budget=BUDGET) as manager:
        world = World(manager)
        await world.warm()
        yield server, manager, world


@pytest.fixture
async def patient(own_server: Callable[..., Server]) -> AsyncIterator[tuple[Server, CacheManager, World]]:
    """As `one`, with a manager that waits for a machine that stalls: what it misses is not there."""
    server = own_server()
    async with CacheManager(server.url, prefix="faults", budget=SOON) as manager:
        world = World(manager)
        await world.warm()
        yield server, manager, world


async def _use(manager: CacheManager) -> None:
    """Have it connected, however often the machine stalls for longer than its budget."""
    ends = time.monotonic() + SOON
    while True:
        with suppress(BackendError):
            if await manager.set("test", "k", 0):
                return
        assert time.monotonic() < ends


def _warnings(caplog: pytest.LogCaptureFixture, name: str = "aiocache_aura.engine") -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == name and record.levelno == logging.WARNING]


async def _explicit_verbs_fail_open(manager: CacheManager) -> None:
    """None of them takes longer than its budget, each has its quiet answer."""
    verbs: list[tuple[Awaitable[object], object]] = [
        (manager.get("test", "k", default="d"), "d"),
        (manager.set("test", "k", 1), False),
        (manager.add("test", "k", 1), False),
        (manager.delete("test", "k"), 0),
        (manager.mget("test", ["a", "b"]), [None, None]),
        (manager.get_many("test", ["a", "b"]), {}),
        (manager.exists("test", "k"), False),
        (manager.ttl("test", "k"), None),
        (manager.touch("test", "k"), False),
        (manager.get_or_load("test", "k", lambda: "loaded"), "loaded"),
        (manager.get_or_load_many("test", ["k"], lambda keys: dict.fromkeys(keys, "many")), {"k": "many"}),
        (manager.invalidate("test"), False),
        (manager.invalidate_tags("t"), False),
        (manager.invalidate_tenant(1), False),
        (manager.invalidate_user(1), False),
        (manager.invalidate_pattern("test", "*"), 0),
        (manager.caches["test"].clear_namespace(), False),
    ]
    for verb, expected in verbs:
        began = running_time()
        assert await verb == expected
        assert running_time() - began < BUDGET + SLACK


async def _explicit_verbs_raise(manager: CacheManager) -> None:
    """Under `strict` those that read and write raise BackendError; what loads, and what invalidates, does not."""
    for verb in (
        manager.get("test", "k"),
        manager.set("test", "k", 1),
        manager.add("test", "k", 1),
        manager.delete("test", "k"),
        manager.mget("test", ["a"]),
        manager.exists("test", "k"),
        manager.ttl("test", "k"),
        manager.touch("test", "k"),
    ):
        with pytest.raises(BackendError):
            await verb
    assert await manager.invalidate("test") is False
    assert await manager.invalidate_pattern("test", "*") == 0
    assert await manager.get_or_load("test", "k", lambda: 5) == 5
    assert await World(manager).value_of(1) == {"key": 1, "version": 0}


# N: the network


async def test_n1_the_server_is_not_there(own_server: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    """N1: with nobody at the port calls answer from their function, the first within the budget and the others at once; each is counted,
    one line is logged; when the server appears it is used within a second."""
    server = own_server()
    server.kill()
    async with CacheManager(server.url, prefix="n1", budget=BUDGET) as manager:
        world = World(manager)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            await world.ask(0)
            assert world.was_in_time()
            began = running_time()
            for n in range(300):
                await world.ask(n % 20)
            assert (running_time() - began) / 300 < 0.01
            assert world.stats["errors"] == world.stats["misses"] == world.calls == 301
        assert len(_warnings(caplog)) == 1
        await _explicit_verbs_fail_open(manager)
        server.start()
        await world.until_hits(1.0)


async def test_n1_logged_once_in_an_interval(
    own_server: Callable[..., Server], clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """N1: an outage is one line in 30 seconds, and the next says how many were left out."""
    server = own_server()
    server.kill()
    async with CacheManager(server.url, prefix="n1", clock=clock) as manager:
        world = World(manager)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            for _ in range(10):
                await world.ask(0)
            clock.advance(29.9)
            await world.ask(0)
            assert len(_warnings(caplog)) == 1
            clock.advance(0.2)
            await world.ask(0)
        lines = _warnings(caplog)
        assert len(lines) == 2
        assert "10 more" in lines[1]


async def test_n1_strict(own_server: Callable[..., Server]) -> None:
    """N1 under `strict`: explicit verbs raise BackendError, decorated functions and invalidations do not."""
    server = own_server()
    server.kill()
    async with CacheManager(server.url, strict=True, budget=BUDGET) as manager:
        await _explicit_verbs_raise(manager)


@pytest.mark.parametrize("url", ["redis://localhost.invalid:6379/0", "unix:///nowhere/s.sock", "rediss://127.0.0.1:1/0"])
async def test_n1_nothing_can_be_there(url: str) -> None:
    """N1: a host that has no address, a socket that is not there, a TLS port that is closed."""
    async with CacheManager(url, prefix="n1", budget=BUDGET) as manager:
        world = World(manager)
        await world.ask_all()
        await world.ask_all()
        assert world.was_in_time()
        assert world.stats["hits"] == 0
        await _explicit_verbs_fail_open(manager)


async def test_n2_killed_under_load(one: tuple[Server, CacheManager, World]) -> None:
    """N2: killed among replies, and again, the server costs hits and nothing else; it is used again within a second of its return."""
    server, _, world = one
    async with world.load(changes=0.05):
        for seconds in (0.1, 0.5, 0.0):
            await asyncio.sleep(0.05)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(seconds)
            while seconds == 0.5 and not world.undelivered:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.start)
            await world.until_hits(1.0)
    assert world.was_in_time()
    assert world.undelivered > 0


async def test_n3_the_server_hangs(one: tuple[Server, CacheManager, World], caplog: pytest.LogCaptureFixture) -> None:
    """N3: stopped under load, for less and for more than a lane's patience, no call takes longer than its budget, and late replies are
    given to nobody; it is used again when it goes on."""
    server, _, world = one
    with caplog.at_level(logging.WARNING, "aiocache_aura"):
        async with world.load(changes=0.05):
            for seconds in (0.4, 1.6):
                server.stop()
                try:
                    await asyncio.sleep(seconds)
                finally:
                    server.cont()
                await world.until_hits(1.0)
    assert world.was_in_time()
    assert world.stats["errors"] > 0
    assert len(_warnings(caplog)) <= 2  # one for each kind: no answer, lost connection


async def test_n3_explicit_verbs_while_it_hangs(own_server: Callable[..., Server]) -> None:
    """N3: explicit verbs of a hanging server have their quiet answers within the budget; under `strict` they raise."""
    server = own_server()
    async with (
        CacheManager(server.url, prefix="n3", budget=BUDGET) as manager,
        CacheManager(server.url, prefix="n3", budget=BUDGET, strict=True) as strict,
    ):
        await _use(manager)
        await _use(strict)
        server.stop()
        try:
            await _explicit_verbs_fail_open(manager)
            await _explicit_verbs_raise(strict)
        finally:
            server.cont()


async def test_n3_a_loader_is_not_cut_short(one: tuple[Server, CacheManager, World]) -> None:
    """N3: the budget is what the cache may add: a load that takes longer is waited for, once, by all."""
    server, manager, _ = one
    loads = 0

    async def slow() -> str:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.5)
        return "slow"

    server.stop()
    try:
        began, ran = time.perf_counter(), running_time()
        found = await asyncio.gather(*(manager.get_or_load("test", "slow", slow) for _ in range(10)))
        assert found == ["slow"] * 10
        assert running_time() - ran < 0.5 + BUDGET + SLACK
        assert time.perf_counter() - began >= 0.5
        assert loads == 1
    finally:
        server.cont()


@pytest.mark.parametrize("kind", ["n4 slow", "n5 both ways", "n8 replies", "n8 requests"])
@pytest.mark.parametrize("tls", [False, True])
async def test_n5_a_black_hole(valkey: Server, kind: str, tls: bool) -> None:
    """N4, N5, N8: a wire that is slow, or swallows one or both ways while the connection stays open, is no worse than a server that hangs,
    over TLS too; the lane is torn down and remade."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "server.pem", TLS / "key.pem")
    async with FaultProxy(valkey.port, tls=context) as proxy:
        url = f"{proxy.url}?ssl_ca_certs={TLS / 'ca.pem'}" if tls else proxy.url
        async with CacheManager(url, prefix=f"hole{kind}", budget=BUDGET) as manager:
            world = World(manager)
            await world.warm()
            connections = proxy.connections
            async with world.load(10):
                proxy.swallow_replies = kind in ("n5 both ways", "n8 replies")
                proxy.swallow_requests = kind in ("n5 both ways", "n8 requests")
                proxy.delay = 1.0 if kind == "n4 slow" else 0.0
                await asyncio.sleep(1.6)
                assert world.was_in_time()
                proxy.swallow_replies = proxy.swallow_requests = False
                proxy.delay = 0.0
                proxy.drop()
                await world.until_hits(2.0)
            assert world.was_in_time()
            assert proxy.connections > connections
            began = running_time()
            proxy.swallow_replies = proxy.swallow_requests = True
        assert running_time() - began < 1.0


async def test_n9_too_many_clients(own_server: Callable[..., Server]) -> None:
    """N9: refused because the server has too many clients, calls fall back at once, and the error says why; with room it is used."""
    server = own_server()
    with server.client() as admin:
        admin.ping()
        admin.config_set("maxclients", 1)
        async with CacheManager(server.url, prefix="n9") as manager, CacheManager(server.url, strict=True) as strict:
            world = World(manager)
            await world.ask_all()
            await world.ask_all()
            assert world.was_in_time()
            with pytest.raises(BackendError, match="max number of clients"):
                await strict.get("test", "k")
            admin.config_set("maxclients", 100)
            await world.until_hits(1.0)


async def test_n10_an_idle_connection_is_dropped(valkey: Server) -> None:
    """N10: where an idle connection was dropped without a word the next call is within its budget, and those soon after it are hits; where
    it was closed, or reset, the next one is a hit already."""
    async with FaultProxy(valkey.port) as proxy:
        async with CacheManager(proxy.url, prefix="n10", budget=SOON) as manager:
            world = World(manager)
            await world.ask_all()
            for _ in range(3):
                proxy.drop()
                await world.ask(1)
            assert world.stats["hits"] == 3
            assert world.stats["errors"] == 0
        async with CacheManager(proxy.url, prefix="n10", budget=BUDGET) as manager:
            world = World(manager)
            await world.warm()
            proxy.garble_requests = lambda data, old=proxy.connections: b"" if proxy.connections == old else data  # type: ignore[misc]
            began = time.perf_counter()
            await world.until_hits(2.0)
            assert time.perf_counter() - began > BUDGET
            assert world.was_in_time()


# S: the server


async def test_s1_memory_is_full(own_server: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    """S1: reads go on and hit; what must be written fails open, saying what to do about it; invalidations and deletions still go."""
    server = own_server("--maxmemory-policy", "noeviction")
    async with CacheManager(server.url, prefix="s1") as manager, CacheManager(server.url, prefix="s1", strict=True) as strict:
        world = World(manager)
        for key in range(10):
            await world.ask(key)
        assert await manager.set("test", "k", "kept")
        with server.client() as admin:
            admin.config_set("maxmemory", 1)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            await world.ask_all()
            await world.ask_all()
        assert world.stats["hits"] == 20
        assert len(world.loads) == 30
        assert len([line for line in _warnings(caplog) if "maxmemory" in line]) == 1
        assert await manager.get("test", "k") == "kept"
        assert await manager.set("test", "other", 1) is False
        with pytest.raises(BackendError, match=r"OOM.*maxmemory"):
            await strict.set("test", "other", 1)
        assert await world.change(1)
        await world.ask(1)
        assert await manager.delete("test", "k") == 1
        assert await manager.get("test", "k") is None
        with server.client() as admin:
            admin.config_set("maxmemory", 0)
        await world.until_hits(1.0)


async def test_s2_evicted_at_random(own_server: Callable[..., Server]) -> None:
    """S2: under a memory far too small, from which anything may vanish at any time, generations and permits too, nobody is given a value
    older than an acknowledged change, not even by another process' cache."""
    server = own_server("--maxmemory-policy", "allkeys-random", "--maxmemory-samples", "1")
    with server.client() as admin:
        used = admin.info("memory")["used_memory"]
        admin.config_set("maxmemory", used + 700_000)
        async with CacheManager(server.url, prefix="s2") as manager, CacheManager(server.url, prefix="s2") as second:
            world = World(manager, keys=300)
            other = World(second, keys=300)
            other.versions, other.acknowledged = world.versions, world.acknowledged
            with server.client() as junk:
                ends, n = time.monotonic() + 4, 0

                def has_evicted_enough() -> bool:
                    enough: bool = admin.info("stats")["evicted_keys"] > 100
                    return enough and world.stats["hits"] > 50 and other.stats["hits"] > 50

                async with world.load(10, changes=0.1), other.load(10, changes=0.1):
                    while time.monotonic() < ends or not has_evicted_enough():
                        n += 1
                        with suppress(redis.exceptions.OutOfMemoryError):
                            junk.set(f"junk{n % 900}", b"x" * 800)
                        await asyncio.sleep(0.0005)
            assert admin.info("stats")["evicted_keys"] > 100
            assert world.stats["hits"] > 50
            assert other.stats["hits"] > 50


async def test_s3_emptied_under_load(patient: tuple[Server, CacheManager, World]) -> None:
    """S3: FLUSHALL again and again costs misses, not errors; a herd loads each key once."""
    server, _, world = patient
    with server.client() as admin:
        async with world.load(20, changes=0.02):
            for _ in range(20):
                await asyncio.sleep(0.02)
                admin.flushall()
        assert world.stats["errors"] == world.undelivered == 0
        admin.flushall()
        world.loads.clear()
        await asyncio.gather(*(world.ask(n % 20) for n in range(1000)))
        assert sorted(world.loads) == list(range(20))
    await world.until_hits(1.0)


async def test_s4_scripts_are_sent_again(patient: tuple[Server, CacheManager, World]) -> None:
    """S4: after SCRIPT FLUSH, or a restart, everything that takes a script works at once."""
    server, manager, world = patient
    for _ in range(3):
        with server.client() as admin:
            admin.script_flush()
        assert await manager.set("test", "k", 1)
        with server.client() as admin:
            admin.script_flush()
        assert await manager.add("test", "other", 1)
        assert await manager.touch("test", "other", 60)
        assert await manager.delete("test", "other") == 1
        with server.client() as admin:
            admin.script_flush()
        await world.change(1)
        await world.ask(1)
        await world.ask(1)
    assert world.stats["errors"] == manager.stats()["test"]["errors"] == 0
    assert world.loads.count(1) == 3
    server.kill()
    server.start()
    assert await manager.get("test", "k") is None
    assert await manager.set("test", "k", 2)
    assert await manager.get("test", "k") == 2
    loads = len(world.loads)
    await world.ask(1)
    await world.ask(1)
    assert len(world.loads) == loads + 1
    assert world.stats["errors"] == manager.stats()["test"]["errors"] == 0


async def test_s6_blocked_by_a_command(one: tuple[Server, CacheManager, World]) -> None:
    """S6: while somebody's command blocks the server, calls are within their budget; afterwards it is used."""
    server, _, world = one
    async with world.load(10, changes=0.05):
        for seconds in (0.3, 1.3):
            with server.client() as admin:
                await asyncio.to_thread(admin.execute_command, "DEBUG", "SLEEP", seconds)
            await world.until_hits(1.0)
    assert world.was_in_time()


async def test_s6_a_busy_script(one: tuple[Server, CacheManager, World], caplog: pytest.LogCaptureFixture) -> None:
    """S6: while a script of somebody's runs on and the server answers BUSY, calls fall back and the log says what ends it."""
    server, manager, world = one
    with server.client() as admin, server.client() as killer:
        admin.config_set("busy-reply-threshold", 20)
        busy = asyncio.create_task(asyncio.to_thread(_run_busy_script, admin))
        await asyncio.to_thread(_until_busy, killer)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            async with world.load(10):
                await asyncio.sleep(0.2)
            assert await manager.set("test", "k", 1) is False
            assert await manager.invalidate("menu") is False
        assert "SCRIPT KILL" in caplog.text
        killer.script_kill()
        await busy
    assert world.was_in_time()
    await world.until_hits(1.0)


def _run_busy_script(client: redis.Redis) -> None:
    with suppress(redis.exceptions.ResponseError):
        client.eval("while true do end", 0)


def _until_busy(client: redis.Redis) -> None:
    ends = time.monotonic() + SOON
    while time.monotonic() < ends:
        try:
            client.get("x")
        except redis.exceptions.ResponseError:
            return
        time.sleep(0.005)
    raise AssertionError("it never was busy")


async def test_s7_writes_are_paused(patient: tuple[Server, CacheManager, World], caplog: pytest.LogCaptureFixture) -> None:
    """S7: under CLIENT PAUSE WRITE reads go on and hit; writes, and invalidations, are given up within the budget: they say so, and it is
    logged."""
    server, _, world = patient
    async with CacheManager(server.url, prefix="faults", budget=BUDGET) as manager:
        await _use(manager)
        with server.client() as admin:
            admin.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            hits = world.stats["hits"]
            await world.ask_all()
            assert world.stats["hits"] == hits + 20
            began = running_time()
            assert await manager.set("test", "k", 1) is False
            with caplog.at_level(logging.WARNING, "aiocache_aura"):
                assert await manager.invalidate("test") is False
            assert running_time() - began < 2 * BUDGET + SLACK
            assert "not delivered" in caplog.text
            await world.ask_all()
            assert world.stats["hits"] == hits + 40
            began = running_time()
            assert await manager.get_or_load("test", "new", lambda: 7) == 7
            assert running_time() - began < BUDGET + SLACK
            assert world.was_in_time(STALL)
            admin.execute_command("CLIENT", "UNPAUSE")
        ends = running_time() + 1.0 + STALL
        while not await manager.set("test", "k", 1):
            assert running_time() < ends
    assert await patient[1].get("test", "k") == 1


async def test_s8_our_connections_are_killed(patient: tuple[Server, CacheManager, World]) -> None:
    """S8: CLIENT KILL at random under load is unseen but for latency; reads are asked again, so that hits stay hits."""
    server, manager, world = patient
    rng = random.Random(8)
    killed = 0
    with server.client() as admin:
        ours = admin.client_id()
        async with world.load(30, changes=0.03):
            for _ in range(60):
                await asyncio.sleep(rng.random() * 0.02)
                victims = [one["id"] for one in await asyncio.to_thread(admin.client_list) if int(one["id"]) != ours]
                for victim in rng.sample(victims, min(len(victims), rng.choice((1, 2)))):
                    killed += await asyncio.to_thread(admin.client_kill_filter, _id=victim)
    assert killed > 60
    assert world.was_in_time(STALL)
    assert world.undelivered == 0
    assert world.stats["hits"] > 500
    loads = len(world.loads)
    await world.ask_all()
    for _ in range(20):
        with server.client() as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
        await world.ask_all()
    assert len(world.loads) - loads <= 20


ACLS = {
    "no admin": "+@all -@admin -@dangerous -script -info -client -config",
    "no scripts loaded": "+@all -script",
    "what is used": "+get +mget +set +setrange +del +unlink +pttl +persist +pexpire +exists +getrange +time "
    "+evalsha +script|load +scan +hello",
}


@pytest.mark.parametrize("acl", ACLS)
async def test_s9_a_user_of_few_rights(own_server: Callable[..., Server], acl: str) -> None:
    """S9: without SCRIPT, INFO, CLIENT and CONFIG, and on no keys but those of the prefix, everything works."""
    server = own_server()
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "few", "on", ">pw", "resetkeys", "~s9:*", "~s9!*", "resetchannels", *ACLS[acl].split())
        async with CacheManager(server.url.replace("//", "//few:pw@"), prefix="s9", strict=True) as manager:
            world = World(manager)
            await world.ask_all()
            await world.ask_all()
            assert world.stats["hits"] == 20
            assert await world.change(1)
            await world.ask(1)
            assert await manager.set("test", "k:1", 1)
            assert await manager.add("test", "k:2", 2)
            assert await manager.touch("test", "k:2", 60)
            assert await manager.get("test", "k:2") == 2
            assert await manager.invalidate_pattern("test", "k:*") == 2
            assert await manager.caches["menu"].clear_namespace(reclaim=True)
            await world.ask_all()
        assert world.stats["errors"] == 0
        refused = [one["object"] for one in admin.acl_log() if one["username"] == "few"]
        assert set(refused) <= {"script|load", "script"}


async def test_s9_a_user_who_may_not_write(own_server: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    """S9: a user who may only read is served what is there; the error says which command is refused and what to allow."""
    server = own_server()
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+@connection")
    async with (
        CacheManager(server.url, prefix="s9") as full,
        CacheManager(server.url.replace("//", "//reader:pw@"), prefix="s9") as manager,
    ):
        assert await full.set("menu", "k", 1)
        world = World(manager)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            await world.ask_all()
            assert await manager.get("menu", "k") == 1
            assert await manager.set("menu", "k", 2) is False
            assert await manager.invalidate("menu") is False
        assert "NOPERM" in caplog.text
        assert "ACL SETUSER" in caplog.text
        assert await manager.get("menu", "k") == 1


async def test_s9_a_user_who_may_do_nothing(own_server: Callable[..., Server]) -> None:
    """S9: nor does a user without any right break a function."""
    server = own_server()
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "none", "on", ">pw", "-@all")
    async with CacheManager(server.url.replace("//", "//none:pw@"), prefix="s9", budget=BUDGET) as manager:
        world = World(manager)
        await world.ask_all()
        assert world.was_in_time()
        await _explicit_verbs_fail_open(manager)


# P: this process

_FORK = """
import asyncio, os, random, sys
from aiocache_aura import CacheManager, RedisClient, cache
import redis.asyncio as redis_asyncio

url, kind = sys.argv[1:]
client = redis_asyncio.Redis.from_url(url, protocol=2)
manager = CacheManager(client=client, prefix="fork", budget=10) if kind == "resp2" else CacheManager(url, prefix="fork", budget=10)
RedisClient.configure(url=url)
who = "parent"

@cache(cache_type="test", manager=manager)
async def value_of(key: int) -> list:
    await asyncio.sleep(0)
    return [key]

async def ask(rounds: int) -> None:
    rng = random.Random(os.getpid())
    for n in range(rounds):
        keys = [rng.randrange(50) for _ in range(20)]
        assert await asyncio.gather(*(value_of(key) for key in keys)) == [[key] for key in keys], who
        assert await RedisClient.get_client().execute_command("ECHO", f"{who}{n}") == f"{who}{n}".encode(), who
        assert await manager.set("test", f"{who}{n % 10}", who)
        assert await manager.get("test", f"{who}{n % 10}") == who
        if n % 10 == 0:
            assert await value_of.invalidate(rng.randrange(50)), who

async def load(over: asyncio.Event) -> None:
    while not over.is_set():
        await ask(1)

async def child(end: str) -> None:
    global who
    who = f"child{os.getpid()}"
    await ask(30)
    stats = manager.stats()["test"]
    assert stats["errors"] == 0, stats
    if end == "close":
        await manager.aclose()
        await RedisClient.aclose()

def fork(end: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        asyncio.run(child(end))
        code = 0
    except BaseException as error:
        sys.stderr.write(f"{error!r}\\n")
    finally:
        sys.stderr.flush()
        os._exit(code)

async def main() -> None:
    over = asyncio.Event()
    callers = [asyncio.ensure_future(load(over)) for _ in range(5)]
    await asyncio.sleep(0.1)
    children = []
    for end in ("close", "drop", "close", "drop"):
        children.append(fork(end))
        await asyncio.sleep(0.05)
    codes = [os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]) for pid in children]
    assert codes == [0] * 4, codes
    await asyncio.sleep(0.1)
    over.set()
    await asyncio.gather(*callers)
    assert manager.stats()["test"]["errors"] == 0
    await manager.aclose()
    await RedisClient.aclose()

asyncio.run(main())
print("well")
"""


@pytest.mark.parametrize("kind", ["lanes", "resp2"])
def test_p5_forks_under_load(own_server: Callable[..., Server], kind: str) -> None:
    """P5: forked among calls, by a process whose connections are in use, each child connects anew, and neither it nor the parent is given a
    reply that was meant for the other; nothing warns."""
    server = own_server()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FORK, server.url, kind], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


_POOL = """
import asyncio, multiprocessing, os, sys
from aiocache_aura import CacheManager

manager = CacheManager(sys.argv[1], prefix="mp", budget=10)

async def use(n: int) -> int:
    assert await manager.set("test", f"k{n}", n)
    return await manager.get("test", f"k{n}")

def work(n: int) -> int:
    return asyncio.run(use(n))

if __name__ == "__main__":
    assert work(0) == 0
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(work, range(30)) == list(range(30))
    assert work(0) == 0
    print("well")
"""


def test_p5_multiprocessing(own_server: Callable[..., Server]) -> None:
    """P5: a manager made before a multiprocessing pool works in its processes, in loop after loop, and in the parent afterwards."""
    server = own_server()
    done = subprocess.run([sys.executable, "-W", "error", "-c", _POOL, server.url], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


def test_p6_two_loops_in_two_threads(valkey: Server) -> None:
    """P6: one manager in loops that run at once in two threads: each has connections of its own, and both see each other's changes."""
    manager = CacheManager(valkey.url, prefix="threads", budget=SOON)
    problems: list[BaseException] = []
    turns = threading.Barrier(2, timeout=SOON)
    version = 0

    @cache(cache_type="menu", manager=manager)
    async def current(key: int) -> int:
        return version

    async def use(mine: int) -> None:
        nonlocal version
        for turn in range(40):
            await asyncio.gather(*(current(key) for key in range(10)))
            await asyncio.to_thread(turns.wait)
            if turn % 2 == mine:
                version = turn + 1
                assert await manager.invalidate("menu")
            await asyncio.to_thread(turns.wait)
            assert await asyncio.gather(*(current(key) for key in range(10))) == [turn + 1] * 10

    def run(mine: int) -> None:
        try:
            asyncio.run(use(mine))
        except BaseException as error:
            problems.append(error)
            turns.abort()

    threads = [threading.Thread(target=run, args=(mine,)) for mine in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert manager.stats()["menu"]["errors"] == 0
    asyncio.run(manager.aclose())


async def test_p7_the_loop_was_blocked(valkey: Server) -> None:
    """P7: where the application blocks its own loop longer than the budget, calls under way are answered with what has come meanwhile."""
    async with CacheManager(valkey.url, prefix="p7", budget=1.0) as manager:
        world = World(manager)
        await world.warm()
        hits = world.stats["hits"]
        errors = world.stats["errors"]
        calls = [asyncio.ensure_future(world.ask(key)) for key in range(20)]
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(1.1)
        await asyncio.gather(*calls)
        assert world.stats["hits"] == hits + 20
        assert world.stats["errors"] == errors
