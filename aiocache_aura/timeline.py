"""What happened when: rolling windows over counters that only go up.

Slots of ten seconds are closed when somebody comes by, a timed operation or a question; at the end of each it is put down what the counters
of the types that were used stand at. A window is what they have gained since one of these marks. Older slots are merged into longer ones:
ten minutes by ten seconds, an hour and more by minutes, a day by ten minutes. So a window's figures may reach back too far by one slot of
its age at most, and a type that is busy all day takes some 300 marks, about 1 MB.

Invariants
- A slot covers the time from the end of the one before to the last thing that was timed in it: what came before a pause is never told as of
  after it. Whatever is counted is timed, hits by samples; those between two samples are told as of the earlier one if a slot ends there.
- Nothing is counted twice, and nothing is lost but by age: a window that goes back to the beginning has all that was counted.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from aiocache_aura.ledger import DAY, SLOT, Ledger
from aiocache_aura.stats import Counts


class Timeline:
    """The slots of some counters; times are monotonic seconds."""

    def __init__(self, counts: Mapping[str, Counts], now: float) -> None:
        self._counts = counts
        self._ledgers: dict[str, Ledger] = {}
        self._lock = threading.Lock()
        self._since = self._touched = now
        self.due = now + SLOT

    def __repr__(self) -> str:
        return f"<Timeline of {len(self._counts)} types, {len(self)} marks>"

    def __len__(self) -> int:
        return sum(map(len, list(self._ledgers.values())))

    def touch(self, now: float) -> dict[str, int] | None:
        """Something is timed now, and not yet counted. Closes the open slot as `close` does."""
        hits = self.close(now) if now >= self.due else None
        self._touched = now
        return hits

    def close(self, now: float) -> dict[str, int] | None:
        """Close the open slot if its time is over, and give the hits of each type in it; None if it is not, or another thread does."""
        if now < self.due or not self._lock.acquire(blocking=False):
            return None
        try:
            if now < self.due:
                return None
            end = max(self._since, self._touched)
            hits = {name: self._closed(name, counts, end, now) for name, counts in dict(self._counts).items()}
            self._since, self.due = max(now, end), now + SLOT
            return hits
        finally:
            self._lock.release()

    def window(self, cache_type: str, seconds: float, now: float) -> Counts:
        """What a type has gained in about the last so many seconds, of a day at most. `close` is called first."""
        with self._lock:
            counts = self._counts.get(cache_type)
            return Counts() if counts is None else self._ledger(cache_type, counts).since(now - min(seconds, DAY))

    def _closed(self, name: str, counts: Counts, end: float, now: float) -> int:
        ledger = self._ledger(name, counts)
        hits = ledger.mark(self._since, end, now)
        ledger.forget(now - DAY)
        return hits

    def _ledger(self, name: str, counts: Counts) -> Ledger:
        ledger = self._ledgers.get(name)
        if ledger is None:
            ledger = self._ledgers[name] = Ledger(counts)
        return ledger


__all__ = ["DAY", "SLOT", "Timeline"]
