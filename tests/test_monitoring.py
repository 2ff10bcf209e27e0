"""The monitor: figures over windows, and the task that looks after a cache."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocache_aura import (
    BackendTimeoutError,
    CacheManager,
    CacheMonitor,
    CachePolicy,
    CacheWarmer,
    ConfigurationError,
    Health,
    HealthLimits,
    UnknownCacheTypeError,
    cache_menu,
    current_tenant,
    monitoring,
    tenant_scope,
    watching,
)
from aiocache_aura import cache_manager as desk
from aiocache_aura.health import check_health
from aiocache_aura.histogram import Histogram
from aiocache_aura.monitoring import cache_monitor
from aiocache_aura.published import BOARD, LENGTHS, Published, counts_from_dict, counts_to_dict, covering, process_name, windows_of
from aiocache_aura.recorder import Recorder
from aiocache_aura.stats import INTS, Counts
from aiocache_aura.watching import AGAIN, MARKS, Watch
from tests.clocks import ManualClock
from tests.leased import VirtualLoop
from tests.steps import SOON, settled, soon

ROOT = Path(__file__).parents[1]


@pytest.fixture
async def manager(clock):
    async with CacheManager("memory://", clock=clock) as manager:
        yield manager


@pytest.fixture
def monitor(manager):
    return CacheMonitor(manager)


class Pace:
    """The pauses of monitors' tasks: they end when the test says so."""

    def __init__(self) -> None:
        self.lag = 0.0
        self.asked: list[float] = []
        self._pauses: list[asyncio.Future[float]] = []
        self._arrived = asyncio.Condition()

    async def rest(self, seconds: float) -> float:
        self.asked.append(seconds)
        pause = asyncio.get_running_loop().create_future()
        async with self._arrived:
            self._pauses.append(pause)
            self._arrived.notify_all()
        return await pause

    async def looked(self, tasks: int = 1) -> None:
        """So many tasks have looked, and rest."""
        async with asyncio.timeout(SOON), self._arrived:
            await self._arrived.wait_for(lambda: len(self._pauses) >= tasks)

    async def look(self) -> None:
        """Have all that rest look once more."""
        pauses, self._pauses = [one for one in self._pauses if not one.done()], []
        for pause in pauses:
            pause.set_result(self.lag)
        await self.looked(len(pauses))

    async def look_until(self, is_so) -> None:
        """Have them look again until it is."""
        async with asyncio.timeout(SOON):
            while not is_so():
                await self.look()
                await settled()


@pytest.fixture
def pace(monkeypatch):
    pace = Pace()
    monkeypatch.setattr(watching, "rest", pace.rest)
    return pace


class Condition:
    """A health that the test decides on, in the place of the checks."""

    def __init__(self) -> None:
        self.status = "healthy"
        self.lags: list[float] = []
        self.error: BaseException | None = None

    async def check(self, manager, *, thresholds, loop_lag=0.0, **_):
        self.lags.append(loop_lag)
        if self.error is not None:
            raise self.error
        return Health(status=self.status, issues=[] if self.status == "healthy" else [f"it is {self.status}"], checks={})


@pytest.fixture
def condition(monkeypatch):
    condition = Condition()
    monkeypatch.setattr(monitoring, "check_health", condition.check)
    return condition


async def board(manager, name=BOARD):
    return await (await manager.engine()).port.notes.read(name, timeout=SOON)


async def fill(manager, cache_type="menu", hits=3, misses=2):
    """So many hits and misses, of keys that are set by hand."""
    await manager.set(cache_type, "there", 1)
    for _ in range(hits):
        await manager.get(cache_type, "there")
    for _ in range(misses):
        await manager.get(cache_type, "missing")


