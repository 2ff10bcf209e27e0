"""Monitoring: what a cache is doing, whether it is well, and a task that looks after it.

metrics = await cache_monitor.get_metrics(cache_type="menu", last_minutes=60)
health = await cache_monitor.check_health()
print(await cache_monitor.get_cache_report())

async with cache_monitor.running(interval=10, on_unhealthy=alert): ...

Nothing here is on the way of a read: figures are counted low, by the recorder of the manager, and read here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import asdict
from typing import Any, TypeAlias

from aiocache_aura import cache_manager as desk
from aiocache_aura import hot
from aiocache_aura.advice import advice
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.health import Health, check_health
from aiocache_aura.jobs import Job
from aiocache_aura.published import BOARD, Published, process_name
from aiocache_aura.report import CacheReport, Metrics, metrics
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.resilience.threads import settled
from aiocache_aura.stats import Counts
from aiocache_aura.stores.base import Posted

log = logging.getLogger("aiocache_aura.monitor")

DAY = 1440  # minutes that are kept
PUBLISHED = (5, 60, DAY)  # minutes of the windows that a process publishes
LONG_EACH = 300.0  # seconds between two looks at the longest of them

Callback: TypeAlias = Callable[[Health], object] | None
Sleep: TypeAlias = Callable[[float], Awaitable[object]]


class CacheMonitor:
    """What watches a manager: `cache_monitor` the process-wide one, which is looked up at each call, `CacheMonitor(manager)` any other."""

    def __init__(self, manager: CacheManager | None = None) -> None:
        self._manager = manager
        self._watch: _Watch | None = None

    def __repr__(self) -> str:
        whose = "the process-wide manager" if self._manager is None else repr(self._manager)
        return f"<CacheMonitor of {whose}{', running' if self._watch else ''}>"

    @property
    def manager(self) -> CacheManager:
        manager = desk.cache_manager if self._manager is None else self._manager
        if not isinstance(manager, CacheManager):
            raise ConfigurationError(f"a monitor needs a CacheManager; the manager is a {type(manager).__name__}")
        return manager

    # Asking

    async def get_metrics(self, cache_type: str | None = None, last_minutes: float = 60) -> Metrics:
        """What happened in this process in about the last so many minutes, 1 to 1440, to one cache type or to all together.

        hits, misses, hit_rate, sets, deletes, loads, load_seconds, coalesced, stale_served, errors, evictions and more, see
        docs/monitoring.md; `latency_ms` has avg, p50, p95, p99 of lookups, `latency_by_operation` of all else, `slow_operations` what took
        too long.
        """
        _check_minutes(last_minutes)
        manager = self.manager
        if cache_type is not None:
            manager.policy(cache_type)
        types = _windows(manager, last_minutes)
        counts = _sum(types) if cache_type is None else types[cache_type]
        return metrics(counts, cache_type=cache_type, minutes=last_minutes, slow=_slow(manager, last_minutes, cache_type))

    async def check_health(self) -> Health:
        """{"status": "healthy", "degraded" or "unhealthy", "issues": [...], "checks": {...}}; each issue says what to do."""
        manager, watch = self.manager, self._watch
        return await check_health(manager, jobs=manager.jobs, loop_lag=0.0 if watch is None else watch.lag)

    async def get_cache_report(self, last_minutes: float = 60, *, fleet: bool = False) -> CacheReport:
        """All of it: by type, health, memory, connections, hot keys, slow operations, warmers, advice; `str()` of it is text.

        With `fleet`, figures by type are summed over the processes that publish theirs, which `running()` does, in the shortest of their
        windows, 5, 60 or 1440 minutes, that covers the minutes asked for; the other sections are this process's.
        """
        _check_minutes(last_minutes)
        manager = self.manager
        health = await self.check_health()
        types, whole = _windows(manager, last_minutes), None
        if fleet:
            types, whole, last_minutes = await self._fleet(manager, types, last_minutes)
        asked = {name: counts for name, counts in types.items() if counts.differs(_NOTHING)}
        engine = manager.engine_now()
        report = CacheReport(
            process=process_name(),
            at=manager.settings.clock.time(),
            last_minutes=last_minutes,
            fleet=whole,
            summary=metrics(_sum(types), cache_type=None, minutes=last_minutes),
            types={name: metrics(counts, cache_type=name, minutes=last_minutes) for name, counts in asked.items()},
            health=health,
            memory=_memory(None if engine is None else engine.port.usage(), health),
            connections=[] if engine is None else [asdict(one) for one in engine.port.connections()],
            hot_keys=[
                {"cache_type": one.cache_type, "key": one.key if manager.settings.log_keys else _hidden(one.key), "seconds": one.seconds}
                for one in manager.recorder.heat.hottest(limit=20)
            ],
            slow_operations=metrics(_NOTHING, cache_type=None, minutes=last_minutes, slow=_slow(manager, last_minutes))["slow_operations"],
            warmers=[_told_of(job) for job in manager.jobs],
        )
        report["advice"] = advice(report)
        return report

    async def _fleet(
        self, manager: CacheManager, own: Mapping[str, Counts], minutes: float
    ) -> tuple[dict[str, Counts], dict[str, Any], float]:
        """Everybody's figures summed, what is known of the processes, and the minutes of the windows that were summed."""
        try:
            notes = await (await manager.engine()).port.notes.read(BOARD, timeout=manager.settings.budget)
        except BackendError as error:
            log.warning("the figures of the fleet cannot be had: %s", error)
            notes = {}
        now, me = manager.settings.clock.time(), process_name()
        others = [one for name, raw in notes.items() if name != me and (one := Published.decode(raw)) is not None]
        total = {name: counts.copy() for name, counts in own.items()}
        for one in others:
            for name, counts in one.window(minutes)[1].items():
                total.setdefault(name, Counts()).absorb(counts)
        whole = {
            "processes": len(others) + 1,
            "oldest_seconds": max((now - one.at for one in others), default=0.0),
            "unhealthy": sorted(one.process for one in others if one.status == "unhealthy"),
        }
        return total, whole, max([minutes, *(one.window(minutes)[0] for one in others)])

    # Watching

    @asynccontextmanager
    async def running(
        self,
        interval: float = 10.0,
        *,
        on_unhealthy: Callback = None,
        on_recovered: Callback = None,
        on_emptied: Callable[[], object] | None = None,
        publish: bool = True,
    ) -> AsyncIterator[CacheMonitor]:
        """Watch the manager for as long as the block is open.

        Each `interval` seconds the health is checked, the event loop's lag measured, and this process's figures published for the fleet's
        reports (`publish`), with what is hot for it. Callbacks, plain or async, are given the `Health`: `on_unhealthy` once when it becomes
        "unhealthy", `on_recovered` once when it is not any more. `on_emptied` is called, with nothing, when the store is found to have lost
        what was published, as after FLUSHALL: `on_emptied=warmer.warm_hot`. What they raise is logged. One task at a time for each monitor:
        ConfigurationError for a second.
        """
        await self.start(interval, on_unhealthy=on_unhealthy, on_recovered=on_recovered, on_emptied=on_emptied, publish=publish)
        try:
            yield self
        finally:
            await self.stop()

    async def start(
        self,
        interval: float = 10.0,
        *,
        on_unhealthy: Callback = None,
        on_recovered: Callback = None,
        on_emptied: Callable[[], object] | None = None,
        publish: bool = True,
    ) -> None:
        """As `running`, until `stop()`."""
        if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
            raise ConfigurationError(f"interval={interval!r}: it is seconds above 0")
        if self._watch is not None and not self._watch.is_over:
            raise ConfigurationError(f"{self!r} is running already; stop() it first, or watch with another CacheMonitor(manager)")
        self._watch = _Watch(self.manager, float(interval), on_unhealthy, on_recovered, on_emptied, publish=publish)
        self._watch.begin()

    async def stop(self) -> None:
        """End the task; idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.end()


class _Watch:
    """The background task: looks, calls, publishes, sleeps. It never overlaps itself, and only its end ends it."""

    def __init__(
        self,
        manager: CacheManager,
        interval: float,
        on_unhealthy: Callback,
        on_recovered: Callback,
        on_emptied: Callable[[], object] | None,
        *,
        publish: bool,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._manager, self._interval, self._publish, self._sleep = manager, interval, publish, sleep
        self._on_unhealthy, self._on_recovered, self._on_emptied = on_unhealthy, on_recovered, on_emptied
        self._faults = FaultLog(log, clock=manager.settings.clock)
        self._task: asyncio.Task[None] | None = None
        self._was_unhealthy = False
        self._long: dict[str, Counts] = {}
        self._long_until = self._stands_until = 0.0
        self.lag = 0.0

    @property
    def is_over(self) -> bool:
        return self._task is None or self._task.done()

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="aiocache_aura monitor", context=Context())
        self._manager.own(self._task)

    async def end(self) -> None:
        task = self._task
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        await self._withdraw()

    async def _run(self) -> None:
        time = asyncio.get_running_loop().time
        while True:
            due = time() + self._interval
            await self._step("a look at the cache", self._look())
            left = max(due - time(), 0.0)
            await self._sleep(left)
            self.lag = max(time() - due, 0.0) if left else 0.0

    async def _step(self, what: str, step: Awaitable[Any]) -> Any:
        """What goes wrong in a step is logged, and the next is taken all the same."""
        try:
            return await step
        except Exception as error:
            self._faults.report(error, what)

    async def _look(self) -> None:
        health = await check_health(self._manager, jobs=self._manager.jobs, loop_lag=self.lag)
        is_unhealthy = health["status"] == "unhealthy"
        if is_unhealthy is not self._was_unhealthy:
            self._was_unhealthy = is_unhealthy
            callback = self._on_unhealthy if is_unhealthy else self._on_recovered
            if callback is not None:
                await self._step(f"a callback, {callback!r:.80},", _called(callback, health))
        if self._publish and not is_unhealthy:
            await self._step("publishing this process's figures", self._post(health["status"]))

    async def _post(self, status: str) -> None:
        manager = self._manager
        now = manager.settings.clock.monotonic()
        if now >= self._long_until:
            self._long, self._long_until = _windows(manager, DAY), now + LONG_EACH
        windows = {minutes: _windows(manager, minutes) for minutes in PUBLISHED if minutes != DAY} | {DAY: self._long}
        note = Published(process_name(), manager.settings.clock.time(), windows, status)
        life = max(3 * self._interval, 30.0)
        notes = (await manager.engine()).port.notes
        posted = await notes.post(BOARD, note.process, note.encode(), life=life, timeout=manager.settings.budget)
        was_there, self._stands_until = now < self._stands_until, now + life / 2
        if posted is Posted.NEW and was_there and self._on_emptied is not None:
            await self._step(f"a callback, {self._on_emptied!r:.80},", settled(self._on_emptied()))
        await hot.publish(manager, note.process)

    async def _withdraw(self) -> None:
        engine = self._manager.engine_now()
        if self._publish and engine is not None:
            drop = engine.port.notes.drop(BOARD, process_name(), timeout=self._manager.settings.budget)
            await self._step("taking this process's figures back", drop)


async def _called(callback: Callable[[Health], object], health: Health) -> None:
    await settled(callback(health))


def _check_minutes(minutes: object) -> None:
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 1 <= minutes <= DAY:
        raise ValueError(f"last_minutes={minutes!r}: it is a number of minutes from 1 to {DAY}, for which figures are kept")


def _windows(manager: CacheManager, minutes: float) -> dict[str, Counts]:
    return {name: manager.recorder.window(name, minutes * 60) for name in manager.caches}


def _sum(types: Mapping[str, Counts]) -> Counts:
    total = Counts()
    for counts in types.values():
        total.absorb(counts)
    return total


def _slow(manager: CacheManager, minutes: float, cache_type: str | None = None) -> list[Any]:
    since = manager.settings.clock.time() - minutes * 60
    return [one for one in manager.recorder.slow_operations if one.at >= since and cache_type in (None, one.cache_type)]


def _hidden(key: str) -> str:
    """A key as logs show it: the type and the function, the rest hashed."""
    _, cache_type, *segments = key.split(":")
    name = next((segment for segment in segments if segment.startswith("@")), "=")
    return f"{cache_type}:{name}#{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}"


def _told_of(job: Job) -> dict[str, Any]:
    """A job, in plain values."""
    error = job.last_error
    return {
        "name": job.name,
        "is_running": job.is_running,
        "next_run": None if job.next_run is None else job.next_run.isoformat(timespec="seconds"),
        "last_run": None if job.last_run is None else job.last_run.isoformat(timespec="seconds"),
        "last_error": None if error is None else f"{type(error).__name__}: {error}",
        "runs": job.runs,
    }


def _memory(usage: Mapping[str, tuple[int, int]] | None, health: Health) -> dict[str, Any]:
    """What is known of memory: by type where the entries are in this process, of the server where it tells."""
    told = health["checks"].get("memory", {}).get("value") or {}
    return {
        "types": {name: {"entries": entries, "bytes": size} for name, (entries, size) in (usage or {}).items()},
        "used_bytes": told.get("used_bytes"),
        "max_bytes": told.get("max_bytes"),
    }


_NOTHING = Counts()

cache_monitor = CacheMonitor()
"""The monitor of the process-wide manager."""
