"""Prometheus: a collector that reads a manager's counters when it is scraped.

    from aiocache_aura.integrations import prometheus

    prometheus.register()

The metrics are those of docs/metrics.md. Nothing is added to what a hit costs: a scrape reads ints, in whatever thread it comes in. The
multiprocess mode of prometheus_client knows no collectors: there, each process is to be scraped itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.integrations.metrics import METRICS, Kind, Metric, limits, up_to
from aiocache_aura.integrations.reading import MAX_CACHES, Source

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString
except ImportError as missing:
    raise ImportError(f"this needs prometheus-client: pip install 'aiocache-aura[prometheus]' ({missing})") from missing

Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_LIMITS = [floatToGoString(limit) for limit in limits()]  # type: ignore[no-untyped-call]


class AuraCollector:
    """The figures of a manager, the process-wide one if none is named; those of several under a label `prefix`, which tells them apart.

    The first `max_caches` cache types that are used have series of their own; the rest are summed as `other`.
    """

    def __init__(self, manager: CacheManager | Sequence[CacheManager] | None = None, *, max_caches: int = MAX_CACHES) -> None:
        is_one = manager is None or isinstance(manager, CacheManager)
        self._labels = () if is_one else ("prefix",)
        self._sources = [Source(one, max_caches=max_caches) for one in (manager if isinstance(manager, Sequence) else [manager])]
        prefixes = [source.prefix for source in self._sources]
        if len(set(prefixes)) < len(prefixes):
            raise ConfigurationError(f"managers that are exported together are told apart by their prefixes; these have {prefixes}")

    def __repr__(self) -> str:
        return f"AuraCollector({', '.join(repr(source.manager) for source in self._sources)})"

    def describe(self) -> Iterator[Family]:
        """The metrics without figures: what a registry compares, so that registering reads nothing."""
        for metric in METRICS:
            yield self._family(metric)

    def collect(self) -> Iterator[Family]:
        """The figures of now; in any thread."""
        readings = [((source.prefix,) if self._labels else (), source.read()) for source in self._sources]
        for metric in METRICS:
            family = self._family(metric)
            for prefix, reading in readings:
                for labels, value in metric.read(reading):
                    _add(family, (*prefix, *labels), value)
            yield family

    def _family(self, metric: Metric) -> Family:
        labels = [*self._labels, *metric.labels]
        if metric.kind is Kind.COUNTER:
            return CounterMetricFamily(metric.base, metric.help, labels=labels, unit=metric.unit)
        if metric.kind is Kind.GAUGE:
            return GaugeMetricFamily(metric.name, metric.help, labels=labels, unit=metric.unit)
        return HistogramMetricFamily(metric.name, metric.help, labels=labels, unit=metric.unit)


def _add(family: Family, labels: Sequence[str], value: Any) -> None:
    if isinstance(family, HistogramMetricFamily):
        family.add_metric(labels, [*zip(_LIMITS, up_to(value), strict=True), ("+Inf", value.count)], value.total)
    else:
        family.add_metric(labels, value)


def register(manager: CacheManager | Sequence[CacheManager] | None = None, registry: CollectorRegistry = REGISTRY) -> AuraCollector:
    """Have a registry export a manager, the process-wide one if none is named; `registry.unregister` takes what this gives."""
    collector = AuraCollector(manager)
    try:
        registry.register(collector)
    except ValueError as error:
        raise ConfigurationError(
            "this registry exports a cache already, and one name cannot be registered twice; managers are exported together, "
            "as register([one, other]), or each in a registry of its own, as register(other, CollectorRegistry())"
        ) from error
    return collector
