"""Advice: what the figures of a report say, as sentences that name the type, the figure and what to do.

The rules are those of the guide's troubleshooting section - a high miss rate, memory, connections, slow operations - and those that the
cache's own figures add. Each looks at one thing, says nothing where there is too little to judge by, and is silent when all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

ENOUGH = 100  # asks in the window that a rate is judged by
LOW_HIT_RATE = 0.5
SLOW_LOAD, SLOW_STORE = 1.0, 0.05  # seconds
OFTEN = 0.1

Figures: TypeAlias = Mapping[str, Any]


def advice(report: Mapping[str, Any]) -> list[str]:
    """What to do, by a report's figures: `types`, `health`, `connections`, `warmers`."""
    told = [sentence for name, figures in report.get("types", {}).items() for rule in _OF_A_TYPE for sentence in rule(name, figures)]
    return told + [sentence for rule in _OF_THE_WHOLE for sentence in rule(report)]


def _misses(name: str, figures: Figures) -> Iterator[str]:
    """A high miss rate, and which of its causes the figures show."""
    asked = figures["hits"] + figures["misses"]
    if asked < ENOUGH or figures["hit_rate"] >= LOW_HIT_RATE:
        return
    head = f"{name}: only {figures['hit_rate']:.0%} of {asked:,} reads are hits"
    misses = figures["misses"]
    if figures["unstorable"] > misses * OFTEN:
        yield f"{head}: {figures['unstorable']:,} values could not be stored; check_health() names the functions"
    elif figures["errors"] > misses * OFTEN:
        yield f"{head}: the store failed {figures['errors']:,} times; see its health first"
    elif figures["undecodable"] > misses * OFTEN:
        yield f"{head}: {figures['undecodable']:,} entries were of another version or type; after a deploy that passes"
    elif sum(figures["evictions"].values()) > misses * OFTEN:
        yield f"{head}: entries are thrown out too soon; give it more memory (l1_bytes=, l1_entries=)"
    elif figures["invalidations"] > misses * OFTEN:
        yield f"{head}: it is invalidated {figures['invalidations']:,} times; invalidate by tags or keys, not the whole type"
    elif figures["sets"] < misses * (1 - OFTEN) and figures["loads"] >= misses * OFTEN:
        yield f"{head}: of {figures['loads']:,} loads {figures['sets']:,} were stored; ttl=0, store_if=, None without cache_none=?"
    else:
        yield f"{head}: keys are asked for once, or expire too soon; raise the ttl, narrow the key, or warm it"


def _slow_loads(name: str, figures: Figures) -> Iterator[str]:
    took = figures["latency_by_operation"].get("load", {})
    if figures["loads"] and took.get("p95", 0.0) >= SLOW_LOAD * 1000:
        yield f"{name}: loads take {took['p95'] / 1000:.1f} s (p95); stale=, early_refresh=True or a warmer spare that"


def _slow_store(name: str, figures: Figures) -> Iterator[str]:
    took = figures["latency_by_operation"].get("get", {})
    if figures["hits"] + figures["misses"] >= ENOUGH and took.get("p95", 0.0) >= SLOW_STORE * 1000:
        slow = f"{name}: a lookup takes {took['p95']:.0f} ms (p95)"
        yield f"{slow}; look for slow commands (SLOWLOG), large values, a busy event loop, a server that is far away"


def _failing_source(name: str, figures: Figures) -> Iterator[str]:
    failed = figures["stale_by_reason"].get("error", 0) + figures["stale_by_reason"].get("paused", 0)
    if failed:
        yield f"{name}: {failed:,} stale values stood in for loads that failed; the source is in trouble, see the log for its errors"


def _late_source(name: str, figures: Figures) -> Iterator[str]:
    late = figures["stale_by_reason"].get("timeout", 0)
    if late > max(figures["hits"] * OFTEN, ENOUGH):
        yield f"{name}: {late:,} callers waited in vain and took a stale value; early_refresh=True loads before the end"


def _failing_loads(name: str, figures: Figures) -> Iterator[str]:
    if figures["loads"] >= 10 and figures["load_errors"] > figures["loads"] * OFTEN:
        yield f"{name}: {figures['load_errors']:,} of {figures['loads']:,} loads raised; stale= or fallback= stand in"


def _overruns(name: str, figures: Figures) -> Iterator[str]:
    if figures["overruns"]:
        yield f"{name}: {figures['overruns']:,} loads were cancelled at load_deadline; find out what they wait for, or raise it"


def _herds(name: str, figures: Figures) -> Iterator[str]:
    waited = figures["coalesced"] + figures["followed"]
    if waited > max(figures["loads"] * 20, ENOUGH):
        yield f"{name}: {waited:,} callers waited for {figures['loads']:,} loads; early_refresh=True or stale= spare them"


def _store_errors(name: str, figures: Figures) -> Iterator[str]:
    if figures["errors"]:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in sorted(figures["errors_by_type"].items()))
        yield f"{name}: the store failed {figures['errors']:,} operations ({kinds or 'see the log'}); functions ran uncached meanwhile"


def _health(report: Mapping[str, Any]) -> Iterator[str]:
    yield from report.get("health", {}).get("issues", ())


def _connections(report: Mapping[str, Any]) -> Iterator[str]:
    for one in report.get("connections", ()):
        if one.get("waiting_seconds", 0.0) >= 1.0:
            yield f"connection {one['role']}: a request waits for {one['waiting_seconds']:.1f} s; the server hangs, or the event loop"
        if one.get("reconnects", 0) >= 10:
            yield f"connection {one['role']}: made anew {one['reconnects']:,} times; does a proxy or the server close idle ones?"


def _warmers(report: Mapping[str, Any]) -> Iterator[str]:
    for job in report.get("warmers", ()):
        if job.get("last_error"):
            yield f"warmer {job['name']}: its last run failed: {job['last_error']}"


_OF_A_TYPE: tuple[Callable[[str, Figures], Iterator[str]], ...] = (
    _misses,
    _slow_loads,
    _slow_store,
    _failing_source,
    _late_source,
    _failing_loads,
    _overruns,
    _herds,
    _store_errors,
)
_OF_THE_WHOLE: tuple[Callable[[Mapping[str, Any]], Iterator[str]], ...] = (_health, _connections, _warmers)
