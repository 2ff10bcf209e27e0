"""Health: whether the cache does its work, and what to do where it does not.

    health = await check_health(manager)
    health["status"]    "healthy": no issue; "degraded": some; "unhealthy": it cannot be read, or not be written
    health["issues"]    sentences, each of which names a trouble and says what to do
    health["checks"]    by name: status ("ok", "warning", "failed", "unknown"), value, issue, seconds

Invariants
- It never raises for what it finds, and takes no longer than `timeout`, and a little: checks run side by side, each within its own time.
- Users' ways are tried as users go them: a lookup over the lanes for reads, a write, a script and a removal over the one for writes. All
  else is asked behind users' writes, is bounded, and writes nothing.
- "unknown" is a check that could not be made; its issue says why. It counts if something can be done about it: a right to be granted, an
  answer that did not come. It does not where the server has no such command, nor where reads or writes name the same silence already.
- No task is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Final, Protocol, cast

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.diagnosis import (
    CHECKS,
    Check,
    HealthLimits,
    in_vain,
    info_of,
    judge_errors,
    judge_eviction,
    judge_expiry,
    judge_hit_rate,
    judge_loop,
    judge_memory,
    judge_replication,
    judge_unstorable,
    judged,
    not_here,
    replication_of,
    replication_of_role,
    sound,
    unasked,
    version_of,
    whole,
)
from aiocache_aura.engine import Engine
from aiocache_aura.errors import BackendError, BackendTimeoutError, CacheError
from aiocache_aura.redis_client import RedisClient
from aiocache_aura.stats import Counts
from aiocache_aura.stores.base import Command, Probes
from aiocache_aura.stores.statistics import Connection

STEP: Final = 0.01  # of the measure of the event loop's lag
LEAST_STEPS: Final = 2
SLACK: Final = 0.05  # seconds that a check has beyond what the store was given
LIMITS: Final = HealthLimits()
_ASKED: Final[tuple[Command, ...]] = (("INFO", "server"), ("INFO", "memory"), ("INFO", "replication"), ("ROLE",))

_INFORMED: Final = "the server's memory, maxmemory-policy and replication"

Checks = dict[str, Check]


class Job(Protocol):
    """A schedule that warms: when it runs next, whether it does so now, and what its last run ended with."""

    @property
    def next_run(self) -> datetime | float | None: ...
    @property
    def is_running(self) -> bool: ...
    @property
    def last_error(self) -> object: ...


class Health(dict[str, Any]):
    """What `check_health` found: `status`, `issues`, `checks`, of plain values. `str()` of it is for people."""

    @property
    def is_healthy(self) -> bool:
        return bool(self["status"] == "healthy")

    def __str__(self) -> str:
        issues, checks = self["issues"], self["checks"]
        head = self["status"] + (f", {len(issues)} issue{'s' if len(issues) > 1 else ''}" if issues else "")
        found = [f"  {check['status']:8} {name:12} {_shown(check)}".rstrip() for name, check in checks.items()]
        return "\n".join([head, *(f"- {issue}" for issue in issues), *found])


def _shown(check: Mapping[str, Any]) -> str:
    value = check["value"]
    if check["status"] == "unknown":
        return str(check["issue"] or "")
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {len(one) if isinstance(one, list | dict) else one}" for name, one in value.items() if one is not None)
    return "" if value is None else str(value)


async def check_health(
    manager: CacheManager,
    *,
    timeout: float = 1.0,
    thresholds: HealthLimits = LIMITS,
    jobs: Iterable[Job] | None = None,
    loop_lag: float = 0.0,
) -> Health:
    """Look at everything that a cache depends on, within `timeout` seconds.

    Args:
        thresholds: from where on something is an issue, and which checks to leave out.
        jobs: schedules to look at; those of the manager if none are given.
        loop_lag: the longest that the event loop was blocked, as somebody has measured it in the last time.
    """
    checkup = _Checkup(manager, thresholds, timeout)
    await checkup.run(jobs, loop_lag)
    return checkup.health()


class _Checkup:
    """One round of checks."""

    def __init__(self, manager: CacheManager, limits: HealthLimits, timeout: float) -> None:
        self._manager, self._limits, self._timeout = manager, limits, timeout
        self._time = asyncio.get_running_loop().time
        self._until = self._time() + timeout
        self._wanted = [name for name in CHECKS if name not in limits.ignore]
        self._found: Checks = {}
        self._seconds: dict[str, float] = {}

    @property
    def _left(self) -> float:
        return max(self._until - self._time(), 0.001)

    async def run(self, jobs: Iterable[Job] | None, loop_lag: float) -> None:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            lag = group.create_task(self._lag(over))
            await self._look()
            over.set()
            longest = max(await lag, loop_lag)
        self._note({"loop": judge_loop(longest, self._limits)}, 0.0)
        self._now("warmers", lambda: self._warmers(jobs))

    def health(self) -> Health:
        found = _without_echoes({name: self._found[name] for name in self._wanted if name in self._found})
        issues = list(dict.fromkeys(one.issue for one in found.values() if one.issue and one.is_open))
        failed = any(check.status == "failed" for check in found.values())
        status = "unhealthy" if failed else "degraded" if issues else "healthy"
        return Health(status=status, issues=issues, checks={name: one.told(self._seconds[name]) for name, one in found.items()})

    # Making checks

    def _note(self, checks: Checks, seconds: float) -> None:
        for name, check in checks.items():
            if name in self._wanted:
                self._found[name], self._seconds[name] = check, seconds

    def _now(self, name: str, check: Callable[[], Check]) -> None:
        """A check of what is at hand."""
        started = self._time()
        try:
            found = check()
        except Exception as error:
            found = unasked(error, name.replace("_", " "))
        self._note({name: found}, self._time() - started)

    async def _within(self, names: tuple[str, ...], check: Callable[[], Awaitable[Checks]]) -> None:
        """A check that waits, for no longer than there is time; not made if none of its results is wanted."""
        if not set(names) & set(self._wanted):
            return
        started = self._time()
        try:
            async with asyncio.timeout(self._left + SLACK):
                found = await check()
        except TimeoutError as error:
            late = error if isinstance(error, BackendError) else BackendTimeoutError(f"it did not answer within {self._timeout:g} s")
            found = {name: unasked(late, name) for name in names}
        except Exception as error:
            found = {name: unasked(error, name) for name in names}
        self._note(found, self._time() - started)

    async def _look(self) -> None:
        engine = await self._engine()
        probes = None if engine is None else engine.port.probes
        if probes is not None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._within(("reads",), lambda: self._reads(probes)))
                group.create_task(self._within(("writes",), lambda: self._writes(probes)))
                group.create_task(self._within(("server", "memory", "eviction", "replication"), lambda: self._server(probes)))
                group.create_task(self._within(("expiry",), lambda: self._expiry(probes)))
        elif engine is not None:
            self._note(self._in_process(engine), 0.0)
        self._here(engine)

    async def _engine(self) -> Engine | None:
        """This loop's engine; without one, neither reads nor writes."""
        started = self._time()
        try:
            async with asyncio.timeout(self._left):
                return await self._manager.engine()
        except TimeoutError:
            issue = f"redis was not imported within {self._timeout:g} s; the next check may find it"
        except Exception as error:
            issue = str(error) if isinstance(error, CacheError) else f"the store cannot be opened: {type(error).__name__}: {error}"
        failed = Check("failed", {"trouble": "not open"}, issue, is_silence=True)
        silent = {name: Check("unknown", None, f"{name} could not be checked: {issue}", is_silence=True) for name in CHECKS[2:7]}
        self._note({"reads": failed, "writes": failed, **silent}, self._time() - started)
        return None

    # The server

    async def _reads(self, probes: Probes) -> Checks:
        return {"reads": await self._way(lambda: probes.read(timeout=self._left), "nothing can be read")}

    async def _writes(self, probes: Probes) -> Checks:
        return {"writes": await self._way(lambda: probes.write(timeout=self._left), "nothing can be written")}

    async def _way(self, go: Callable[[], Awaitable[None]], what: str) -> Check:
        """A way that users go: how long it takes, or what is in it."""
        try:
            async with asyncio.timeout(self._left + SLACK / 2):
                seconds = await self._timed(go)
                if seconds > self._limits.round_trip:  # it may have had to connect
                    seconds = min(seconds, await self._timed(go))
        except BackendError as error:
            return in_vain(error, what)
        except TimeoutError:
            return in_vain(BackendTimeoutError(f"the server did not answer within {self._timeout:g} s"), what)
        issue = f"a round trip to the server took {seconds * 1000:.0f} ms; see its load, and how far away it is"
        return judged({"round_trip_ms": round(seconds * 1000, 2)}, issue if seconds > self._limits.round_trip else None)

    async def _timed(self, go: Callable[[], Awaitable[None]]) -> float:
        started = self._time()
        await go()
        return self._time() - started

    async def _server(self, probes: Probes) -> Checks:
        server, memory, replication, role = await probes.ask(_ASKED, timeout=self._left)
        return {
            "server": self._version(server, replication, role),
            **self._memory(memory),
            "replication": self._replication(replication, role),
        }

    def _version(self, server: object, replication: object, role: object) -> Check:
        known = self._replicas(replication, role)
        told = [one.version for one in self._connections() if one.version]
        info = {} if isinstance(server, BackendError) else info_of(server)
        version = version_of(info) or (told[0] if told else None)
        if version is None and isinstance(server, BackendError):
            return unasked(server, _INFORMED)
        up = {"uptime_seconds": whole(info["uptime_in_seconds"])} if "uptime_in_seconds" in info else {}
        return sound({"version": version, "role": known["role"] if known else None, **up})

    def _memory(self, reply: object) -> Checks:
        if isinstance(reply, BackendError):
            return dict.fromkeys(("memory", "eviction"), unasked(reply, _INFORMED))
        info = info_of(reply)
        if "used_memory" not in info:
            return dict.fromkeys(("memory", "eviction"), Check("unknown", None, "the server tells nothing of its memory", is_open=False))
        return {"memory": judge_memory(info, self._limits), "eviction": judge_eviction(info)}

    def _replication(self, reply: object, role: object) -> Check:
        known = self._replicas(reply, role)
        if known is not None:
            return judge_replication(known, self._limits)
        error = reply if isinstance(reply, BackendError) else BackendError("the server tells nothing of its role; it is unknown")
        return unasked(error, _INFORMED)

    def _replicas(self, reply: object, role: object) -> dict[str, Any] | None:
        info = {} if isinstance(reply, BackendError) else info_of(reply)
        return replication_of(info) if "role" in info else replication_of_role(role)

    async def _expiry(self, probes: Probes) -> Checks:
        sample = await probes.sample(timeout=self._left)
        return {"expiry": judge_expiry(self._manager.addresses.prefix, sample.keys, sample.lasting)}

    # Without a server

    def _in_process(self, engine: Engine) -> Checks:
        """All is in this process: there is nothing that could not be reached."""
        usage = engine.port.usage() or {}
        settings = self._manager.settings
        used = sum(size for _, size in usage.values())
        memory = {"used_bytes": used, "max_bytes": settings.l1_bytes, "entries": sum(entries for entries, _ in usage.values())}
        evicted: dict[str, int] = {}
        for counts in self._windows(self._limits.window).values():
            for reason, times in counts.evictions.items():
                evicted[reason] = evicted.get(reason, 0) + times
        here = not_here("in this process")
        return {
            **dict.fromkeys(("reads", "writes", "server", "expiry", "replication"), here),
            "memory": sound(memory),
            "eviction": sound({"policy": "sieve", "max_bytes": settings.l1_bytes, "evicted": evicted}),
        }

    # This process

    def _here(self, engine: Engine | None) -> None:
        limits = self._limits
        self._now("hit_rate", lambda: judge_hit_rate(self._windows(limits.window), limits))
        self._now("errors", lambda: judge_errors(self._windows(limits.error_window), limits))
        self._now("unstorable", lambda: judge_unstorable({} if engine is None else engine.unstorable))
        self._now("connections", self._lanes)
        for name in ("tracking", "breaker", "journal"):
            self._note({name: not_here()}, 0.0)

    def _windows(self, seconds: float) -> dict[str, Counts]:
        return {name: self._manager.recorder.window(name, seconds) for name in self._manager.recorder.cache_types}

    def _connections(self) -> list[Connection]:
        engine = self._manager.engine_now()
        return [] if engine is None else engine.port.connections()

    def _lanes(self) -> Check:
        lanes, pool = self._connections(), RedisClient.pool()
        value = {"lanes": [asdict(one) for one in lanes], "pool": None if pool is None else asdict(pool)}
        issues = [issue for one in lanes if (issue := self._lane_issue(one)) is not None]
        if pool is not None and pool.waiting:
            issues.append(
                f"{pool.waiting} callers wait for a connection of RedisClient, all {pool.most} are in use; raise max_connections, or hold "
                "them for shorter"
            )
        return judged(value, "; ".join(issues) or None)

    def _lane_issue(self, one: Connection) -> str | None:
        if one.role == "listen" and one.last_error is not None:
            return f"who waits for another's load has to ask again and again, for the subscription is down: {one.last_error}"
        if one.waiting_seconds > self._limits.waiting:
            return f"a request over the connection to {one.role} is not answered for {one.waiting_seconds:.1f} s; see the server's SLOWLOG"
        return None

    def _warmers(self, jobs: Iterable[Job] | None) -> Check:
        told: Any = getattr(self._manager, "jobs", ()) if jobs is None else jobs
        now = self._manager.settings.clock.time()
        value: dict[str, Any] = {}
        issues = []
        for n, job in enumerate(cast("Iterable[Any]", told() if callable(told) else told)):
            name = str(getattr(job, "name", n))
            late, error = 0.0 if job.is_running else max(now - _seconds(job.next_run, now), 0.0), job.last_error
            value[name] = {"running": job.is_running, "late_seconds": round(late, 1), "last_error": None if error is None else str(error)}
            if late > self._limits.warmer_lag:
                issues.append(f"warmer {name} is {late:.0f} s late; see whether its event loop runs, and whether another process holds it")
            if error is not None:
                issues.append(f"warmer {name}: its last run ended with {type(error).__name__}: {error}; mend its source")
        return judged(value, "; ".join(issues) or None)

    async def _lag(self, over: asyncio.Event) -> float:
        """The longest that this task had to wait beyond its time, until the other checks are over."""
        longest, steps = 0.0, 0
        while not over.is_set() or steps < LEAST_STEPS:
            due = self._time() + STEP
            await asyncio.sleep(STEP)
            longest, steps = max(longest, self._time() - due), steps + 1
        return longest


def _without_echoes(found: Checks) -> Checks:
    """The checks, with a silence of the server named once, and by the way of users on which it is, if it is on one of them only."""
    silent = [name for name in ("reads", "writes") if name in found and found[name].is_silence]
    if not silent:
        return found
    echo = "could not be checked, for the server cannot be used"
    told = {name: replace(one, issue=echo, is_open=False) if _is_echo(one) else one for name, one in found.items()}
    if len(silent) == 1 and {"reads", "writes"} <= set(found):
        name = silent[0]
        told[name] = replace(told[name], issue=f"nothing can be {'read' if name == 'reads' else 'written'}: {told[name].issue}")
    return told


def _is_echo(check: Check) -> bool:
    return check.status == "unknown" and check.is_silence


def _seconds(when: datetime | float | None, now: float) -> float:
    """Since the epoch; now if it is not known."""
    if when is None:
        return now
    return when.timestamp() if isinstance(when, datetime) else float(when)


__all__ = ["Health", "HealthLimits", "Job", "check_health"]
