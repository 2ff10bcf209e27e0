"""OpenTelemetry: the same metrics as observable instruments, and a span for what the cache does in a traced request.

    from aiocache_aura.integrations import opentelemetry

    opentelemetry.instrument()

Only the API is used: providers are the application's to set up, and without any nothing happens. The metrics are those of docs/metrics.md;
there is no observable histogram, so of durations their number, their sum and percentiles of the last five minutes are told.

Spans are called and described as Sentry's cache module has it (`cache.get`, `cache.put`, `cache.remove`, `cache.flush`), and are made only
under a span that is being recorded. A span is made when what it tells of is over: it covers the way to the store, and a load comes after
the `cache.get` that missed. What a loader does is thus in the span that the caller was in, as if it had been called without a cache.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter
from typing import Any

from aiocache_aura import cache_manager as desk
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.events import Deleted, Fault, Hit, Invalidated, Miss, StaleServed, Stored
from aiocache_aura.integrations.metrics import METRICS, Kind, Metric, durations_of, package_version
from aiocache_aura.integrations.reading import Source, layer_of

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Tracer, TracerProvider
except ImportError as missing:
    raise ImportError(f"this needs opentelemetry-api: pip install 'aiocache-aura[otel]' ({missing})") from missing

SCOPE = "aiocache_aura"
LATELY = 300.0  # seconds that percentiles are about
PERCENTILES = (50, 95, 99)
_COUNT, _SUM = attrgetter("count"), attrgetter("total")


class Instrumentation(AbstractContextManager["Instrumentation"]):
    """A manager that is instrumented, until `uninstrument()` or the end of its `with` block."""

    def __init__(self, manager: CacheManager, instruments: _Instruments, spans: _Spans) -> None:
        self._source, self._instruments = Source(manager), instruments
        instruments.add(self._source)
        self._listening = manager.events.listen(spans, *_TOLD, StaleServed, Fault, when=_is_traced)

    def __repr__(self) -> str:
        return f"<Instrumentation of {self._source.manager!r}>"

    def uninstrument(self) -> None:
        """Make no more spans, observe no more figures; idempotent."""
        self._listening.stop()
        self._instruments.remove(self._source)

    def __exit__(self, *exc: object) -> None:
        self.uninstrument()


def instrument(
    manager: CacheManager | None = None,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    include_keys: bool = False,
) -> Instrumentation:
    """Have a manager, the process-wide one if none is named, seen by OpenTelemetry; the providers are the global ones if none are given.

    `include_keys` puts keys into spans: as they are logged, their arguments hashed unless the manager has `log_keys=True`.
    """
    manager = desk.cache_manager if manager is None else manager
    tracer = trace.get_tracer(SCOPE, package_version(), tracer_provider)
    return Instrumentation(manager, _instruments_of(meter_provider), _Spans(tracer, manager, include_keys=include_keys))


# Metrics


class _Instruments:
    """The instruments of one provider, which can't be unmade: they observe the managers that are instrumented at the moment."""

    def __init__(self, meter: Meter) -> None:
        self._sources: tuple[Source, ...] = ()
        self._lock = threading.Lock()
        for metric in METRICS:
            if metric.kind is Kind.HISTOGRAM:
                self._make_durations(meter, metric)
            else:
                make = meter.create_observable_counter if metric.kind is Kind.COUNTER else meter.create_observable_gauge
                make(metric.otel_name, [partial(self._observe, metric, float)], metric.otel_unit, metric.help)

    def _make_durations(self, meter: Meter, metric: Metric) -> None:
        name, lately = metric.otel_name, f"of the last {LATELY / 60:g} minutes"
        meter.create_observable_counter(f"{name}.count", [partial(self._observe, metric, _COUNT)], f"{{{metric.counted}}}", metric.help)
        meter.create_observable_counter(f"{name}.sum", [partial(self._observe, metric, _SUM)], "s", metric.help)
        for percent in PERCENTILES:
            observe = partial(self._observe_lately, metric, percent)
            meter.create_observable_gauge(f"{name}.p{percent}", [observe], "s", f"{metric.help} Percentile {percent} {lately}.")

    def add(self, source: Source) -> None:
        with self._lock:
            if any(one.manager is source.manager for one in self._sources):
                raise ConfigurationError(f"{source.manager!r} is instrumented already; uninstrument() it first")
            if any(one.prefix == source.prefix for one in self._sources):
                raise ConfigurationError(
                    f"a manager of prefix {source.prefix!r} is instrumented already; they are told apart by their prefixes"
                )
            self._sources = (*self._sources, source)

    def remove(self, source: Source) -> None:
        with self._lock:
            self._sources = tuple(one for one in self._sources if one is not source)

    def _observe(self, metric: Metric, figure: Callable[[Any], float], _: CallbackOptions) -> Iterator[Observation]:
        for source in self._sources:
            for labels, value in metric.read(source.read()):
                yield Observation(figure(value), _attributes(source, metric, labels))

    def _observe_lately(self, metric: Metric, percent: int, _: CallbackOptions) -> Iterator[Observation]:
        for source in self._sources:
            for labels, took in durations_of(metric.operations, source.durations(LATELY)):
                if took.count:
                    yield Observation(took.percentile(percent), _attributes(source, metric, labels))


