"""What a manager can be told, checked before anything is connected."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from aiocache_aura.clock import Clock, SystemClock
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.keys import check_prefix, check_type_name
from aiocache_aura.policy import CachePolicy
from aiocache_aura.types import is_number, is_whole

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

MEMORY_URL = "memory://"
REDIS_SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys")
LATER_SCHEMES = ("redis+sentinel", "redis+cluster")
PREFIX = "aura"
BUDGET = 0.25
L1_BYTES = 64 * 2**20
L1_DOUBT = 1.0


class Options(TypedDict, total=False):
    """The keyword options of a manager; their meaning is in `Settings`."""

    prefix: str
    policies: Mapping[str, CachePolicy]
    budget: float
    strict: bool
    l1_bytes: int
    l1_entries: int | None
    l1_doubt: float
    lanes: int
    tenant_args: tuple[str, ...]
    user_args: tuple[str, ...]
    exclude_types: tuple[type, ...]
    encryption_keys: Mapping[str, bytes] | None
    log_keys: bool
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A manager's options.

    `budget` is the seconds that an operation may add, `l1_bytes` and `l1_entries` bound the memory of `memory://`, `lanes` is the number of
    connections for reading in each event loop. Arguments called as in `tenant_args` and `user_args` say whose an entry is; those of a
    class in `exclude_types` are in no key.
    """

    url: str | None = field(default=None, repr=False)  # with its password
    client: Redis | RedisCluster | None = field(default=None, repr=False)
    prefix: str = PREFIX
    policies: Mapping[str, CachePolicy] = field(default_factory=dict)
    budget: float = BUDGET
    strict: bool = False
    l1_bytes: int = L1_BYTES
    l1_entries: int | None = None
    l1_doubt: float = L1_DOUBT
    lanes: int = 1
    tenant_args: tuple[str, ...] = ("tenant_id", "restaurant_id")
    user_args: tuple[str, ...] = ("user_id",)
    exclude_types: tuple[type, ...] = ()
    encryption_keys: Mapping[str, bytes] | None = field(default=None, repr=False)
    log_keys: bool = False
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        if self.url is not None:
            _check_url(self.url)
        if self.url is not None and self.client is not None:
            raise ConfigurationError("give either a URL or client=, not both: a client knows its server")
        check_prefix(self.prefix)
        self._check_numbers()
        self._check_names()
        for name, policy in self.policies.items():
            check_type_name(name)
            _require(
                isinstance(policy, CachePolicy),
                "policies",
                policy,
                "a CachePolicy for each type, such as {'orders': CachePolicy(ttl='5m')}",
            )
        self._refuse_what_is_not_here_yet()

    def _check_numbers(self) -> None:
        _require(is_number(self.budget) and self.budget > 0, "budget", self.budget, "seconds above 0")
        _require(is_whole(self.l1_bytes) and self.l1_bytes > 0, "l1_bytes", self.l1_bytes, "a number of bytes above 0")
        entries = self.l1_entries is None or (is_whole(self.l1_entries) and self.l1_entries > 0)
        _require(entries, "l1_entries", self.l1_entries, "a number of entries above 0, or None")
        _require(is_whole(self.lanes) and self.lanes > 0, "lanes", self.lanes, "a number of connections above 0")
        for name in ("strict", "log_keys"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")

    def _check_names(self) -> None:
        for name in ("tenant_args", "user_args"):
            value = getattr(self, name)
            right = not isinstance(value, str) and all(isinstance(one, str) and one.isidentifier() for one in value)
            _require(right, name, value, "a tuple of parameters' names")
        classes = isinstance(self.exclude_types, tuple) and all(isinstance(one, type) for one in self.exclude_types)
        _require(classes, "exclude_types", self.exclude_types, "a tuple of classes")

    def _refuse_what_is_not_here_yet(self) -> None:
        not_yet = "is not in this version yet"
        if self.encryption_keys is not None:
            raise ConfigurationError(f"encryption_keys {not_yet}; leave it out")
        if self.l1_doubt != L1_DOUBT:
            raise ConfigurationError(f"l1_doubt={self.l1_doubt!r} {not_yet}; leave it at {L1_DOUBT}")
        if self.is_remote and (self.l1_bytes, self.l1_entries) != (L1_BYTES, None):
            raise ConfigurationError(f"an L1 over Redis {not_yet}; leave l1_bytes and l1_entries out, or use 'memory://'")

    @property
    def is_remote(self) -> bool:
        """Whether redis will be needed."""
        return self.client is not None or (self.url is not None and not self.url.startswith(MEMORY_URL))

    def changed(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some replaced; a URL replaces a client and the other way round; TypeError for an unknown one."""
        unknown = sorted(set(options) - NAMES)
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; a manager has: {', '.join(sorted(NAMES))}")
        other = {"url": {"client": None}, "client": {"url": None}}
        freed = {k: v for name in options for k, v in other.get(name, {}).items() if k not in options}
        return dataclasses.replace(self, **{**freed, **options})

    def with_environment(self, told: frozenset[str]) -> Settings:
        """These settings with AURA_CACHE_URL and AURA_CACHE_PREFIX where nobody was `told` otherwise; empty variables are absent."""
        if os.environ.get("AURA_CACHE_KEYS"):
            raise ConfigurationError("AURA_CACHE_KEYS: encryption is not in this version yet; unset it")
        url, prefix = os.environ.get("AURA_CACHE_URL"), os.environ.get("AURA_CACHE_PREFIX")
        found = {} if not url or told & {"url", "client"} else {"url": url}
        if prefix and "prefix" not in told:
            found["prefix"] = prefix
        return self.changed(found)


NAMES = frozenset(one.name for one in dataclasses.fields(Settings))


def _check_url(url: object) -> None:
    if not isinstance(url, str):
        raise ConfigurationError(f"a cache URL is text such as 'memory://' or 'redis://localhost:6379/0', not {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme = ""
    if scheme in LATER_SCHEMES:
        raise ConfigurationError(f"{scheme}:// is not in this version yet; use one of {_schemes()}")
    if scheme == "memory" and rest:
        raise ConfigurationError("'memory://' takes nothing behind it; its bounds are l1_bytes= and l1_entries=")
    if scheme != "memory" and scheme not in REDIS_SCHEMES:
        raise ConfigurationError(f"a cache URL begins with one of {_schemes()}, not with {scheme + separator!r}")


def _schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in ("memory", *REDIS_SCHEMES))


def shown_url(url: str | None) -> str:
    """A URL without its credentials and query, for messages and `repr`."""
    if url is None or url == MEMORY_URL:
        return MEMORY_URL
    scheme, _, rest = url.partition("://")
    credentials, _, where = rest.rpartition("@")
    if any(mark in credentials for mark in "/?#"):  # not encoded, or the "@" is one of the query's
        return f"{scheme}://..."
    return f"{scheme}://{where.partition('?')[0].partition('#')[0]}"


def _require(condition: bool, name: str, value: object, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"{name}={value!r}: it is {what}")
