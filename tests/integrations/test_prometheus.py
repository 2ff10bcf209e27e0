"""Prometheus: what a scrape shows, in any thread, under any load, and that it is what was counted."""

from __future__ import annotations

import asyncio
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from aiocache_aura import CacheManager, CachePolicy, CacheWarmer, ConfigurationError, tenant_scope
from aiocache_aura import cache_manager as desk
from aiocache_aura.histogram import Histogram, bound
from aiocache_aura.integrations import metrics
from aiocache_aura.integrations.metrics import METRICS
from aiocache_aura.integrations.prometheus import AuraCollector, register
from aiocache_aura.integrations.reading import MAX_REASONS, Source
from aiocache_aura.stats import STALE_REASONS, Counts
from aiocache_aura.stores.lanes import State

ROOT = Path(__file__).parents[2]
NAMES = {
    "aura_build_info": ("version",),
    "aura_cache_backend_errors_total": ("error_type",),
    "aura_cache_bytes": ("cache",),
    "aura_cache_coalesced_total": ("cache", "scope"),
    "aura_cache_codec_errors_total": ("cache", "kind"),
    "aura_cache_entries": ("cache",),
    "aura_cache_evictions_total": ("cache", "reason"),
    "aura_cache_invalidations_total": ("cache", "kind"),
    "aura_cache_load_duration_seconds": ("cache", "outcome"),
    "aura_cache_load_errors_total": ("cache",),
    "aura_cache_load_overruns_total": ("cache",),
    "aura_cache_operation_duration_seconds": ("cache", "op"),
    "aura_cache_requests_total": ("cache", "layer", "result"),
    "aura_cache_saved_seconds_total": ("cache",),
    "aura_cache_sets_total": ("cache",),
    "aura_cache_stale_served_total": ("cache", "reason"),
    "aura_pool_connections": ("state",),
    "aura_pool_pending": (),
    "aura_pool_reconnects_total": (),
    "aura_pool_wait_seconds": (),
    "aura_warm_keys_total": ("cache", "result"),
    "aura_warm_last_run_duration_seconds": ("cache",),
    "aura_warm_last_run_timestamp_seconds": ("cache",),
    "aura_warm_runs_total": ("cache", "ended"),
}
FORMATS = {
    "text": lambda registry: list(parse(generate_latest(registry).decode())),
    "openmetrics": lambda registry: list(parse_openmetrics(generate_openmetrics(registry).decode())),
}
PROMTOOL = shutil.which("promtool")
Figures = dict[tuple[str, ...], float]


