"""What happened when: rolling windows over counters that only go up.

Slots of ten seconds are closed when somebody comes by, a timed operation or a question; each holds what its counters have gained. Older
slots are merged into longer ones: ten minutes by ten seconds, an hour and more by minutes, a day by ten minutes. So a window's figures may
reach back too far by one slot of its age at most, and a type that is busy all day takes some 260 slots, under 1 MB.

Invariants
- A slot covers the time from the end of the one before to the last thing that was timed in it: what came before a pause is never told as of
  after it. Hits that were counted and not timed, between two samples, are told as of the later one.
- Nothing is counted twice, and nothing is lost but by age: the slots and what is open add up to the counters, for a day.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from aiocache_aura.stats import Counts

SLOT = 10.0  # seconds
DAY = 86_400.0
_LEVELS = ((SLOT, 60), (60.0, 90), (600.0, 150))  # seconds of a slot, and how many are kept before they are merged


class Slot(NamedTuple):
    """What was gained between two times, by cache type; types that gained nothing are left out."""

    start: float
    end: float
    gained: dict[str, Counts]


class Timeline:
    """The slots of some counters; times are monotonic seconds."""

    def __init__(self, counts: Mapping[str, Counts], now: float) -> None:
        self._counts = counts
        self._levels: list[deque[Slot]] = [deque() for _ in _LEVELS]
        self._before: dict[str, Counts] = {}
        self._lock = threading.Lock()
        self._since = self._touched = now
        self.due = now + SLOT

    def __repr__(self) -> str:
        return f"<Timeline of {len(self._counts)} types, {len(self)} slots>"

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    def touch(self, now: float) -> Slot | None:
        """Something is timed now, and not yet counted. Closes the open slot if its time is over, and gives it."""
        slot = self._close(now) if now >= self.due else None
        self._touched = now
        return slot

    def window(self, cache_type: str, seconds: float, now: float) -> Counts:
        """What a type has gained in about the last so many seconds, of a day at most."""
        if now >= self.due:
            self._close(now)
        with self._lock:
            total = self._gained(cache_type, self._counts.get(cache_type))
            for slot in self._slots():
                if slot.end > now - seconds and cache_type in slot.gained:
                    total.absorb(slot.gained[cache_type])
        return total

    def _slots(self) -> list[Slot]:
        return [slot for level in self._levels for slot in level]

    def _gained(self, cache_type: str, counts: Counts | None) -> Counts:
        if counts is None:
            return Counts()
        before = self._before.get(cache_type)
        return counts.copy() if before is None else counts.minus(before)

    def _close(self, now: float) -> Slot | None:
        if not self._lock.acquire(blocking=False):
            return None  # another thread is at it
        try:
            gained = {}
            for name, counts in list(self._counts.items()):
                before = self._before.get(name)
                if before is None or counts.differs(before):
                    as_it_is = counts.copy()
                    gained[name] = as_it_is if before is None else as_it_is.minus(before)
                    self._before[name] = as_it_is
            slot = Slot(self._since, max(self._since, self._touched), gained)
            if gained:
                self._levels[0].append(slot)
                self._merge(now)
            self._since, self.due = now, now + SLOT
            return slot
        finally:
            self._lock.release()

    def _merge(self, now: float) -> None:
        """Have what is too much for a level go into the longer slots of the next, and what is older than a day go."""
        for n, (_, most) in enumerate(_LEVELS):
            level = self._levels[n]
            while len(level) > most or (level and level[0].end < now - DAY):
                oldest = level.popleft()
                if n + 1 < len(_LEVELS) and oldest.end >= now - DAY:
                    _add(self._levels[n + 1], oldest, _LEVELS[n + 1][0])


def _add(level: deque[Slot], slot: Slot, length: float) -> None:
    """Put a slot behind the others, or into the last of them if both begin within the same `length` seconds."""
    last = level[-1] if level else None
    if last is None or last.start // length != slot.start // length:
        level.append(slot)
        return
    both = {name: last.gained.get(name, _NONE).plus(slot.gained.get(name, _NONE)) for name in {**last.gained, **slot.gained}}
    level[-1] = Slot(last.start, slot.end, both)


_NONE = Counts()