class TestMetrics:
    async def test_the_figures_of_a_type_and_of_all(self, manager, monitor):
        """A type's figures are its own; without a type they are all types together."""
        await fill(manager, "menu", hits=3, misses=2)
        await fill(manager, "api", hits=1, misses=4)
        await manager.delete("menu", "there")
        menu, both = await monitor.get_metrics(cache_type="menu", last_minutes=60), await monitor.get_metrics()
        assert [menu[name] for name in ("hits", "misses", "sets", "deletes", "hit_rate")] == [3, 2, 1, 1, 0.6]
        assert [both[name] for name in ("hits", "misses", "sets", "deletes", "hit_rate")] == [4, 6, 2, 1, 0.4]
        assert menu["cache_type"] == "menu" and both["cache_type"] is None and both["last_minutes"] == 60

    async def test_the_figures_of_loads(self, manager, monitor, clock):
        """Loads, their seconds, who waited for one of them, and what hits have saved by the cost of the load."""

        async def load():
            await asyncio.sleep(0)
            clock.advance(2)
            return 1

        await asyncio.gather(*(manager.get_or_load("menu", "k", load) for _ in range(3)))
        await manager.get_or_load("menu", "k", load)
        menu = await monitor.get_metrics("menu")
        assert (menu["loads"], menu["load_seconds"], menu["coalesced"], menu["hits"]) == (1, 2.0, 2, 1)
        assert menu["saved_loads"] == 3 and menu["saved_seconds"] == pytest.approx(2, rel=0.1)
        assert menu["latency_by_operation"]["load"]["p50"] == pytest.approx(2000, rel=0.05)

    async def test_what_goes_wrong(self, manager, monitor, clock):
        """Stale values by their reason, evictions by theirs."""
        manager.override("menu", ttl=10, stale=100, throttle=0)

        async def fail():
            raise TimeoutError

        await manager.get_or_load("menu", "k", lambda: 1)
        clock.advance(20)
        await manager.get_or_load("menu", "k", fail)
        menu = await monitor.get_metrics("menu")
        assert menu["stale_served"] == sum(menu["stale_by_reason"].values()) == 1 and menu["evictions"] == {}
        async with CacheManager("memory://", l1_entries=2, clock=clock) as small:
            for n in range(5):
                await small.set("menu", str(n), n)
            assert sum((await CacheMonitor(small).get_metrics("menu"))["evictions"].values()) == 3

    async def test_errors_of_the_store_by_class(self, own_server):
        """A server that is gone is counted by what it raised."""
        server = own_server()
        async with CacheManager(server.url, budget=10) as manager:
            await manager.set("menu", "k", 1)
            server.kill()
            await manager.get("menu", "k")
            menu = await CacheMonitor(manager).get_metrics("menu")
        assert menu["errors"] == sum(menu["errors_by_type"].values()) == 1 and "BackendError" in "".join(menu["errors_by_type"])

    async def test_only_what_is_in_the_window(self, manager, monitor, clock):
        """What is older than the minutes asked for does not count, slow operations neither."""
        manager.recorder.slow_threshold = 0.0
        await fill(manager, hits=1, misses=0)
        clock.advance(600)
        await fill(manager, hits=2, misses=0)
        recent, longer = await monitor.get_metrics("menu", last_minutes=5), await monitor.get_metrics("menu", last_minutes=20)
        assert (recent["hits"], longer["hits"]) == (2, 3)
        assert [one["operation"] for one in recent["slow_operations"]] == ["set", "get", "get"]
        assert len(longer["slow_operations"]) == 5

    async def test_slow_operations_are_of_the_type(self, manager, monitor):
        """Those of another type are not among them; each has type, key, operation, time and size."""
        manager.recorder.slow_threshold = 0.0
        await manager.set("menu", "a", 1)
        await manager.set("api", "b", 1)
        (one,) = (await monitor.get_metrics("api"))["slow_operations"]
        assert (one["cache_type"], one["operation"]) == ("api", "set")
        assert set(one) == {"cache_type", "operation", "key", "seconds", "size", "at"}
        assert len((await monitor.get_metrics())["slow_operations"]) == 2

    async def test_percentiles_are_of_lookups(self, manager, monitor):
        """avg, p50, p95 and p99 are those of "get", in milliseconds."""
        for seconds in (0.001, 0.001, 0.001, 1.0):
            manager.recorder.touch(manager.recorder.clock.monotonic())
            manager.counts("menu").took("get", seconds)
        took = (await monitor.get_metrics("menu"))["latency_ms"]
        assert took["avg"] == pytest.approx(250.75) and took["p50"] == pytest.approx(1, rel=0.05)
        assert took["p95"] == took["p99"] == pytest.approx(1000, rel=0.05)

    async def test_nothing_is_nothing(self, monitor):
        """A hit rate of nothing is 0.0, as are all figures, and no key is missing."""
        empty, names = (
            await monitor.get_metrics("menu"),
            "hits misses sets deletes loads coalesced followed stale_served errors invalidations",
        )
        assert empty["hit_rate"] == 0.0 and isinstance(empty["hit_rate"], float)
        assert all(empty[name] == 0 for name in [*names.split(), "load_seconds", "saved_loads", "saved_seconds"])
        assert empty["latency_ms"] == {"avg": 0.0, "p50": 0.0, "p95": 0.0, "p99": 0.0} and empty["slow_operations"] == []
        assert empty["evictions"] == empty["errors_by_type"] == empty["latency_by_operation"] == {}

    async def test_it_is_plain_values(self, manager, monitor):
        """JSON gives it back as it was; its text tells the hit rate."""
        manager.recorder.slow_threshold = 0.0
        await fill(manager)
        menu = await monitor.get_metrics("menu")
        assert json.loads(json.dumps(menu)) == menu
        assert "menu, last 60 minutes" in str(menu) and "hit rate 60.0%" in str(menu)

    @pytest.mark.parametrize("minutes", [1, 1.0, 1.5, 1440])
    async def test_minutes_that_are_kept(self, monitor, minutes):
        """From 1 to 1440, whole or not."""
        assert (await monitor.get_metrics(last_minutes=minutes))["last_minutes"] == minutes

    @pytest.mark.parametrize("minutes", [0.999, 0, -5, 1440.001, math.nan, math.inf, True, "60", None])
    async def test_minutes_that_are_not(self, monitor, minutes):
        """Anything else is a ValueError, for the report too."""
        with pytest.raises(ValueError, match="1 to 1440"):
            await monitor.get_metrics(last_minutes=minutes)
        with pytest.raises(ValueError, match="1 to 1440"):
            await monitor.get_cache_report(minutes)

    @pytest.mark.parametrize("name", ["menus", "", 5, ["menu"]], ids=str)
    async def test_an_unknown_type(self, monitor, name):
        """It is refused as everywhere."""
        with pytest.raises(UnknownCacheTypeError):
            await monitor.get_metrics(name)


class TestWhose:
    async def test_the_process_wide_manager_is_looked_up_at_each_call(self):
        """`cache_monitor` watches what `aiocache_aura.cache_manager.cache_manager` is now, patched or not."""
        async with CacheManager("memory://") as other:
            await fill(other, hits=7)
            with mock.patch("aiocache_aura.cache_manager.cache_manager", other):
                assert cache_monitor.manager is other
                assert (await cache_monitor.get_metrics())["hits"] == 7
            assert cache_monitor.manager is desk.cache_manager
            assert (await CacheMonitor(other).get_metrics())["hits"] == 7

    async def test_a_stranger_is_refused(self):
        """A mock in the manager's place has no figures, and says so."""
        with mock.patch("aiocache_aura.cache_manager.cache_manager", mock.MagicMock()):
            with pytest.raises(ConfigurationError, match="MagicMock"):
                await cache_monitor.get_metrics()
            with pytest.raises(ConfigurationError, match="MagicMock"):
                async with cache_monitor.running():
                    raise AssertionError("it runs")

    async def test_health_is_by_the_limits_of_the_monitor(self, valkey):
        """A check that they leave out is not made, in the report neither."""
        async with CacheManager(valkey.url, prefix="limits") as manager:
            monitor = CacheMonitor(manager)
            assert (await monitor.check_health())["status"] == "degraded"
            monitor.limits = HealthLimits(ignore=["eviction", "loop"])
            health = await monitor.check_health()
            assert health["status"] == (await monitor.get_cache_report())["health"]["status"] == "healthy"
            assert "eviction" not in health["checks"] and "reads" in health["checks"]


