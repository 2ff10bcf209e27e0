"""Monitoring: what a cache is doing, whether it is well, and a task that looks after it.

metrics = await cache_monitor.get_metrics(cache_type="menu", last_minutes=60)
health = await cache_monitor.check_health()
print(await cache_monitor.get_cache_report())

async with cache_monitor.running(interval=10, on_unhealthy=alert): ...

Nothing here is on the way of a read: figures are counted low, by the recorder of the manager, and read here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from aiocache_aura import cache_manager as desk
from aiocache_aura import hot
from aiocache_aura.advice import advice
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.counting import hidden
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.health import Health, HealthLimits, check_health
from aiocache_aura.heat import HotKey
from aiocache_aura.jobs import Job
from aiocache_aura.keys import split_owner
from aiocache_aura.published import BOARD, DAY, Published, covering, process_name, window_of
from aiocache_aura.report import CacheReport, Metrics, metrics, told
from aiocache_aura.stats import Counts
from aiocache_aura.types import is_number
from aiocache_aura.watching import Callback, Watch

log = logging.getLogger("aiocache_aura.monitor")

LONGEST = 86_400.0  # seconds between two looks
MOST_HOT = 20

Types = Mapping[str, Counts]


class CacheMonitor:
    """What watches a manager: `cache_monitor` the process-wide one, which is looked up at each call, `CacheMonitor(manager)` any other.

    `limits`, a `HealthLimits`, say from where on something is an issue: `monitor.limits = HealthLimits(hit_rate=0.8)`.
    """

    def __init__(self, manager: CacheManager | None = None) -> None:
        self._manager = manager
        self.limits = HealthLimits()
        self._watch: Watch | None = None

    def __repr__(self) -> str:
        whose = "the process-wide manager" if self._manager is None else repr(self._manager)
        return f"<CacheMonitor of {whose}{', running' if self._is_running else ''}>"

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
        types = await (_windows(manager, last_minutes) if cache_type is None else window_of(manager.recorder, last_minutes, [cache_type]))
        return metrics(_sum(types), cache_type=cache_type, minutes=last_minutes, slow=_slow(manager, last_minutes, cache_type))

    async def check_health(self) -> Health:
        """{"status": "healthy", "degraded" or "unhealthy", "issues": [...], "checks": {...}}; each issue says what to do."""
        lag = self._watch.lag if self._watch is not None and self._is_running else 0.0
        return await check_health(self.manager, thresholds=self.limits, loop_lag=lag)

    async def get_cache_report(self, last_minutes: float = 60, *, fleet: bool = False) -> CacheReport:
        """All of it: by type, health, memory, connections, hot keys, slow operations, warmers, advice; `str()` of it is text.

        With `fleet`, figures by type are summed over the processes that publish theirs, which `running()` does, in the shortest of their
        windows, 5, 60 or 1440 minutes, that covers the minutes asked for, and hot keys are everybody's; the other sections are this
        process's. `report["fleet"]` says how many processes were summed, how old the oldest of their figures are, which are not well,
        and, if it could not be read what others have published, why.
        """
        _check_minutes(last_minutes)
        manager = self.manager
        health = await self.check_health()
        known: dict[str, Any] | None = None
        if fleet:
            types, known, last_minutes = await self._fleet(manager, covering(last_minutes))
            keys = await hot.of_fleet(manager, process_name(manager))
        else:
            types, keys = await _windows(manager, last_minutes), manager.recorder.heat.hottest(limit=MOST_HOT)
        asked = {name: counts for name, counts in types.items() if counts.differs(_NOTHING)}
        report = CacheReport(
            process=process_name(manager),
            at=manager.settings.clock.time(),
            last_minutes=last_minutes,
            fleet=known,
            summary=metrics(_sum(types), cache_type=None, minutes=last_minutes),
            types={name: metrics(counts, cache_type=name, minutes=last_minutes) for name, counts in asked.items()},
            health=health,
            memory=_memory(manager, health),
            connections=_connections(manager, health),
            hot_keys=_hot(keys, log_keys=manager.settings.log_keys),
            slow_operations=[told(one) for one in _slow(manager, last_minutes)],
            warmers=[_told_of(job) for job in manager.jobs],
            warmed={name: asdict(one) for name, one in manager.recorder.warmed.items()},
        )
        report["advice"] = advice(report)
        return report

    async def _fleet(self, manager: CacheManager, minutes: int) -> tuple[Types, dict[str, Any], int]:
        """Everybody's figures summed, what is known of the processes, and the minutes of the longest window that was summed."""
        notes, failed = {}, None
        try:
            notes = await (await manager.engine()).port.notes.read(BOARD, timeout=manager.settings.budget)
        except BackendError as error:
            failed = str(error)
        read = [Published.decode(note) for name, note in notes.items() if name != process_name(manager)]
        others = [one for one in read if one is not None]
        total = {name: counts.copy() for name, counts in (await _windows(manager, minutes)).items()}
        for one in others:
            for name, counts in one.window(minutes)[1].items():
                total.setdefault(name, Counts()).absorb(counts)
            await asyncio.sleep(0)
        now = manager.settings.clock.time()
        known = {
            "processes": len(others) + 1,
            "oldest_seconds": max((0.0, *(now - one.at for one in others))),
            "unhealthy": sorted(one.process for one in others if one.status == "unhealthy"),
            "unreadable": len(read) - len(others),
            "error": failed,
        }
        return total, known, max([minutes, *(one.window(minutes)[0] for one in others)])

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
        """Watch the manager for as long as the block is open, or until the manager is closed.

        Each `interval` seconds the health is checked, with the event loop's lag since the last time, and this process's figures are
        published for the fleet's reports (`publish`), with what is hot for it. Callbacks, plain or async, are given the `Health`:
        `on_unhealthy` once when it becomes "unhealthy", `on_recovered` once when it is not any more. `on_emptied` is called, with nothing,
        when the store is found to have lost what was posted there, as after FLUSHALL: `on_emptied=warmer.warm_hot`. That is looked for
        each half second in which users have missed, too. Callbacks are called one after another, beside the task, and end with it; what
        they raise is logged. One task at a time for each monitor: ConfigurationError for a second.
        """
        watch = self._begin(interval, on_unhealthy, on_recovered, on_emptied, publish=publish)
        try:
            yield self
        finally:
            await watch.end()

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
        self._begin(interval, on_unhealthy, on_recovered, on_emptied, publish=publish)

    async def stop(self) -> None:
        """End the task, and wait for its end; idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.end()

    def _begin(
        self, interval: float, on_unhealthy: Callback, on_recovered: Callback, on_emptied: Callable[[], object] | None, *, publish: bool
    ) -> Watch:
        if not is_number(interval) or not 0 < interval <= LONGEST:
            raise ConfigurationError(f"interval={interval!r}: it is seconds above 0, and a day at most")
        for name, callback in (("on_unhealthy", on_unhealthy), ("on_recovered", on_recovered), ("on_emptied", on_emptied)):
            _check_callback(name, callback)
        if self._is_running:
            raise ConfigurationError(f"{self!r} is running already; stop() it first, or watch with another CacheMonitor(manager)")
        manager = self.manager
        self._watch = Watch(
            manager,
            lambda lag: check_health(manager, thresholds=self.limits, loop_lag=lag),
            interval,
            on_unhealthy=on_unhealthy,
            on_recovered=on_recovered,
            on_emptied=on_emptied,
            publish=publish,
        )
        return self._watch

    @property
    def _is_running(self) -> bool:
        return self._watch is not None and not self._watch.is_over


def _check_callback(name: str, callback: object) -> None:
    if callback is None or callable(callback):
        return
    if inspect.iscoroutine(callback):
        callback.close()
    raise TypeError(
        f"{name}={callback!r:.80}: it is a function, plain or async, that is called when that happens: {name}=alert, not alert()"
    )


def _check_minutes(minutes: object) -> None:
    if not is_number(minutes) or not 1 <= minutes <= DAY:
        raise ValueError(f"last_minutes={minutes!r}: it is a number of minutes from 1 to {DAY}, for which figures are kept")


async def _windows(manager: CacheManager, minutes: float) -> Types:
    """What was counted of every type."""
    return await window_of(manager.recorder, minutes, list(manager.caches))


def _sum(types: Types) -> Counts:
    total = Counts()
    for counts in types.values():
        total.absorb(counts)
    return total


def _slow(manager: CacheManager, minutes: float, cache_type: str | None = None) -> list[Any]:
    since = manager.settings.clock.time() - minutes * 60
    return [one for one in manager.recorder.slow_operations if one.at >= since and cache_type in (None, one.cache_type)]


def _hot(keys: Iterable[HotKey], *, log_keys: bool) -> list[dict[str, Any]]:
    return [
        {"cache_type": one.cache_type, "key": one.key if log_keys else _hidden(one.key), "seconds": one.seconds}
        for one in list(keys)[:MOST_HOT]
    ]


def _hidden(key: str) -> str:
    """A key as logs show it: the type and the function, the rest hashed."""
    _, _, rest = key.partition(":")
    cache_type, _, rest = rest.partition(":")
    return hidden(cache_type, split_owner(rest)[2], key.encode())


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


def _memory(manager: CacheManager, health: Health) -> dict[str, Any]:
    """What is known of memory: by type where the entries are in this process, of the server where it tells."""
    engine = manager.engine_now()
    usage = None if engine is None else engine.port.usage()
    value = _value(health, "memory")
    return {
        "where": "process" if usage is not None else "server",
        "types": {name: {"entries": entries, "bytes": size} for name, (entries, size) in (usage or {}).items()},
        "used_bytes": value.get("used_bytes"),
        "max_bytes": value.get("max_bytes"),
        "policy": value.get("policy"),
    }


def _connections(manager: CacheManager, health: Health) -> list[dict[str, Any]]:
    """The lanes of this event loop, and the pool of `RedisClient` if there is one."""
    engine, pool = manager.engine_now(), _value(health, "connections").get("pool")
    lanes = [] if engine is None else [asdict(one) for one in engine.port.connections()]
    return [*lanes, *([] if pool is None else [{"role": "RedisClient", **pool}])]


def _value(health: Health, check: str) -> Mapping[str, Any]:
    """What a check has found; nothing if it was not made."""
    value = health["checks"].get(check, {}).get("value")
    return value if isinstance(value, Mapping) else {}


_NOTHING = Counts()

cache_monitor = CacheMonitor()
"""The monitor of the process-wide manager."""
