"""What the counters of one cache type stood at, at some moments: a window is the difference of two.

What is kept of a moment is one row of numbers, of all that was ever counted until then. A row has a column for each figure and for each
bucket of a histogram; columns are only added, so an older row is a shorter one. A window of a day costs as much as one of a minute.

Invariants
- A mark's row holds what happened until its `end`; what came after the mark before it did not happen before its `start`.
- Rows only grow, whatever becomes of the counters. What a reset takes away stays counted. A figure that is smaller than it was, be it set
  by hand or an increment that two threads have lost, has gained nothing, and what comes after is counted from there.
- So many seconds after it ended, two marks have become one only if both together are no longer than the slot of that age.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from operator import add, attrgetter, gt
from typing import NamedTuple, TypeAlias

from aiocache_aura.histogram import Histogram
from aiocache_aura.stats import INTS, Counts

SLOT = 10.0  # seconds
DAY = 86_400.0
LENGTHS = ((600.0, SLOT), (6000.0, 60.0), (DAY, 600.0))  # until what age, and how long a slot of that age is at most; seconds
THINNED = 60.0  # seconds between two looks for marks that may go

_PLAIN = (*INTS, "load_seconds", "saved_seconds")  # the first columns
_TOTAL = -1  # in the place of a bucket: the seconds of all of them
_HITS = INTS.index("hits")

Column: TypeAlias = tuple[str, str, int]  # "times", an operation and a bucket; or "by_error" or "evictions", a name, and 0
Row: TypeAlias = "array[float]"  # which holds ints exactly, to 2 ** 53

_plain = attrgetter(*_PLAIN)
_end = attrgetter("end")


class Mark(NamedTuple):
    """A slot and what had been counted at its end; times are monotonic seconds."""

    start: float
    end: float
    row: Row


class Ledger:
    """The marks of one type's counters. Not for two threads at once; the counters may be added to meanwhile."""

    __slots__ = ("_carried", "_columns", "_counts", "_last", "_marks", "_resets", "_seen", "_thin_from")

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._columns: dict[Column, int] = {}
        self._marks: list[Mark] = []
        self._last = self._carried = array("d")  # what the counters stood at, and what they had before they were reset
        self._resets = counts.resets
        self._seen: object = _signature(Counts())
        self._thin_from = 0.0

    def __repr__(self) -> str:
        return f"<Ledger of {len(self)} marks, {len(_PLAIN) + len(self._columns)} columns>"

    def __len__(self) -> int:
        return len(self._marks)

    def mark(self, start: float, end: float, now: float) -> int:
        """A slot from `start` to `end` is over: keep what was counted in it, and give its hits."""
        seen = _signature(self._counts)
        if seen == self._seen:
            return 0
        self._seen = seen
        before, row = self._marks[-1].row[_HITS] if self._marks else 0.0, self._read()
        self._marks.append(Mark(start, end, row))
        if now >= self._thin_from:
            self._thin_from = now + THINNED
            self._thin(now)
        return int(row[_HITS] - before)

    def forget(self, moment: float) -> None:
        """No window will begin before this moment: of the marks before it the last is enough."""
        while len(self._marks) > 1 and self._marks[1].end <= moment:
            del self._marks[0]

    def since(self, moment: float) -> Counts:
        """What was gained after a moment, and in the slot that it is in."""
        older = bisect_right(self._marks, moment, key=_end)
        row = self._read()
        before = self._marks[older - 1].row if older else array("d")
        gained = [figure - earlier for figure, earlier in zip(row, before, strict=False)] + row[len(before) :].tolist()
        return _counts_of(gained, self._columns)

    def _read(self) -> Row:
        """All that was ever counted, until now."""
        found = _figures(self._counts)
        for column in found:
            if column not in self._columns:
                self._columns[column] = len(_PLAIN) + len(self._columns)
        resets = self._counts.resets
        row = array("d", _plain(self._counts))
        row.frombytes(bytes(row.itemsize * len(self._columns)))
        for column, figure in found.items():
            row[self._columns[column]] = figure
        for kept in (self._last, self._carried):
            kept.frombytes(bytes(row.itemsize * (len(row) - len(kept))))
        if resets != self._resets:
            self._carried = array("d", list(map(add, self._carried, self._last)))
        elif any(map(gt, self._last, row)):
            less = [max(last - figure, 0.0) for last, figure in zip(self._last, row, strict=True)]
            self._carried = array("d", list(map(add, self._carried, less)))
        self._last, self._resets = row, resets
        return array("d", list(map(add, row, self._carried)))  # of a list, an array takes no more room than it needs

    def _thin(self, now: float) -> None:
        """Make one of marks that are so old that they may be told as one slot."""
        kept: list[Mark] = []
        for mark in self._marks:
            if kept and mark.end - kept[-1].start <= length_at(now - mark.end):
                mark = mark._replace(start=kept.pop().start)  # noqa: PLW2901
            kept.append(mark)
        self._marks = kept


def length_at(age: float) -> float:
    """How long a slot is at most that ended so many seconds ago."""
    return next((length for until, length in LENGTHS if age <= until), LENGTHS[-1][1])


def _signature(counts: Counts) -> object:
    """Something that changes with whatever is counted, and is quickly had."""
    times = [took.count for took in list(counts.times.values())]
    return _plain(counts), counts.resets, times, dict(counts.by_error), dict(counts.evictions)


def _figures(counts: Counts) -> dict[Column, float]:
    """The figures that there are columns for as they come up. Each dict is copied in one step, for another thread may be counting."""
    found: dict[Column, float] = {}
    for kind, named in (("by_error", counts.by_error), ("evictions", counts.evictions)):
        for name, n in dict(named).items():
            found[kind, name, 0] = n
    for operation, took in dict(counts.times).items():
        found["times", operation, _TOTAL] = took.total
        for bucket, n in dict(took.buckets).items():
            found["times", operation, bucket] = n
    return found


def _counts_of(gained: list[float], columns: Mapping[Column, int]) -> Counts:
    """A row, or the difference of two, as counters."""
    made = Counts()
    for name, figure in zip(_PLAIN, gained, strict=False):
        setattr(made, name, int(figure) if name in INTS else figure)
    buckets: dict[str, dict[int, int]] = {}
    totals: dict[str, float] = {}
    for (kind, name, bucket), n in columns.items():
        if not (figure := gained[n]):
            continue
        if kind != "times":
            getattr(made, kind)[name] = int(figure)
        elif bucket == _TOTAL:
            totals[name] = figure
        else:
            buckets.setdefault(name, {})[bucket] = int(figure)
    for operation, found in buckets.items():
        made.times[operation] = Histogram(found, totals.get(operation, 0.0))
    return made
