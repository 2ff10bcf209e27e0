"""What one call may ask for: `fn.using(fresh=True, max_stale=..., refresh=True, l1=False, ttl=...)`.

A cached function with other terms is a `Cached` of its own that shares all but its state with the plain one, whose way of a call is not
touched. What was asked for once is kept, so that asking again costs a look-up.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from copy import copy
from functools import partial
from typing import Any, NamedTuple, get_type_hints

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.cached import Cached, State
from aiocache_aura.desk import unshared
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.policy import seconds
from aiocache_aura.terms import Terms
from aiocache_aura.types import FOREVER, TTL, CallOptions

REMEMBERED = 32  # for each function: options that differ from call to call are not worth more
KNOWN = tuple(get_type_hints(CallOptions))


class _Asked(NamedTuple):
    fresh: bool
    max_stale: TTL | None
    refresh: bool
    ttl: TTL | None


class Altered(Cached):
    """A cached function, under the terms of one call."""

    def __init__(self, plain: Cached, given: Mapping[str, Any], asked: _Asked) -> None:
        vars(self).update(vars(plain))
        self.plain, self.given, self._asked = plain, given, asked
        self.state = None

    def __repr__(self) -> str:
        return f"<Cached {self.name} using {dict(self.given)}>"

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        return self._refreshed(args, kwargs) if self._asked.refresh else super().call(args, kwargs)

    async def _refreshed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        manager = self.manager
        if not issubclass(type(manager), CacheManager):
            return await self.through_stranger(manager, args, kwargs, ask=False)
        self.cache_key(args, kwargs)  # says what is wrong with the call itself, which no fallback stands in for
        return await unshared(partial(self.refresh, args, kwargs), self.current_state().policy.fallback)

    def new_state(self, manager: CacheManager) -> State:
        state = self.state = copy(self.plain.state_under(manager))
        state.terms, state.personal = self._altered(state.terms), self._altered(state.personal)
        return state

    def _altered(self, terms: Terms) -> Terms:
        asked = self._asked
        return terms.altered(fresh=asked.fresh, max_stale=asked.max_stale, ttl=asked.ttl)


def using(core: Cached, options: Mapping[str, Any]) -> Cached:
    """The function under these options; those that it has been given before stay, where they are not given again."""
    plain, given = (core.plain, {**core.given, **options}) if isinstance(core, Altered) else (core, options)
    asked = _checked(given)
    altered: Altered | None = plain.altered.get(asked)
    if altered is None:
        if len(plain.altered) >= REMEMBERED:
            plain.altered.clear()
        altered = plain.altered[asked] = Altered(plain, dict(given), asked)
    return altered


def _checked(options: Mapping[str, Any]) -> _Asked:
    unknown = sorted(set(options) - set(KNOWN))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; a call may ask for: {', '.join(KNOWN)}")
    for name in ("fresh", "refresh", "l1"):
        if not isinstance(options.get(name, False), bool):
            raise ConfigurationError(f"{name}={options[name]!r}: it is True or False")
    return _Asked(
        options.get("fresh", False), _plainly(options.get("max_stale")), options.get("refresh", False), _plainly(options.get("ttl"))
    )


def _plainly(ttl: TTL | None) -> TTL | None:
    """In one form, so that what is the same compares equal."""
    return ttl if ttl is None or ttl is FOREVER else seconds(ttl)


__all__ = ["using"]