@pytest.fixture(params=["memory", "valkey"])
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[CacheManager]:
    """A manager over each kind of store; its types are `menu`, `dishes`, and the presets."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("valkey").url
    policies = {"menu": CachePolicy(ttl=60, stale=600, throttle=30), "dishes": CachePolicy(ttl=60)}
    async with CacheManager(url, prefix="shop", policies=policies) as made:
        yield made


@pytest.fixture
def registry(manager: CacheManager) -> CollectorRegistry:
    made = CollectorRegistry()
    register(manager, made)
    return made


def figures(registry: CollectorRegistry, name: str, *labels: str) -> Figures:
    """The samples of a name, by values of these labels."""
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == name]
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in samples}


def requests(registry: CollectorRegistry, cache: str = "menu") -> dict[str, float]:
    told = figures(registry, "aura_cache_requests_total", "cache", "result")
    return {result: n for (name, result), n in told.items() if name == cache}


async def fails() -> Any:
    raise OSError("no database")


async def traffic(manager: CacheManager) -> None:
    """Three loads, two hits, one load that raises, a value that cannot be stored, a delete and two invalidations."""
    for key in ("a", "b", "c", "a", "b"):
        await manager.get_or_load("menu", key, lambda: {"dish": 1})
    with pytest.raises(OSError, match="no database"):
        await manager.get_or_load("menu", "d", fails)
    await manager.get_or_load("dishes", "a", lambda: object())
    await manager.delete("menu", "a")
    await manager.invalidate("menu")
    await manager.invalidate_pattern("menu", "nothing:*")


# Names


def test_every_exported_name_and_label_is_pinned() -> None:
    """The metrics and their labels are these, and what a registry is told of says the same."""
    assert {metric.name: metric.labels for metric in METRICS} == NAMES
    described = [family.name + ("_total" if family.type == "counter" else "") for family in AuraCollector().describe()]
    assert sorted(described) == sorted(NAMES)


def test_names_keep_to_the_conventions() -> None:
    """One prefix, base units, `_total` for counters only, a help text, and never a label for keys, users, tenants or functions."""
    for metric in METRICS:
        assert metric.name.startswith("aura_")
        assert metric.name.endswith("_total") is (metric.kind == "counter")
        assert not metric.unit or metric.base.endswith(f"_{metric.unit}")
        assert metric.help.endswith(".")
        assert not {"key", "user", "tenant", "function", "le"} & {*metric.labels}


@pytest.mark.parametrize("form", FORMATS)
async def test_a_scrape_can_be_parsed_and_has_the_samples_of_the_names(form, manager, registry) -> None:
    """prometheus_client's own parsers read it, in both formats, and each family has exactly its labels."""
    await traffic(manager)
    families = FORMATS[form](registry)
    seen = set()
    for family in families:
        for sample in family.samples:
            base = sample.name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
            seen.add(base)
            assert {*sample.labels} - {"le"} == {*NAMES[base]}
            assert sample.value >= 0
    absent = ("aura_warm", "aura_cache_evictions", "aura_cache_backend_errors")
    absent += ("aura_cache_entries", "aura_cache_bytes") if manager.settings.is_remote else ("aura_pool",)
    assert seen == {name for name in NAMES if not name.startswith(absent)}


