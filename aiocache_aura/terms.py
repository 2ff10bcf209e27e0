"""Terms: a policy, worked out for the engine. How the entries of one function or verb are made, kept and given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from aiocache_aura.codecs.serializers import Serializer
from aiocache_aura.policy import CachePolicy, seconds
from aiocache_aura.resilience.threads import settled
from aiocache_aura.stats import Counts
from aiocache_aura.types import MISSING, TTL

FOR_EVER = float("inf")
UNKNOWN_LIFE = 86400.0  # what a life is taken to be at most that only the result tells


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Times in seconds; None where there is no bound.

    `is_plain`: a stored value that is fresh is all that a read can be given, and a hit changes nothing. `convert`: results are converted to
    the declared type. `personal`: a load uses what belongs to its caller, and ends with it. `recall` tells of a call's arguments how it can
    be made again, by another process too; None where it can't.
    """

    serializer: Serializer
    life: float
    life_of: Callable[[Any], TTL] | None = None
    jitter: float = 0.0
    share: bool = False
    max_value_bytes: int
    counts: Counts
    own: Counts | None = None
    cache_type: str = ""
    label: str
    recall: Callable[[Any, Any], bytes | None] | None = None
    convert: bool = False
    personal: bool = False
    stale: float = 0.0
    stale_on: tuple[type[BaseException], ...] = ()
    soft: float | None = None
    hard: float | None = None
    deadline: float | None = None
    keep_loading: bool = False
    throttle: float = 1.0
    early: float = 0.0
    sliding: bool = False
    stores_none: bool = False
    negative_life: float | None = None
    cache_errors: tuple[type[Exception], ...] = ()
    store_if: Callable[[Any], bool] | None = None
    fallback: Any = MISSING
    lease: bool = True
    fresh: bool = False
    is_plain: bool = True

    @classmethod
    def of(
        cls,
        policy: CachePolicy,
        *,
        serializer: Serializer,
        counts: Counts,
        label: str,
        cache_type: str = "",
        own: Counts | None = None,
        convert: bool = False,
        personal: bool = False,
        life_of: Callable[[Any], TTL] | None = None,
        recall: Callable[[Any, Any], bytes | None] | None = None,
    ) -> Terms:
        """The terms that a policy comes to."""
        return cls(
            serializer=serializer,
            life=policy.life,
            life_of=life_of,
            recall=None if personal else recall,
            jitter=policy.jitter,
            share=policy.share,
            max_value_bytes=policy.max_value_bytes,
            counts=counts,
            own=own,
            cache_type=cache_type,
            label=label,
            convert=convert,
            personal=personal,
            stale=seconds(policy.stale),
            stale_on=policy.stale_on,
            soft=_bound(policy.soft_timeout),
            hard=_bound(policy.hard_timeout),
            deadline=_bound(policy.load_deadline),
            keep_loading=policy.keep_loading,
            throttle=seconds(policy.throttle),
            early=float(policy.early_refresh),
            sliding=policy.sliding,
            stores_none=policy.cache_none or policy.negative_ttl is not None,
            negative_life=None if policy.negative_ttl is None else seconds(policy.negative_ttl),
            cache_errors=policy.cache_errors,
            store_if=policy.store_if,
            fallback=policy.fallback,
            lease=policy.lease is not False,
            is_plain=not (policy.early_refresh or policy.sliding),
        )

    @property
    def stores(self) -> bool:
        """Whether anything that is loaded may be stored."""
        return bool(self.life or self.negative_life) or self.life_of is not None

    @property
    def reach(self) -> float:
        """How long an entry may be there at most, as far as can be told before its load."""
        life = max(self.life, self.negative_life or 0.0, UNKNOWN_LIFE if self.life_of is not None else 0.0)
        return life + self.stale

    def altered(self, *, fresh: bool = False, max_stale: TTL | None = None, ttl: TTL | None = None) -> Terms:
        """These terms with what one call may say: nothing stale at all if `fresh`, at most `max_stale`, another life for what it loads."""
        stale = 0.0 if fresh else self.stale if max_stale is None else min(self.stale, seconds(max_stale))
        life, life_of = (self.life, self.life_of) if ttl is None else (seconds(ttl), None)
        return replace(self, fresh=fresh, stale=stale, life=life, life_of=life_of)


async def fall_back(fallback: Any, error: Exception) -> Any:
    """What a policy's `fallback` gives instead of the error, which is raised if there is none."""
    if fallback is MISSING:
        raise error
    if not callable(fallback):
        return fallback
    try:
        inspect.signature(fallback).bind(error)
    except (TypeError, ValueError):
        return await settled(fallback())
    return await settled(fallback(error))


def told_life(life_of: Callable[[Any], TTL | None] | None, life: float, value: Any) -> float:
    """Seconds that a result lives: what the function of it says, the policy's `life` if that is None or there is none."""
    told = None if life_of is None else life_of(value)
    return life if told is None else seconds(told)


def _bound(ttl: TTL | None) -> float | None:
    """Seconds, None for none."""
    bound = None if ttl is None else seconds(ttl)
    return None if bound == FOR_EVER else bound
