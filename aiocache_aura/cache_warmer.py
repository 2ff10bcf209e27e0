"""Warmers: caches filled before anybody asks.

warmer = CacheWarmer(session_factory)

@warmer.source("menu")
async def menus(db, tenant_id):
    for row in await db.execute(...):
        yield f"item:{row.id}", {"name": row.name}         # a key and a value; or: yield get_menu(tenant_id)

report = await warmer.warm_all(tenant_id=1)
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, Unpack

import anyio

from aiocache_aura import cache_manager as desk
from aiocache_aura import hot, loaders
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.context import Id, id_text, identity, tenant_scope
from aiocache_aura.desk import listed
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.heat import HotKey
from aiocache_aura.jobs import Job
from aiocache_aura.jobs import Run as JobRun
from aiocache_aura.loaders import Loader, Loaders, warm_loader
from aiocache_aura.planting import Renewal
from aiocache_aura.policy import PolicyOverrides, seconds
from aiocache_aura.progress import bar
from aiocache_aura.published import process_name
from aiocache_aura.resilience.threads import call_plain
from aiocache_aura.scheduling import job_name, names_of, schedule_of, within
from aiocache_aura.sources import Source, Sources, decorator, registered, warm_source
from aiocache_aura.types import TTL, is_number, is_whole
from aiocache_aura.warm_report import WarmProgress, WarmReport
from aiocache_aura.warming import Run, Tally
from aiocache_aura.warming_pace import Pace
from aiocache_aura.warming_steps import Sessions, reading

DB = TypeVar("DB")
F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("aiocache_aura.warmer")

CONCURRENCY = 4

Progress: TypeAlias = Callable[[WarmProgress], object]


class CacheWarmer(Generic[DB]):
    """Fills cache types from their sources.

    What is fresh is left as it is; what is missing is loaded, or stored, by the same rules as for everybody: a load that users wait for is
    joined, an invalidation that comes while a source runs wins. A source that fails does not stop the others. Warming is last in line.

    Args:
        db: Whatever the sources need. A callable, such as a session factory, is opened for each source that takes it, and closed after it;
            anything else is given to one source at a time. Calls that a source yields run side by side: if they share its session, let
            `concurrency` be 1, or the functions have their own with `provide=`. A session that is in a transaction already may see what was
            there when that began: an invalidation since then is not known to it.
        manager: Instead of `aiocache_aura.cache_manager.cache_manager`, which is looked up for each run.
        concurrency: Loads, and sources, that run at once. Users' loads are not counted.
        rate: Keys per second, None for no bound.
        timeout: Seconds that a run may take, in any form of a TTL; what is not done then is reported as "timeout".
        progress: Called with a `WarmProgress` a few times in a second; "bar" draws them in the terminal, with rich.
    """

    def __init__(
        self,
        db: DB | Callable[[], Any] | None = None,
        *,
        manager: CacheManager | None = None,
        concurrency: int = CONCURRENCY,
        rate: float | None = None,
        timeout: TTL | None = None,
        progress: Progress | Literal["bar"] | None = None,
    ) -> None:
        _check_concurrency(concurrency)
        if rate is not None and (not is_number(rate) or not rate > 0):
            raise ConfigurationError(f"rate={rate!r}: it is keys per second, above 0, or None")
        if not (progress is None or progress == "bar" or callable(progress)):
            raise ConfigurationError(f'progress={progress!r}: it is a function of a WarmProgress, or "bar"')
        self._manager = manager
        self._concurrency, self._rate = concurrency, rate
        self._progress: Progress | Literal["bar"] | None = progress
        self._timeout = None if timeout is None else seconds(timeout)
        self._sources, self._sessions, self._loaders = Sources(), Sessions(db), Loaders()

    def __repr__(self) -> str:
        return f"<CacheWarmer of {len(self._sources)} sources and {len(registered)} of modules>"

    @property
    def manager(self) -> CacheManager:
        """Where it stores."""
        manager = desk.cache_manager if self._manager is None else self._manager
        if not isinstance(manager, CacheManager):
            raise ConfigurationError(f"a warmer needs a CacheManager; the manager is a {type(manager).__name__}")
        return manager

    def source(self, cache_type: str, /, *, tags: Iterable[str] = ()) -> Callable[[F], F]:
        """Declare a source of this warmer; see `warm_source`."""
        return decorator(self._sources, cache_type, tags)

    def loader(
        self,
        cache_type: str,
        pattern: str = "*",
        /,
        *,
        tags: Iterable[str] | Callable[[str], Iterable[str]] = (),
        as_type: Any = None,
        **policy: Unpack[PolicyOverrides],
    ) -> Callable[[F], F]:
        """Declare how keys are loaded again by this warmer, which is asked before those of `warm_loader`; see there."""
        return loaders.decorator(self._loaders, cache_type, pattern, tags, as_type, policy)

    def _loader_of(self, cache_type: str, key: str) -> Loader | None:
        return self._loaders.of(cache_type, key) or loaders.registered.of(cache_type, key)

    # Running

    async def warm(
        self,
        cache_type: str,
        *,
        tenant_id: Id | None = None,
        only_missing: bool = True,
        refresh_older_than: TTL | None = None,
        refresh_within: TTL | None = None,
    ) -> WarmReport:
        """Fill one cache type; see `warm_all`."""
        self.manager.policy(cache_type)
        return await self._warm([cache_type], tenant_id, _renewal(only_missing, refresh_older_than, refresh_within), at_once=1)

    async def warm_all(
        self,
        *,
        tenant_id: Id | None = None,
        parallel: bool = True,
        types: Iterable[str] | None = None,
        only_missing: bool = True,
        refresh_older_than: TTL | None = None,
        refresh_within: TTL | None = None,
    ) -> WarmReport:
        """Fill every cache type that has a source, several at once unless `parallel=False`. Raises only if it is cancelled.

        Args:
            tenant_id: Given to the sources, and the scope in which they run.
            types: Only these.
            only_missing: False: load and store everything anew.
            refresh_older_than: Renew what was loaded so long ago.
            refresh_within: Renew what has no longer than this to live: a schedule's own interval keeps what it warms from going cold.
        """
        names = list(dict.fromkeys((*self.manager.caches, *self._sources.types) if types is None else listed(types, "types")))
        for name in names:
            self.manager.policy(name)
        renewal = _renewal(only_missing, refresh_older_than, refresh_within)
        return await self._warm(names, tenant_id, renewal, at_once=self._concurrency if parallel else 1)

    async def warm_hot(
        self, *, limit: int = 1000, cache_type: str | None = None, concurrency: int | None = None, keys: Sequence[HotKey] | None = None
    ) -> WarmReport:
        """Load again what has saved the most lately and is not there, the hottest first: for a new process, or an emptied Redis.

        What is hot is what this process has learned and what the others of the fleet have published (`cache_monitor.running()` does).
        Calls of cached functions are made again, with `provide=` where they need a session; not of methods, nor with `secret=` arguments.
        Keys that `get_or_load` has filled are loaded by what `warm_loader` or `loader` has declared for them.

        Args:
            limit: How many keys at most.
            cache_type: Of this type only.
            concurrency: Loads at once, instead of the warmer's own.
            keys: These, instead of what is known to be hot.
        """
        if not is_whole(limit) or limit < 1:
            raise ConfigurationError(f"limit={limit!r}: it is how many keys to warm at most, at least 1")
        manager = self.manager
        clock, at_once = manager.settings.clock, self._concurrency if concurrency is None else concurrency
        _check_concurrency(at_once)
        if cache_type is not None:
            manager.policy(cache_type)
        found = await hot.of_fleet(manager, process_name(manager)) if keys is None else keys
        chosen = [one for one in found if cache_type in (None, one.cache_type) and one.cache_type in manager.caches][:limit]
        started = clock.monotonic()
        with bar(self._progress) as progress:
            pace = Pace(at_once, self._rate, manager.recorder.reads)
            tallies = {name: Tally(name, clock, progress) for name in dict.fromkeys(one.cache_type for one in chosen)}
            runs = {name: Run(manager.caches[name], tally, pace, Renewal()) for name, tally in tallies.items()}
            if manager.is_off or identity.get().bypass:  # nothing would be stored
                for tally in tallies.values():
                    tally.end("skipped")
                return WarmReport(types={name: tally.report() for name, tally in tallies.items()}, seconds=0.0)
            for tally in tallies.values():
                tally.start()
            try:
                with anyio.move_on_after(self._timeout) as bound:
                    lost = await hot.warm(manager, chosen, runs.__getitem__, self._loader_of, 2 * at_once)
                    if lost:
                        log.info(
                            "%d of %d hot keys cannot be loaded again here: no cached function and no warm_loader is theirs",
                            lost,
                            len(chosen),
                        )
            finally:
                for run in runs.values():
                    run.is_over = True
            for tally in tallies.values():
                tally.end("timeout" if bound.cancelled_caught else "done")
        return WarmReport(types={name: tally.report() for name, tally in tallies.items()}, seconds=clock.monotonic() - started)

    async def save_hot(self, path: str | os.PathLike[str], *, limit: int = 1000) -> int:
        """Write what is hot, in this process and the fleet, to a file for `restore_hot`; how many keys. It holds arguments, and no
        values."""
        keys = (await hot.of_fleet(self.manager, process_name(self.manager)))[:limit]
        written: int = await call_plain(hot.save, path, keys)
        return written

    async def restore_hot(self, path: str | os.PathLike[str], *, limit: int = 1000) -> WarmReport:
        """`warm_hot` by a file of `save_hot`. ConfigurationError for a file that is something else; OSError if it cannot be read."""
        return await self.warm_hot(limit=limit, keys=await call_plain(hot.restore, path))

    async def _warm(self, names: list[str], tenant_id: Id | None, renewal: Renewal, *, at_once: int) -> WarmReport:
        manager = self.manager
        clock = manager.settings.clock
        started, tenant = clock.monotonic(), None if tenant_id is None else id_text(tenant_id, "tenant")
        with bar(self._progress) as progress, nullcontext() if tenant is None else tenant_scope(tenant):
            pace, places = Pace(self._concurrency, self._rate, manager.recorder.reads), anyio.Semaphore(at_once)
            tallies = [Tally(name, clock, progress) for name in names]

            async def one(tally: Tally, sources: list[Source]) -> None:
                async with places:
                    await self._warm_type(manager, tally, sources, tenant_id, pace, renewal)

            # Not anyio's, which cancel again and again what is being cleaned up: sessions are closed by code that awaits.
            bound = asyncio.timeout(self._timeout)
            try:
                async with bound, asyncio.TaskGroup() as group:
                    for tally in tallies:
                        sources = [each for found in (registered, self._sources) for each in found.of(tally.cache_type, manager)]
                        if sources and not manager.is_off:
                            group.create_task(one(tally, sources))
                        else:
                            tally.end("skipped")
            except TimeoutError:
                if not bound.expired():
                    raise
            for tally in tallies:
                if tally.ended is None:
                    tally.note(f"not done after timeout={self._timeout} s")
                    tally.end("timeout")
        reports = {tally.cache_type: tally.report() for tally in tallies}
        for report in reports.values():
            if report.ended != "skipped":
                manager.recorder.warm_run(report)
        return WarmReport(types=reports, tenant_id=tenant, seconds=clock.monotonic() - started)

    async def _warm_type(
        self, manager: CacheManager, tally: Tally, sources: Sequence[Source], tenant_id: Id | None, pace: Pace, renewal: Renewal
    ) -> None:
        tally.start()
        has_failed = False
        for source in sources:
            run = Run(manager.caches[tally.cache_type], tally, pace, renewal, in_turn=source.lent is not None)
            try:
                await run.take(partial(reading, source, self._sessions, tenant_id), source.tags)
            except Exception as error:
                has_failed = True
                tally.note(f"{source.name}: {_told(error)}")
                log.warning("warming of cache type %r: source %s failed", tally.cache_type, source.name, exc_info=error)
        tally.end("failed" if has_failed else "done")

    # Each built-in type by its name

    async def warm_menu_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("menu", tenant_id=...)`."""
        return await self.warm("menu", tenant_id=tenant_id)

    async def warm_permissions_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("permissions", tenant_id=...)`."""
        return await self.warm("permissions", tenant_id=tenant_id)

    async def warm_settings_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("settings", tenant_id=...)`."""
        return await self.warm("settings", tenant_id=tenant_id)

    async def warm_analytics_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("analytics", tenant_id=...)`."""
        return await self.warm("analytics", tenant_id=tenant_id)

    async def warm_api_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("api", tenant_id=...)`."""
        return await self.warm("api", tenant_id=tenant_id)

    async def warm_search_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("search", tenant_id=...)`."""
        return await self.warm("search", tenant_id=tenant_id)

    async def warm_reports_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("reports", tenant_id=...)`."""
        return await self.warm("reports", tenant_id=tenant_id)

    async def warm_static_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("static", tenant_id=...)`."""
        return await self.warm("static", tenant_id=tenant_id)

    async def warm_test_cache(self, *, tenant_id: Id | None = None) -> WarmReport:
        """`warm("test", tenant_id=...)`."""
        return await self.warm("test", tenant_id=tenant_id)

    if not TYPE_CHECKING:  # a typed one would let every misspelt name pass

        def __getattr__(self, name: str) -> Any:
            """`warm_orders_cache`, for types that were registered."""
            cache_type = name.removeprefix("warm_").removesuffix("_cache")
            if name.startswith("_") or name != f"warm_{cache_type}_cache" or cache_type not in self.manager.caches:
                close = difflib.get_close_matches(name, dir(self), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)
            return partial(self.warm, cache_type)


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
    chosen = None if types is None else sorted(set(names_of(types)))
    owner = _manager_of(warmer, manager)
    for one in chosen or ():
        owner.policy(one)
    warmer = CacheWarmer(manager=owner) if warmer is None else warmer
    schedule = schedule_of(interval_minutes, cron, timezone, jitter)

    async def warm(run: JobRun) -> WarmReport:
        return await warmer.warm_all(tenant_id=tenant_id, types=chosen, refresh_within=within(run))

    job = Job(warm, schedule, name=job_name(tenant_id, chosen) if name is None else name, manager=owner, on_report=on_report)
    owner.know(job)
    return job


def _check_concurrency(concurrency: object) -> None:
    if not is_whole(concurrency) or concurrency < 1:
        raise ConfigurationError(f"concurrency={concurrency!r}: it is how many loads may run at once, at least 1")


def _manager_of(warmer: CacheWarmer[Any] | None, manager: CacheManager | None) -> CacheManager:
    if warmer is None:
        return desk.cache_manager if manager is None else manager
    if manager is not None and manager is not warmer.manager:
        raise ConfigurationError(f"the warmer stores in {warmer.manager!r}, not in {manager!r}; give manager= to the CacheWarmer")
    return warmer.manager


def _renewal(only_missing: bool, older: TTL | None, within: TTL | None) -> Renewal:
    told = {} if older is None else {"older": seconds(older)}
    return Renewal(**told, within=0.0 if within is None else seconds(within), everything=not only_missing)


def _told(error: Exception) -> str:
    hint = "; is the server there?" if isinstance(error, BackendError) else ""
    return f"{type(error).__name__}: {error}{hint}"


__all__ = ["CacheWarmer", "WarmProgress", "WarmReport", "schedule_cache_warming", "warm_loader", "warm_source"]
