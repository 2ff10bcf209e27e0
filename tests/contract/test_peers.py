"""PEERS.md: what other libraries get wrong, by its numbers, over every store; rows with a module of their own are held there, too."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.decorators import cache, cache_menu
from aiocache_aura.errors import BackendError
from aiocache_aura.policy import CachePolicy
from aiocache_aura.stores import leases
from aiocache_aura.types import FOREVER
from tests.clocks import ManualClock
from tests.contract.conftest import PATIENT
from tests.steps import Source, settled, soon

TESTS = Path(__file__).parents[1]
ROWS = (1, 2, 3, 4, 5, 6, 9, 10, 11, 13, 14, 16, 17, 18, 19, 20, 21, 22, 26, 27, 31, 34, 35, 36)


def test_each_row_has_a_named_test():
    """What is built of what PEERS.md asks for is shown by name."""
    found = re.findall(r"^ *(?:async )?def test_r(\d+)_", "\n".join(path.read_text() for path in TESTS.rglob("test_*.py")), re.MULTILINE)
    assert set(ROWS) - set(map(int, found)) == set()


class Commands:
    """How many commands a server has run since it was last asked, by name."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._client.config_resetstat()

    def since(self) -> dict[str, int]:
        stats = self._client.info("commandstats")
        self._client.config_resetstat()
        ours = {name.removeprefix("cmdstat_").lower(): one["calls"] for name, one in stats.items()}
        return {name: calls for name, calls in ours.items() if not name.startswith(("config", "info"))}


@pytest.mark.parametrize("leaver", ["the first", "another", "all but one"])
async def test_r1_who_is_cancelled_cancels_nobody_else(manager, leaver):
    """Of callers that wait for one load any may leave, whoever began it: the others get the value of that one load."""
    source = Source(held=True)

    @cache_menu(manager=manager)
    async def dish(n: int) -> int:
        return await source.load()

    callers = [asyncio.ensure_future(dish(1)) for _ in range(5)]
    load = await source.begun()
    await settled()
    leaving = {"the first": callers[:1], "another": callers[2:3], "all but one": callers[:4]}[leaver]
    for caller in leaving:
        caller.cancel()
    await settled()
    assert all(caller.cancelled() for caller in leaving)
    load.finish()
    assert [await soon(caller) for caller in callers if caller not in leaving] == [1] * (5 - len(leaving))
    assert (source.loads, source.cancelled) == (1, [])
    assert await dish(1) == 1
    assert source.loads == 1


async def test_r1_the_last_one_to_leave_ends_the_load(manager):
    """And leaves nothing behind: the next caller's load is its own."""
    source = Source(held=True)
    callers = [asyncio.ensure_future(manager.get_or_load("menu", "a", source.load)) for _ in range(5)]
    await source.begun()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await settled()
    assert source.cancelled == [1]
    source.version, source.held = 2, False
    assert await soon(manager.get_or_load("menu", "a", source.load)) == 2


async def test_r2_who_waits_asks_the_server_nothing(server):
    """Twenty callers wait for a load: not a command is sent on their behalf until it has ended."""
    source = Source(held=True)
    async with CacheManager(server.url, budget=PATIENT) as manager:
        callers = [asyncio.ensure_future(manager.get_or_load("menu", "a", source.load)) for _ in range(20)]
        load = await source.begun()
        await settled()
        with server.client() as client:
            commands = Commands(client)
            await asyncio.sleep(0.15)
            assert commands.since() == {}
        load.finish()
        assert await asyncio.gather(*callers) == [1] * 20


async def test_r3_a_process_that_died_while_loading_holds_nobody_up(manager, peer, monkeypatch):
    """However long the entry would have lived: another process loads as soon as a short lease is over, which nobody renews any more."""
    monkeypatch.setattr(leases, "LEASE", 0.3)
    dead, alive = Source(held=True), Source()
    dying = asyncio.ensure_future(manager.get_or_load("menu", "a", dead.load, ttl="3h"))
    await dead.begun()
    if peer is manager:
        dying.cancel()
        await settled()
    else:
        manager.engine_now()._port.leases.forget()
    alive.version = 2
    assert await soon(peer.get_or_load("menu", "a", alive.load, ttl="3h")) == 2
    assert await peer.get("menu", "a") == 2
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)