if PROMTOOL:

    async def test_promtool_has_no_complaint(manager, registry) -> None:
        """`promtool check metrics`, where it is installed, says nothing."""
        await traffic(manager)
        command = [PROMTOOL, "check", "metrics"]
        done = await asyncio.to_thread(subprocess.run, command, input=generate_latest(registry), capture_output=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Figures


async def test_figures_are_those_that_were_counted(manager, registry) -> None:
    """After known traffic each series has the value that it must, over either kind of store."""
    await traffic(manager)
    layer = "l2" if manager.settings.is_remote else "l1"
    told = figures(registry, "aura_cache_requests_total", "cache", "layer", "result")
    assert told == {
        ("menu", layer, "hit"): 2,
        ("menu", layer, "miss"): 4,
        ("menu", layer, "stale"): 0,
        ("dishes", layer, "hit"): 0,
        ("dishes", layer, "miss"): 1,
        ("dishes", layer, "stale"): 0,
    }
    outcomes = figures(registry, "aura_cache_load_duration_seconds_count", "cache", "outcome")
    assert outcomes == {("menu", "ok"): 3, ("menu", "error"): 1, ("dishes", "ok"): 1}
    assert figures(registry, "aura_cache_load_errors_total", "cache") == {("menu",): 1, ("dishes",): 0}
    assert figures(registry, "aura_cache_sets_total", "cache") == {("menu",): 3, ("dishes",): 0}
    assert figures(registry, "aura_cache_codec_errors_total", "cache", "kind")["dishes", "unstorable"] == 1
    assert figures(registry, "aura_cache_invalidations_total", "cache", "kind") == {
        ("menu", "scope"): 2,
        ("menu", "key"): 1,
        ("dishes", "scope"): 0,
        ("dishes", "key"): 0,
    }
    assert figures(registry, "aura_build_info", "version") == {(metrics.package_version(),): 1}


async def test_durations_are_those_that_were_taken(manager, registry) -> None:
    """Number and sum of a histogram are those of the counters, and of gets there is one for each read."""
    await traffic(manager)
    times = manager.recorder.total("menu").times
    counted = figures(registry, "aura_cache_operation_duration_seconds_count", "cache", "op")
    summed = figures(registry, "aura_cache_operation_duration_seconds_sum", "cache", "op")
    assert counted["menu", "get"] == 6
    assert counted["menu", "set"] == 3
    for operation in ("get", "set", "delete", "invalidate"):
        assert counted["menu", operation] == times[operation].count > 0
        assert math.isclose(summed["menu", operation], times[operation].total)
    assert ("menu", "load") not in counted


async def test_buckets_are_exact(registry, manager) -> None:
    """Durations at, just below and just above each bound are told as such by the bucket that ends there."""
    took, bounds = manager.recorder.counts("menu"), metrics.limits()
    for limit in bounds:
        took.took("load", limit * 0.99)
        took.took("load", limit * 1.01)
    told = figures(registry, "aura_cache_load_duration_seconds_bucket", "le")
    assert [told[label] for label in told] == [*(2 * n + 1 for n in range(len(bounds))), 2 * len(bounds)]
    assert [float(le) for (le,) in told] == [*bounds, math.inf]
    assert len(bounds) == 25
    assert (bounds[0], bounds[-1]) == (1e-5, 1e3)


async def test_what_is_stale_is_no_hit_and_no_miss(clock) -> None:
    """Each read has one result: stale values that are given at once, and after a load that failed, are neither hits nor misses."""
    policies = {"menu": CachePolicy(ttl=60, stale=600, throttle=30, jitter=0)}
    async with CacheManager(policies=policies, clock=clock) as manager:
        registry = CollectorRegistry()
        register(manager, registry)
        await manager.get_or_load("menu", "a", lambda: 1)
        await manager.get_or_load("menu", "a", lambda: 1)
        clock.advance(61)
        refreshed = asyncio.Event()

        async def again() -> int:
            refreshed.set()
            return 2

        await manager.get_or_load("menu", "a", again)  # stale, refreshing
        await refreshed.wait()
        clock.advance(61)
        menu = manager.caches["menu"]
        assert await menu.get_or_load("a", fails, soft_timeout=5) in (1, 2)  # stale: it has waited for an error
        assert await menu.get_or_load("a", fails, soft_timeout=5) in (1, 2)  # stale: paused
        counts = manager.counts("menu")
        assert (counts.stale_refreshing, counts.stale_error, counts.stale_paused) == (1, 1, 1)
        assert requests(registry) == {"hit": 1, "miss": 1, "stale": 3}
        assert counts.hits + counts.misses == sum(requests(registry).values())
        told = figures(registry, "aura_cache_stale_served_total", "reason")
        assert told == {(reason,): getattr(counts, f"stale_{reason}") for reason in STALE_REASONS}


async def test_a_reader_who_waited_for_what_has_failed_elsewhere_is_stale_and_no_hit(valkey, clock) -> None:
    """It is counted as a miss that got a stale value for an error, and has the result `stale`, once."""
    policies = {"menu": CachePolicy(ttl=60, stale=600, throttle=30, jitter=0)}
    async with (
        CacheManager(valkey.url, policies=policies, clock=clock) as one,
        CacheManager(valkey.url, policies=policies, clock=clock) as other,
    ):
        registry = CollectorRegistry()
        register(other, registry)
        await one.get_or_load("menu", "a", lambda: 1)
        clock.advance(61)
        assert await one.caches["menu"].get_or_load("a", fails, soft_timeout=5) == 1
        assert await other.caches["menu"].get_or_load("a", lambda: 2, soft_timeout=5) == 1
        assert requests(registry) == {"hit": 0, "miss": 0, "stale": 1}
        counts = other.counts("menu")
        assert (counts.hits, counts.misses, counts.stale_error) == (0, 1, 1)


NOT_FOR_THEMSELVES = ("mask", "samples", "resets", "loads", "load_seconds", "errors")


@pytest.mark.parametrize("name", [name for name in Counts.__slots__ if name not in NOT_FOR_THEMSELVES])
def test_every_counter_is_exported(name) -> None:
    """A scrape of a manager in which just this has been counted differs from that of one in which nothing has.

    Loads and their seconds are the number and the sum of a histogram, errors the sum of their classes.
    """
    counts: Any = {"by_error": {"X": 7}, "evictions": {"bytes": 7}, "times": {"load": Histogram({0: 7}, 1.0)}}
    figure = counts.get(name, 7)
    before, after = [], []
    manager = CacheManager()
    manager.recorder.counts("menu").overruns = manager.recorder.counts("menu").sets = 1  # it is used
    for found in (before, after):
        registry = CollectorRegistry()
        register(manager, registry)
        found += [(s.name, s.value) for family in registry.collect() for s in family.samples]
        setattr(manager.recorder.counts("menu"), name, figure)
    assert before != after
    assert 7 in [value for one in after if one not in before for value in one[1:]]


async def test_a_type_that_nobody_uses_has_no_series(manager, registry) -> None:
    """Of the presets only what is used is shown; a used type has all of its results, with 0 for what has not happened yet."""
    assert requests(registry) == {}
    await manager.get("menu", "a")
    assert requests(registry) == {"hit": 0, "miss": 1, "stale": 0}
    assert {cache for (cache,) in figures(registry, "aura_cache_sets_total", "cache")} == {"menu"}


async def test_no_label_holds_what_an_entry_is_about(manager, registry) -> None:
    """Keys, tenants, users and tags are nowhere in a scrape."""
    with tenant_scope("secret-tenant"):
        await manager.caches["menu"].get_or_load("secret-key", lambda: 1, tags=["secret-tag"], user="secret-user", tenant="secret-tenant")
        await manager.delete("menu", "secret-key")
    assert "secret" not in generate_latest(registry).decode()


async def test_entries_and_bytes_are_those_of_the_memory_store() -> None:
    """Entries, bytes and evictions by reason, of a store that holds two entries."""
    async with CacheManager(l1_entries=2) as manager:
        registry = CollectorRegistry()
        register(manager, registry)
        await manager.set("menu", "a", 1)
        await manager.set("api", "a", 1)
        await manager.set("menu", "b", 1)
        usage = manager.ports()[0].usage()
        assert sum(figures(registry, "aura_cache_entries", "cache").values()) == 2
        assert figures(registry, "aura_cache_entries", "cache") == {(name,): held[0] for name, held in usage.items()}
        assert figures(registry, "aura_cache_bytes", "cache") == {(name,): held[1] for name, held in usage.items()}
        assert figures(registry, "aura_cache_evictions_total", "cache", "reason") == {("menu", "entries"): 1}


async def test_a_server_that_is_gone_is_told_by_the_class_of_its_errors(own_server) -> None:
    """Faults are told by class, and a read that the server failed is a miss."""
    server = own_server()
    async with CacheManager(server.url, budget=0.2) as manager:
        registry = CollectorRegistry()
        register(manager, registry)
        await manager.get_or_load("menu", "a", lambda: 1)
        server.stop()
        await manager.get_or_load("menu", "a", lambda: 1)
        told = figures(registry, "aura_cache_backend_errors_total", "error_type")
        assert told
        assert {error_type for (error_type,) in told} <= {"BackendError", "BackendTimeoutError"}
        assert sum(told.values()) == manager.counts("menu").errors
        assert requests(registry) == {"hit": 0, "miss": 2, "stale": 0}


async def test_runs_of_warmers_are_told(manager, registry) -> None:
    """Keys by what became of them, runs by how they ended, and when the last one did; a type without a source is none."""
    warmer = CacheWarmer(manager=manager)

    @warmer.source("menu")
    async def menus() -> AsyncIterator[Any]:
        for key in "abc":
            yield key, 1

    @warmer.source("dishes")
    async def dishes() -> AsyncIterator[Any]:
        yield "a", 1
        raise OSError("no database")

    before = time.time()
    await warmer.warm_all()
    await warmer.warm("menu")
    keys = figures(registry, "aura_warm_keys_total", "cache", "result")
    assert {result: n for (cache, result), n in keys.items() if cache == "menu"} == {"loaded": 3, "refreshed": 0, "skipped": 3, "failed": 0}
    runs = figures(registry, "aura_warm_runs_total", "cache", "ended")
    assert {names for names, n in runs.items() if n} == {("menu", "done"), ("dishes", "failed")}
    assert runs["menu", "done"] == 2
    assert before <= figures(registry, "aura_warm_last_run_timestamp_seconds", "cache")["menu",] <= time.time()
    assert figures(registry, "aura_warm_last_run_duration_seconds", "cache").keys() == {("menu",), ("dishes",)}


async def test_connections_are_told_by_state(valkey) -> None:
    """Connections by state, all states there are; over memory there is none, and no series."""
    registries = []
    for url in ("memory://", valkey.url):
        async with CacheManager(url) as manager:
            registries.append(CollectorRegistry())
            register(manager, registries[-1])
            await manager.set("menu", "a", 1)
            assert await manager.get("menu", "a") == 1
            told = figures(registries[-1], "aura_pool_connections", "state")
            assert len(told) == (0 if url == "memory://" else 5)
            assert sum(told.values()) == len(manager.ports()[0].connections())
            assert told.get(("ready",), 0) == (0 if url == "memory://" else 2)
            assert figures(registries[-1], "aura_pool_reconnects_total") == ({} if url == "memory://" else {(): 0})
    for registry in registries:
        assert sum(figures(registry, "aura_pool_connections", "state").values()) == 0


async def test_what_waits_for_a_server_that_hangs_is_told(own_server) -> None:
    """While the server stands still there are requests pending, and one has waited; once it goes on there is none. Then it is killed."""
    server = own_server()
    async with CacheManager(server.url) as manager:
        registry = CollectorRegistry()
        register(manager, registry)
        await manager.get("menu", "a")
        server.stop()
        read = asyncio.create_task(manager.get("menu", "a"))
        while not figures(registry, "aura_pool_wait_seconds")[()]:
            await asyncio.sleep(0)
        assert figures(registry, "aura_pool_pending")[()] >= 1
        server.cont()
        await read
        assert figures(registry, "aura_pool_pending") == figures(registry, "aura_pool_wait_seconds") == {(): 0}
        server.kill()
        server.start()
        while not figures(registry, "aura_pool_reconnects_total")[()]:
            await manager.get("menu", "a")


def test_the_states_of_connections_are_those_that_there_are() -> None:
    """A state that is not in the table would be left out of the figures."""
    assert {state.value for state in State} == {*metrics.STATES}


# Cardinality


def test_types_beyond_the_cap_are_summed_and_stay_so() -> None:
    """Names are kept in the order of use, for good; the rest is one series, and so are all after it."""
    manager = CacheManager(policies={f"type{n}": CachePolicy(ttl=60) for n in range(6)})
    registry = CollectorRegistry()
    registry.register(AuraCollector(manager, max_caches=2))
    for n in (4, 5, 0):
        manager.recorder.counts(f"type{n}").sets = 10 + n
    shown = figures(registry, "aura_cache_sets_total", "cache")
    assert len(shown) == 3
    assert sum(shown.values()) == 39
    for n in range(4):
        manager.recorder.counts(f"type{n}").sets += 100
    again = figures(registry, "aura_cache_sets_total", "cache")
    assert again.keys() == shown.keys()
    assert sum(again.values()) == 439
    assert all(again[cache] >= n for cache, n in shown.items())


def test_a_type_that_is_called_other_is_in_the_sum() -> None:
    """Two series of one name would make the scrape invalid."""
    manager = CacheManager(policies={"other": CachePolicy(ttl=60), "a": CachePolicy(ttl=60), "b": CachePolicy(ttl=60)})
    collector = AuraCollector(manager, max_caches=2)
    for n, name in enumerate(("other", "a", "b")):
        manager.recorder.counts(name).took("get", 1.0)
        manager.recorder.counts(name).sets = 10**n
    registry = CollectorRegistry()
    registry.register(collector)
    told = figures(registry, "aura_cache_sets_total", "cache")
    assert told["other",] + told.get(("a",), 0) + told.get(("b",), 0) == 111
    list(parse_openmetrics(generate_openmetrics(registry).decode()))


def test_classes_of_errors_are_capped() -> None:
    """However many classes there are, at most twenty have their series; the rest is `other`, and nothing is lost."""
    manager = CacheManager()
    registry = CollectorRegistry()
    register(manager, registry)
    counts = manager.recorder.counts("menu")
    for n in range(50):
        counts.by_error[f"Error{n}"] = 2
        counts.errors += 2
    told = figures(registry, "aura_cache_backend_errors_total", "error_type")
    assert len(told) == MAX_REASONS + 1
    assert len(counts.by_error) == 50
    assert told["other",] == 60
    assert sum(told.values()) == 100


def test_a_counter_does_not_go_back_when_it_is_read_between_two_steps() -> None:
    """A stale read is counted in two steps; a scrape between them must not look like a counter that began anew."""
    manager = CacheManager()
    registry = CollectorRegistry()
    register(manager, registry)
    counts = manager.recorder.counts("menu")
    counts.hits += 5
    assert requests(registry) == {"hit": 5, "miss": 0, "stale": 0}
    counts.stale_refreshing += 1
    assert requests(registry) == {"hit": 5, "miss": 0, "stale": 1}
    counts.hits += 1
    assert requests(registry) == {"hit": 5, "miss": 0, "stale": 1}


# Threads


def test_a_reading_does_not_change_any_more() -> None:
    """What is counted after a reading, or in another thread meanwhile, is not in it."""
    manager = CacheManager()
    counts = manager.recorder.counts("menu")

    def count() -> None:
        counts.sets += 1
        counts.took("get", 1.0)
        counts.failed(OSError())
        manager.recorder.evicted("menu", "bytes")

    count()
    reading = Source(manager).read()
    count()
    told = reading.counts["menu"]
    assert (told.sets, told.times["get"].count, told.by_error, told.evictions) == (1, 1, {"OSError": 1}, {"bytes": 1})
    assert counts.sets == 2


async def test_scrapes_from_threads_while_the_loop_works() -> None:
    """Under load, with types, errors, evictions and operations that come up meanwhile, no scrape raises and no counter goes back."""
    async with CacheManager(l1_entries=50) as manager:
        collector, done = AuraCollector(manager, max_caches=30), threading.Event()
        wrong: list[object] = []
        scrapes = [0, 0]

        def scrape(place: int) -> None:
            highest: dict[object, float] = {}
            try:
                while not done.is_set() or not scrapes[place]:
                    for family in collector.collect():
                        for sample in family.samples:
                            if family.type == "gauge":
                                continue
                            series = sample.name, *sorted(sample.labels.items())
                            if sample.value < highest.get(series, 0) - 1e-9:
                                wrong.append((series, highest[series], sample.value))
                            highest[series] = sample.value
                    scrapes[place] += 1
            except BaseException as error:
                wrong.append(error)

        async def work() -> None:
            for n in range(150):
                manager.register(f"type{n}", CachePolicy(ttl=60, stale=60))
                counts = manager.recorder.counts(f"type{n}")
                for key in range(10):
                    await manager.get_or_load(f"type{n}", f"{key}", lambda: 1)
                counts.failed(type(f"Error{n}", (Exception,), {})())
                for bucket in range(300):
                    counts.took("get", bound(bucket))
                await manager.invalidate(f"type{n}")

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=scrape, args=(n,)) for n in range(2)]
            for thread in threads:
                thread.start()
            await asyncio.wait_for(work(), 60)
        finally:
            done.set()
            sys.setswitchinterval(interval)
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        assert not wrong
        assert all(scrapes)
        assert sum(sample.value for family in collector.collect() for sample in family.samples if "backend_errors" in sample.name) == 150


