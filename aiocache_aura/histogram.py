"""Durations in logarithmic buckets: percentiles within 4 % of exact, in a few dozen ints.

The idea is DDSketch's (Masson, Rim, Lee, VLDB 2019): a bucket's bounds stand in a fixed ratio, so a value is known to half of that ratio,
and histograms of several windows and processes are merged by adding up. There are 30 buckets to a decade, so that every power of ten, and
every tenth bucket between them, is a bound that exporters can give exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

PER_DECADE = 30
SMALLEST = 1e-6  # seconds; what is shorter is in the first bucket
LARGEST = 1e4
_LAST = math.ceil(math.log10(LARGEST / SMALLEST) * PER_DECADE)


def bound(bucket: int) -> float:
    """The longest duration in a bucket, in seconds."""
    return float(SMALLEST * 10 ** (bucket / PER_DECADE))


class Histogram:
    """How long things took, in seconds. `buckets` are numbers of durations by bucket, without the empty ones."""

    __slots__ = ("buckets", "count", "total")

    def __init__(self, buckets: Mapping[int, int] | None = None, total: float = 0.0) -> None:
        self.buckets = dict(buckets or {})
        self.count, self.total = sum(self.buckets.values()), total

    def __repr__(self) -> str:
        return f"Histogram({self.count} durations, {self.total:.6g} s, p99 {self.percentile(99):.3g} s)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.buckets == other.buckets and math.isclose(self.total, other.total, abs_tol=1e-9)

    __hash__ = None  # type: ignore[assignment]

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration, `times` over where one stands for many."""
        bucket = min(math.ceil(math.log10(seconds / SMALLEST) * PER_DECADE), _LAST) if seconds > SMALLEST else 0
        self.buckets[bucket] = self.buckets.get(bucket, 0) + times
        self.count += times
        self.total += seconds * times

    @property
    def mean(self) -> float:
        """Seconds, exactly; 0.0 of nothing."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent took at most; 0.0 of nothing."""
        rank, passed = max(math.ceil(self.count * percent / 100), 1), 0
        for bucket, n in sorted(dict(self.buckets).items()):
            passed += n
            if passed >= rank:
                return bound(bucket) / 10 ** (0.5 / PER_DECADE)
        return 0.0

    def below(self, bounds: Iterable[float]) -> list[int]:
        """How many took at most so long, for each of some bounds in seconds: exact where they are bounds of buckets."""
        buckets = dict(self.buckets)
        return [sum(n for bucket, n in buckets.items() if bound(bucket) <= limit * (1 + 1e-9)) for limit in bounds]

    def copy(self) -> Histogram:
        return Histogram(self.buckets, self.total)

    def plus(self, other: Histogram) -> Histogram:
        """Both together."""
        buckets = dict(self.buckets)
        for bucket, n in dict(other.buckets).items():
            buckets[bucket] = buckets.get(bucket, 0) + n
        return Histogram(buckets, self.total + other.total)

    def minus(self, earlier: Histogram) -> Histogram:
        """What came after `earlier`, which is this histogram as it was."""
        left = {bucket: n - earlier.buckets.get(bucket, 0) for bucket, n in dict(self.buckets).items()}
        return Histogram({bucket: n for bucket, n in left.items() if n > 0}, max(self.total - earlier.total, 0.0))
