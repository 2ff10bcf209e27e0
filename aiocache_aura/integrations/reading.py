"""What an exporter reads of a manager, at one moment and in any thread.

Nothing is counted for an exporter: it reads the ints that are there anyway, when it is asked. It may be asked from another thread than the
loops', so what is read is copied first, a dict in one step of the interpreter.

The first `max_caches` cache types that are used keep their names for as long as the source lives; what all later ones do is summed under
`other`, so that no counter goes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from aiocache_aura import cache_manager as desk
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.histogram import Histogram
from aiocache_aura.stats import Counts
from aiocache_aura.stores.statistics import Connection
from aiocache_aura.warm_report import Warmed

T = TypeVar("T")

OTHER = "other"
MAX_CACHES = 50
MAX_REASONS = 20  # classes of errors, reasons of evictions: a handful, so far
_NOTHING = Counts()


class Reading(NamedTuple):
    """What a manager has counted and holds at one moment: copies, in which nothing changes any more."""

    layer: str
    counts: Mapping[str, Counts]
    results: Mapping[tuple[str, str], int]
    usage: Mapping[str, tuple[int, int]]
    warmed: Mapping[str, Warmed]
    connections: Sequence[Connection]


class Names:
    """The names that have series of their own: the first so many, for good. Safe in several threads."""

    def __init__(self, most: int) -> None:
        self._most, self._kept = most, dict[str, None]()
        self._lock = threading.Lock()

    def keep(self, names: Iterable[str]) -> Collection[str]:
        with self._lock:
            for name in names:
                if len(self._kept) < self._most:
                    self._kept[name] = None
            return self._kept.copy()


class Marks:
    """The highest that each figure has been: differences of counters that are read one after the other. Safe in several threads."""

    def __init__(self) -> None:
        self._highest: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def raised(self, figures: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
        """These figures, none below what it was: a counter that goes back is taken for one that began anew."""
        with self._lock:
            for name, figure in figures.items():
                self._highest[name] = max(figure, self._highest.get(name, 0))
            return {name: self._highest[name] for name in figures}


class Source:
    """A manager, the process-wide one of the moment if none is named, to be read in any thread."""

    def __init__(self, manager: CacheManager | None = None, *, max_caches: int = MAX_CACHES) -> None:
        self._manager = manager
        self._caches, self._marks, self._seen = Names(max_caches), Marks(), manager
        self._reasons = {what: Names(MAX_REASONS) for what in ("by_error", "evictions")}

    @property
    def manager(self) -> CacheManager:
        return desk.cache_manager if self._manager is None else self._manager

    @property
    def prefix(self) -> str:
        return self.manager.settings.prefix

    def read(self) -> Reading:
        """The figures of now, of the types that have any."""
        manager = self.manager
        if manager is not self._seen:
            self._marks, self._seen = Marks(), manager
        ports = manager.ports()
        every = {name: manager.recorder.total(name) for name in manager.recorder.cache_types}
        counts = {name: self._with_few_reasons(one) for name, one in every.items() if one.differs(_NOTHING)}
        usage = next((used for used in (port.usage() for port in ports) if used is not None), {})  # of one store, whatever the loops
        warmed = manager.recorder.warmed
        named = self._caches.keep([*counts, *usage, *warmed])
        counts = _folded(counts, named, Counts.plus)
        return Reading(
            layer=layer_of(manager),
            counts=counts,
            results=self._marks.raised({(cache, result): n for cache, one in counts.items() for result, n in _results(one).items()}),
            usage=_folded(usage, named, lambda one, other: (one[0] + other[0], one[1] + other[1])),
            warmed=_folded(warmed, named, Warmed.merged),
            connections=[one for port in ports for one in port.connections()],
        )

    def durations(self, seconds: float) -> dict[str, dict[str, Histogram]]:
        """What took how long in about the last so many seconds, by cache type and operation."""
        recorder = self.manager.recorder
        recent = {name: recorder.window(name, seconds) for name in recorder.cache_types}
        lately = {name: one for name, one in recent.items() if one.times}
        return {name: one.times for name, one in _folded(lately, self._caches.keep(lately), Counts.plus).items()}

    def _with_few_reasons(self, counts: Counts) -> Counts:
        """These counters, which are ours to change: what came too late to have its name is in them as `other`."""
        for what, names in self._reasons.items():
            given: dict[str, int] = getattr(counts, what)
            setattr(counts, what, _folded(given, names.keep(given), int.__add__))
        return counts


def layer_of(manager: CacheManager) -> str:
    """Where values are found: in this process, or in a server."""
    return "l2" if manager.settings.is_remote else "l1"


def _results(counts: Counts) -> dict[str, int]:
    """Reads by what they came to. What was given stale at once is counted as a hit, too; what was waited for, as a miss."""
    at_once = counts.stale_refreshing + counts.stale_paused
    waited = counts.stale_timeout + counts.stale_error
    return {"hit": counts.hits - at_once, "stale": at_once + waited, "miss": counts.misses - waited}


def _folded(by_name: Mapping[str, T], named: Collection[str], add: Callable[[T, T], T]) -> dict[str, T]:
    """What has no name of its own is summed as `other`, along with what is called so."""
    folded: dict[str, T] = {}
    for name, one in by_name.items():
        shown = name if name in named else OTHER
        folded[shown] = add(folded[shown], one) if shown in folded else one
    return folded
