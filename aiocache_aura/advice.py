"""Advice: what the figures of a report say, as sentences that name the type, the figure and what to do.

The rules are those of the guide's troubleshooting section - a high miss rate, memory, connections, slow operations - and those that the
cache's own figures add. Each looks at one thing, says nothing where there is too little to judge by, and is silent when all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

ENOUGH = 100  # asks in the window that a rate is judged by
ENOUGH_LOADS = 10
LOW_HIT_RATE = 0.5
SLOW_LOAD, SLOW_STORE = 1.0, 0.05  # seconds
OFTEN = 0.1
MANY_WAIT = 20  # callers for each load
FULL = 0.95  # of the server's memory
RECONNECTS = 100  # since the process began

Figures: TypeAlias = Mapping[str, Any]


def advice(report: Mapping[str, Any]) -> list[str]:
    """What to do, by a report's figures: `types`, `health`, `memory`, `connections`."""
    told = [sentence for rule in _OF_THE_WHOLE for sentence in rule(report)]
    return told + [sentence for name, figures in report.get("types", {}).items() for rule in _OF_A_TYPE for sentence in rule(name, figures)]


# Of a type


def _is_missing(figures: Figures) -> bool:
    asked: int = figures["hits"] + figures["misses"]
    return asked >= ENOUGH and bool(figures["hit_rate"] < LOW_HIT_RATE)


def _misses(name: str, figures: Figures) -> Iterator[str]:
    """A high miss rate, and which of its causes the figures show: the first whose figure stands for a good part of the misses."""
    if _is_missing(figures):
        asked = figures["hits"] + figures["misses"]
        cause = next(text for often, text in _causes(figures) if often > OFTEN * figures["misses"])
        yield f"{name}: only {figures['hit_rate']:.0%} of {asked:,} reads are hits: {cause}"


def _causes(figures: Figures) -> Iterator[tuple[float, str]]:
    """How often each was the cause of a miss, and what to do about it; the last is what is left."""
    misses, loaded = figures["misses"], figures["loads"] - figures["load_errors"]
    evicted, cleared = sum(figures["evictions"].values()), figures["invalidations"]
    yield figures["errors"], f"the store failed {figures['errors']:,} times; see its health first"
    yield figures["load_errors"], f"{figures['load_errors']:,} loads raised, and left nothing to hit; see the log for their errors"
    yield figures["unstorable"], f"{figures['unstorable']:,} values could not be stored; check_health() names the functions"
    yield figures["undecodable"], f"{figures['undecodable']:,} entries were of another version or type; after a deploy that passes"
    yield evicted, f"{evicted:,} entries were thrown out for want of room; give it more (l1_bytes=, l1_entries=)"
    yield cleared, f"it was invalidated {cleared:,} times; invalidate by tags or keys, not the whole type"
    unstored = loaded - figures["sets"]
    yield (
        unstored if unstored > OFTEN * loaded else 0.0,
        f"of {loaded:,} loads {figures['sets']:,} were stored; is it ttl=0, store_if=, or None without cache_none=?",
    )
    yield 0.0 if loaded + figures["sets"] else misses, "nothing is stored after a miss; load with get_or_load(), or set what was missing"
    yield misses, "keys are asked for once, or expire too soon; raise the ttl, leave out of the key what makes no difference, or warm it"


def _slow_loads(name: str, figures: Figures) -> Iterator[str]:
    took = figures["latency_by_operation"].get("load", {}).get("p95", 0.0) / 1000
    if figures["loads"] and took >= SLOW_LOAD:
        yield f"{name}: loads take {took:.1f} s (p95); stale=, early_refresh=True or a warmer spare callers the wait"


def _slow_store(name: str, figures: Figures) -> Iterator[str]:
    for operation, asks, what in (("get", figures["hits"] + figures["misses"], "a lookup"), ("set", figures["sets"], "storing")):
        took = figures["latency_by_operation"].get(operation, {}).get("p95", 0.0)
        if asks >= ENOUGH and took >= SLOW_STORE * 1000:
            slow = f"{name}: {what} takes {took:.0f} ms (p95)"
            yield f"{slow}; look for slow commands (SLOWLOG GET), large values, a busy event loop, a server that is far away"


def _failing_source(name: str, figures: Figures) -> Iterator[str]:
    failed = figures["stale_by_reason"].get("error", 0) + figures["stale_by_reason"].get("paused", 0)
    if failed:
        yield f"{name}: {failed:,} stale values stood in for loads that failed; the source is in trouble, see the log for its errors"


def _late_source(name: str, figures: Figures) -> Iterator[str]:
    late = figures["stale_by_reason"].get("timeout", 0)
    if late > max(figures["hits"] * OFTEN, ENOUGH):
        yield f"{name}: {late:,} callers waited in vain and took a stale value; early_refresh=True loads before the end"


def _failing_loads(name: str, figures: Figures) -> Iterator[str]:
    if figures["loads"] >= ENOUGH_LOADS and figures["load_errors"] > figures["loads"] * OFTEN:
        yield f"{name}: {figures['load_errors']:,} of {figures['loads']:,} loads raised; stale= or fallback= stand in"


def _overruns(name: str, figures: Figures) -> Iterator[str]:
    if figures["overruns"]:
        yield f"{name}: {figures['overruns']:,} loads were cancelled at load_deadline; find out what they wait for, or raise it"


def _herds(name: str, figures: Figures) -> Iterator[str]:
    waited = figures["coalesced"] + figures["followed"]
    if waited > max(figures["loads"] * MANY_WAIT, ENOUGH):
        yield f"{name}: {waited:,} callers waited for {figures['loads']:,} loads; early_refresh=True, stale= or a warmer spare them"


def _store_errors(name: str, figures: Figures) -> Iterator[str]:
    if figures["errors"]:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in sorted(figures["errors_by_type"].items()))
        yield f"{name}: the store failed {figures['errors']:,} operations ({kinds or 'see the log'}); functions ran uncached meanwhile"


# Of the whole


def _health(report: Mapping[str, Any]) -> Iterator[str]:
    """The issues of the health, but those of which the rules for types have more to say."""
    health, types = report.get("health", {}), report.get("types", {}).values()
    told = {"hit_rate": any(map(_is_missing, types)), "errors": any(figures["errors"] for figures in types)}
    known = {health.get("checks", {}).get(name, {}).get("issue") for name, is_told in told.items() if is_told}
    yield from (issue for issue in health.get("issues", ()) if issue not in known)


def _memory(report: Mapping[str, Any]) -> Iterator[str]:
    """A server that is full and evicts, as it may, is one that is too small where it makes misses."""
    memory = report.get("memory", {})
    used, most = memory.get("used_bytes"), memory.get("max_bytes")
    missing = [name for name, figures in report.get("types", {}).items() if _is_missing(figures)]
    if memory.get("where") == "server" and used and most and used >= most * FULL and memory.get("policy") != "noeviction" and missing:
        yield f"the server has {used:,} of {most:,} bytes in use and evicts, which {', '.join(missing)} may miss; raise its maxmemory"


def _connections(report: Mapping[str, Any]) -> Iterator[str]:
    """Connections that are closed again and again; who waits for one, or for an answer, is an issue of the health."""
    for one in report.get("connections", ()):
        if one.get("reconnects", 0) >= RECONNECTS:
            yield f"connection to {one['role']}: made anew {one['reconnects']:,} times; does a proxy or the server close idle ones?"


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
_OF_THE_WHOLE: tuple[Callable[[Mapping[str, Any]], Iterator[str]], ...] = (_health, _memory, _connections)
