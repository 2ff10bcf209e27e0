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
from collections.abc import Iterable, Iterator, Mapping
from operator import add, attrgetter, gt
from typing import Any, NamedTuple, TypeAlias

from aiocache_aura.histogram import Histogram
from aiocache_aura.stats import INTS, Counts

SLOT = 10.0  # seconds
DAY = 86_400.0
LENGTHS = ((600.0, SLOT), (6000.0, 60.0), (DAY, 600.0))  # until what age, and how long a slot of that age is at most; seconds
THINNED = 60.0  # seconds between two looks for marks that may go

_PLAIN = (*INTS, "load_seconds", "saved_seconds")  # the first columns
_TOTAL = -1  # in the place of a bucket: the seconds of all durations
_HITS = INTS.index("hits")

Kind: TypeAlias = tuple[str, str]  # "times" and an operation, by whose buckets the figures are; or "by_error" or "evictions", by names
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

    __slots__ = ("_carried", "_columns", "_counts", "_last", "_marks", "_resets", "_seen", "_thin_from", "_width")

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._columns: dict[Kind, dict[Any, int]] = {}
        self._width = len(_PLAIN)
        self._marks: list[Mark] = []
        self._last = array("d")  # what the counters stood at
        self._carried: Row | None = None  # and what they had before they were reset, if they ever were
        self._resets = counts.resets
        self._seen: object = _signature(Counts())
        self._thin_from = 0.0

    def __repr__(self) -> str:
        return f"<Ledger of {len(self)} marks, {self._width} columns>"

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
        resets = self._counts.resets
        row = _widened(array("d", _plain(self._counts)), self._width)
        for kind, figures in _figures(self._counts):
            places = self._columns.setdefault(kind, {})
            for name, figure in figures.items():
                place = places.get(name)
                if place is None:
                    places[name] = len(row)
                    row.append(figure)
                else:
                    row[place] = figure
        self._width, last = len(row), _widened(self._last, len(row))
        if resets != self._resets:
            self._carry(last)
        elif any(map(gt, last, row)):
            self._carry([max(stood - figure, 0.0) for stood, figure in zip(last, row, strict=True)])
        self._last, self._resets = row, resets
        return row if self._carried is None else array("d", list(map(add, row, _widened(self._carried, len(row)))))

    def _carry(self, figures: Iterable[float]) -> None:
        """The counters no longer have so much, which was counted all the same."""
        carried = _widened(array("d") if self._carried is None else self._carried, self._width)
        self._carried = array("d", list(map(add, carried, figures)))

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


def _widened(row: Row, width: int) -> Row:
    """An older row with the columns of now."""
    return row if len(row) == width else row + array("d", bytes(row.itemsize * (width - len(row))))


def _figures(counts: Counts) -> Iterator[tuple[Kind, dict[Any, float]]]:
    """The figures whose columns come up as they do. Each dict is copied in one step, for another thread may be counting."""
    yield ("by_error", ""), dict(counts.by_error)
    yield ("evictions", ""), dict(counts.evictions)
    for operation, took in dict(counts.times).items():
        yield ("times", operation), dict(took.buckets) | {_TOTAL: took.total}


def _counts_of(gained: list[float], columns: Mapping[Kind, Mapping[Any, int]]) -> Counts:
    """A row, or the difference of two, as counters."""
    made = Counts()
    for name, figure in zip(_PLAIN, gained, strict=False):
        setattr(made, name, int(figure) if name in INTS else max(figure, 0.0))  # sums are rounded
    for (what, operation), places in columns.items():
        found = {name: int(figure) for name, place in places.items() if name != _TOTAL and (figure := gained[place])}
        if what != "times":
            setattr(made, what, found)
        elif found:
            made.times[operation] = Histogram(found, max(gained[places[_TOTAL]], 0.0))
    return made
