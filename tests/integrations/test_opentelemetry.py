"""OpenTelemetry: the metrics as its in-memory reader sees them, and spans under the right parents, or none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from aiocache_aura import FOREVER, CacheManager, CachePolicy, ConfigurationError, Hit, cache
from aiocache_aura import cache_manager as desk
from aiocache_aura.integrations.metrics import METRICS
from aiocache_aura.integrations.opentelemetry import Instrumentation, instrument
from aiocache_aura.warm_report import TypeReport

INSTRUMENTS = {
    "aiocache_aura.build.info": ("{process}", "Gauge"),
    "aiocache_aura.cache.backend_errors": ("{error}", "Sum"),
    "aiocache_aura.cache.bytes": ("By", "Gauge"),
    "aiocache_aura.cache.coalesced": ("{load}", "Sum"),
    "aiocache_aura.cache.codec_errors": ("{value}", "Sum"),
    "aiocache_aura.cache.entries": ("{entry}", "Gauge"),
    "aiocache_aura.cache.evictions": ("{entry}", "Sum"),
    "aiocache_aura.cache.invalidations": ("{invalidation}", "Sum"),
    "aiocache_aura.cache.load.duration.count": ("{load}", "Sum"),
    "aiocache_aura.cache.load.duration.p50": ("s", "Gauge"),
    "aiocache_aura.cache.load.duration.p95": ("s", "Gauge"),
    "aiocache_aura.cache.load.duration.p99": ("s", "Gauge"),
    "aiocache_aura.cache.load.duration.sum": ("s", "Sum"),
    "aiocache_aura.cache.load_errors": ("{load}", "Sum"),
    "aiocache_aura.cache.load_overruns": ("{load}", "Sum"),
    "aiocache_aura.cache.operation.duration.count": ("{operation}", "Sum"),
    "aiocache_aura.cache.operation.duration.p50": ("s", "Gauge"),
    "aiocache_aura.cache.operation.duration.p95": ("s", "Gauge"),
    "aiocache_aura.cache.operation.duration.p99": ("s", "Gauge"),
    "aiocache_aura.cache.operation.duration.sum": ("s", "Sum"),
    "aiocache_aura.cache.requests": ("{request}", "Sum"),
    "aiocache_aura.cache.saved": ("s", "Sum"),
    "aiocache_aura.cache.sets": ("{entry}", "Sum"),
    "aiocache_aura.cache.stale_served": ("{request}", "Sum"),
    "aiocache_aura.pool.connections": ("{connection}", "Gauge"),
    "aiocache_aura.pool.pending": ("{request}", "Gauge"),
    "aiocache_aura.pool.reconnects": ("{connection}", "Sum"),
    "aiocache_aura.pool.wait": ("s", "Gauge"),
    "aiocache_aura.warm.keys": ("{key}", "Sum"),
    "aiocache_aura.warm.last_run.duration": ("s", "Gauge"),
    "aiocache_aura.warm.last_run_timestamp": ("s", "Gauge"),
    "aiocache_aura.warm.runs": ("{run}", "Sum"),
}


class Telemetry:
    """Providers of a test's own, and what they were given."""

    def __init__(self) -> None:
        self.reader, self.exporter = InMemoryMetricReader(), InMemorySpanExporter()
        self.meters, self.tracers = MeterProvider([self.reader]), TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracers.get_tracer("app")

    def instrument(self, manager: CacheManager, **options: Any) -> Instrumentation:
        return instrument(manager, meter_provider=self.meters, tracer_provider=self.tracers, **options)

    def metrics(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        found = (
            [] if data is None else [one for resource in data.resource_metrics for scope in resource.scope_metrics for one in scope.metrics]
        )
        return {metric.name: metric for metric in found}

    def points(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        metric = self.metrics().get(name)
        points = [] if metric is None else metric.data.data_points
        return {tuple(point.attributes[f"aiocache_aura.{label}"] for label in labels): point.value for point in points}

    def spans(self, name: str = "cache.") -> list[ReadableSpan]:
        """The spans of such names, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]

    def close(self) -> None:
        self.meters.shutdown()
        self.tracers.shutdown()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    yield made
    made.close()


@pytest.fixture(params=["memory", "valkey"])
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[CacheManager]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("valkey").url
    policies = {"menu": CachePolicy(ttl=60, jitter=0, stale=600, throttle=30), "dishes": CachePolicy(ttl=60)}
    async with CacheManager(url, prefix="shop", policies=policies) as made:
        yield made


def whose(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def fails() -> Any:
    raise OSError("no database")


# Metrics


async def test_every_instrument_is_pinned(telemetry, manager) -> None:
    """These instruments there are, with these units and kinds, each of them with its description."""
    with telemetry.instrument(manager):
        counts = manager.recorder.counts("menu")
        for operation in ("get", "load"):
            counts.took(operation, 0.1)
        counts.by_error["BackendError"] = counts.errors = counts.evictions["bytes"] = 1
        await manager.set("menu", "a", 1)
        manager.recorder.warm_run(TypeReport(cache_type="menu"))
        seen = telemetry.metrics()
        made = {name: (metric.unit, type(metric.data).__name__) for name, metric in seen.items()}
        assert all(metric.description for metric in seen.values())
    absent = ("aiocache_aura.cache.bytes", "aiocache_aura.cache.entries") if manager.settings.is_remote else ("aiocache_aura.pool.",)
    assert made == {name: kind for name, kind in INSTRUMENTS.items() if not name.startswith(absent)}


def test_instruments_are_named_after_the_table() -> None:
    """Each metric of the table has its instrument, and there is no other."""
    named = {name.rpartition(".")[0] if name.endswith((".count", ".sum", ".p50", ".p95", ".p99")) else name for name in INSTRUMENTS}
    assert named == {metric.otel_name for metric in METRICS}


async def test_counters_are_those_that_were_counted(telemetry, manager) -> None:
    """After known traffic the instruments show it, monotonic, with the labels as attributes."""
    with telemetry.instrument(manager):
        for key in ("a", "b", "a"):
            await manager.get_or_load("menu", key, lambda: 1)
        layer = "l2" if manager.settings.is_remote else "l1"
        labels = ("prefix", "cache", "layer", "result")
        assert telemetry.points("aiocache_aura.cache.requests", *labels) == {
            ("shop", "menu", layer, "hit"): 1,
            ("shop", "menu", layer, "miss"): 2,
            ("shop", "menu", layer, "stale"): 0,
        }
        assert telemetry.metrics()["aiocache_aura.cache.requests"].data.is_monotonic
        assert telemetry.points("aiocache_aura.cache.load.duration.count", "cache", "outcome") == {("menu", "ok"): 2}
        took = manager.recorder.total("menu").times["load"].total
        assert math.isclose(telemetry.points("aiocache_aura.cache.load.duration.sum", "outcome")[("ok",)], took)


async def test_percentiles_are_of_the_last_five_minutes(telemetry, clock) -> None:
    """What took long an hour ago is in the sum, and in no percentile."""
    async with CacheManager(clock=clock) as manager:
        with telemetry.instrument(manager):

            async def slow() -> int:
                clock.advance(5)
                return 1

            await manager.get_or_load("menu", "a", slow)
            p99 = telemetry.points("aiocache_aura.cache.load.duration.p99", "cache", "outcome")
            assert p99 == {("menu", "ok"): pytest.approx(5, rel=0.05)}
            clock.advance(3600)
            assert telemetry.points("aiocache_aura.cache.load.duration.p99", "cache") == {}
            assert telemetry.points("aiocache_aura.cache.load.duration.sum", "cache") == {("menu",): 5}


async def test_what_is_no_longer_instrumented_is_no_longer_seen(telemetry, manager) -> None:
    """After `uninstrument`, which may be called twice, neither figures nor spans come; instrumenting again brings them back."""
    for _ in range(2):
        handle = telemetry.instrument(manager)
        with pytest.raises(ConfigurationError, match="already"):
            telemetry.instrument(manager)
        await manager.get("menu", "a")
        assert telemetry.points("aiocache_aura.cache.requests", "result")
        handle.uninstrument()
        handle.uninstrument()
        assert telemetry.metrics() == {}
        with telemetry.tracer.start_as_current_span("request"):
            await manager.get("menu", "a")
        assert telemetry.spans() == []
        assert not manager.events.wants(Hit)


async def test_managers_are_told_apart_by_their_prefixes(telemetry) -> None:
    """Two managers may be instrumented at once, unless they have the same prefix."""
    one, other = CacheManager(prefix="one"), CacheManager(prefix="other")
    with telemetry.instrument(one), telemetry.instrument(other):
        one.recorder.counts("menu").sets = 1
        other.recorder.counts("menu").sets = 2
        assert telemetry.points("aiocache_aura.cache.sets", "prefix") == {("one",): 1, ("other",): 2}
        with pytest.raises(ConfigurationError, match="prefix"):
            telemetry.instrument(CacheManager(prefix="one"))


async def test_without_providers_nothing_happens(monkeypatch) -> None:
    """The process-wide manager under the global providers, which nobody has set up: nothing raised, and they stay as they were."""
    from opentelemetry import metrics

    monkeypatch.setattr(desk, "cache_manager", CacheManager())
    before = metrics.get_meter_provider(), trace.get_tracer_provider()
    async with desk.cache_manager as manager:
        with instrument():
            with trace.get_tracer("app").start_as_current_span("request"):
                assert await manager.get_or_load("menu", "a", lambda: 1) == 1
    assert before == (metrics.get_meter_provider(), trace.get_tracer_provider())


# Spans


async def test_spans_are_called_and_described_as_sentry_does(telemetry, manager) -> None:
    """Name and attributes of each span that there is; no key among them."""
    layer = "l2" if manager.settings.is_remote else "l1"
    common = {"aiocache_aura.cache": "menu", "aiocache_aura.layer": layer}
    with telemetry.instrument(manager), telemetry.tracer.start_as_current_span("request") as request:
        await manager.get_or_load("menu", "a", lambda: 1)
        await manager.get_or_load("menu", "a", lambda: 1)
        await manager.set("menu", "b", 2, ttl=FOREVER)
        await manager.delete("menu", "a")
        await manager.invalidate("menu")
        inside = request.get_span_context().span_id
    miss, put, hit, set_, remove, flush = telemetry.spans()
    size = put.attributes["cache.item_size"]
    assert size > 50
    assert (miss.name, dict(miss.attributes)) == (
        "cache.get",
        {**common, "cache.operation": "get", "cache.hit": False, "aiocache_aura.coalesced": False},
    )
    assert (put.name, dict(put.attributes)) == (
        "cache.put",
        {**common, "cache.operation": "put", "cache.write": True, "cache.item_size": size, "cache.ttl": 60},
    )
    assert (hit.name, dict(hit.attributes)) == (
        "cache.get",
        {**common, "cache.operation": "get", "cache.hit": True, "cache.item_size": size, "aiocache_aura.stale": False},
    )
    assert (set_.name, set_.attributes["cache.write"], "cache.ttl" in set_.attributes) == ("cache.put", True, False)
    assert (remove.name, dict(remove.attributes)) == ("cache.remove", {**common, "cache.operation": "remove", "aiocache_aura.deleted": 1})
    assert (flush.name, dict(flush.attributes)) == ("cache.flush", {**common, "cache.operation": "flush", "aiocache_aura.delivered": True})
    assert {whose(span) for span in telemetry.spans()} == {inside}


async def test_a_span_covers_what_the_operation_took(telemetry, clock) -> None:
    """A span ends when its operation did, and began as many seconds earlier; the load is not in the read."""
    async with CacheManager(clock=clock) as manager:
        with telemetry.instrument(manager), telemetry.tracer.start_as_current_span("request"):
            lookup = manager.ports
            await manager.get("menu", "warm")
            port = manager.ports()[0]
            found = port.lookup

            async def slow(key: bytes, scopes: Any) -> Any:
                clock.advance(2)
                return await found(key, scopes)

            port.lookup = slow  # type: ignore[method-assign]
            began = clock.now

            async def load() -> int:
                clock.advance(30)
                return 1

            await manager.get_or_load("menu", "a", load)
            assert lookup
    read = telemetry.spans("cache.get")[-1]
    assert read.start_time == pytest.approx(began * 1e9, abs=1e3)
    assert read.end_time == pytest.approx((began + 2) * 1e9, abs=1e3)


async def test_no_span_without_a_parent_that_is_recorded(telemetry, manager) -> None:
    """Outside of a trace, in one that is not sampled, and after the end of the one that it was begun in, nothing is made."""
    unsampled = TracerProvider(sampler=ALWAYS_OFF)
    with telemetry.instrument(manager):
        await manager.get_or_load("menu", "a", lambda: 1)
        with unsampled.get_tracer("app").start_as_current_span("request"):
            await manager.get_or_load("menu", "a", lambda: 1)
        ended = telemetry.tracer.start_span("request")
        ended.end()
        with trace.use_span(ended):
            await manager.get_or_load("menu", "a", lambda: 1)
            await manager.set("menu", "a", 2)
    unsampled.shutdown()
    assert telemetry.spans() == []


async def test_what_is_not_traced_is_not_even_made(telemetry, manager, monkeypatch) -> None:
    """An instrumented manager makes no `Hit` for a read outside of a trace; another listener has it made all the same."""
    made = []
    tell = manager.events.tell
    monkeypatch.setattr(manager.events, "tell", lambda happening: (made.append(type(happening)), tell(happening)))
    await manager.set("menu", "a", 1)
    with telemetry.instrument(manager):
        await manager.get_or_load("menu", "a", lambda: 1)
        assert made == []
        heard = []
        with manager.events.listen(heard.append, Hit):
            await manager.get_or_load("menu", "a", lambda: 1)
        assert made == [Hit] == [type(one) for one in heard]
    assert telemetry.spans() == []


@pytest.mark.parametrize("log_keys", [False, True])
async def test_keys_only_where_they_are_asked_for(telemetry, log_keys) -> None:
    """`include_keys` adds `cache.key`, a list: hashed, or plain where the manager logs keys."""
    async with CacheManager(log_keys=log_keys) as manager:
        with telemetry.instrument(manager, include_keys=True), telemetry.tracer.start_as_current_span("request"):
            await manager.set("menu", "dish:7", 1)
            await manager.get("menu", "dish:7")
    for span in telemetry.spans():
        (key,) = span.attributes["cache.key"]
        assert ("dish:7" in key) is log_keys
        assert "menu" in key


async def test_a_loader_works_in_the_span_that_its_caller_was_in(telemetry, manager) -> None:
    """A cached function that calls another in a span of its own: each read is under the span that it was called in."""

    @cache(cache_type="dishes", manager=manager)
    async def inner(n: int) -> int:
        with telemetry.tracer.start_as_current_span("query"):
            return n

    @cache(cache_type="menu", manager=manager)
    async def outer(n: int) -> int:
        with telemetry.tracer.start_as_current_span("assembling"):
            return await inner(n)

    with telemetry.instrument(manager), telemetry.tracer.start_as_current_span("request"):
        assert await outer(1) == 1
    by_id = {span.context.span_id: span.name for span in telemetry.exporter.get_finished_spans()}
    told = [
        (span.name, span.attributes.get("aiocache_aura.cache"), by_id.get(whose(span))) for span in telemetry.exporter.get_finished_spans()
    ]
    assert told == [
        ("cache.get", "menu", "request"),
        ("cache.get", "dishes", "assembling"),
        ("query", None, "assembling"),
        ("cache.put", "dishes", "assembling"),
        ("assembling", None, "request"),
        ("cache.put", "menu", "request"),
        ("request", None, None),
    ]


async def test_each_reader_has_its_own_span(telemetry, manager) -> None:
    """Of readers that share a load each has its `cache.get` under its own request, and only one the `cache.put`."""
    release = asyncio.Event()

    async def load() -> int:
        await release.wait()
        return 1

    async def request(n: int) -> None:
        with telemetry.tracer.start_as_current_span(f"request {n}"):
            await manager.get_or_load("menu", "a", load)

    with telemetry.instrument(manager):
        tasks = [asyncio.create_task(request(n)) for n in range(3)]
        while len(telemetry.spans("cache.get")) < 3:
            await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
    requests = {span.context.span_id for span in telemetry.spans("request")}
    assert {whose(span) for span in telemetry.spans("cache.get")} == requests
    assert sorted(span.attributes["aiocache_aura.coalesced"] for span in telemetry.spans("cache.get")) == [False, True, True]
    assert len(telemetry.spans("cache.put")) == 1


async def test_a_refresh_behind_belongs_to_no_request_that_is_over(telemetry, clock) -> None:
    """A stale value is a hit that says so; what is stored when the request has ended makes no span."""
    async with CacheManager(policies={"menu": CachePolicy(ttl=60, stale=600, jitter=0)}, clock=clock) as manager:
        await manager.get_or_load("menu", "a", lambda: 1)
        clock.advance(61)
        release = asyncio.Event()

        async def load() -> int:
            await release.wait()
            return 2

        with telemetry.instrument(manager):
            with telemetry.tracer.start_as_current_span("request"):
                assert await manager.get_or_load("menu", "a", load) == 1
            release.set()
            while await manager.get("menu", "a") != 2:
                await asyncio.sleep(0)
    (hit,) = telemetry.spans()
    assert (hit.attributes["cache.hit"], hit.attributes["aiocache_aura.stale"]) == (True, True)
    (request,) = telemetry.spans("request")
    assert [(event.name, event.attributes["aiocache_aura.reason"]) for event in request.events] == [
        ("aiocache_aura.stale_served", "refreshing")
    ]


async def test_a_fault_is_an_event_of_the_request(telemetry, own_server) -> None:
    """A server that does not answer is told by the class of the error, in the span of whoever read."""
    server = own_server()
    async with CacheManager(server.url, budget=0.2) as manager:
        await manager.get("menu", "a")
        server.stop()
        with telemetry.instrument(manager), telemetry.tracer.start_as_current_span("request"):
            assert await manager.get_or_load("menu", "a", lambda: 1) == 1
    (request,) = telemetry.spans("request")
    assert {event.name for event in request.events} == {"aiocache_aura.fault"}
    assert {event.attributes["error.type"] for event in request.events} <= {"BackendTimeoutError", "BackendError"}


# What raises harms nobody


class Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("no spans today")


class BrokenExporter(SpanExporter):
    def export(self, spans: Any) -> Any:
        raise RuntimeError("no collector")


@pytest.mark.parametrize("processor", [Broken(), SimpleSpanProcessor(BrokenExporter())], ids=["processor", "exporter"])
async def test_exporters_that_raise_harm_nobody(processor, manager, telemetry) -> None:
    """A span processor or exporter that raises changes no result."""
    broken = TracerProvider()
    broken.add_span_processor(processor)
    with instrument(manager, meter_provider=telemetry.meters, tracer_provider=broken):
        with telemetry.tracer.start_as_current_span("request"):
            assert await manager.get_or_load("menu", "a", lambda: 1) == 1
            assert await manager.get_or_load("menu", "a", lambda: 2) == 1
            assert await manager.set("menu", "b", 3)
            assert await manager.delete("menu", "b") == 1
            assert await manager.invalidate("menu")


async def test_a_span_that_does_not_know_whether_it_is_recorded_harms_nobody(telemetry, manager) -> None:
    """A foreign span whose `is_recording` raises is as none."""

    class Odd(trace.NonRecordingSpan):
        def is_recording(self) -> bool:
            raise RuntimeError("who knows")

    with telemetry.instrument(manager), trace.use_span(Odd(trace.INVALID_SPAN_CONTEXT)):
        assert await manager.get_or_load("menu", "a", lambda: 1) == 1
        assert await manager.get_or_load("menu", "a", lambda: 2) == 1
    assert telemetry.spans() == []