async def test_loops_in_other_threads_are_in_the_figures(valkey) -> None:
    """A manager's figures are of all its loops; a scrape sees the connections of each, and needs no loop itself."""
    async with CacheManager(valkey.url) as manager:
        registry = CollectorRegistry()
        register(manager, registry)
        await manager.set("menu", "a", 1)
        assert await asyncio.to_thread(lambda: asyncio.run(manager.get("menu", "a"))) == 1
        assert await asyncio.to_thread(requests, registry) == {"hit": 1, "miss": 0, "stale": 0}


# Registering


def test_the_same_registry_twice_is_refused_with_what_to_do(manager: CacheManager) -> None:
    """A second registration says that managers are exported together, or each by a registry; once unregistered it is as new."""
    registry = CollectorRegistry()
    collector = register(manager, registry)
    with pytest.raises(ConfigurationError, match=r"register\(\[one, other\]\)"):
        register(CacheManager(prefix="other"), registry)
    registry.unregister(collector)
    register(manager, registry)


def test_managers_are_exported_together_under_their_prefixes() -> None:
    """Of several managers each series has its prefix; a single one has no such label."""
    one, other = CacheManager(prefix="one"), CacheManager(prefix="other")
    registry = CollectorRegistry()
    register([one, other], registry)
    one.recorder.counts("menu").sets = 1
    other.recorder.counts("menu").sets = 2
    assert figures(registry, "aura_cache_sets_total", "prefix", "cache") == {("one", "menu"): 1, ("other", "menu"): 2}
    list(parse_openmetrics(generate_openmetrics(registry).decode()))
    with pytest.raises(ConfigurationError, match="prefixes"):
        register([one, CacheManager(prefix="one")], CollectorRegistry())


