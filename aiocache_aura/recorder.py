"""The recorder: what one manager has counted, and when; its slow operations; who listens to what happens.

Counters are written low, in the engine, as plain ints, and read here. Nothing else is on the way of a hit: it is counted, and of the hits
of a busy type one in 16 or 64 is timed. The recorder needs no task: whatever is timed moves the timeline on.

A manager may serve event loops in several threads. Then two of them may add to one int at the same moment and one be lost, which is
accepted; no reader is ever given an error for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from aiocache_aura.clock import Clock, SystemClock
from aiocache_aura.events import Events, Evicted, Fault, Invalidated, SlowOperation
from aiocache_aura.heat import Heat
from aiocache_aura.stats import Counts
from aiocache_aura.timeline import Timeline
from aiocache_aura.warm_report import TypeReport, Warmed

SLOW_THRESHOLD = 0.1  # seconds
MOST_SLOW = 50
ALL_TIMED = 1000  # hits of a slot; of the next ones one in 16 is timed, and after as many samples again one in 64
_SOME, _FEW = 15, 63


class Recorder:
    """What happened in one manager, in this process. `slow_threshold` is in seconds."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = SystemClock() if clock is None else clock
        self.events = Events(self.clock)
        self.slow_threshold = SLOW_THRESHOLD
        self.heat = Heat(self.clock.monotonic)
        self._slow: deque[SlowOperation] = deque(maxlen=MOST_SLOW)
        self._counts: dict[str, Counts] = {}
        self._warmed: dict[str, Warmed] = {}
        self._timeline = Timeline(self._counts, self.clock.monotonic())

    def __repr__(self) -> str:
        return f"<Recorder of {len(self._counts)} types, {self.events!r}>"

    def restart(self, clock: Clock) -> None:
        """Go by another clock, before anything was counted."""
        self.clock, self.heat = clock, Heat(clock.monotonic)
        self._timeline = Timeline(self._counts, clock.monotonic())

    # Writing

    def counts(self, cache_type: str) -> Counts:
        """The counters of a type, to add to."""
        counts = self._counts.get(cache_type)
        if counts is None:
            counts = self._counts.setdefault(cache_type, Counts())
        return counts

    def touch(self, now: float) -> None:
        """Something is timed at this monotonic time, and is not counted yet."""
        hits = self._timeline.touch(now)
        if hits is not None:
            self._adapt(hits)

    def _adapt(self, hits: Mapping[str, int]) -> None:
        """A slot was closed, in which the types had so many hits: time as many of the next ones as that asks for."""
        for name, n in hits.items():
            counts = self.counts(name)
            counts.mask = 0 if n <= ALL_TIMED else _SOME if n <= ALL_TIMED * (_SOME + 2) else _FEW
            counts.samples = 0

    @staticmethod
    def sampled(counts: Counts) -> int:
        """One more hit is timed: for how many it stands. The more of them, the fewer from now on."""
        stands_for = counts.mask + 1
        counts.samples += 1
        if counts.samples >= ALL_TIMED and counts.mask != _FEW:
            counts.mask, counts.samples = _FEW if counts.mask else _SOME, 0
        return stands_for

    def slow(self, cache_type: str, operation: str, key: str, seconds: float, size: int = 0) -> None:
        """Keep an operation that took longer than `slow_threshold`, which the caller has seen."""
        happening = SlowOperation(cache_type=cache_type, key=key, at=self.clock.time(), operation=operation, seconds=seconds, size=size)
        self._slow.append(happening)
        if self.events.wants(SlowOperation):
            self.events.tell(happening)

    def evicted(self, cache_type: str, reason: str) -> None:
        """The in-process store has thrown an entry out. Called under that store's lock."""
        self.touch(self.clock.monotonic())
        evictions = self.counts(cache_type).evictions
        evictions[reason] = evictions.get(reason, 0) + 1
        if self.events.wants(Evicted):
            self.events.tell(Evicted(cache_type=cache_type, at=self.clock.time(), reason=reason))

    def fault(self, cache_type: str, error: BaseException) -> None:
        """The store has failed an explicit verb."""
        self.touch(self.clock.monotonic())
        self.counts(cache_type).failed(error)
        if self.events.wants(Fault):
            self.events.tell(Fault(cache_type=cache_type, at=self.clock.time(), error=error))

    def invalidating(self, cache_type: str) -> None:
        """An invalidation of this type is asked for."""
        self.touch(self.clock.monotonic())
        self.counts(cache_type).invalidations += 1

    def invalidated(self, cache_types: Sequence[str], what: str, seconds: float, *, delivered: bool) -> None:
        """An invalidation is over, of these types, or of something that is of no type."""
        self.touch(self.clock.monotonic())
        for name in cache_types:
            self.counts(name).took("invalidate", seconds)
        if seconds >= self.slow_threshold:
            self.slow("" if len(cache_types) != 1 else cache_types[0], "invalidate", what, seconds)
        if self.events.wants(Invalidated):
            for name in cache_types or ("",):
                at = self.clock.time()
                self.events.tell(Invalidated(cache_type=name, at=at, what=what, seconds=seconds, delivered=delivered))

    def warm_run(self, run: TypeReport) -> None:
        """A warmer is done with a type."""
        self._warmed[run.cache_type] = self._warmed.get(run.cache_type, Warmed()).plus(run, self.clock.time())

    # Reading

    @property
    def slow_operations(self) -> list[SlowOperation]:
        """The last fifty operations that were slow, the oldest first."""
        return list(self._slow)

    @property
    def cache_types(self) -> list[str]:
        """The types that are counted."""
        return list(self._counts)

    @property
    def warmed(self) -> dict[str, Warmed]:
        """What warmers have done here, by cache type."""
        return self._warmed.copy()

    def reads(self) -> int:
        """How often users have read, of whatever type."""
        return sum(counts.hits + counts.misses for counts in list(self._counts.values()))

    def misses(self) -> int:
        """How often users have missed, of whatever type."""
        return sum(counts.misses for counts in list(self._counts.values()))

    def total(self, cache_type: str) -> Counts:
        """What has happened to a type since the start, as it is now."""
        return self._counts.get(cache_type, _NOTHING).copy()

    def window(self, cache_type: str, seconds: float) -> Counts:
        """What has happened to a type in about the last so many seconds; a day is kept."""
        now = self.clock.monotonic()
        hits = self._timeline.close(now)
        if hits is not None:
            self._adapt(hits)
        return self._timeline.window(cache_type, seconds, now)


_NOTHING = Counts()
