"""Warming on a schedule: `schedule_cache_warming`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import tzinfo
from typing import Any, Final

from aiocache_aura import cache_manager as desk
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.cache_warmer import CacheWarmer
from aiocache_aura.context import Id, id_text
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.jobs import Job, Run
from aiocache_aura.schedules import Schedule
from aiocache_aura.stores.rota import LEASE
from aiocache_aura.warm_report import WarmReport

MARGIN: Final = LEASE + 2.0  # seconds by which a run may be late because the process died that began it


def schedule_cache_warming(
    tenant_id: Id | None = None,
    interval_minutes: float | None = None,
    *,
    cron: str | None = None,
    timezone: str | tzinfo | None = None,
    jitter: float = 0.0,
    warmer: CacheWarmer[Any] | None = None,
    manager: CacheManager | None = None,
    types: Iterable[str] | None = None,
    name: str | None = None,
    on_report: Callable[[WarmReport], object] | None = None,
) -> Job:
    """Warm every so many minutes, or as a cron expression says, once in the fleet.

    A plain function, to be called where the application starts, in every process: one of them warms, at once and then when it is due, and
    if it dies another goes on. What would expire before the next run has come to it is renewed, so nothing that is warmed goes cold, as
    long as it lives longer than from one run to the next. While the store does not answer nobody warms.

    Args:
        tenant_id: Given to the sources, and the scope in which they run.
        interval_minutes: From one run to the next, whatever they take; may be a fraction. A run that takes longer leaves out what it
            missed.
        cron: Instead: when to run, such as "*/30 * * * *"; pip install 'aiocache-aura[cron]'.
        timezone: Whose time the cron expression is in: a name, or a tzinfo. This machine's, unless it is given.
        jitter: Each run is put off by chance, by up to so many seconds.
        warmer: Whose sources to warm from, instead of those of `warm_source` and `warm=` only.
        manager: Where to store, instead of the warmer's, or else of `cache_manager`.
        types: Only these cache types.
        name: Under which processes know the job as the same; by default made of tenant and types, and always together with the schedule.
            Two warmers with different sources need two names.
        on_report: Called with the WarmReport of each run of this process.

    Returns:
        A Job: `job.next_run`, `job.last_report`, `await job.run_now()`, `await job.cancel()`. It ends with the manager.

    Raises:
        ConfigurationError: for what cannot work, and outside a running event loop.
    """
    chosen = None if types is None else sorted(set(_listed(types)))
    owner = _manager_of(warmer, manager)
    for one in chosen or ():
        owner.policy(one)
    warmer = CacheWarmer(manager=owner) if warmer is None else warmer
    schedule = _schedule(interval_minutes, cron, timezone, jitter)

    async def warm(run: Run) -> WarmReport:
        return await warmer.warm_all(tenant_id=tenant_id, types=chosen, refresh_within=_within(run))

    return Job(warm, schedule, name=_name(tenant_id, chosen) if name is None else name, manager=owner, on_report=on_report)


def _within(run: Run) -> float:
    """What has no longer than this to live may expire before the next run has come to it."""
    return run.until_next + run.jitter + 2 * run.took + MARGIN


def _manager_of(warmer: CacheWarmer[Any] | None, manager: CacheManager | None) -> CacheManager:
    if warmer is None:
        return desk.cache_manager if manager is None else manager
    if manager is not None and manager is not warmer.manager:
        raise ConfigurationError(f"the warmer stores in {warmer.manager!r}, not in {manager!r}; give manager= to the CacheWarmer")
    return warmer.manager


def _schedule(minutes: float | None, cron: str | None, timezone: str | tzinfo | None, jitter: float) -> Schedule:
    if minutes is None and cron is None:
        raise ConfigurationError("when is it to warm? Give interval_minutes=30, or cron='*/30 * * * *'")
    if minutes is not None and cron is not None:
        raise ConfigurationError("give either interval_minutes= or cron=, not both")
    if minutes is not None and (isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0):
        raise ConfigurationError(f"interval_minutes={minutes!r}: it is a number above 0")
    return Schedule(interval=None if minutes is None else minutes * 60, cron=cron, timezone=timezone, jitter=jitter)


def _listed(types: Iterable[str]) -> list[str]:
    if isinstance(types, str):
        raise ConfigurationError(f"types={types!r}: they are a list of names, such as [{types!r}]")
    return list(types)


def _name(tenant_id: Id | None, types: list[str] | None) -> str:
    whose = "all" if tenant_id is None else f"tenant {id_text(tenant_id, 'tenant')}"
    return f"warm {whose}: {'every type' if types is None else ', '.join(types)}"
