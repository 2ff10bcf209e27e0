"""The cache types of a manager by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from aiocache_aura import keys
from aiocache_aura.desk import Desk
from aiocache_aura.errors import ConfigurationError, UnknownCacheTypeError
from aiocache_aura.namespace import Cache
from aiocache_aura.policy import CachePolicy


class CacheRegistry(Mapping[str, Cache]):
    """The cache types of a manager by name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._caches: dict[str, Cache] = {}

    def __getitem__(self, name: str, /) -> Cache:
        try:
            return self._caches[name]
        except (KeyError, TypeError):
            raise UnknownCacheTypeError(self._unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._caches

    def __iter__(self) -> Iterator[str]:
        return iter(self._caches)

    def __len__(self) -> int:
        return len(self._caches)

    def __repr__(self) -> str:
        return f"CacheRegistry({', '.join(self._caches)})"

    def register(self, name: str, policy: CachePolicy) -> Cache:
        """Add a type, or give one that is there another policy; who holds its `Cache` sees it."""
        if not isinstance(policy, CachePolicy):
            raise ConfigurationError(
                f"a cache type is registered with a CachePolicy, such as CachePolicy(ttl='5m'), not {type(policy).__name__}"
            )
        cache = self._caches.get(keys.check_type_name(name))
        if cache is None:
            cache = self._caches[name] = Cache(self._desk, name, policy)
        else:
            cache.policy = policy
        return cache

    def _unknown(self, name: object) -> str:
        close = difflib.get_close_matches(str(name), self._caches, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(self._caches))}."
        return f"no cache type {name!r}; {hint} Add one with manager.register({str(name)!r}, CachePolicy(ttl=...))"
