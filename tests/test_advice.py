"""Advice, rule by rule: said where the figures show it, and silent where all is well."""

from __future__ import annotations

import copy

import pytest

from aiocache_aura import CacheManager, CacheMonitor
from aiocache_aura.advice import RECONNECTS, advice
from aiocache_aura.report import metrics
from aiocache_aura.stats import Counts

GOOD = {"hits": 900, "misses": 100, "loads": 100, "sets": 100}


def figures(times=(), **counted):
    """The figures of a type: all is well but for what is counted."""
    counts = Counts()
    for name, value in {**GOOD, **counted}.items():
        setattr(counts, name, value)
    for operation, seconds, n in times:
        counts.took(operation, seconds, n)
    return metrics(counts, cache_type="menu", minutes=60)


def told(*, health=None, memory=None, connections=(), **changed) -> list[str]:
    return advice(
        {
            "types": {"menu": figures(**changed)},
            "health": health or {"status": "healthy", "issues": [], "checks": {}},
            "memory": memory or {"where": "server", "used_bytes": 10, "max_bytes": 1000, "policy": "allkeys-lru"},
            "connections": list(connections),
            "warmers": [],
        }
    )


def missing(**counted):
    """The causes of a high miss rate, as figures: 100 hits of 1,000 reads."""
    return told(**{"hits": 100, "misses": 900, "loads": 900, "sets": 900, **counted})


def test_all_is_well():
    """A type that is hit, loaded and stored as it should be has nothing to be told."""
    assert told() == []


def test_nothing_is_known():
    """Of an empty report there is nothing to say."""
    assert advice({}) == [] == advice({"types": {}, "health": {"issues": [], "checks": {}}})


class TestMisses:
    HEAD = "menu: only 10% of 1,000 reads are hits: "

    @pytest.mark.parametrize(
        ("counted", "cause"),
        [
            ({}, "keys are asked for once, or expire too soon; raise the ttl"),
            ({"errors": 91}, "the store failed 91 times"),
            ({"load_errors": 400, "sets": 500}, "400 loads raised, and left nothing to hit"),
            ({"unstorable": 91, "sets": 809}, "91 values could not be stored; check_health()"),
            ({"undecodable": 91}, "91 entries were of another version or type"),
            ({"evictions": {"bytes": 50, "entries": 41}}, "91 entries were thrown out for want of room"),
            ({"invalidations": 91}, "it was invalidated 91 times; invalidate by tags"),
            ({"sets": 400}, "of 900 loads 400 were stored; is it ttl=0"),
            ({"loads": 0, "sets": 0}, "nothing is stored after a miss"),
            ({"loads": 0, "sets": 900}, "keys are asked for once"),
            ({"loads": 100, "sets": 100, "coalesced": 300}, "keys are asked for once"),
        ],
        ids=[
            "once",
            "errors",
            "raises",
            "unstorable",
            "undecodable",
            "evicted",
            "invalidated",
            "unstored",
            "never set",
            "by hand",
            "shared loads",
        ],
    )
    def test_each_cause(self, counted, cause):
        """The figure that explains a good part of the misses is named, with what to do."""
        (sentence,) = [one for one in missing(**counted) if "are hits" in one]
        assert sentence.startswith(self.HEAD + cause) and ";" in sentence

    @pytest.mark.parametrize("name", ["errors", "load_errors", "unstorable", "undecodable", "invalidations"])
    def test_a_tenth_of_the_misses_is_no_cause(self, name):
        """What stands for no more than a tenth of them does not explain them."""
        (sentence,) = [one for one in missing(**{name: 90}) if "are hits" in one]
        assert "asked for once" in sentence

    @pytest.mark.parametrize(
        ("hits", "misses", "is_told"), [(49, 51, True), (50, 50, False), (0, 99, False), (0, 100, True), (49, 50, False)]
    )
    def test_from_where_on(self, hits, misses, is_told):
        """Below half, of a hundred reads at least."""
        assert bool(told(hits=hits, misses=misses, loads=misses, sets=misses)) is is_told


class TestSlowness:
    @pytest.mark.parametrize(("seconds", "is_told"), [(0.9, False), (1.1, True)])
    def test_slow_loads(self, seconds, is_told):
        """A second at the 95th percentile is worth a stale value, an early refresh or a warmer."""
        found = told(times=[("load", seconds, 100)])
        assert found == (
            [f"menu: loads take {1.1:.1f} s (p95); stale=, early_refresh=True or a warmer spare callers the wait"] if is_told else []
        )

    @pytest.mark.parametrize(("operation", "what"), [("get", "a lookup"), ("set", "storing")])
    @pytest.mark.parametrize(("seconds", "is_told"), [(0.045, False), (0.055, True)])
    def test_a_slow_store(self, operation, what, seconds, is_told):
        """50 ms at the 95th percentile is the way to the server."""
        found = told(times=[(operation, seconds, 100)])
        assert bool(found) is is_told and all(one.startswith(f"menu: {what} takes 5") and "SLOWLOG" in one for one in found)

    def test_too_few_to_judge_by(self):
        """Fewer than a hundred slow lookups say nothing."""
        assert told(hits=90, misses=9, loads=9, sets=9, times=[("get", 1.0, 99)]) == []


