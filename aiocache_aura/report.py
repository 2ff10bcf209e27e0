"""Reports: the figures of the cache as plain values, and as text for a terminal or a mail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiocache_aura.events import SlowOperation
from aiocache_aura.histogram import Histogram
from aiocache_aura.stats import OPERATIONS, Counts

WIDTH = 100


class Metrics(dict[str, Any]):
    """What happened to one cache type, or to all, in a window: plain values; `str()` of it is a few lines."""

    def __str__(self) -> str:
        took, loads = self["latency_ms"], f"{self['loads']:,} ({self['load_seconds']:.1f} s)"
        whose = f"{self['cache_type'] or 'all types'}, last {self['last_minutes']:g} minutes"
        asked = f"  hits {self['hits']:,}  misses {self['misses']:,}  hit rate {self['hit_rate']:.1%}  loads {loads}"
        times = f"  latency avg {took['avg']:.2f}  p50 {took['p50']:.2f}  p95 {took['p95']:.2f}  p99 {took['p99']:.2f} ms"
        saved = f"  saved {self['saved_loads']:,} loads, about {self['saved_seconds']:.1f} s"
        trouble = f"  stale values served {self['stale_served']:,}, errors of the store {self['errors']:,}"
        return "\n".join((whose, asked, times, saved, trouble))


def metrics(counts: Counts, *, cache_type: str | None, minutes: float, slow: Iterable[SlowOperation] = ()) -> Metrics:
    """The figures of some counters, which were counted in so many minutes; times are in seconds, latencies in milliseconds."""
    figures = counts.snapshot()
    return Metrics(
        cache_type=cache_type,
        last_minutes=minutes,
        **figures,
        saved_loads=counts.hits + counts.coalesced + counts.followed,
        latency_ms=latency(counts.times.get("get")),
        latency_by_operation={name: latency(counts.times[name]) for name in OPERATIONS if name in counts.times},
        slow_operations=[told(one) for one in slow],
    )


def latency(took: Histogram | None) -> dict[str, float]:
    """Milliseconds: the exact mean, and percentiles within 4 %."""
    took = Histogram() if took is None else took
    return {"avg": took.mean * 1000} | {f"p{percent}": took.percentile(percent) * 1000 for percent in (50, 95, 99)}


def told(one: SlowOperation) -> dict[str, Any]:
    """A slow operation, in plain values."""
    return {name: getattr(one, name) for name in ("cache_type", "operation", "key", "seconds", "size", "at")}


class CacheReport(dict[str, Any]):
    """All that is known of a cache: plain values by section; `str()` of it is the report as text, at most 100 columns wide."""

    def __str__(self) -> str:
        parts = (
            [self._head()],
            _section("by type", _type_lines(self["types"])),
            _section("health: " + self["health"]["status"], [f"- {issue}" for issue in self["health"]["issues"]]),
            _section("memory", _memory_lines(self["memory"])),
            _section("connections", [_connection_line(one) for one in self["connections"]]),
            _section("hot keys", [f"{one['seconds']:>10.1f} s saved  {one['cache_type']}  {one['key']}" for one in self["hot_keys"]]),
            _section("slow operations", [_slow_line(one) for one in self["slow_operations"][-10:]]),
            _section("warmers", [_warmer_line(one) for one in self["warmers"]]),
            _section("advice", [f"- {one}" for one in self["advice"]] or ["nothing to do"]),
        )
        return "\n".join(line for part in parts for line in part)

    def _head(self) -> str:
        fleet = self["fleet"]
        who = f"process {self['process']}" if fleet is None else f"{fleet['processes']} processes"
        return f"cache report of {who}, last {self['last_minutes']:g} minutes\n{_indented(str(self['summary']).partition(chr(10))[2])}"


def _indented(text: str) -> str:
    return "\n".join("  " + line.strip() for line in text.splitlines())


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {line}"[:WIDTH] if not line.startswith("- ") else f"  {line}" for line in lines)] if lines else []


def _type_lines(types: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not types:
        return ["nothing was asked for"]
    width = max(map(len, types))
    head = f"{'':{width}} {'hits':>10} {'misses':>9} {'hit rate':>8} {'loads':>8} {'p95 ms':>8} {'stale':>7} {'errors':>7} {'saved s':>9}"
    return [head] + [
        f"{name:{width}} {one['hits']:>10,} {one['misses']:>9,} {one['hit_rate']:>8.1%} {one['loads']:>8,} {one['latency_ms']['p95']:>8.2f}"
        f" {one['stale_served']:>7,} {one['errors']:>7,} {one['saved_seconds']:>9.1f}"
        for name, one in types.items()
    ]


def _memory_lines(memory: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: {one['entries']:,} entries, {one['bytes']:,} bytes" for name, one in memory.get("types", {}).items()]
    if memory.get("used_bytes") is not None:
        bound = memory.get("max_bytes")
        lines.append(f"server: {memory['used_bytes']:,} bytes used" + (f" of {bound:,}" if bound else ", without a bound"))
    return lines


def _connection_line(one: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in one.items()
    )


def _slow_line(one: Mapping[str, Any]) -> str:
    size = f", {one['size']:,} bytes" if one["size"] else ""
    return f"{one['seconds'] * 1000:>8.0f} ms  {one['operation']:10} {one['key'] or one['cache_type']}{size}"


def _warmer_line(one: Mapping[str, Any]) -> str:
    state = "running" if one.get("is_running") else f"next run {one.get('next_run') or 'not known'}"
    return f"{one['name']}: {state}" + (f"; the last one failed: {one['last_error']}" if one.get("last_error") else "")