async def test_r4_a_hit_is_one_command(server):
    """One round trip, whatever the entry depends on; hits of one tick share it."""
    async with CacheManager(server.url, budget=PATIENT) as manager:

        @cache_menu(manager=manager, tags=["dish:{n}", "all"])
        async def dish(n: int, restaurant_id: int) -> int:
            return n

        await dish(1, 7), await dish(2, 7)
        with server.client() as client:
            commands = Commands(client)
            assert await dish(1, 7) == 1
            assert commands.since() == {"mget": 1}
            assert await asyncio.gather(*(dish(n % 2 + 1, 7) for n in range(100))) == [1, 2] * 50
            assert commands.since() == {"mget": 1}


async def test_r5_callers_in_many_processes_share_one_load(store):
    """Four processes with ten callers each: one load (each manager's own, where it has a memory of its own), and hits afterwards."""
    managers = [store.open() for _ in range(4)]
    loads = []

    def function(manager: CacheManager) -> Any:
        @cache_menu(manager=manager)
        async def dish(n: int) -> int:
            loads.append(manager)
            await asyncio.sleep(0)
            return n

        return dish

    functions = [function(manager) for manager in managers]
    assert await asyncio.gather(*(dish(1) for dish in functions for _ in range(10))) == [1] * 40
    assert len(loads) == len(set(loads)) == (4 if store.is_memory else 1)
    loads.clear()
    assert await asyncio.gather(*(dish(1) for dish in functions for _ in range(10))) == [1] * 40
    assert loads == []


async def test_r6_an_entry_that_lives_shorter_does_not_shorten_its_tag(manager):
    """A tag that a short-lived entry has, too, still clears the long-lived one once the short life is over."""
    await manager.set("menu", "long", 1, ttl="1h", tags=["x"])
    await manager.set("menu", "short", 1, ttl=0.05, tags=["x"])
    await asyncio.sleep(0.1)
    assert await manager.mget("menu", ["long", "short"]) == [1, None]
    assert await manager.invalidate_tags("x")
    assert await manager.get("menu", "long") is None


@pytest.mark.parametrize("verb", ["get", "decorated", "get_or_load", "set"])
async def test_r13_500_callers_at_once_get_no_error(store, verb):
    """They wait; nobody is refused a connection."""
    manager = store.open(strict=True)

    @cache_menu(manager=manager)
    async def dish(n: int) -> int:
        return n

    await manager.mset("menu", {str(n): n for n in range(500)})
    use = {
        "get": lambda n: manager.get("menu", str(n)),
        "decorated": dish,
        "get_or_load": lambda n: manager.get_or_load("menu", str(n), lambda: -1),
        "set": lambda n: manager.set("menu", str(n), n),
    }[verb]
    got = await asyncio.gather(*(use(n) for n in range(500)))
    assert got == ([True] * 500 if verb == "set" else list(range(500)))
    assert manager.stats()["menu"]["errors"] == 0


async def test_r14_under_load_the_cache_goes_on_caching(store):
    """500 callers of 500 cold calls: every one is stored, and a hit the next time."""
    manager = store.open()
    loads = []

    @cache_menu(manager=manager)
    async def dish(n: int) -> int:
        loads.append(n)
        return n

    for _ in range(2):
        assert await asyncio.gather(*(dish(n) for n in range(500))) == list(range(500))
    assert sorted(loads) == list(range(500))
    stats = manager.stats()["menu"]
    assert (stats["errors"], stats["sets"], stats["hits"]) == (0, 500, 500)


async def test_r16_falsy_values_are_not_loaded_again(manager):
    loads = []

    @cache_menu(manager=manager)
    async def empty(n: int) -> list[int]:
        loads.append(n)
        return []

    assert [await empty(1), await empty(1)] == [[], []]
    assert loads == [1]


