"""The front desk: `CacheManager`, and the process-wide `cache_manager`.

A manager knows its cache types and, for each event loop, an engine; nothing is connected before the first await. The key verbs are those of
`Cache`, with the type in front.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

from aiocache_aura.context import bypass_scope
from aiocache_aura.deferral import Held, deferring, put_off
from aiocache_aura.engines import Engines
from aiocache_aura.errors import BackendError, BackendTimeoutError, ConfigurationError
from aiocache_aura.events import Events
from aiocache_aura.generations import Addresses, types_of
from aiocache_aura.namespace import Cache
from aiocache_aura.policy import PRESETS, CachePolicy, PolicyOverrides
from aiocache_aura.recorder import Recorder
from aiocache_aura.registry import CacheRegistry
from aiocache_aura.renewing import Engine
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.resilience.threads import call_plain
from aiocache_aura.settings import Options, Settings, shown_url
from aiocache_aura.stats import Counts
from aiocache_aura.stores.base import Port, Scopes
from aiocache_aura.stores.memory import MemoryStore
from aiocache_aura.verbs import Invalidations, KeyVerbs

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

log = logging.getLogger("aiocache_aura.manager")

BACKEND = "aiocache_aura.backend"


class CacheManager(KeyVerbs, Invalidations):
    """A cache over `memory://` or Redis, for any number of event loops.

    The keyword options are those of `aiocache_aura.settings.Settings`. A redis client that is given stays its owner's: it is not closed.
    """

    @overload
    def __init__(self, url: str | None = None, **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(self, *, client: Redis | RedisCluster, **options: Unpack[Options]) -> None: ...
    def __init__(self, url: str | None = None, **options: Any) -> None:
        given = options if url is None else {"url": url, **options}
        self._settings = Settings().changed(given)
        self._told = frozenset(given)
        self._asks_environment = False
        self._addresses: Addresses | None = None
        self._memory: MemoryStore | None = None
        self._memory_pid = 0
        self._backend_is_here = False
        self._importing: dict[asyncio.AbstractEventLoop, asyncio.Task[Any]] = {}
        self._engines = Engines(self._make_engine, self._settings.budget)
        self._jobs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._off = 0
        self.stamp = object()
        self._lock = threading.Lock()
        self._faults = FaultLog(log, clock=self._settings.clock)
        self._recorder = Recorder(self._settings.clock)
        self._caches = CacheRegistry(self)
        self._register_all({**PRESETS, **self._settings.policies})
        if self._settings.is_remote:
            self._import_backend()

    @classmethod
    def from_environment(cls) -> Self:
        """A manager that reads AURA_CACHE_URL and AURA_CACHE_PREFIX at first use, where `configure` has not said otherwise."""
        manager = cls()
        manager._asks_environment = True
        return manager

    def __repr__(self) -> str:
        where = "a client" if self._settings.client is not None else shown_url(self._settings.url)
        return f"<CacheManager {where} prefix={self._settings.prefix!r} loops={len(self._engines)}{' disabled' if self._off else ''}>"

    # Being set up

    @property
    def settings(self) -> Settings:
        """The options as they are; those of the environment are in them from the first use on."""
        return self._settings

    def configure(self, *, url: str | None = None, client: Any = None, **options: Unpack[Options]) -> None:
        """Change options in place, before the first use; ConfigurationError afterwards, or for an option that cannot work."""
        if self._addresses is not None:
            raise ConfigurationError(f"{self!r} is in use already; configure it before its first use, or make another CacheManager(...)")
        given: dict[str, Any] = {**options, **({} if url is None else {"url": url}), **({} if client is None else {"client": client})}
        settings = self._settings.changed(given)
        if settings.is_remote:
            self._import_backend(settings)
        self._settings, self._told = settings, self._told | frozenset(given)
        self._engines = Engines(self._make_engine, settings.budget)
        self._faults = FaultLog(log, clock=settings.clock)
        self._recorder.restart(settings.clock)
        self._register_all(options.get("policies", {}))

    @property
    def addresses(self) -> Addresses:
        """Names keys and scopes. Asking for it counts as use: the prefix is fixed from here on."""
        addresses = self._addresses
        return self._settle() if addresses is None else addresses

    def _settle(self) -> Addresses:
        with self._lock:
            if self._addresses is None:
                if self._asks_environment:
                    self._settings = self._settings.with_environment(self._told)
                self._addresses = Addresses(self._settings.prefix)
            return self._addresses

    # Cache types

    @property
    def caches(self) -> CacheRegistry:
        """The cache types by name; UnknownCacheTypeError names the closest."""
        return self._caches

    def register(self, name: str, policy: CachePolicy) -> Cache:
        """Add a cache type, or replace the policy of one, a preset's too."""
        return self._caches.register(name, policy)

    def override(self, name: str, **changes: Unpack[PolicyOverrides]) -> Cache:
        """Change some fields of a type's policy; what is not named stays."""
        return self._caches.register(name, self._caches[name].policy.merged(changes))

    def policy(self, cache_type: str) -> CachePolicy:
        """How entries of this type live."""
        return self._caches[cache_type].policy

    def counts(self, cache_type: str) -> Counts:
        """The counters of a type, as they go."""
        return self._caches[cache_type].counts

    @property
    def recorder(self) -> Recorder:
        """What is counted here, over time, and the operations that were slow."""
        return self._recorder

    @property
    def events(self) -> Events:
        """Hands what happens here to plain callables: `manager.events.listen(print)`."""
        return self._recorder.events

    def stats(self) -> dict[str, dict[str, Any]]:
        """What happened in this process, by cache type: hits, misses, hit_rate, sets, loads, ..."""
        return {name: cache.stats() for name, cache in self._caches.items()}

    def _register_all(self, policies: Mapping[str, CachePolicy]) -> None:
        for name, policy in policies.items():
            self._caches.register(name, policy)

    # Opening and closing

    def engine_now(self) -> Engine | None:
        """This loop's engine if it is open: the hot path."""
        return self._engines.now()

    async def engine(self) -> Engine:
        """This loop's engine, opened if need be; BackendTimeoutError where redis is still being imported when the budget is used up."""
        engine = self._engines.now()
        if engine is not None:
            return engine
        return await self._open(self._settings.budget)

    def ports(self) -> list[Port]:
        """The ways to the store that are open, one for each loop: for figures, in any thread."""
        return [engine.port for engine in self._engines.every()]

    async def _open(self, patience: float | None) -> Engine:
        self._settle()
        if self._settings.is_remote and not self._backend_is_here:
            await self._await_backend(patience)
        return self._engines.place().engine

    def _make_engine(self) -> Engine:
        settings, tick = self._settings, Tick()
        port = self._open_port(tick)
        return Engine(
            port, self.addresses, settings.clock, budget=settings.budget, tick=tick, log_keys=settings.log_keys, recorder=self._recorder
        )

    def _open_port(self, tick: Tick) -> Port:
        if self._settings.is_remote:
            backend = importlib.import_module(BACKEND)
            port: Port = backend.open_port(self._settings, self.addresses.prefix, tick)
            return port
        if self._memory is None or self._memory_pid != os.getpid():  # a fork may have been made while the store's lock was held
            self._memory_pid = os.getpid()
            self._memory = MemoryStore(self._settings.clock, max_bytes=self._settings.l1_bytes, max_entries=self._settings.l1_entries)
            self._memory.on_evict(self._recorder.evicted)
        return self._memory

    def _import_backend(self, settings: Settings | None = None) -> None:
        try:
            importlib.import_module(BACKEND).check(self._settings if settings is None else settings)
        except ImportError as exc:
            raise ConfigurationError(f"a Redis cache needs redis: pip install 'redis[hiredis]' ({exc})") from exc
        self._backend_is_here = True

    async def _await_backend(self, patience: float | None) -> None:
        """Have a thread import redis, which takes as long as many an answer may, and wait for it so many seconds, or to the end."""
        loop = asyncio.get_running_loop()
        importing = self._importing.get(loop)
        if importing is None:
            importing = self._importing[loop] = loop.create_task(call_plain(self._import_backend))
            importing.add_done_callback(lambda _: self._importing.pop(loop, None))
        done, _ = await asyncio.wait({importing}, timeout=patience)
        if not done:
            raise BackendTimeoutError(f"redis was not imported within the budget of {self._settings.budget} s; the next call may find it")
        importing.result()

    async def aclose(self) -> None:
        """Close the connections of every event loop and empty the memory store. Idempotent; a later use opens it again."""
        importing = self._importing.get(asyncio.get_running_loop())
        if importing is not None:
            await asyncio.wait({importing})
        try:
            await self._engines.aclose()
        finally:
            memory, self._memory = self._memory, None
            if memory is not None:
                memory.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """For Starlette and FastAPI: `FastAPI(lifespan=cache_manager.lifespan)`. Opens what may take long, closes when the app ends."""
        async with self:
            await self._open(None)
            yield

    # Reading past

    @property
    def is_off(self) -> bool:
        """Whether a `disabled()` block is open."""
        return self._off > 0

    def disabled(self) -> AbstractContextManager[None]:
        """While the block is open this manager reads and writes nothing; invalidations and deletes still go."""
        return _Disabled(self._switch)

    def _switch(self, by: int) -> None:
        with self._lock:
            self._off += by
        self.restamp()

    def restamp(self) -> None:
        """Decorated functions compare `stamp` by identity: another one makes them look at policies and at `is_off` again."""
        self.stamp = object()

    def bypass(self) -> AbstractContextManager[None]:
        """This task, and those that it starts meanwhile, read past the cache: loads run for them alone and are not stored."""
        return bypass_scope()

    # Invalidating later

    def deferred(self) -> AbstractAsyncContextManager[None]:
        """Invalidations and deletes of the block, and of tasks started in it, go out together when it ends, and not if it raises.

        For transactions: it stands around the commit. Inside, verbs that say whether they were delivered answer False, and counts are 0.
        What a block within a block held goes with the outer one. What cannot be delivered is logged; the block does not raise for it.
        """
        return deferring(self, self._send)

    def put_off(self, put: Callable[[Held], None]) -> bool:
        """Have the `deferred()` block that this task is in hold it; False if there is none."""
        return put_off(self, put)

    # What namespaces ask for

    def fault(self, error: BackendError, what: str) -> None:
        """A store failed an explicit verb: log it, or raise it under `strict`."""
        self._faults.report(error, what)
        if self._settings.strict:
            raise error

    async def drop(self, scopes: Scopes, what: str, *, soft: bool = False) -> bool:
        """Invalidate these generations, or have the `deferred()` block do it; whether it was delivered. Never raises for the store."""
        return not self.put_off(lambda held: held.drop(scopes, soft=soft)) and await self._send(scopes, what, soft)

    async def _send(self, scopes: Scopes, what: str, soft: bool) -> bool:
        started = self._settings.clock.monotonic()
        try:
            engine = await self.engine()
        except BackendError as error:
            log.error("%s was not delivered: %s", what, error)
            delivered = False
        else:
            delivered = await engine.invalidate(scopes, soft=soft)
        self._recorder.invalidated(types_of(scopes), what, self._settings.clock.monotonic() - started, delivered=delivered)
        return delivered

    async def behind(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run it as a task that `aclose` waits for; not at all where no engine is to be had."""
        try:
            await self.engine()
        except BackendError as error:
            work.close()
            self._faults.report(error, "work behind")
        else:
            self._engines.place().start(work)

    @property
    def jobs(self) -> list[Any]:
        """The jobs that are scheduled on this manager and have not ended, by name: see `schedule_cache_warming`."""
        return sorted((job for job in self._jobs if not job.is_over), key=lambda job: job.name)

    def know(self, job: Any) -> None:
        """A job was scheduled on this manager."""
        self._jobs.add(job)

    def own(self, task: asyncio.Task[Any]) -> None:
        """Have `aclose` cancel this task of any loop, and wait for its end, before it closes what the task works with. Counts as use."""
        self._settle()
        self._engines.own(task)


class _Disabled(AbstractContextManager[None]):
    __slots__ = ("_switch",)

    def __init__(self, switch: Callable[[int], None]) -> None:
        self._switch = switch

    def __enter__(self) -> None:
        self._switch(1)

    def __exit__(self, *exc: object) -> None:
        self._switch(-1)


cache_manager = CacheManager.from_environment()
"""The process-wide manager: `memory://`, or what AURA_CACHE_URL or `cache_manager.configure(...)` says."""