class TestTrouble:
    @pytest.mark.parametrize("reason", ["error", "paused"])
    def test_a_failing_source(self, reason):
        """One stale value for a load that failed is trouble of the source."""
        (sentence,) = told(**{f"stale_{reason}": 1})
        assert sentence.startswith("menu: 1 stale values stood in for loads that failed; the source is in trouble")

    @pytest.mark.parametrize(("late", "is_told"), [(100, False), (101, True)])
    def test_a_late_source(self, late, is_told):
        """Callers who waited in vain, a hundred of them and a tenth of the hits."""
        assert [one.partition(" callers")[0] for one in told(stale_timeout=late)] == ([f"menu: {late}"] if is_told else [])
        assert told(hits=10_000, stale_timeout=late) == []

    def test_stale_while_refreshing_is_no_trouble(self):
        """That is what `stale=` is for."""
        assert told(stale_refreshing=900) == []

    @pytest.mark.parametrize(("errors", "is_told"), [(10, False), (11, True)])
    def test_failing_loads(self, errors, is_told):
        """More than a tenth of the loads."""
        assert told(load_errors=errors) == ([f"menu: {errors} of 100 loads raised; stale= or fallback= stand in"] if is_told else [])
        assert told(loads=9, sets=0, load_errors=9) == []

    def test_overruns(self):
        """Each load that was cancelled at its deadline is one too many."""
        (sentence,) = told(overruns=1)
        assert sentence.startswith("menu: 1 loads were cancelled at load_deadline;")

    @pytest.mark.parametrize(("coalesced", "followed", "is_told"), [(1500, 500, False), (1500, 501, True)])
    def test_herds(self, coalesced, followed, is_told):
        """More than twenty who wait for each load, in this process or for another's."""
        found = told(coalesced=coalesced, followed=followed)
        assert found == (["menu: 2,001 callers waited for 100 loads; early_refresh=True, stale= or a warmer spare them"] if is_told else [])
        assert told(loads=1, sets=1, coalesced=100) == []

    def test_errors_of_the_store(self):
        """They are told by their class."""
        assert told(errors=3, by_error={"BackendTimeoutError": 2, "BackendError": 1}) == [
            "menu: the store failed 3 operations (BackendError 1, BackendTimeoutError 2); functions ran uncached meanwhile"
        ]


class TestTheWhole:
    HEALTH = {
        "status": "degraded",
        "issues": ["few are hits", "the store failed", "the server has no maxmemory"],
        "checks": {
            "hit_rate": {"issue": "few are hits"},
            "errors": {"issue": "the store failed"},
            "eviction": {"issue": "the server has no maxmemory"},
        },
    }

    def test_issues_of_the_health(self):
        """They say what to do themselves."""
        assert told(health=self.HEALTH) == self.HEALTH["issues"]

    def test_what_is_told_by_type_is_not_told_twice(self):
        """Of misses and errors there is more to say by type; it is not said in general, too."""
        found = missing(errors=5, health=self.HEALTH)
        assert "few are hits" not in found and "the store failed" not in found and "the server has no maxmemory" in found
        assert len(found) == 3

    @pytest.mark.parametrize(
        ("memory", "is_told"),
        [
            ({}, True),
            ({"used_bytes": 949}, False),
            ({"policy": "noeviction"}, False),
            ({"where": "process"}, False),
            ({"max_bytes": None}, False),
            ({"used_bytes": None}, False),
        ],
        ids=["full", "not full", "evicts nothing", "in process", "no bound", "not known"],
    )
    def test_a_server_that_is_full(self, memory, is_told):
        """One that evicts is too small where reads miss; one that evicts nothing is an issue of the health."""
        full = {"where": "server", "used_bytes": 950, "max_bytes": 1000, "policy": "allkeys-lru", **memory}
        found = [one for one in missing(memory=full) if "maxmemory" in one]
        assert found == (
            ["the server has 950 of 1,000 bytes in use and evicts, which menu may miss; raise its maxmemory"] if is_told else []
        )
        assert told(memory=full) == []

    def test_connections_that_are_closed_again_and_again(self):
        """A hundred times."""
        lanes = [
            {"role": "read", "reconnects": RECONNECTS - 1},
            {"role": "write", "reconnects": RECONNECTS},
            {"role": "RedisClient", "in_use": 1},
        ]
        (sentence,) = told(connections=lanes)
        assert sentence.startswith("connection to write: made anew 100 times;")

    def test_it_changes_nothing(self):
        """The report is only read."""
        made = {"types": {"menu": figures(hits=0, errors=1000)}, "health": copy.deepcopy(self.HEALTH)}
        before = copy.deepcopy(made)
        assert advice(made) and made == before


async def test_of_a_real_cache(clock):
    """Keys that are each asked for once: the report of the monitor says so."""
    async with CacheManager("memory://", clock=clock) as manager:
        for n in range(150):
            await manager.get_or_load("menu", str(n), lambda: 1)
        (sentence,) = (await CacheMonitor(manager).get_cache_report())["advice"]
        assert sentence.startswith("menu: only 0% of 150 reads are hits: keys are asked for once")