def _attributes(source: Source, metric: Metric, labels: Iterable[str]) -> dict[str, str]:
    """A metric's labels as attributes, in front of them what tells managers apart."""
    named = {_ATTRIBUTES.get(label, f"{SCOPE}.{label}"): value for label, value in zip(metric.labels, labels, strict=True)}
    return {f"{SCOPE}.prefix": source.prefix, **named}


_ATTRIBUTES = {"error_type": "error.type"}
_by_provider: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = weakref.WeakKeyDictionary()
_global: list[_Instruments] = []
_making = threading.Lock()


def _instruments_of(provider: MeterProvider | None) -> _Instruments:
    """The instruments of a provider: made once, for it takes each name only once."""
    with _making:
        if provider is None:
            if not _global:
                _global.append(_Instruments(metrics.get_meter(SCOPE, package_version())))
            return _global[0]
        if provider not in _by_provider:
            _by_provider[provider] = _Instruments(provider.get_meter(SCOPE, package_version()))
        return _by_provider[provider]


# Spans


def _is_traced() -> bool:
    return trace.get_current_span().is_recording()


class _Spans:
    """Makes a span, under the one that its happening came about in, of what has just happened."""

    def __init__(self, tracer: Tracer, manager: CacheManager, *, include_keys: bool) -> None:
        self._tracer, self._manager, self._include_keys = tracer, manager, include_keys

    def __call__(self, happening: Any) -> None:
        parent = trace.get_current_span()
        if not parent.is_recording():
            return
        kind, at = type(happening), int(happening.at * 1e9)
        if kind in _TOLD:
            name, describe = _TOLD[kind]
            attributes = {**self._whose(happening), "cache.operation": name.removeprefix("cache."), **describe(happening)}
            span = self._tracer.start_span(name, attributes=attributes, start_time=at - int(happening.seconds * 1e9))
            span.end(at)
        else:
            parent.add_event(*_described(happening, self._whose(happening)), timestamp=at)

    def _whose(self, happening: Any) -> dict[str, Any]:
        told: dict[str, Any] = {f"{SCOPE}.cache": happening.cache_type, f"{SCOPE}.layer": layer_of(self._manager)}
        return told | {"cache.key": [happening.key]} if self._include_keys and happening.key else told


def _described(happening: StaleServed | Fault, whose: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What is no operation is noted in the caller's span."""
    if isinstance(happening, StaleServed):
        return f"{SCOPE}.stale_served", {**whose, f"{SCOPE}.reason": happening.reason}
    return f"{SCOPE}.fault", {**whose, "error.type": type(happening.error).__name__}


def _hit(hit: Hit) -> dict[str, Any]:
    return {"cache.hit": True, "cache.item_size": hit.size, f"{SCOPE}.stale": hit.stale}


def _miss(miss: Miss) -> dict[str, Any]:
    return {"cache.hit": False, f"{SCOPE}.coalesced": miss.coalesced}


def _stored(stored: Stored) -> dict[str, Any]:
    life = {} if math.isinf(stored.ttl) else {"cache.ttl": math.ceil(stored.ttl)}
    return {"cache.write": True, "cache.item_size": stored.size, **life}


def _deleted(deleted: Deleted) -> dict[str, Any]:
    return {f"{SCOPE}.deleted": deleted.count}


def _invalidated(invalidated: Invalidated) -> dict[str, Any]:
    return {f"{SCOPE}.delivered": invalidated.delivered}


_TOLD: dict[type[Any], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    Hit: ("cache.get", _hit),
    Miss: ("cache.get", _miss),
    Stored: ("cache.put", _stored),
    Deleted: ("cache.remove", _deleted),
    Invalidated: ("cache.flush", _invalidated),
}