async def test_r17_nothing_is_kept_for_keys_that_were_loaded_once(manager):
    """No lock, flight or waiter is left for any of a thousand keys, whether its load went well, failed, or was left."""

    async def fail() -> int:
        raise LookupError

    for n in range(0, 1000, 100):
        loads = [manager.get_or_load("menu", str(m), lambda m=m: asyncio.sleep(0, m)) for m in range(n, n + 80)]
        fails = [manager.get_or_load("menu", str(m), fail) for m in range(n + 80, n + 90)]
        left = [asyncio.ensure_future(manager.get_or_load("menu", str(m), asyncio.Event().wait)) for m in range(n + 90, n + 100)]
        await settled()
        for one in left:
            one.cancel()
        await asyncio.gather(*loads, *fails, *left, return_exceptions=True)
    await settled()
    engine = manager.engine_now()
    assert repr(engine.flights) == "<Flights 0 open, 0 tasks>"


async def test_r17_an_error_of_the_server_does_not_come_out_of_get_or_load(own_server):
    """Nor out of a decorated function, whenever in the call it happens."""
    server = own_server()
    async with CacheManager(server.url, budget=0.1) as manager:

        async def load() -> int:
            server.kill()
            return 1

        assert await manager.get_or_load("menu", "a", load) == 1
        assert await manager.get_or_load("menu", "a", lambda: 2) == 2
        server.start()


async def test_r18_a_loader_that_hangs_keeps_only_its_own_callers(manager, peer):
    """Not those of other keys, and not those of the same key after it was cleared."""
    hung = asyncio.ensure_future(manager.get_or_load("menu", "a", asyncio.Event().wait))
    await settled()
    assert await soon(manager.get_or_load("menu", "b", lambda: 1)) == 1
    assert await peer.delete("menu", "a") == 0
    if peer is not manager:
        assert await soon(peer.get_or_load("menu", "a", lambda: 2)) == 2
    await manager.invalidate("menu")
    assert await soon(manager.get_or_load("menu", "a", lambda: 3)) == 3
    assert await peer.get("menu", "a") == 3
    hung.cancel()
    await asyncio.gather(hung, return_exceptions=True)
    assert await manager.get("menu", "a") == 3


@pytest.mark.parametrize("behind", [False, True], ids=["waited for", "behind"])
@pytest.mark.parametrize("how", ["delete", "tag", "clear"])
async def test_r18_what_is_removed_while_it_loads_stays_removed(clocked, clock, how, behind):
    """By key, by tag or with everything, while it is loaded for a caller or refreshed behind: the old value is not stored afterwards."""
    source = Source(held=True)
    policy = {"ttl": 60, "stale": 600, "tags": ["x"]}
    if behind:
        await clocked.set("menu", "a", 0, **policy)
        clock.advance(61)
    load = asyncio.ensure_future(clocked.get_or_load("menu", "a", source.load, **policy))
    under_way = await source.begun()
    if behind:
        assert await soon(load) == 0
    clear = {"delete": lambda: clocked.delete("menu", "a"), "tag": lambda: clocked.invalidate_tags("x")}
    await clear.get(how, clocked.caches["menu"].clear_namespace)()
    source.version, source.held = 2, False
    assert await soon(clocked.get_or_load("menu", "a", source.load, **policy)) == 2
    under_way.finish()
    assert await soon(load) in (0, 1)
    await settled()
    assert await clocked.get("menu", "a") == 2


async def test_r19_clocks_that_differ_do_not_matter_to_an_invalidation(store):
    """A process whose clock is an hour slow clears what one whose clock is an hour fast has just stored, and the other way round."""
    if store.is_memory:
        slow = fast = store.open()
    else:
        now = time.time()
        slow, fast = (store.open(prefix="clocks", clock=ManualClock(now + hours * 3600)) for hours in (-1, 1))
    for writer, clearer in ((fast, slow), (slow, fast)):
        await writer.set("menu", "a", 1, ttl="1d", tags=["x"])
        assert await clearer.invalidate_tags("x")
        assert await writer.get("menu", "a") is None
        assert await clearer.get("menu", "a") is None


