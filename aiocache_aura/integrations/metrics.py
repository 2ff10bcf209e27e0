"""What is exported: one table of metrics, which every exporter and docs/metrics.md are made from.

No label holds a key, a user, a tenant or a function: what there is of them has no bound.

`python -m aiocache_aura.integrations.metrics docs/metrics.md` writes the tables of that page anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from aiocache_aura.histogram import PER_DECADE, Histogram, bound
from aiocache_aura.integrations.reading import Reading
from aiocache_aura.stats import Counts
from aiocache_aura.stores.statistics import Connection

Sample: TypeAlias = tuple[tuple[str, ...], Any]  # values of labels, and a number; of durations a Histogram

FINEST, COARSEST = -5, 3  # powers of ten, in seconds, between which durations are told apart
OPERATIONS = {name: name for name in ("get", "set", "delete", "invalidate")}
OUTCOMES = {"load": "ok", "load_error": "error"}
STATES = ("idle", "connecting", "ready", "down", "closed")
EVERY_TENTH = tuple(range((FINEST + 6) * PER_DECADE, (COARSEST + 6) * PER_DECADE + 1, PER_DECADE // 3))


def package_version() -> str:
    try:
        return version("aiocache-aura")
    except PackageNotFoundError:  # used from where it lies
        return "unknown"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric, under its name in Prometheus. `unit` is the one in its name, `counted` what a figure without unit is a number of.

    `read` gives its samples, the values of labels in their order; durations are those of some `operations`, under what each is called.
    """

    name: str
    kind: Kind
    help: str
    read: Callable[[Reading], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    unit: str = ""
    counted: str = ""
    operations: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The name without the suffix of a counter."""
        return self.name.removesuffix("_total")

    @property
    def otel_name(self) -> str:
        """`aura_cache_load_duration_seconds` is `aiocache_aura.cache.load.duration`."""
        group, _, rest = self.base.removeprefix("aura_").removesuffix(f"_{self.unit}").partition("_")
        return f"aiocache_aura.{group}.{rest.replace('_duration', '.duration') or self.unit}"

    @property
    def otel_unit(self) -> str:
        return {"seconds": "s", "bytes": "By"}.get(self.unit) or f"{{{self.counted}}}"


def limits() -> list[float]:
    """The longest durations in the buckets of EVERY_TENTH, in seconds, to six digits."""
    return [float(f"{bound(bucket):.6g}") for bucket in EVERY_TENTH]


def up_to(histogram: Histogram) -> list[int]:
    """How many durations are in each bucket of EVERY_TENTH or before it: exactly."""
    return [sum(n for bucket, n in histogram.buckets.items() if bucket <= last) for last in EVERY_TENTH]


# How a metric is read


def _counter(name: str) -> Callable[[Reading], Iterable[Sample]]:
    """A figure of `Counts`."""
    return lambda reading: [((cache,), getattr(counts, name)) for cache, counts in reading.counts.items()]


def _counters(**names: str) -> Callable[[Reading], Iterable[Sample]]:
    """Figures of `Counts`, each under its value of a second label."""

    def read(reading: Reading) -> Iterator[Sample]:
        for cache, counts in reading.counts.items():
            for value, name in names.items():
                yield (cache, value), getattr(counts, name)

    return read


def durations_of(
    operations: Mapping[str, str], by_type: Mapping[str, Mapping[str, Histogram]]
) -> Iterator[tuple[tuple[str, str], Histogram]]:
    """Histograms of some operations, under what each is called."""
    for cache, times in by_type.items():
        for operation, called in operations.items():
            if operation in times:
                yield (cache, called), times[operation]


def _took(operations: Mapping[str, str]) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: durations_of(operations, {cache: counts.times for cache, counts in reading.counts.items()})


def _split(figures: Callable[[Counts], Mapping[str, Any]]) -> Callable[[Reading], Iterable[Sample]]:
    """Figures of `Counts` that are by names already."""

    def read(reading: Reading) -> Iterator[Sample]:
        for cache, counts in reading.counts.items():
            for value, figure in figures(counts).items():
                yield (cache, value), figure

    return read


def _used(place: int) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: [((cache,), used[place]) for cache, used in reading.usage.items()]


def _requests(reading: Reading) -> Iterable[Sample]:
    return [((cache, reading.layer, result), n) for (cache, result), n in reading.results.items()]


def _backend_errors(reading: Reading) -> Iterator[Sample]:
    summed: dict[str, int] = {}
    for counts in reading.counts.values():
        for error_type, n in counts.by_error.items():
            summed[error_type] = summed.get(error_type, 0) + n
    for error_type, n in summed.items():
        yield (error_type,), n


def _warm_keys(reading: Reading) -> Iterator[Sample]:
    for cache, warmed in reading.warmed.items():
        for result in ("loaded", "refreshed", "skipped", "failed"):
            yield (cache, result), getattr(warmed, result)


def _warm_runs(reading: Reading) -> Iterator[Sample]:
    for cache, warmed in reading.warmed.items():
        for ended in ("done", "failed", "timeout"):
            yield (cache, ended), warmed.ended.get(ended, 0)


def _last_run(name: str) -> Callable[[Reading], Iterable[Sample]]:
    return lambda reading: [((cache,), getattr(warmed, name)) for cache, warmed in reading.warmed.items()]


def _connections(reading: Reading) -> Iterator[Sample]:
    if reading.connections:
        for state in STATES:
            yield (state,), sum(one.state == state for one in reading.connections)


def _of_connections(figure: Callable[[Sequence[Connection]], float]) -> Callable[[Reading], Iterable[Sample]]:
    """A figure of all connections; nothing where there are none."""
    return lambda reading: [((), figure(reading.connections))] if reading.connections else []


METRICS: tuple[Metric, ...] = (
    Metric(
        name="aura_build_info",
        kind=Kind.GAUGE,
        help="1, with the version of aiocache-aura.",
        labels=("version",),
        counted="process",
        read=lambda _: [((package_version(),), 1)],
    ),
    Metric(
        name="aura_cache_requests_total",
        kind=Kind.COUNTER,
        help="Reads by result: hit is a fresh value from the cache, stale one past its life, miss all else.",
        labels=("cache", "layer", "result"),
        counted="request",
        read=_requests,
    ),
    Metric(
        name="aura_cache_operation_duration_seconds",
        kind=Kind.HISTOGRAM,
        help="Time that operations on the cache took; of hits a sample stands for all.",
        labels=("cache", "op"),
        unit="seconds",
        counted="operation",
        operations=OPERATIONS,
        read=_took(OPERATIONS),
    ),
    Metric(
        name="aura_cache_load_duration_seconds",
        kind=Kind.HISTOGRAM,
        help="Time that loads took: ok if they gave a value, error if they raised or were cancelled.",
        labels=("cache", "outcome"),
        unit="seconds",
        counted="load",
        operations=OUTCOMES,
        read=_took(OUTCOMES),
    ),
    Metric(
        name="aura_cache_coalesced_total",
        kind=Kind.COUNTER,
        help="Loads saved: by joining one under way in this process, or by leaving it to another process of the cluster.",
        labels=("cache", "scope"),
        counted="load",
        read=_counters(process="coalesced", cluster="followed"),
    ),
    Metric(
        name="aura_cache_saved_seconds_total",
        kind=Kind.COUNTER,
        help="Estimated seconds of loading that hits did not cost.",
        labels=("cache",),
        unit="seconds",
        read=_counter("saved_seconds"),
    ),
    Metric(
        name="aura_cache_stale_served_total",
        kind=Kind.COUNTER,
        help="Stale values given, by the reason why.",
        labels=("cache", "reason"),
        counted="request",
        read=_split(Counts.stale_by_reason),
    ),
    Metric(
        name="aura_cache_load_errors_total",
        kind=Kind.COUNTER,
        help="Loads that raised, those past their load_deadline among them.",
        labels=("cache",),
        counted="load",
        read=_counter("load_errors"),
    ),
    Metric(
        name="aura_cache_load_overruns_total",
        kind=Kind.COUNTER,
        help="Loads that were cancelled at their load_deadline.",
        labels=("cache",),
        counted="load",
        read=_counter("overruns"),
    ),
    Metric(
        name="aura_cache_sets_total",
        kind=Kind.COUNTER,
        help="Values stored, loaded ones and those that were set.",
        labels=("cache",),
        counted="entry",
        read=_counter("sets"),
    ),
    Metric(
        name="aura_cache_invalidations_total",
        kind=Kind.COUNTER,
        help="Invalidations: of a scope, however many entries were in it, and of keys, each entry that was deleted.",
        labels=("cache", "kind"),
        counted="invalidation",
        read=_counters(scope="invalidations", key="deletes"),
    ),
    Metric(
        name="aura_cache_evictions_total",
        kind=Kind.COUNTER,
        help="Entries that the in-process store threw out, by reason.",
        labels=("cache", "reason"),
        counted="entry",
        read=_split(lambda counts: counts.evictions),
    ),
    Metric(
        name="aura_cache_entries",
        kind=Kind.GAUGE,
        help="Entries in the in-process store; not known of Redis.",
        labels=("cache",),
        counted="entry",
        read=_used(0),
    ),
    Metric(
        name="aura_cache_bytes",
        kind=Kind.GAUGE,
        help="Memory that the entries of the in-process store take; not known of Redis.",
        labels=("cache",),
        unit="bytes",
        read=_used(1),
    ),
    Metric(
        name="aura_cache_codec_errors_total",
        kind=Kind.COUNTER,
        help="Values that were not stored for their type or size (unstorable), or not readable as what is declared (undecodable).",
        labels=("cache", "kind"),
        counted="value",
        read=_counters(undecodable="undecodable", unstorable="unstorable"),
    ),
    Metric(
        name="aura_cache_backend_errors_total",
        kind=Kind.COUNTER,
        help="Faults of the store, by the class of the error.",
        labels=("error_type",),
        counted="error",
        read=_backend_errors,
    ),
    Metric(
        name="aura_warm_keys_total",
        kind=Kind.COUNTER,
        help="Keys that warmers came with: loaded, refreshed before their end, skipped since they were fresh, or failed.",
        labels=("cache", "result"),
        counted="key",
        read=_warm_keys,
    ),
    Metric(
        name="aura_warm_runs_total",
        kind=Kind.COUNTER,
        help="Runs of warmers in this process: done, failed if a source raised, or cut off by their timeout.",
        labels=("cache", "ended"),
        counted="run",
        read=_warm_runs,
    ),
    Metric(
        name="aura_warm_last_run_timestamp_seconds",
        kind=Kind.GAUGE,
        help="When a warmer was last done with the type in this process, in seconds since the epoch.",
        labels=("cache",),
        unit="seconds",
        read=_last_run("at"),
    ),
    Metric(
        name="aura_warm_last_run_duration_seconds",
        kind=Kind.GAUGE,
        help="How long that run took.",
        labels=("cache",),
        unit="seconds",
        read=_last_run("seconds"),
    ),
    Metric(
        name="aura_pool_connections",
        kind=Kind.GAUGE,
        help="Connections to the server, of this process, by state: idle, connecting, ready, down, closed.",
        labels=("state",),
        counted="connection",
        read=_connections,
    ),
    Metric(
        name="aura_pool_wait_seconds",
        kind=Kind.GAUGE,
        help="How long the request that waits longest has been waiting for its reply.",
        unit="seconds",
        read=_of_connections(lambda all_: max(one.waiting_seconds for one in all_)),
    ),
    Metric(
        name="aura_pool_pending",
        kind=Kind.GAUGE,
        help="Requests that wait: for their reply, or to be written.",
        counted="request",
        read=_of_connections(lambda all_: sum(one.pending + one.queued for one in all_)),
    ),
    Metric(
        name="aura_pool_reconnects_total",
        kind=Kind.COUNTER,
        help="Connections that were made anew.",
        counted="connection",
        read=_of_connections(lambda all_: sum(one.reconnects for one in all_)),
    ),
)


# docs/metrics.md

BEGIN, END = "<!-- made by python -m aiocache_aura.integrations.metrics docs/metrics.md -->", "<!-- end of what is made -->"


def tables() -> str:
    """The metrics as docs/metrics.md has them."""
    rows = [f"| `{m.name}` | {m.kind} | {_listed(m.labels)} | {m.help} | `{m.otel_name}` {m.otel_unit} |" for m in METRICS]
    bounds = ", ".join(f"{limit:g}" for limit in limits())
    return "\n".join(
        [
            "| metric | kind | labels | what it is | in OpenTelemetry |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Buckets of durations end at {bounds} seconds.",
        ]
    )


def with_tables(page: str) -> str:
    """A page with its tables as they should be."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{tables()}\n\n{END}{tail}"


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text()))