def test_registering_reads_nothing(monkeypatch) -> None:
    """The process-wide manager may be configured after it was registered, and is looked up anew by each scrape."""
    monkeypatch.setattr(desk, "cache_manager", CacheManager())
    registry = CollectorRegistry()
    register(registry=registry)
    generate_latest(registry)
    desk.cache_manager.configure(prefix="shop")
    desk.cache_manager.recorder.counts("menu").hits = 3
    assert requests(registry) == {"hit": 3, "miss": 0, "stale": 0}
    monkeypatch.setattr(desk, "cache_manager", CacheManager())
    desk.cache_manager.recorder.counts("menu").hits = 1
    assert requests(registry) == {"hit": 1, "miss": 0, "stale": 0}


@pytest.mark.parametrize(
    ("module", "missing", "extra"), [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "otel")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(module, missing, extra) -> None:
    """Without its package an exporter cannot be imported, and says how it can."""
    code = f"import sys; sys.modules[{missing!r}] = None\nimport aiocache_aura.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"ImportError: this needs {missing.replace('_', '-')}" in done.stderr
    assert f"pip install 'aiocache-aura[{extra}]'" in done.stderr


# The page


def test_the_page_is_as_it_would_be_made(tmp_path) -> None:
    """docs/metrics.md has the tables of this version, and the command that it names makes them."""
    page = ROOT / "docs" / "metrics.md"
    assert metrics.with_tables(page.read_text()) == page.read_text()
    spoilt = tmp_path / "metrics.md"
    spoilt.write_text(page.read_text().replace("aura_cache_requests_total", "aura_cache_wishes_total"))
    subprocess.run([sys.executable, "-m", "aiocache_aura.integrations.metrics", str(spoilt)], cwd=ROOT, check=True, timeout=60)
    assert metrics.tables() in spoilt.read_text()
