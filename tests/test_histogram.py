"""Durations in buckets, against the durations themselves."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocache_aura.histogram import LARGEST, PER_DECADE, SMALLEST, Histogram, bound
from aiocache_aura.stats import Counts

durations = st.lists(st.floats(SMALLEST, LARGEST), min_size=1, max_size=300)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def exact(values: list[float], percent: float) -> float:
    """The nearest rank."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


@given(durations, st.sampled_from([1, 50, 90, 95, 99, 100]))
def test_percentiles_are_within_4_percent_of_exact(values: list[float], percent: float) -> None:
    """Whatever the durations, a percentile is within 4 % of the nearest rank."""
    assert filled(values).percentile(percent) == pytest.approx(exact(values, percent), rel=0.04)


def test_percentiles_of_a_long_tail() -> None:
    """Latencies as they are: log-normal with a tail."""
    rng = random.Random(7)
    values = [rng.lognormvariate(-7, 1.2) for _ in range(20_000)]
    histogram = filled(values)
    for percent in (50, 95, 99):
        assert histogram.percentile(percent) == pytest.approx(exact(values, percent), rel=0.04)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize(("seconds", "told"), [(0.0, SMALLEST), (SMALLEST, SMALLEST), (LARGEST, LARGEST), (LARGEST * 100, LARGEST)])
def test_what_is_out_of_range_is_at_its_end(seconds: float, told: float) -> None:
    """Durations below and above what is told apart count as the shortest and the longest."""
    assert filled([seconds]).percentile(50) == pytest.approx(told, rel=0.04)


def test_nothing_took_no_time() -> None:
    """The percentiles and the mean of nothing are 0.0."""
    assert (Histogram().percentile(99), Histogram().mean, Histogram().count) == (0.0, 0.0, 0)


@given(durations, durations)
def test_sums_and_differences_are_those_of_the_durations(first: list[float], second: list[float]) -> None:
    """Two histograms together are one of all durations; what came after the first is the second."""
    both = filled(first + second)
    assert filled(first).plus(filled(second)) == both
    assert both.minus(filled(first)).buckets == filled(second).buckets


@given(durations)
def test_numbers_below_a_bound_are_exact(values: list[float]) -> None:
    """At bounds of buckets, powers of ten among them, the cumulated numbers are exact."""
    values = [value for value in values if all(abs(value - bound(n)) > 1e-9 * value for n in range(0, 10 * PER_DECADE + 1, 10))] or [2e-3]
    bounds = [bound(n) for n in range(0, 10 * PER_DECADE + 1, 10)]
    assert filled(values).below(bounds) == [sum(value <= limit for value in values) for limit in bounds]
    assert bound(3 * PER_DECADE) == pytest.approx(0.001)


def test_one_duration_may_stand_for_many() -> None:
    """A sampled duration is counted as often as it stands for."""
    histogram = Histogram()
    histogram.add(0.5, times=16)
    assert (histogram.count, histogram.total) == (16, 8.0)


def test_counts_of_a_window_are_the_difference_of_two() -> None:
    """What happened after a copy was made is the difference; figures that were reset meanwhile are not below 0."""
    counts = Counts()
    counts.hits, counts.by_error["BackendError"] = 3, 2
    counts.took("get", 0.001)
    earlier = counts.copy()
    counts.hits += 2
    counts.took("get", 0.1)
    counts.took("load", 0.2)
    window = counts.minus(earlier)
    assert (window.hits, window.by_error, window.times["get"].count, window.times["load"].count) == (2, {}, 1, 1)
    assert earlier.plus(window).times["get"] == counts.times["get"]
    counts.reset()
    assert counts.minus(earlier).hits == 0
