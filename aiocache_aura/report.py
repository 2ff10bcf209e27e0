"""Reports: the figures of the cache as plain values, and as text for a terminal or a mail."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from aiocache_aura.events import SlowOperation
from aiocache_aura.histogram import Histogram
from aiocache_aura.stats import OPERATIONS, Counts

WIDTH = 100  # columns
LONGEST_NAME = 18
MOST_SHOWN = 10


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
        health, issues = self["health"], self["health"]["issues"]
        fresh = [one for one in self["advice"] if one not in issues]  # the others stand under the health
        sections = (
            ("by type", _type_lines(self["types"])),
            ("health", [str(health["status"]), *_listed(issues)]),
            ("memory", _memory_lines(self["memory"])),
            ("connections", [_connection_line(one) for one in self["connections"]]),
            ("hot keys", [f"{one['seconds']:>10.1f} s saved  {one['key']}" for one in self["hot_keys"][:MOST_SHOWN]]),
            ("slow operations", [_slow_line(one) for one in self["slow_operations"][-MOST_SHOWN:]]),
            ("warmers", [*_listed(map(_job_line, self["warmers"])), *_listed(_warmed_line(*one) for one in self["warmed"].items())]),
            ("advice", _listed(fresh) or ["see the issues of the health" if issues else "nothing to do"]),
        )
        return "\n".join([*self._head(), *(line for title, lines in sections if lines for line in ("", title, *map(_fitting, lines)))])

    def _head(self) -> list[str]:
        title = _fitting(f"cache report of {self._who()}, last {self['last_minutes']:g} minutes", indent="")
        return [title, *map(_fitting, map(str.strip, str(Metrics(self["summary"])).splitlines()[1:]))]

    def _who(self) -> str:
        fleet = self["fleet"]
        if fleet is None:
            return f"process {self['process']}"
        if fleet["error"] is not None:
            return f"this process alone, for the others' figures cannot be had ({fleet['error']})"
        unwell = f", {len(fleet['unhealthy'])} of them unhealthy" if fleet["unhealthy"] else ""
        many = "process" if fleet["processes"] == 1 else "processes"
        return f"{fleet['processes']} {many}{unwell}, figures at most {fleet['oldest_seconds']:.0f} s old"


def _fitting(line: str, indent: str = "  ") -> str:
    """A line, or the lines of a list's item, that fit the width; what no terminal should get is escaped."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    if shown.startswith("- "):
        return textwrap.fill(shown, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
    return _cut(indent + shown, WIDTH)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _listed(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def _type_lines(types: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not types:
        return ["nothing was asked for"]
    width = min(max(map(len, types)), LONGEST_NAME)
    head = f"{'':{width}} {'hits':>11} {'misses':>10} {'hit rate':>8} {'loads':>9} {'p95 ms':>8} {'stale':>7} {'errors':>7} {'saved s':>10}"
    return [head] + [
        f"{_cut(name, width):{width}} {_many(one['hits']):>11} {_many(one['misses']):>10} {one['hit_rate']:>8.1%}"
        f" {_many(one['loads']):>9} {one['latency_ms']['p95']:>8.2f} {_many(one['stale_served']):>7} {_many(one['errors']):>7}"
        f" {_many(one['saved_seconds']):>10}"
        for name, one in types.items()
    ]


def _memory_lines(memory: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: {one['entries']:,} entries, {one['bytes']:,} bytes" for name, one in memory["types"].items()]
    if memory["used_bytes"] is None:
        return lines
    bound = f"of {memory['max_bytes']:,}" if memory["max_bytes"] else "without a bound"
    policy = f", {memory['policy']}" if memory["policy"] else ""
    whose = "all" if memory["where"] == "process" else "the server"
    return [*lines, f"{whose}: {memory['used_bytes']:,} bytes used, {bound}{policy}"]


def _many(number: float) -> str:
    """A number; in thousands, millions and so on where it has more than five places."""
    units, unit = iter("kMGT"), ""
    while number >= 100_000 and unit != "T":
        number, unit = number / 1000, next(units)
    return f"{number:.1f}{unit}" if isinstance(number, float) and number < 1000 else f"{number:,.0f}{unit}"


def _connection_line(one: Mapping[str, Any]) -> str:
    """What it is for, its state, and what of its figures is not nothing."""
    told = [
        f"{name.replace('_', ' ')} {_short(value)}" for name, value in one.items() if value and name not in ("role", "state", "version")
    ]
    return f"{one['role']}: {', '.join([one['state'], *told] if 'state' in one else told)}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _slow_line(one: Mapping[str, Any]) -> str:
    size = f", {one['size']:,} bytes" if one["size"] else ""
    return f"{one['seconds'] * 1000:>10,.0f} ms  {one['operation']:10} {one['key'] or one['cache_type']}{size}"


def _job_line(one: Mapping[str, Any]) -> str:
    state = "running" if one["is_running"] else f"next run {one['next_run'] or 'not known'}"
    return f"{one['name']}: {state}" + (f"; the last one failed: {one['last_error']}" if one["last_error"] else "")


def _warmed_line(name: str, one: Mapping[str, Any]) -> str:
    keys = ", ".join(f"{one[what]:,} {what}" for what in ("loaded", "refreshed", "skipped", "failed") if one[what])
    return f"{name}: {keys or 'nothing to load'}; runs: {', '.join(f'{n:,} {how}' for how, n in one['ended'].items())}"