class TestHealthChanges:
    async def test_a_server_that_is_paused_and_goes_on(self, own_server, pace, monkeypatch):
        """SIGSTOP is one call of `on_unhealthy`, SIGCONT one of `on_recovered`, however often it is looked at."""
        monkeypatch.setattr(monitoring, "check_health", partial(check_health, timeout=2))
        server, heard = own_server(), []
        async with (
            CacheManager(server.url, budget=0.2) as manager,
            CacheMonitor(manager).running(
                on_unhealthy=lambda health: heard.append(("unhealthy", health)), on_recovered=lambda health: heard.append(("well", health))
            ),
        ):
            await pace.looked()
            assert heard == []
            server.stop()
            await pace.look()
            await settled()
            ((change, health),) = heard
            assert change == "unhealthy" and health["status"] == "unhealthy" and health["issues"]
            server.cont()
            await pace.look_until(lambda: len(heard) > 1)
            await pace.look()
            await settled()
            _, (change, health) = heard
            assert change == "well" and health["status"] in ("healthy", "degraded")

    async def test_each_change_once(self, monitor, pace, condition):
        """Unhealthy, and not any more; degraded is neither a change from healthy nor to it."""
        heard = []
        async with monitor.running(on_unhealthy=lambda h: heard.append(h["status"]), on_recovered=lambda h: heard.append(h["status"])):
            await pace.looked()
            for status in ("degraded", "healthy", "unhealthy", "unhealthy", "degraded", "healthy", "unhealthy", "healthy"):
                condition.status = status
                await pace.look()
            await pace.look()
            await settled()
        assert heard == ["unhealthy", "degraded", "unhealthy", "healthy"]

    async def test_it_may_begin_unhealthy(self, monitor, pace, condition, caplog):
        """Then that is told at the first look, and logged with its issues."""
        heard, condition.status = asyncio.Queue(), "unhealthy"
        async with monitor.running(on_unhealthy=heard.put):
            assert (await soon(heard.get()))["issues"] == ["it is unhealthy"]
        assert "the cache is unhealthy: it is unhealthy" in caplog.text

    async def test_without_callbacks(self, monitor, pace, condition):
        """Changes are only logged."""
        async with monitor.running():
            await pace.looked()
            for condition.status in ("unhealthy", "healthy"):
                await pace.look()

    @pytest.mark.parametrize("kind", ["plain", "async", "gives an awaitable"])
    async def test_callbacks_of_every_kind(self, monitor, pace, condition, kind):
        """Plain, async, and plain ones that give something to await."""
        heard = asyncio.Queue()

        async def put(health):
            await heard.put(health["status"])

        callback = {"plain": lambda h: heard.put_nowait(h["status"]), "async": put, "gives an awaitable": lambda h: put(h)}[kind]
        condition.status = "unhealthy"
        async with monitor.running(on_unhealthy=callback):
            assert await soon(heard.get()) == "unhealthy"

    @pytest.mark.parametrize("error", [LookupError("no such pager"), asyncio.CancelledError()], ids=["raises", "is cancelled"])
    async def test_a_callback_that_fails(self, monitor, pace, condition, caplog, error):
        """What it raises is logged, also a cancellation of something that it awaited; later changes are told all the same."""
        heard = []

        async def broken(health):
            heard.append("unhealthy")
            raise error

        async with monitor.running(on_unhealthy=broken, on_recovered=lambda h: heard.append("well")):
            await pace.looked()
            for condition.status in ("unhealthy", "healthy", "unhealthy", "healthy"):
                await pace.look()
            await settled()
        assert heard == ["unhealthy", "well"] * 2
        assert ("no such pager" in caplog.text) is isinstance(error, LookupError)

    async def test_a_callback_that_hangs(self, monitor, pace, condition):
        """The task goes on looking; the next callback waits for its end, and both end with the block."""
        begun, gate, heard = asyncio.Event(), asyncio.Event(), []

        async def hang(health):
            begun.set()
            await gate.wait()
            heard.append("unhealthy")

        async with monitor.running(on_unhealthy=hang, on_recovered=lambda h: heard.append("well")):
            await pace.looked()
            condition.status = "unhealthy"
            await pace.look()
            await soon(begun.wait())
            condition.status = "healthy"
            for _ in range(3):
                await pace.look()
            assert heard == []
            gate.set()
            await settled()
            assert heard == ["unhealthy", "well"]
            gate.clear()
            condition.status = "unhealthy"
            await pace.look()
        assert heard == ["unhealthy", "well"]

    async def test_a_callback_that_will_not_end(self, monitor, pace, condition, monkeypatch, caplog):
        """One that ignores its cancellation does not keep the block from its end; that is logged."""
        monkeypatch.setattr(watching, "GRACE", 0.01)
        begun, gate, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def stubborn(health):
            begun.set()
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    continue
            ended.set()

        condition.status = "unhealthy"
        async with monitor.running(on_unhealthy=stubborn):
            await soon(begun.wait())
        assert "do not end" in caplog.text
        gate.set()
        await soon(ended.wait())
        await asyncio.sleep(0)

    async def test_too_many_wait_for_one_that_hangs(self, monitor, pace, condition, monkeypatch, caplog):
        """Their number is bounded; what is not called is logged."""
        monkeypatch.setattr(watching, "MOST_WAITING", 3)
        heard = []

        async def hang(health):
            heard.append(health)
            await asyncio.Event().wait()

        async with monitor.running(on_unhealthy=hang, on_recovered=hang):
            await pace.looked()
            for _ in range(3):
                for condition.status in ("unhealthy", "healthy"):
                    await pace.look()
            await settled()
        assert len(heard) == 1 and caplog.text.count("is not called") == 3

    async def test_a_callback_may_end_the_monitor(self, monitor, pace, condition):
        """`stop()` in a callback ends it, and does not wait for itself."""
        ending = asyncio.Event()

        async def stop(health):
            ending.set()
            await monitor.stop()

        condition.status = "unhealthy"
        await monitor.start(on_unhealthy=stop)
        watch = monitor._watch
        await soon(ending.wait())
        await soon(asyncio.wait({watch._task}))
        assert watch.is_over
        await monitor.start()
        await monitor.stop()

    async def test_callbacks_are_in_no_scope(self, monitor, pace, condition):
        """Whoever starts the monitor in a tenant's scope does not have callbacks in it."""
        heard, condition.status = asyncio.Queue(), "unhealthy"
        with tenant_scope(7):
            await monitor.start(on_unhealthy=lambda health: heard.put_nowait(current_tenant()))
        assert await soon(heard.get()) is None
        await monitor.stop()