async def test_r20_a_tag_is_cleared_for_who_has_seen_it_before(manager, peer):
    """Another process has read the entry, so it knows its tag's generation: an invalidation elsewhere counts with its next read."""
    for _ in range(2):
        await manager.set("menu", "a", 1, tags=["x"])
        assert [await peer.get("menu", "a") for _ in range(2)] == [1, 1]
        assert await manager.invalidate("menu", tags=["x"])
        assert await peer.get("menu", "a") is None


async def test_r25_50_requests_at_once_are_one_load(manager):
    """Whichever verb they come through, for one entry."""
    source = Source(held=True)

    @cache(cache_type="menu", key="a", manager=manager)
    async def dish() -> int:
        return await source.load()

    async def batch() -> int:
        return (await manager.get_or_load_many("menu", ["a"], lambda keys: 1 / 0))["a"]

    first = asyncio.ensure_future(dish())
    load = await source.begun()
    uses = [dish, lambda: manager.get_or_load("menu", "a", lambda: 1 / 0), batch]
    callers = [first, *(asyncio.ensure_future(uses[n % 3]()) for n in range(49))]
    (flight,) = manager.engine_now().flights.by_key.values()
    async with asyncio.timeout(PATIENT):
        while len(flight.waiters) < 50:  # a batch asks the server before it joins
            await asyncio.sleep(0)
    load.finish()
    assert await asyncio.gather(*callers) == [1] * 50
    assert source.loads == 1
    assert manager.stats()["menu"]["coalesced"] == 49


def test_r28_an_import_starts_nothing():
    """No thread, no event loop, no connection: a process that imports may fork."""
    code = (
        "import threading, os\n"
        "import aiocache_aura, aiocache_aura.cache_manager, aiocache_aura.redis_client, aiocache_aura.decorators\n"
        "from aiocache_aura import CacheManager\n"
        "manager = CacheManager('redis://127.0.0.1:1/0')\n"
        "print(threading.active_count(), len(os.listdir('/proc/self/fd')))\n"
    )
    bare = "import threading, os; print(threading.active_count(), len(os.listdir('/proc/self/fd')))"
    said = [subprocess.run([sys.executable, "-c", one], capture_output=True, text=True, check=True).stdout for one in (code, bare)]
    assert said[0] == said[1]


async def test_r29_the_hottest_key_stays(clock):
    """What is asked for is kept, however near its end; what nobody asks for goes."""
    async with CacheManager(l1_entries=10, clock=clock) as manager:
        await manager.set("menu", "hot", "hot", ttl=1)
        for n in range(100):
            assert await manager.get("menu", "hot") == "hot"
            await manager.set("menu", str(n), n, ttl=FOREVER)
        assert len(await manager.get_many("menu", map(str, range(100)))) == 9


class Session:
    """A session that belongs to a caller, and must not be used once it is closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.is_closed = True


async def test_r35_a_load_ends_with_the_caller_whose_session_it_uses(manager):
    """Before that is closed; who waits goes on with a session of its own."""
    begun: asyncio.Queue[Session] = asyncio.Queue()
    go, used_closed = asyncio.Event(), []

    @cache_menu(manager=manager, exclude=["db"])
    async def dish(n: int, db: Session) -> int:
        begun.put_nowait(db)
        try:
            await go.wait()
        finally:
            await asyncio.sleep(0)
            used_closed.append(db.is_closed)
        return n

    sessions: list[Session] = []

    async def request() -> int:
        async with Session() as db:
            sessions.append(db)
            return await dish(1, db)

    first, second = (asyncio.ensure_future(request()) for _ in range(2))
    assert await soon(begun.get()) is sessions[0]
    await settled()
    first.cancel()
    assert await soon(begun.get()) is sessions[1]
    assert used_closed == [False]
    go.set()
    assert await soon(second) == 1
    await asyncio.gather(first, return_exceptions=True)
    assert used_closed == [False, False]
    assert [session.is_closed for session in sessions] == [True, True]
    assert await dish(1, Session()) == 1


async def test_r7_what_another_process_changes_is_seen_at_once(manager, peer):
    """No copy of a process' own outlives an invalidation, a delete or a set of another."""
    for n, change in enumerate((peer.invalidate("menu"), peer.delete("menu", "a"), peer.set("menu", "a", 7), peer.invalidate_tags("x"))):
        await manager.set("menu", "a", n, tags=["x"])
        assert [await manager.get("menu", "a") for _ in range(3)] == [n] * 3
        await change
        assert await manager.get("menu", "a") in (None, 7)


