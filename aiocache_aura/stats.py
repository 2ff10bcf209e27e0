"""Counters: plain ints, added to where things happen, read when somebody asks.

One class for all figures: what happened since the start, what happened in a window (the difference of two), and what happened in a fleet
(the sum of many).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiocache_aura.histogram import Histogram

STALE_REASONS = ("refreshing", "timeout", "error", "paused")
OPERATIONS = ("get", "set", "delete", "invalidate", "load", "load_error")

INTS = (
    "hits",
    "misses",
    "loads",
    "load_errors",
    "coalesced",
    "followed",
    "stale_refreshing",
    "stale_timeout",
    "stale_error",
    "stale_paused",
    "overruns",
    "sets",
    "deletes",
    "invalidations",
    "errors",
    "undecodable",
    "unstorable",
)


class Counts:
    """What happened to one cache type, or one function: since the start, or in a window.

    `coalesced` callers waited for a load that was under way in this process, `followed` loads were left to another process. Stale
    values are counted by why they were given: while they were `refreshing`, because a soft or hard `timeout` was over, because the load
    ended in an `error`, or while it was `paused` after one. `errors` are faults of the store, by the class of the error in `by_error`.
    `times` holds durations by operation, of hits a sample, of loads that raised apart; `evictions` are entries that the in-process store
    threw out, by reason; `saved_seconds` estimates the load seconds that hits did not cost.
    """

    __slots__ = (*INTS, "by_error", "evictions", "load_seconds", "mask", "resets", "samples", "saved_seconds", "times")

    hits: int
    misses: int
    loads: int
    load_errors: int
    coalesced: int
    followed: int
    stale_refreshing: int
    stale_timeout: int
    stale_error: int
    stale_paused: int
    overruns: int
    sets: int
    deletes: int
    invalidations: int
    errors: int
    undecodable: int
    unstorable: int

    def __init__(self) -> None:
        self.mask = 0  # hits whose number has none of these bits are timed
        self.samples = 0  # hits that were, lately
        self.resets = 0  # how often these counters began anew
        self.reset()

    def reset(self) -> None:
        """Begin anew, with nothing. Windows keep what was counted before, but for what came since the last look at these counters."""
        for name in INTS:
            setattr(self, name, 0)
        self.load_seconds = self.saved_seconds = 0.0
        self.by_error: dict[str, int] = {}
        self.evictions: dict[str, int] = {}
        self.times: dict[str, Histogram] = {}
        self.resets += 1  # last: whoever looks meanwhile sees figures that went down

    def __repr__(self) -> str:
        return f"Counts(hits={self.hits}, misses={self.misses}, loads={self.loads}, errors={self.errors})"

    @property
    def hit_rate(self) -> float:
        """Hits by hits and misses; 0.0 where there was neither."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    @property
    def stale_served(self) -> int:
        """Stale values given, whatever the reason."""
        return self.stale_refreshing + self.stale_timeout + self.stale_error + self.stale_paused

    def stale_by_reason(self) -> dict[str, int]:
        return {reason: getattr(self, f"stale_{reason}") for reason in STALE_REASONS}

    def took(self, operation: str, seconds: float, times: int = 1) -> None:
        """Count a duration of an operation, one of OPERATIONS."""
        histogram = self.times.get(operation)
        if histogram is None:
            histogram = self.times[operation] = Histogram()
        histogram.add(seconds, times)

    def failed(self, error: BaseException) -> None:
        """Count a fault of the store, and by its class."""
        self.errors += 1
        name = type(error).__name__
        self.by_error[name] = self.by_error.get(name, 0) + 1

    def copy(self) -> Counts:
        return self.plus(_NOTHING)

    def differs(self, earlier: Counts) -> bool:
        """Whether anything has been counted since these counters were as `earlier`."""
        return any(getattr(self, name) != getattr(earlier, name) for name in INTS) or (
            self.evictions != earlier.evictions or any(took.count != _count(earlier, name) for name, took in dict(self.times).items())
        )

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        made = Counts()
        for name in (*INTS, "load_seconds", "saved_seconds"):
            setattr(made, name, getattr(self, name) + getattr(other, name))
        made.by_error = _added(self.by_error, other.by_error)
        made.evictions = _added(self.evictions, other.evictions)
        for operation in {**self.times, **other.times}:
            made.times[operation] = self.times.get(operation, _NONE).plus(other.times.get(operation, _NONE))
        return made

    def absorb(self, other: Counts) -> None:
        """Add the other to these: as `plus`, without a new one for each of many."""
        for name in (*INTS, "load_seconds", "saved_seconds"):
            if more := getattr(other, name):
                setattr(self, name, getattr(self, name) + more)
        for ours, theirs in ((self.by_error, other.by_error), (self.evictions, other.evictions)):
            for name, n in dict(theirs).items():
                ours[name] = ours.get(name, 0) + n
        for operation, histogram in dict(other.times).items():
            mine = self.times.get(operation)
            self.times[operation] = histogram.copy() if mine is None else mine.plus(histogram)

    def minus(self, earlier: Counts) -> Counts:
        """What happened after `earlier`, which are these counters as they were; none of it below 0, for counters may have been reset."""
        made = Counts()
        for name in (*INTS, "load_seconds", "saved_seconds"):
            setattr(made, name, max(getattr(self, name) - getattr(earlier, name), 0))
        made.by_error = _taken(self.by_error, earlier.by_error)
        made.evictions = _taken(self.evictions, earlier.evictions)
        for operation, histogram in dict(self.times).items():
            made.times[operation] = histogram.minus(earlier.times.get(operation, _NONE))
        return made

    def snapshot(self) -> dict[str, Any]:
        """The figures as a dict, without durations: what `manager.stats()` gives for a type."""
        told: dict[str, Any] = {name: getattr(self, name) for name in INTS if not name.startswith("stale_")}
        return told | {
            "load_seconds": self.load_seconds,
            "saved_seconds": self.saved_seconds,
            "stale_served": self.stale_served,
            "stale_by_reason": self.stale_by_reason(),
            "errors_by_type": dict(self.by_error),
            "evictions": dict(self.evictions),
            "hit_rate": self.hit_rate,
        }


_NONE = Histogram()
_NOTHING = Counts()


def _count(counts: Counts, operation: str) -> int:
    return counts.times.get(operation, _NONE).count


def _added(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    ours, theirs = dict(ours), dict(theirs)  # in one step, for another thread may be counting
    return {name: ours.get(name, 0) + theirs.get(name, 0) for name in {**ours, **theirs}}


def _taken(ours: Mapping[str, int], earlier: Mapping[str, int]) -> dict[str, int]:
    return {name: n - earlier.get(name, 0) for name, n in dict(ours).items() if n > earlier.get(name, 0)}
