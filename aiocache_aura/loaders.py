"""Loaders for keys that the user spells: how one that is hot is loaded again, when it is not there.

A call of a cached function tells by itself how it is made again. What `get_or_load` has stored under a key does not: its loader was the
caller's. So a function of the key is declared once, with the options that entries of such keys have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, Unpack

from aiocache_aura import keys
from aiocache_aura.desk import listed
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.policy import CachePolicy, PolicyOverrides
from aiocache_aura.sources import ByType

F = TypeVar("F", bound=Callable[[str], Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """What loads the keys of a type that match; `tags` may be a function of the key."""

    cache_type: str
    matches: Callable[[str], bool] = field(repr=False)
    function: Callable[[str], Any]
    tags: Iterable[str] | Callable[[str], Iterable[str]] = ()
    as_type: Any = None
    policy: Mapping[str, Any] = field(default_factory=dict)

    def tags_of(self, key: str) -> list[str]:
        return listed(self.tags(key) if callable(self.tags) else self.tags, "tags")


class Loaders(ByType[Loader]):
    """Loaders by cache type: of several that match a key, the one that was declared last."""

    def of(self, cache_type: str, key: str) -> Loader | None:
        return next((loader for loader in reversed(self._by_type.get(cache_type, ())) if loader.matches(key)), None)


registered = Loaders()
"""The loaders of modules."""


def decorator(
    loaders: Loaders,
    cache_type: str,
    pattern: str,
    tags: Iterable[str] | Callable[[str], Iterable[str]],
    as_type: Any,
    policy: Mapping[str, Any],
) -> Callable[[F], F]:
    """Makes a function a loader, and leaves it as it is."""
    keys.check_type_name(cache_type)
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern is text such as 'item:*', not {type(pattern).__name__}")
    told = tags if callable(tags) else tuple(listed(tags, "tags"))
    CachePolicy().merged(policy)  # says here what is wrong with it

    def declare(function: F) -> F:
        if not callable(function):
            raise TypeError(f"a loader is a function of the key, not {type(function).__name__}")
        try:
            inspect.signature(function).bind("key")
        except TypeError as error:
            raise ConfigurationError(f"a loader is called with the key; {function!r:.80} is not to be called so: {error}") from None
        matches = keys.pattern_matcher(pattern)
        loaders.add(Loader(cache_type=cache_type, matches=matches, function=function, tags=told, as_type=as_type, policy=policy))
        return function

    return declare


def warm_loader(
    cache_type: str,
    pattern: str = "*",
    /,
    *,
    tags: Iterable[str] | Callable[[str], Iterable[str]] = (),
    as_type: Any = None,
    **policy: Unpack[PolicyOverrides],
) -> Callable[[F], F]:
    """Declare how keys of a type are loaded again: by every warmer, for `warm_hot` and `restore_hot`.

    @warm_loader("menu", "item:*", tags=lambda key: [key])
    async def item(key): return await fetch_item(key.removeprefix("item:"))

    It is for keys that `get_or_load` fills. The function, async or plain, is given the key and returns the value; it runs in the scope of
    the key's tenant and user, in a flight like any load. Give the options that the key is read with elsewhere, `tags` above all: what is
    stored without a tag is not voided with it. Keys that are too long to stand in Redis as they are (160 bytes) cannot be loaded again.

    Args:
        cache_type: The type of the keys.
        pattern: A glob for the keys, as for `invalidate_pattern`; of several that match, the one declared last serves.
        tags: Tags of the entry, or a function of the key that gives them.
        as_type: As for `get_or_load`.
        policy: Options of the policy, by name.
    """
    return decorator(registered, cache_type, pattern, tags, as_type, policy)