async def test_r15_an_emptied_server_serves_nothing_old(remote):
    """FLUSHALL, by hand: all of it is a miss, in every process."""
    managers = [remote.open(), remote.open()]
    for manager in managers:
        await manager.set("menu", "a", 1)
        assert await manager.get("menu", "a") == 1
    with remote.client() as client:
        client.flushall()
    assert [await manager.get("menu", "a") for manager in managers] == [None, None]
    assert [await manager.get_or_load("menu", "a", lambda: 2) for manager in managers] == [2, 2]
    assert [await manager.get("menu", "a") for manager in managers] == [2, 2]


async def test_a_store_that_loses_scopes_only_loses_entries(remote):
    """A server that evicts what it likes: lost generations and permits are misses, never old values, and the cache goes on."""
    manager = remote.open()
    with remote.client() as client:
        for lost in ("shop!g:*", "shop!p:*", "shop:*"):
            await manager.get_or_load("menu", "a", lambda: 1, tags=["x"])
            for name in client.scan_iter(match=lost, count=1000):
                client.delete(name)
            assert await manager.get("menu", "a") in ((1,) if lost == "shop!p:*" else (None,))
            await manager.invalidate("menu", tags=["x"])
            assert await manager.get_or_load("menu", "a", lambda: 2, tags=["x"]) == 2
            assert await manager.get("menu", "a") == 2
            await manager.delete("menu", "a")


async def test_types_and_prefixes_share_nothing(store):
    """Two applications on one server, whose keys are spelled alike."""
    managers = [store.open(prefix=prefix) for prefix in ("shop", "shop:menu", "shop!g", "shop!p", "sho", "shop:")]
    for n, manager in enumerate(managers):
        for name in ("menu2", "x"):
            manager.register(name, CachePolicy(ttl=FOREVER))
        for cache_type in ("menu", "menu2", "x"):
            await manager.set(cache_type, "a", (n, cache_type), tags=["t"], tenant=1)
    for n, manager in enumerate(managers):
        for cache_type in ("menu", "menu2", "x"):
            assert await manager.get(cache_type, "a", tenant=1) == (n, cache_type)
            assert await manager.ttl(cache_type, "a", tenant=1) == (math.inf if cache_type != "menu" else pytest.approx(3600, abs=60))
    for clear in (
        managers[0].invalidate_tenant(1),
        managers[0].invalidate_tags("t"),
        managers[0].invalidate_pattern("menu", "*"),
        managers[0].invalidate_pattern("menu2", "*"),
        managers[0].invalidate("x"),
    ):
        await clear
    for n, manager in enumerate(managers):
        found = [await manager.get(cache_type, "a", tenant=1) for cache_type in ("menu", "menu2", "x")]
        assert found == ([None] * 3 if n == 0 else [(n, "menu"), (n, "menu2"), (n, "x")])


async def test_errors_of_a_strict_manager_leave_nothing_behind(own_server, clock):
    """A verb that raises has ended: nothing of it waits, and the next one works once the server does."""
    server = own_server()
    async with (
        CacheManager(server.url, budget=PATIENT, clock=clock) as patient,
        CacheManager(server.url, strict=True, budget=0.1, clock=clock) as manager,
    ):
        assert await patient.set("menu", "a", 1)
        with suppress(BackendError):
            await manager.set("menu", "other", 1)
        server.stop()
        for _ in range(3):
            got = await asyncio.gather(
                manager.get("menu", "a"), manager.set("menu", "b", 1), manager.add("menu", "c", 1), return_exceptions=True
            )
            assert all(isinstance(one, BackendError) for one in got)
        server.cont()
        async with asyncio.timeout(PATIENT):
            while True:
                try:
                    assert await manager.get("menu", "a") == 1
                    break
                except BackendError:
                    await asyncio.sleep(0.01)
        assert repr(manager.engine_now().flights) == "<Flights 0 open, 0 tasks>"
