"""How a type of entries lives: its policy, the presets, and what may be overridden where."""

from __future__ import annotations

import dataclasses
import inspect
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypedDict

from aiocache_aura.errors import ConfigurationError, LoadDeadlineError
from aiocache_aura.types import FOREVER, MISSING, TTL, CacheTTL, Forever

Aware: TypeAlias = bool | Literal["known"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TEXT = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_TERM = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def seconds(ttl: TTL) -> float:
    """A life in seconds; `math.inf` for FOREVER. ConfigurationError, a ValueError, for anything that is no TTL."""
    if isinstance(ttl, bool):
        raise ConfigurationError(f"a TTL is not a bool: {ttl}; give seconds, a timedelta, text like '5m', or FOREVER")
    if isinstance(ttl, Forever):
        return math.inf
    if isinstance(ttl, timedelta):
        ttl = ttl.total_seconds()
    if isinstance(ttl, str):
        return _from_text(ttl)
    if not isinstance(ttl, int | float):
        raise ConfigurationError(f"a TTL is seconds, a timedelta, text like '5m', or FOREVER, not {_kind(ttl)}")
    if not 0 <= ttl < math.inf:
        raise ConfigurationError(f"a TTL is at least 0 and finite, not {ttl}; without end it is ttl=FOREVER")
    return float(ttl)


def _kind(ttl: object) -> str:
    return type(ttl).__name__ + ("; a function of the result is for decorators" if callable(ttl) else "")


@lru_cache(maxsize=256)
def _from_text(text: str) -> float:
    if not _TEXT.fullmatch(text):
        raise ConfigurationError(f"not a TTL: {text!r}; write a number and a unit, such as '90s', '5m', '2h', '1d' or '1h30m'")
    return sum(float(number) * _UNITS[unit] for number, unit in _TERM.findall(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePolicy:
    """How the entries of a type live. Times are seconds or any TTL form; every field is keyword-only.

    The meaning of each field is in docs/policies.md. Those of `NOT_YET` take their default only in this version.
    """

    ttl: TTL = 60
    jitter: float = 0.0
    stale: TTL = 0
    stale_on: tuple[type[BaseException], ...] = (TimeoutError, OSError, LoadDeadlineError)
    soft_timeout: TTL | None = None
    hard_timeout: TTL | None = None
    load_deadline: TTL | None = 30
    keep_loading: bool = False
    throttle: TTL = 1
    early_refresh: float | bool = False
    sliding: bool = False
    cache_none: bool = False
    negative_ttl: TTL | None = None
    cache_errors: tuple[type[Exception], ...] = ()
    store_if: Callable[[Any], bool] | None = None
    fallback: Any = MISSING
    tenant_aware: Aware = "known"
    user_aware: Aware = False
    lease: bool | None = None
    l1: bool | None = None
    l1_ttl: TTL | None = None
    l1_bytes: int | None = None
    l1_entries: int | None = None
    share: bool = False
    codec: str | None = None
    compress_over: int | None = None
    encrypt: bool = False
    max_value_bytes: int = 8 * 2**20

    def __post_init__(self) -> None:
        seconds(self.ttl)
        _require(
            isinstance(self.jitter, int | float) and 0 <= self.jitter < 1, "jitter", self.jitter, "a share of the ttl, from 0 to below 1"
        )
        for name in ("tenant_aware", "user_aware"):
            aware = getattr(self, name)
            _require(isinstance(aware, bool) or aware == "known", name, aware, "True, False or 'known'")
        whole = isinstance(self.max_value_bytes, int) and not isinstance(self.max_value_bytes, bool)
        _require(whole and self.max_value_bytes > 0, "max_value_bytes", self.max_value_bytes, "a number of bytes above 0")
        for name in ("share", "keep_loading", "sliding", "cache_none"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        _require(self.lease is None or isinstance(self.lease, bool), "lease", self.lease, "True, False, or None for 'where it makes sense'")
        self._check_times()
        self._check_what_is_stored()
        self._refuse_what_is_not_here_yet()

    def _check_times(self) -> None:
        _time("stale", self.stale, "how long past its life a value may stand in; 0 for never")
        _require(_time("throttle", self.throttle, "a pause") < math.inf, "throttle", self.throttle, "a pause that ends")
        for name in ("soft_timeout", "hard_timeout", "load_deadline", "negative_ttl"):
            given = getattr(self, name)
            if given is not None:
                _require(_time(name, given, "a time") > 0, name, given, "a time above 0, or None for none of its own")
        soft, hard = self.soft_timeout, self.hard_timeout
        if soft is not None and hard is not None and seconds(soft) > seconds(hard):
            raise ConfigurationError(
                f"soft_timeout={soft!r} with hard_timeout={hard!r}: a caller takes a stale value after the soft one, and gives up after "
                "the hard one, so the soft one is the shorter"
            )
        factor = self.early_refresh
        is_factor = isinstance(factor, bool) or (isinstance(factor, int | float) and 0 < factor < math.inf)
        _require(is_factor, "early_refresh", factor, "True, False, or a factor above 0: 2.0 refreshes earlier than 1.0, which True is")

    def _check_what_is_stored(self) -> None:
        _check_exceptions("stale_on", self.stale_on, BaseException)
        _check_exceptions("cache_errors", self.cache_errors, Exception)
        _require(
            self.store_if is None or (callable(self.store_if) and not inspect.iscoroutinefunction(self.store_if)),
            "store_if",
            self.store_if,
            "a plain function of the loaded value that says whether to store it",
        )
        if inspect.isawaitable(self.fallback):
            if inspect.iscoroutine(self.fallback):
                self.fallback.close()
            raise ConfigurationError("fallback: it is a value, or a function that gives one; pass the function, not what calling it gave")

    def _refuse_what_is_not_here_yet(self) -> None:
        for name, allowed in NOT_YET.items():
            value = getattr(self, name)
            if not any(value is a or value == a for a in allowed):
                raise ConfigurationError(f"{name}={value!r} is not in this version yet; leave it at {allowed[0]!r}")

    @property
    def life(self) -> float:
        """Seconds that an entry lives, before jitter; `math.inf` for ever."""
        return seconds(self.ttl)

    def merged(self, overrides: Mapping[str, Any]) -> CachePolicy:
        """This policy with some fields replaced; an unknown one is a TypeError that names those there are; ttl=None is this policy's."""
        changes = {name: value for name, value in overrides.items() if not (name == "ttl" and value is None)}
        unknown = sorted(set(changes) - FIELDS)
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; a policy has: {', '.join(sorted(FIELDS))}")
        return dataclasses.replace(self, **changes) if changes else self


def _require(condition: bool, name: str, value: object, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"{name}={value!r}: it is {what}")


def _time(name: str, given: TTL, what: str) -> float:
    """Seconds; an error that names the field."""
    try:
        return seconds(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}={given!r}: it is {what}, in the forms of a TTL ({error})") from None


def _check_exceptions(name: str, given: object, base: type[BaseException]) -> None:
    classes = given if isinstance(given, tuple | list | set) else (given,)
    are_all = all(isinstance(each, type) and issubclass(each, base) for each in classes)
    if not (isinstance(given, tuple) and are_all):
        meant = ", ".join(each.__name__ for each in classes if isinstance(each, type)) if are_all else ""
        what = "exceptions" if base is BaseException else "classes derived from Exception"
        raise ConfigurationError(f"{name}={given!r:.120}: it is a tuple of {what}, such as {name}=({meant or 'KeyError'},)")


FIELDS = frozenset(field.name for field in dataclasses.fields(CachePolicy))

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(CachePolicy)}
_LATER = ("l1_ttl", "l1_bytes", "l1_entries", "codec", "compress_over", "encrypt")
NOT_YET: dict[str, tuple[Any, ...]] = {"l1": (None, False)} | {name: (_DEFAULTS[name],) for name in _LATER}


class _Life(TypedDict, total=False):
    ttl: TTL | None


class _LifeOfResult(TypedDict, total=False):
    ttl: TTL | Callable[[Any], TTL] | None


class _Others(TypedDict, total=False):
    jitter: float
    stale: TTL
    stale_on: tuple[type[BaseException], ...]
    soft_timeout: TTL | None
    hard_timeout: TTL | None
    load_deadline: TTL | None
    keep_loading: bool
    throttle: TTL
    early_refresh: float | bool
    sliding: bool
    cache_none: bool
    negative_ttl: TTL | None
    cache_errors: tuple[type[Exception], ...]
    store_if: Callable[[Any], bool] | None
    fallback: Any
    tenant_aware: Aware
    user_aware: Aware
    lease: bool | None
    l1: bool | None
    l1_ttl: TTL | None
    l1_bytes: int | None
    l1_entries: int | None
    share: bool
    codec: str | None
    compress_over: int | None
    encrypt: bool
    max_value_bytes: int


class PolicyOverrides(_Life, _Others, total=False):
    """The fields of a policy, every one optional: what a call may pass on."""


class DecoratorOverrides(_LifeOfResult, _Others, total=False):
    """What a decorator may pass on: `PolicyOverrides`, and as `ttl=` a function of the result, too."""


PRESETS: dict[str, CachePolicy] = {
    "menu": CachePolicy(ttl=CacheTTL.MENU_ITEMS),
    "permissions": CachePolicy(ttl=CacheTTL.USER_PERMISSIONS, l1=False, user_aware="known"),
    "settings": CachePolicy(ttl=CacheTTL.RESTAURANT_SETTINGS),
    "analytics": CachePolicy(ttl=CacheTTL.ANALYTICS_AGGREGATIONS),
    "api": CachePolicy(ttl=CacheTTL.API_RESPONSE),
    "search": CachePolicy(ttl=CacheTTL.SEARCH_RESULTS),
    "reports": CachePolicy(ttl=CacheTTL.REPORT_DATA),
    "static": CachePolicy(ttl=CacheTTL.STATIC_CONTENT),
    "test": CachePolicy(ttl=60),
}


def jittered(life: float, jitter: float) -> float:
    """A life that chance has shortened by at most the share `jitter`, so that entries made together do not die together."""
    return life * (1 - jitter * random.random()) if jitter else life  # noqa: S311 - nothing secret about it


__all__ = ["FOREVER", "PRESETS", "CachePolicy", "DecoratorOverrides", "PolicyOverrides", "jittered", "seconds"]
