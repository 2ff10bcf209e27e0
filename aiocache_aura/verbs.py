"""The manager's verbs: those of `Cache` with the type in front, and those that clear."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from aiocache_aura.context import Id, id_text
from aiocache_aura.desk import Who
from aiocache_aura.generations import Addresses
from aiocache_aura.policy import PolicyOverrides
from aiocache_aura.registry import CacheRegistry
from aiocache_aura.stores.base import Scopes
from aiocache_aura.types import TTL, CacheEntry, Explanation

T = TypeVar("T")
D = TypeVar("D")


class KeyVerbs(ABC):
    """What is asked of single keys. They work for the tenant and user of the task, or for `tenant=` and `user=`."""

    @property
    @abstractmethod
    def caches(self) -> CacheRegistry:
        """The cache types by name."""

    @overload
    async def get(self, cache_type: str, key: str, *, tenant: Id | None = None, user: Id | None = None) -> Any: ...
    @overload
    async def get(self, cache_type: str, key: str, *, default: D, tenant: Id | None = None, user: Id | None = None) -> Any | D: ...
    @overload
    async def get(self, cache_type: str, key: str, *, as_type: type[T], tenant: Id | None = None, user: Id | None = None) -> T | None: ...
    @overload
    async def get(
        self, cache_type: str, key: str, *, as_type: type[T], default: D, tenant: Id | None = None, user: Id | None = None
    ) -> T | D: ...
    async def get(self, cache_type: str, key: str, **options: Any) -> Any:
        """The stored value, or `default`; see `Cache.get`."""
        return await self.caches[cache_type].get(key, **options)

    async def set(
        self,
        cache_type: str,
        key: str,
        value: object,
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> bool:
        """Store a value over whatever is there; see `Cache.set`."""
        return await self.caches[cache_type].set(key, value, tags=tags, as_type=as_type, tenant=tenant, user=user, **policy)

    async def add(
        self,
        cache_type: str,
        key: str,
        value: object,
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> bool:
        """Store a value only if a read would find nothing; see `Cache.add`."""
        return await self.caches[cache_type].add(key, value, tags=tags, as_type=as_type, tenant=tenant, user=user, **policy)

    @overload
    async def get_or_load(
        self,
        cache_type: str,
        key: str,
        loader: Callable[[], Awaitable[T]],
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> T: ...
    @overload
    async def get_or_load(
        self,
        cache_type: str,
        key: str,
        loader: Callable[[], T],
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> T: ...
    @overload
    async def get_or_load(
        self,
        cache_type: str,
        key: str,
        loader: T,
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> T: ...
    async def get_or_load(self, cache_type: str, key: str, loader: Any, **options: Any) -> Any:
        """The stored value, or what the loader gives, which is then stored; see `Cache.get_or_load`."""
        return await self.caches[cache_type].get_or_load(key, loader, **options)

    async def get_or_load_many(
        self,
        cache_type: str,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, T]]] | Callable[[list[str]], Mapping[str, T]],
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> dict[str, T]:
        """Values by key: stored ones, and what one call of the loader gives; see `Cache.get_or_load_many`."""
        cache = self.caches[cache_type]
        return await cache.get_or_load_many(keys, loader, tags=tags, as_type=as_type, tenant=tenant, user=user, **policy)

    @overload
    async def mget(self, cache_type: str, keys: Iterable[str], *, tenant: Id | None = None, user: Id | None = None) -> list[Any]: ...
    @overload
    async def mget(
        self, cache_type: str, keys: Iterable[str], *, default: D, tenant: Id | None = None, user: Id | None = None
    ) -> list[Any | D]: ...
    @overload
    async def mget(
        self, cache_type: str, keys: Iterable[str], *, as_type: type[T], tenant: Id | None = None, user: Id | None = None
    ) -> list[T | None]: ...
    @overload
    async def mget(
        self, cache_type: str, keys: Iterable[str], *, as_type: type[T], default: D, tenant: Id | None = None, user: Id | None = None
    ) -> list[T | D]: ...
    async def mget(self, cache_type: str, keys: Iterable[str], **options: Any) -> list[Any]:
        """The stored values in the order of the keys; see `Cache.mget`."""
        values: list[Any] = await self.caches[cache_type].mget(keys, **options)
        return values

    @overload
    async def get_many(
        self, cache_type: str, keys: Iterable[str], *, tenant: Id | None = None, user: Id | None = None
    ) -> dict[str, Any]: ...
    @overload
    async def get_many(
        self, cache_type: str, keys: Iterable[str], *, as_type: type[T], tenant: Id | None = None, user: Id | None = None
    ) -> dict[str, T]: ...
    async def get_many(self, cache_type: str, keys: Iterable[str], **options: Any) -> dict[str, Any]:
        """The stored values by key, hits only; see `Cache.get_many`."""
        return await self.caches[cache_type].get_many(keys, **options)

    async def mset(
        self,
        cache_type: str,
        items: Mapping[str, object],
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> bool:
        """`set` for many, in one go; see `Cache.mset`."""
        return await self.caches[cache_type].mset(items, tags=tags, as_type=as_type, tenant=tenant, user=user, **policy)

    async def delete(self, cache_type: str, *keys: str, tenant: Id | None = None, user: Id | None = None) -> int:
        """Remove entries; how many were stored. See `Cache.delete`."""
        return await self.caches[cache_type].delete(*keys, tenant=tenant, user=user)

    @overload
    async def entry(self, cache_type: str, key: str, *, tenant: Id | None = None, user: Id | None = None) -> CacheEntry[Any] | None: ...
    @overload
    async def entry(
        self, cache_type: str, key: str, *, as_type: type[T], tenant: Id | None = None, user: Id | None = None
    ) -> CacheEntry[T] | None: ...
    async def entry(self, cache_type: str, key: str, **options: Any) -> CacheEntry[Any] | None:
        """What is stored, fresh or stale, with its age; see `Cache.entry`."""
        return await self.caches[cache_type].entry(key, **options)

    async def explain(
        self, cache_type: str, key: str, *, as_type: Any = None, tenant: Id | None = None, user: Id | None = None
    ) -> Explanation:
        """What is stored under a key, and why a read would be a hit, stale or a miss; see `Cache.explain`."""
        return await self.caches[cache_type].explain(key, as_type=as_type, tenant=tenant, user=user)

    async def exists(self, cache_type: str, key: str, *, tenant: Id | None = None, user: Id | None = None) -> bool:
        """Whether a read would find it."""
        return await self.caches[cache_type].exists(key, tenant=tenant, user=user)

    async def ttl(self, cache_type: str, key: str, *, tenant: Id | None = None, user: Id | None = None) -> float | None:
        """Seconds that the entry has left, `math.inf` if it is FOREVER; None if a read would not find it."""
        return await self.caches[cache_type].ttl(key, tenant=tenant, user=user)

    async def touch(self, cache_type: str, key: str, ttl: TTL | None = None, *, tenant: Id | None = None, user: Id | None = None) -> bool:
        """Give an entry a new life from now; False if a read would not find it."""
        return await self.caches[cache_type].touch(key, ttl, tenant=tenant, user=user)


class Invalidations(ABC):
    """What clears by type, tenant, user or tag, at a cost that does not depend on the number of entries.

    They clear what they are told: the scope of the task does not count. Each says whether it was delivered, and never raises for the store.
    With `keep_stale=True` what they clear stays as stale, for readers whose policy has `stale`.
    """

    @property
    @abstractmethod
    def caches(self) -> CacheRegistry:
        """The cache types by name."""

    @property
    @abstractmethod
    def addresses(self) -> Addresses:
        """Names keys and scopes."""

    @abstractmethod
    async def drop(self, scopes: Scopes, what: str, *, soft: bool = False) -> bool:
        """Invalidate these generations, or, `soft`, leave their entries as stale; whether it was delivered."""

    async def invalidate(
        self, cache_type: str, *, tenant: Who = None, user: Who = None, tags: Iterable[str] = (), keep_stale: bool = False
    ) -> bool:
        """Void the type's entries, or those of a tenant, a user, or with one of these tags; see `Cache.invalidate`."""
        return await self.caches[cache_type].invalidate(tenant=tenant, user=user, tags=tags, keep_stale=keep_stale)

    async def invalidate_pattern(self, cache_type: str, pattern: str, *, tenant: Who = None, user: Who = None) -> int:
        """Remove the entries whose key matches a glob; how many there were. See `Cache.invalidate_pattern`."""
        return await self.caches[cache_type].invalidate_pattern(pattern, tenant=tenant, user=user)

    async def clear_namespace(self, cache_type: str, *, reclaim: bool = False) -> bool:
        """Void every entry of the type, and nobody else's; see `Cache.clear_namespace`."""
        return await self.caches[cache_type].clear_namespace(reclaim=reclaim)

    async def invalidate_tenant(self, tenant: Id, *, keep_stale: bool = False) -> bool:
        """Void a tenant's entries of every type."""
        return await self.drop(
            self.addresses.to_invalidate(None, tenants=[id_text(tenant, "tenant")]), "invalidate_tenant", soft=keep_stale
        )

    async def invalidate_user(self, user: Id, *, keep_stale: bool = False) -> bool:
        """Void a user's entries of every type: at log-out, or when rights change."""
        return await self.drop(self.addresses.to_invalidate(None, users=[id_text(user, "user")]), "invalidate_user", soft=keep_stale)

    async def invalidate_tags(self, *tags: str, keep_stale: bool = False) -> bool:
        """Void the entries with any of these tags, whatever their type and tenant."""
        if not tags:
            return True
        return await self.drop(self.addresses.to_invalidate(None, tags=tags), "invalidate_tags", soft=keep_stale)

    async def invalidate_menu(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void menu items, categories, recipes: all, a tenant's, or a user's."""
        return await self.invalidate("menu", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_permissions(self, *, tenant: Who = None, user: Who = None, keep_stale: bool = False) -> bool:
        """Void roles and permissions: all, a tenant's, or a user's. By keyword only: a 5 could be either."""
        return await self.invalidate("permissions", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_settings(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void configuration: all, a tenant's, or a user's."""
        return await self.invalidate("settings", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_analytics(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void reports, metrics, aggregates: all, a tenant's, or a user's."""
        return await self.invalidate("analytics", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_api(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void API responses: all, a tenant's, or a user's."""
        return await self.invalidate("api", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_search(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void search results: all, a tenant's, or a user's."""
        return await self.invalidate("search", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_reports(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void generated reports: all, a tenant's, or a user's."""
        return await self.invalidate("reports", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_static(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void static content: all, a tenant's, or a user's."""
        return await self.invalidate("static", tenant=tenant, user=user, keep_stale=keep_stale)

    async def invalidate_test(self, tenant: Who = None, *, user: Who = None, keep_stale: bool = False) -> bool:
        """Void what tests cached: all, a tenant's, or a user's."""
        return await self.invalidate("test", tenant=tenant, user=user, keep_stale=keep_stale)

    if not TYPE_CHECKING:  # a typed one would let every misspelt verb pass

        def __getattr__(self, name: str) -> Any:
            """A misspelt `invalidate_...` says which was meant."""
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name.startswith("invalidate_"):
                message += self._meant(name)
            raise AttributeError(message, name=name, obj=self)

    def _meant(self, name: str) -> str:
        cache_type = name.removeprefix("invalidate_")
        if cache_type in self.caches:
            return f"; a registered type is cleared with invalidate({cache_type!r}, ...)"
        verbs = [verb for verb in dir(Invalidations) if verb.startswith("invalidate_")]
        close = difflib.get_close_matches(name, verbs, n=1, cutoff=0.5)
        return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(verbs)}"