class TestTheTask:
    @pytest.mark.parametrize("error", [KeyError("odd"), asyncio.CancelledError()], ids=["raises", "is cancelled"])
    async def test_it_never_dies(self, monitor, pace, condition, caplog, error):
        """A look that fails, by whatever, is logged, and the next one is made."""
        heard, condition.error = asyncio.Queue(), error
        async with monitor.running(on_unhealthy=heard.put_nowait):
            await pace.looked()
            await pace.look()
            condition.error, condition.status = None, "unhealthy"
            await pace.look()
            assert (await soon(heard.get()))["status"] == "unhealthy"
        assert caplog.text.count("a look at the cache's health failed") == 1

    async def test_figures_are_published_though_the_checks_fail(self, manager, monitor, pace, condition):
        """One step does not need the other."""
        condition.error = KeyError("odd")
        async with monitor.running():
            await pace.looked()
            (note,) = (await board(manager)).values()
        assert Published.decode(note).status == "unknown"

    async def test_the_lag_of_the_loop_is_told(self, monitor, pace, condition):
        """The checks are given what was measured since the last time, also those that are made by hand meanwhile."""
        async with monitor.running():
            await pace.looked()
            pace.lag = 0.7
            await pace.look()
            await monitor.check_health()
        await monitor.check_health()
        assert condition.lags == [0.0, 0.7, 0.7, 0.0]

    def test_looks_never_overlap(self, monkeypatch):
        """They begin on multiples of the interval; those that are due while one goes on are left out."""
        begun = []

        async def check(manager, **_):
            begun.append(asyncio.get_running_loop().time() - start)
            await asyncio.sleep(2.5 if len(begun) == 2 else 0.25)
            return Health(status="healthy", issues=[], checks={})

        async def main():
            nonlocal start
            start = asyncio.get_running_loop().time()
            async with CacheManager("memory://") as manager, CacheMonitor(manager).running(interval=1):
                await asyncio.sleep(6.5)

        start = 0.0
        monkeypatch.setattr(monitoring, "check_health", check)
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
        assert begun == pytest.approx([0, 1, 4, 5, 6])

    def test_rest_measures_the_lag(self):
        """A loop that is blocked within a pause has a lag, one that is not has none; the pause is as long as it is to be."""

        async def main():
            loop = asyncio.get_running_loop()
            start = loop.time()
            assert await watching.rest(1.0) == pytest.approx(0, abs=1e-6)
            assert loop.time() - start == pytest.approx(1)
            loop.call_later(0.6, loop.clock.advance, 0.7)
            assert await watching.rest(2.0) == pytest.approx(0.6 + 0.7 - 0.75)
            assert loop.time() - start == pytest.approx(3)
            assert await watching.rest(-1.0) == await watching.rest(0.0) == 0.0

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())

    @pytest.mark.parametrize("interval", [0, -1, 0.0, math.nan, math.inf, 86_401, True, "10", None])
    async def test_an_interval_that_cannot_be(self, monitor, interval):
        """It is seconds above 0, and a day at most."""
        with pytest.raises(ConfigurationError, match="interval="):
            await monitor.start(interval)
        with pytest.raises(ConfigurationError, match="interval="):
            async with monitor.running(interval=interval):
                raise AssertionError("it runs")

    async def test_a_callback_that_is_none(self, monitor):
        """A coroutine in a callback's place is a TypeError, and is not left unawaited."""

        async def alert():
            return None

        with pytest.raises(TypeError, match="on_unhealthy=alert, not alert"):
            await monitor.start(on_unhealthy=alert())
        with pytest.raises(TypeError, match="on_emptied"):
            await monitor.start(on_emptied="warm")

    async def test_one_at_a_time(self, monitor, manager, pace):
        """A second task of the same monitor is refused; after the first has ended, or of another monitor, it is not."""
        async with monitor.running():
            await pace.looked()
            assert "running" in repr(monitor)
            with pytest.raises(ConfigurationError, match="is running already"):
                await monitor.start()
            with pytest.raises(ConfigurationError, match="is running already"):
                async with monitor.running():
                    raise AssertionError("it runs twice")
            async with CacheMonitor(manager).running():
                await pace.looked(2)
        assert "running" not in repr(monitor)
        await monitor.start()
        await monitor.stop()
        await monitor.stop()

    async def test_a_block_ends_its_own_task_only(self, monitor, pace):
        """What was begun after a `stop()` within the block goes on after it."""
        async with monitor.running():
            await monitor.stop()
            await monitor.start()
        with pytest.raises(ConfigurationError, match="is running already"):
            await monitor.start()
        await monitor.stop()

    async def test_it_ends_though_the_body_raises(self, monitor):
        """The error comes through, and no task is left."""
        with pytest.raises(LookupError):
            async with monitor.running():
                raise LookupError
        assert "running" not in repr(monitor)

    @pytest.mark.parametrize("scoped", [False, True], ids=["a task", "a scope"])
    async def test_it_ends_though_the_body_is_cancelled(self, manager, monitor, pace, scoped):
        """By a task's cancellation, or by a scope of anyio's, which cancels at every await: its note is taken down."""
        inside = asyncio.Event()

        async def body():
            async with monitor.running():
                await pace.looked()
                inside.set()
                await asyncio.Event().wait()

        if scoped:
            async with anyio.create_task_group() as group:
                group.start_soon(body)
                await soon(inside.wait())
                assert await board(manager)
                group.cancel_scope.cancel()
        else:
            task = asyncio.create_task(body())
            await soon(inside.wait())
            assert await board(manager)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
        assert "running" not in repr(monitor) and not await board(manager)

    @pytest.mark.parametrize("moment", ["at once", "in a look", "at rest"])
    async def test_it_ends_with_its_manager(self, valkey, moment, monkeypatch):
        """A manager that is closed first, at any moment, is not opened again, and its notes are gone."""
        looking, gate = asyncio.Event(), asyncio.Event()

        async def check(manager, **_):
            looking.set()
            await (gate.wait() if moment == "in a look" else asyncio.sleep(0))
            return Health(status="healthy", issues=[], checks={})

        monkeypatch.setattr(monitoring, "check_health", check)
        pace = Pace()
        monkeypatch.setattr(watching, "rest", pace.rest)
        manager = CacheManager(valkey.url, prefix="closed")
        async with CacheMonitor(manager).running() as monitor:
            if moment == "in a look":
                await soon(looking.wait())
            elif moment == "at rest":
                await pace.looked()
            await manager.aclose()
            assert "running" not in repr(monitor)
            gate.set()
            await asyncio.sleep(0)
        assert manager.engine_now() is None and manager.ports() == []
        with valkey.client() as client:
            assert client.keys("closed*fleet*") == []

    async def test_it_ends_while_the_server_is_paused(self, own_server, pace):
        """The end of the block does not wait for a server that does not answer."""
        server = own_server()
        async with CacheManager(server.url, budget=0.1) as manager:
            async with CacheMonitor(manager).running():
                await pace.looked()
                server.stop()
            server.cont()

    def test_a_loop_that_is_gone_is_no_obstacle(self):
        """A monitor whose task went with its event loop starts in the next, whether or not that one cancelled its tasks."""
        manager = CacheManager("memory://")
        monitor = CacheMonitor(manager)
        asyncio.run(monitor.start())

        async def again():
            await monitor.start()
            await monitor.stop()
            await manager.aclose()

        asyncio.run(again())

    async def test_it_may_be_stopped_from_another_thread(self, monitor, pace):
        """`stop()` in another event loop waits for the end of the task in its own."""
        await monitor.start()
        await pace.looked()
        watch = monitor._watch
        await asyncio.to_thread(lambda: asyncio.run(monitor.stop()))
        assert watch.is_over

    def test_a_loop_that_stops_meanwhile_is_no_obstacle(self):
        """`stop()` in another event loop does not wait for a loop that stops before it has heard of it."""
        manager = CacheManager("memory://")
        monitor = CacheMonitor(manager)
        loop, held, go = asyncio.new_event_loop(), threading.Event(), threading.Event()

        def hold():
            held.set()
            go.wait(SOON)
            loop.stop()

        def run():
            loop.run_until_complete(monitor.start())
            loop.call_soon(hold)
            loop.run_forever()

        async def stop():
            stopping = asyncio.create_task(monitor.stop())
            await asyncio.sleep(0)
            go.set()
            await soon(stopping)

        thread = threading.Thread(target=run)
        thread.start()
        assert held.wait(SOON)
        try:
            asyncio.run(stop())
        finally:
            thread.join()
            loop.run_until_complete(manager.aclose())
            loop.close()

    async def test_a_loop_that_is_closed_meanwhile_is_no_obstacle(self, monitor, pace, monkeypatch):
        """`stop()` in another event loop returns, and leaves no coroutine that nobody awaits."""

        def closed(work, loop):
            asked.append(work)
            raise RuntimeError("Event loop is closed")

        asked = []
        await monitor.start()
        await pace.looked()
        watch = monitor._watch
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "run_coroutine_threadsafe", closed)
            await asyncio.to_thread(lambda: asyncio.run(monitor.stop()))
        assert [inspect.getcoroutinestate(work) for work in asked] == [inspect.CORO_CLOSED]
        await watch.end()

    async def test_it_is_cancelled_again_while_it_ends(self, valkey, pace, condition):
        """It waits for its callbacks and takes its note down though its manager is closed meanwhile."""
        begun, gate, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow(health):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await gate.wait()
                ended.set()

        manager = CacheManager(valkey.url, prefix="again", budget=10)
        monitor = CacheMonitor(manager)
        condition.status = "unhealthy"
        await monitor.start(on_recovered=slow)
        await pace.looked()
        condition.status = "healthy"
        await pace.look()
        await soon(begun.wait())
        with valkey.client() as client:
            assert client.keys("again*fleet*") != []
            ends = [asyncio.create_task(monitor.stop())]
            await settled()
            ends.append(asyncio.create_task(manager.aclose()))
            await settled()
            gate.set()
            await soon(asyncio.wait(ends))
            assert ended.is_set() and client.keys("again*fleet*") == []

    async def test_in_a_fork_it_takes_nothing_down(self, manager, monitor, pace):
        """What is posted is the other process's."""
        await monitor.start()
        await pace.looked()
        watch = monitor._watch
        watch._pid += 1
        pace._pauses[0].set_result(0.0)
        await soon(asyncio.wait({watch._task}))
        assert await board(manager)

    def test_a_fork_begins_anew(self):
        """In a child that was forked while it ran, the monitor is not running, and can be started."""
        code = (
            "import asyncio, os\n"
            "from aiocache_aura.monitoring import cache_monitor as monitor\n"
            "async def again():\n"
            "    await monitor.start(); await monitor.stop()\n"
            "async def main():\n"
            "    async with monitor.running():\n"
            "        await asyncio.sleep(0)\n"
            "        child = os.fork()\n"
            "        if not child:\n"
            "            try:\n"
            "                asyncio.run(again())\n"
            "            except BaseException as error:\n"
            "                print(repr(error), flush=True); os._exit(1)\n"
            "            os._exit(0)\n"
            "        assert os.waitpid(child, 0)[1] == 0\n"
            "asyncio.run(main())\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr

    async def test_it_fits_a_lifespan(self, pace):
        """Starlette's lifespan, written with it, runs the task while the application does."""
        async with CacheManager("memory://") as manager:
            monitor = CacheMonitor(manager)

            async def lifespan(app):
                async with monitor.running(interval=5):
                    yield

            running = lifespan(None)
            await anext(running)
            await pace.looked()
            assert "running" in repr(monitor)
            assert await anext(running, None) is None
            assert "running" not in repr(monitor)


class TestEmptied:
    @pytest.fixture
    def emptied(self):
        return []

    async def test_a_store_that_was_emptied(self, valkey, pace, emptied):
        """FLUSHALL is told once, at the next look; a store that was empty from the start is not."""
        async with CacheManager(valkey.url, prefix="emptied") as manager:
            async with CacheMonitor(manager).running(on_emptied=lambda: emptied.append(1)):
                await pace.looked()
                await pace.look()
                assert emptied == []
                with valkey.client() as client:
                    client.flushall()
                await pace.look()
                await pace.look()
                await settled()
                assert emptied == [1]
            async with CacheMonitor(manager).running(on_emptied=lambda: emptied.append(2)):
                await pace.looked()
                await pace.look()
        assert emptied == [1]

    @pytest.mark.parametrize(("minutes", "told"), [(1, [1]), (58, [1]), (61, [])])
    async def test_a_server_that_comes_back_empty(self, own_server, pace, emptied, clock, minutes, told):
        """One that was away for up to an hour is found to be empty; after that it is not known whether it would be anyway."""
        server = own_server()
        async with (
            CacheManager(server.url, budget=10, clock=clock) as manager,
            CacheMonitor(manager).running(on_emptied=lambda: emptied.append(1)),
        ):
            await pace.looked()
            server.kill()
            await pace.look()
            clock.advance(minutes * 60)
            await pace.look()
            server.start()
            with server.client() as client:
                await pace.look_until(lambda: client.keys("*" + MARKS))
            await pace.look()
            await settled()
            assert emptied == told

    async def test_a_mark_that_has_lived_out_its_life(self, manager, monitor, pace, emptied, clock):
        """A process that was held up for hours finds its mark gone, and draws no conclusion."""
        async with monitor.running(on_emptied=lambda: emptied.append(1)):
            await pace.looked()
            clock.advance(7200)
            await pace.look()
            await pace.look()
        assert emptied == []

    async def test_it_needs_no_publishing(self, manager, monitor, pace, emptied):
        """With `publish=False` no figures are posted, and an emptied store is found all the same."""
        async with monitor.running(on_emptied=lambda: emptied.append(1), publish=False):
            await pace.looked()
            assert not await board(manager) and await board(manager, MARKS)
            (await manager.engine()).port.notes.clear()
            await pace.look()
            await pace.look()
        assert emptied == [1] and not await board(manager, MARKS)

    async def test_each_of_several_is_told(self, manager, monitor, pace, emptied):
        """Monitors of one manager find it out for themselves, also when one of them has ended."""
        other = CacheMonitor(manager)
        await monitor.start(on_emptied=lambda: emptied.append(1))
        await other.start(on_emptied=lambda: emptied.append(2))
        await pace.looked(2)
        (await manager.engine()).port.notes.clear()
        await pace.look()
        await settled()
        assert sorted(emptied) == [1, 2]
        await monitor.stop()
        (await manager.engine()).port.notes.clear()
        await pace.look_until(lambda: len(emptied) > 2)
        await other.stop()
        assert sorted(emptied) == [1, 2, 2] and not await board(manager, MARKS) and not await board(manager, AGAIN)

    async def test_answers_that_are_lost_of_a_store_that_is_full(self, manager, monitor, pace, emptied, monkeypatch):
        """Marks that were put up without an answer, one and then the other, tell nothing by themselves."""
        notes = (await manager.engine()).port.notes
        post, late = notes.post, []

        async def late_post(board, *args, **options):
            posted = await post(board, *args, **options)
            if late and board == late[0]:
                raise BackendTimeoutError(late.pop(0))
            return posted

        monkeypatch.setattr(notes, "post", late_post)
        async with monitor.running(on_emptied=lambda: emptied.append(1)):
            await pace.looked()
            late += [MARKS, AGAIN, MARKS, AGAIN]
            for _ in range(8):
                await pace.look()
            await settled()
        assert emptied == [] and late == []

    @pytest.mark.parametrize("evicted", [MARKS, AGAIN])
    async def test_a_mark_that_was_evicted(self, manager, monitor, pace, emptied, evicted):
        """A store that is full, and has given up one mark now and one later, was not emptied."""
        notes = (await manager.engine()).port.notes
        async with monitor.running(on_emptied=lambda: emptied.append(1)):
            await pace.looked()
            for gone in (evicted, MARKS, AGAIN):
                (name,) = await board(manager, gone)
                await notes.drop(gone, name, timeout=1)
                await pace.look()
                await pace.look()
            await settled()
        assert emptied == []

    @pytest.mark.parametrize("moment", [MARKS, AGAIN])
    async def test_it_is_emptied_while_it_is_looked_at(self, manager, monitor, pace, emptied, monkeypatch, moment):
        """Between the one mark and the other, or after both: it is told once."""
        notes = (await manager.engine()).port.notes
        post, empties = notes.post, []

        async def post_and_empty(board, *args, **options):
            posted = await post(board, *args, **options)
            if board == moment and empties:
                empties.pop()
                notes.clear()
            return posted

        monkeypatch.setattr(notes, "post", post_and_empty)
        async with monitor.running(on_emptied=lambda: emptied.append(1)):
            await pace.looked()
            empties.append(1)
            for _ in range(4):
                await pace.look()
            await settled()
        assert emptied == [1]

    @pytest.mark.parametrize("first", [MARKS, AGAIN])
    @pytest.mark.parametrize("lost", [1, 2])
    async def test_an_answer_that_is_lost(self, manager, monitor, pace, emptied, monkeypatch, lost, first):
        """An emptied store that takes the next post, or two, and answers too late, is found to have been emptied all the same."""
        notes = (await manager.engine()).port.notes
        post, late = notes.post, []

        async def late_post(board, *args, **options):
            posted = await post(board, *args, **options)
            if board != BOARD and late and (board == first or len(late) < lost):
                late.pop()
                raise BackendTimeoutError("late")
            return posted

        monkeypatch.setattr(notes, "post", late_post)
        async with monitor.running(on_emptied=lambda: emptied.append(1)):
            await pace.looked()
            notes.clear()
            late += ["late"] * lost
            for _ in range(4):
                await pace.look()
            await settled()
        assert emptied == [1]

    async def test_nobody_asks_and_no_mark_is_made(self, manager, monitor, pace):
        """Without `on_emptied` there is only the note of figures."""
        async with monitor.running():
            await pace.looked()
            assert len(await board(manager)) == 1 and not await board(manager, MARKS)

    async def test_one_that_is_still_at_it_is_not_begun_again(self, manager, monitor, pace, emptied):
        """A warming that goes on is enough, also if the store is emptied again; looking goes on meanwhile."""

        async def warm():
            emptied.append(1)
            await asyncio.Event().wait()

        async with monitor.running(on_emptied=warm):
            await pace.looked()
            for _ in range(3):
                (await manager.engine()).port.notes.clear()
                await pace.look()
        assert emptied == [1]

    async def test_users_who_miss_are_word_enough(self, valkey, pace, monkeypatch):
        """It is noticed without a look, while users miss; while none does, it is not asked."""
        monkeypatch.setattr(watching, "GUARDED", 0.01)
        async with CacheManager(valkey.url, prefix="guarded", budget=10) as manager:
            emptied, posts, real = asyncio.Queue(), [], Watch._mark_both

            async def marking(self, notes):
                posts.append(None)
                await real(self, notes)

            monkeypatch.setattr(Watch, "_mark_both", marking)
            async with CacheMonitor(manager).running(interval=100, on_emptied=lambda: emptied.put_nowait(1)):
                await pace.looked()
                await asyncio.sleep(0.05)
                assert len(posts) == 1
                with valkey.client() as client:
                    client.flushall()
                deadline = asyncio.get_running_loop().time() + SOON
                while emptied.empty():
                    await manager.get_or_load("menu", f"k{len(posts)}", lambda: None)
                    await asyncio.sleep(0.005)
                    assert asyncio.get_running_loop().time() < deadline

    async def test_with_a_warmer(self, valkey, pace):
        """`on_emptied=warmer.warm_hot` loads again what was hot, without anybody having asked."""
        async with CacheManager(valkey.url, prefix="warmed") as manager:
            loaded = asyncio.Queue()

            @cache_menu(manager=manager)
            async def get_menu(restaurant_id: int) -> dict:
                await asyncio.sleep(0.001)
                loaded.put_nowait(restaurant_id)
                return {"id": restaurant_id}

            async with CacheMonitor(manager).running(on_emptied=CacheWarmer(manager=manager).warm_hot):
                await pace.looked()
                for _ in range(3):
                    await get_menu(5)
                assert loaded.get_nowait() == 5
                with valkey.client() as client:
                    client.flushall()
                await pace.look()
                assert await soon(loaded.get()) == 5


CHILD = """
import asyncio, sys
from aiocache_aura import CacheManager, CacheMonitor, watching

watching.LEAST_LIFE = 0.5

async def main(url):
    async with CacheManager(url, prefix="fleet", budget=10) as manager:
        await manager.set("menu", "k", 1)
        for _ in range(5):
            await manager.get("menu", "k")
        async with CacheMonitor(manager).running(interval=0.1):
            await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(sys.argv[1]))
"""


class TestFleet:
    @pytest.fixture
    def child(self, valkey):
        process = subprocess.Popen([sys.executable, "-c", CHILD, valkey.url], cwd=ROOT, stdin=subprocess.PIPE)
        yield process
        process.kill()
        process.wait()
        process.stdin.close()

    async def fleet(self, manager, until=lambda report: True, **options):
        """The report of the fleet, once it is as it will be."""
        async with asyncio.timeout(SOON):
            while True:
                report = await CacheMonitor(manager).get_cache_report(fleet=True, **options)
                if until(report):
                    return report
                await asyncio.sleep(0.02)

    async def test_the_figures_of_all_are_summed(self, valkey, pace):
        """Those of every manager that publishes, each once; types that are not known here, too."""
        managers = [CacheManager(valkey.url, prefix="sum") for _ in range(3)]
        monitors = [CacheMonitor(manager) for manager in managers]
        managers[2].register("orders", CachePolicy(ttl=60))
        try:
            for n, manager in enumerate(managers):
                await fill(manager, hits=n + 1, misses=2 * n)
            await fill(managers[2], "orders", hits=0, misses=3)
            await monitors[0].start()
            await monitors[1].start()
            await pace.looked(2)
            assert (await self.fleet(managers[2]))["fleet"]["processes"] == 3
            await monitors[2].start()
            await pace.looked(3)
            for asks in managers:
                report = await self.fleet(asks)
                assert [report["types"]["menu"][name] for name in ("hits", "misses", "sets")] == [6, 6, 3]
                took = report["types"]["menu"]["latency_by_operation"]
                assert took["set"]["p50"] > 0 and report["types"]["orders"]["misses"] == 3
                assert report["summary"]["hits"] == 6 and report["summary"]["misses"] == 9
                assert report["fleet"]["processes"] == 3 and report["fleet"]["error"] is None
            own = await monitors[0].get_cache_report()
            assert own["fleet"] is None and own["summary"]["hits"] == 1
        finally:
            for manager in managers:
                await manager.aclose()

    async def test_a_process_that_is_killed_falls_out(self, valkey, child):
        """Another process's figures are there while it lives, and gone soon after kill -9, by the life of its note."""
        async with CacheManager(valkey.url, prefix="fleet") as manager:
            await fill(manager, hits=2, misses=0)
            report = await self.fleet(manager, lambda report: report["fleet"]["processes"] == 2)
            assert report["types"]["menu"]["hits"] == 7 and 0 <= report["fleet"]["oldest_seconds"] < SOON
            os.kill(child.pid, signal.SIGKILL)
            report = await self.fleet(manager, lambda report: report["fleet"]["processes"] == 1)
            assert report["types"]["menu"]["hits"] == 2 and report["fleet"]["oldest_seconds"] == 0.0

    async def test_a_process_that_ends_takes_its_note_down(self, valkey, child):
        """At once, without waiting for the end of its life."""
        async with CacheManager(valkey.url, prefix="fleet") as manager:
            await self.fleet(manager, lambda report: report["fleet"]["processes"] == 2)
            child.communicate(b"\n", timeout=SOON)
            assert child.returncode == 0
            assert not await board(manager)

    async def test_two_monitors_of_one_manager_are_one_process(self, manager, monitor, pace):
        """They post one note, which stays until the last of them has ended."""
        other = CacheMonitor(manager)
        await monitor.start()
        await other.start()
        await pace.looked(2)
        assert len(await board(manager)) == 1
        await monitor.stop()
        assert len(await board(manager)) == 1
        await other.stop()
        assert not await board(manager)

    async def test_one_that_publishes_nothing_keeps_no_note(self, manager, monitor, pace):
        """The note is taken down with the last monitor that posts it."""
        other = CacheMonitor(manager)
        await monitor.start()
        await other.start(publish=False, on_emptied=print)
        await pace.looked(2)
        assert len(await board(manager)) == 1
        await monitor.stop()
        assert not await board(manager) and await board(manager, MARKS)
        await other.stop()
        assert not await board(manager, MARKS)

    async def test_the_window_is_the_same_for_all(self, pace, clock, valkey):
        """Of ten minutes the fleet's is an hour, of this process's figures too, and the report says so."""
        async with CacheManager(valkey.url, prefix="w", clock=clock) as one, CacheManager(valkey.url, prefix="w", clock=clock) as two:
            for manager in (one, two):
                await fill(manager, hits=1, misses=0)
            clock.advance(1200)
            for manager in (one, two):
                await fill(manager, hits=1, misses=0)
            async with CacheMonitor(two).running():
                await pace.looked()
                found = {minutes: await CacheMonitor(one).get_cache_report(minutes, fleet=True) for minutes in (1, 5, 10, 60, 61, 1440)}
        assert {minutes: report["last_minutes"] for minutes, report in found.items()} == {1: 5, 5: 5, 10: 60, 60: 60, 61: 1440, 1440: 1440}
        assert {minutes: report["summary"]["hits"] for minutes, report in found.items()} == {1: 2, 5: 2, 10: 4, 60: 4, 61: 4, 1440: 4}
        assert all(report["types"]["menu"]["last_minutes"] == report["last_minutes"] for report in found.values())

    async def test_what_is_not_well_is_told(self, valkey, pace, condition):
        """A process that is unhealthy and can still post is named."""
        async with CacheManager(valkey.url, prefix="ill") as one, CacheManager(valkey.url, prefix="ill") as two:
            condition.status = "unhealthy"
            async with CacheMonitor(two).running():
                await pace.looked()
                condition.status = "healthy"
                report = await CacheMonitor(one).get_cache_report(fleet=True)
            assert report["fleet"]["unhealthy"] == [process_name(two)] and "1 of them unhealthy" in str(report)
            # what an unhealthy process has posted goes when its life is over
            assert len(await board(one)) == 1

    async def test_hot_keys_are_everybodys(self, valkey, pace):
        """What is hot for another process is hot in the fleet's report, and not in this one's own."""
        async with CacheManager(valkey.url, prefix="hot") as one, CacheManager(valkey.url, prefix="hot") as two:
            two.recorder.heat.offer("menu", "hot:menu:=k", 5.0, None)
            async with CacheMonitor(two).running():
                await pace.looked()
                (key,) = (await CacheMonitor(one).get_cache_report(fleet=True))["hot_keys"]
                assert key["cache_type"] == "menu" and key["seconds"] == pytest.approx(5, rel=0.01)
                assert (await CacheMonitor(one).get_cache_report())["hot_keys"] == []

    async def test_notes_that_cannot_be_read(self, manager, monitor):
        """Of another version or no notes at all: they are counted, and nothing else."""
        notes = (await manager.engine()).port.notes
        for n, note in enumerate((b"", b"{}", b"[1]", b"\xff", b'{"v":99}', b'{"v":1,"process":"p","at":1,"status":"x","windows":[]}')):
            await notes.post(BOARD, str(n), note, life=60, timeout=1)
        fleet = (await monitor.get_cache_report(fleet=True))["fleet"]
        assert (fleet["processes"], fleet["unreadable"], fleet["error"]) == (1, 6, None)

    @pytest.mark.parametrize(
        "strange",
        [
            {"at": "nan"},
            {"at": "inf"},
            {"at": 1e308},
            {"windows": {"1" + "0" * 400: {"menu": {"hits": 1}}}},
            {"windows": {"-60": {"menu": {"hits": 1}}}},
            {"windows": {"60": {"menu": {"hits": 2**63}}}},
            {"windows": {"60": {"menu": {"load_seconds": 1.7e308}}}},
            {"windows": {"60": {"menu": {"times": {"get": [1.7e308, {"5": 3}]}}}}},
        ],
        ids=lambda strange: str(strange)[:40],
    )
    async def test_figures_that_cannot_be(self, manager, monitor, strange):
        """A note with numbers that nobody counts to is unreadable; the report is JSON and text, however many there are."""
        notes = (await manager.engine()).port.notes
        await fill(manager)
        note = {"v": 1, "process": "p", "at": 1, "status": "x", "windows": {}}
        for n in range(3):
            await notes.post(BOARD, str(n), json.dumps(note | strange).encode(), life=60, timeout=1)
        report = await monitor.get_cache_report(fleet=True)
        assert report["fleet"]["unreadable"] == 3 and report["summary"]["hits"] == 3
        assert str(report) and json.dumps(report, allow_nan=False)

    async def test_a_process_whose_clock_is_ahead(self, manager, monitor, clock):
        """Its figures are not old."""
        note = Published("p", clock.time() + 60, {})
        await (await manager.engine()).port.notes.post(BOARD, "p", note.encode(), life=60, timeout=1)
        assert (await monitor.get_cache_report(fleet=True))["fleet"]["oldest_seconds"] == 0

    async def test_a_store_that_cannot_be_read(self, own_server):
        """The report is of this process alone, and says why."""
        server = own_server()
        async with CacheManager(server.url, budget=10) as manager:
            await fill(manager)
            server.kill()
            report = await CacheMonitor(manager).get_cache_report(fleet=True)
        assert report["fleet"]["processes"] == 1 and report["fleet"]["error"] and report["summary"]["hits"] == 3
        assert "this process alone" in str(report) and report["health"]["status"] == "unhealthy"

    async def test_a_full_board(self, manager, monitor, pace, caplog):
        """A thousand others leave no room: that is logged once in a while, and nothing else happens."""
        notes = (await manager.engine()).port.notes
        for n in range(1000):
            await notes.post(BOARD, str(n), b"", life=60, timeout=1)
        async with monitor.running():
            await pace.looked()
            await pace.look()
        assert caplog.text.count("is full of notes") == 1

    async def test_a_store_that_is_away_is_logged_once(self, own_server, pace, caplog):
        """While it is unhealthy, that notes cannot be posted is no news."""
        server = own_server()
        async with CacheManager(server.url, budget=10) as manager, CacheMonitor(manager).running(on_emptied=print):
            await pace.looked()
            server.kill()
            await pace.look()
            await pace.look()
        lines = [
            record.message for record in caplog.records if record.name == "aiocache_aura.monitor" and record.levelno >= logging.WARNING
        ]
        assert len(lines) == 1 and lines[0].startswith("the cache is unhealthy")


class TestPublished:
    def test_names(self, clock):
        """Managers of one process differ, each keeps its name."""
        one, two = CacheManager("memory://"), CacheManager("memory://")
        assert process_name(one) == process_name(one) != process_name(two)
        assert str(os.getpid()) in process_name(one)

    @pytest.mark.parametrize(("minutes", "window"), [(1, 5), (5, 5), (5.001, 60), (60, 60), (60.5, 1440), (1440, 1440)])
    def test_the_window_that_covers(self, minutes, window):
        """The shortest that is long enough."""
        assert covering(minutes) == window

    def test_windows_of_another_version(self):
        """Of what a process has published the shortest that covers is taken, else its longest; of none, none."""
        lengths = {length: {"menu": Counts()} for length in (10, 100)}
        note = Published("p", 0.0, lengths)
        assert [note.window(minutes)[0] for minutes in (5, 10, 60, 1440)] == [10, 10, 100, 100]
        assert Published("p", 0.0, {}).window(60) == (0, {})

    @given(st.randoms(use_true_random=False))
    def test_counters_come_back(self, rnd: random.Random):
        """Every counter, duration, error and eviction is as it was, once it has been JSON."""
        counts = Counts()
        for name in INTS:
            setattr(counts, name, rnd.choice([0, 1, rnd.randrange(10**12)]))
        counts.load_seconds, counts.saved_seconds = rnd.choice([0.0, rnd.random() * 1e6]), rnd.random()
        counts.by_error = {"OSError": rnd.randrange(1, 9)} if rnd.random() < 0.5 else {}
        counts.evictions = {"bytes": rnd.randrange(1, 9)} if rnd.random() < 0.5 else {}
        for operation in rnd.sample(["get", "set", "load"], rnd.randrange(4)):
            for _ in range(rnd.randrange(1, 20)):
                counts.took(operation, 10 ** rnd.uniform(-9, 9), rnd.randrange(1, 70))
        back = counts_from_dict(json.loads(json.dumps(counts_to_dict(counts))))
        assert back.snapshot() == counts.snapshot() and back.times == counts.times
        assert all(getattr(back, name) == getattr(counts, name) for name in INTS)
        assert all(back.times[name].count == counts.times[name].count for name in counts.times)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda v: st.lists(v) | st.dictionaries(st.text(max_size=5), v),
        ),
        st.sampled_from(["note", "windows", "types", "counts", "hits", "by_error", "times", "total", "buckets"]),
    )
    def test_whatever_a_note_holds(self, strange, where):
        """What is no note is none, and what is one can be summed and told; nothing is raised for it."""
        counts = {"hits": 1, "by_error": {"E": 1}, "times": {"get": [1.0, {"5": 1}]}}
        note = {"v": 1, "process": "p", "at": 1.0, "status": "s", "windows": {"60": {"menu": counts}}}
        match where:
            case "note":
                note = strange
            case "windows":
                note["windows"] = strange
            case "types":
                note["windows"]["60"] = strange
            case "counts":
                note["windows"]["60"]["menu"] = strange
            case "total" | "buckets":
                counts["times"]["get"][where == "buckets"] = strange
            case name:
                counts[name] = strange
        read = Published.decode(json.dumps(note).encode())
        if read is not None:
            for one in read.window(60)[1].values():
                total = Counts()
                total.absorb(one)
                json.dumps(total.snapshot())
                assert all(took.percentile(99) >= 0 for took in total.times.values())

    @pytest.mark.parametrize("bucket", ["-1", "302", "999999", "1.5", "x"])
    def test_buckets_that_there_are_not(self, bucket):
        """A bucket beyond the last, whose bound nobody could work out, is refused."""
        with pytest.raises((ValueError, OverflowError)):
            counts_from_dict({"times": {"get": [1.0, {bucket: 1}]}})
        assert counts_from_dict({"times": {"get": [1.0, {"300": 1, "0": 1}]}}).times["get"].count == 2

    async def test_the_windows_of_a_process(self):
        """Whenever they are read they hold all of the window and nothing older than it by more than a slot."""
        rnd, clock = random.Random(5), ManualClock()
        recorder = Recorder(clock)
        happened = []
        for _ in range(1500):
            clock.advance(rnd.choice([0, 0.5, 10, 60, 600]) if rnd.random() < 0.9 else 4000)
            for name in rnd.sample(["menu", "api"], rnd.randrange(3)):
                n = rnd.randrange(1, 5)
                recorder.touch(clock.monotonic())
                recorder.counts(name).hits += n
                recorder.counts(name).took("get", 0.01, n)
                happened.append((clock.monotonic(), name, n))
            if rnd.random() < 0.3:
                read = await windows_of(recorder)
                for length in LENGTHS:
                    for name in ("menu", "api"):
                        ages = [(clock.monotonic() - at, n) for at, of, n in happened if of == name]
                        found = read[length].get(name, Counts())
                        slot = 10 if length == 5 else 60 if length == 60 else 600
                        least = sum(n for age, n in ages if age < length * 60)
                        most = sum(n for age, n in ages if age <= length * 60 + slot)
                        assert least <= found.hits <= most, (length, name)
                        assert found.times.get("get", Histogram()).count == found.hits

    async def test_others_have_their_turn(self):
        """Between two types that are looked up the event loop goes on."""
        recorder = Recorder(ManualClock())
        for n in range(5):
            recorder.counts(f"t{n}").hits += 1
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await windows_of(recorder)
        counting.cancel()
        assert turns >= 4
