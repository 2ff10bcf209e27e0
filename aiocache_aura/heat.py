"""Heat: which keys save the most, in a fixed memory.

Space-saving (Metwally, Agrawal, El Abbadi: "Efficient computation of frequent and top-k elements in data streams", ICDT 2005), with
weights: a key weighs the seconds of loads that hits of it have saved, and those that it has taken, which the next read is saved. A key
that is not among the kept takes the place of the lightest, with that one's weight as its error: so what it weighs really is between
`seconds - error` and `seconds`, and every key that weighs more than the total by the number of places is kept. Weights halve in each
half-life, so that yesterday's heat fades.

Weights are kept as of one moment, the epoch, and what is offered later weighs more, by the growth since then: fading costs nothing.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

PLACES = 2000  # for each cache type: they hold what nine of ten reads of some thousand keys in a Zipf distribution ask for
MOST_PLACES = 16_000  # of all types together: about 8 MB
MOST_TYPES = 64
MOST_KEY = 512  # characters; longer keys are not kept
HALF_LIFE = 600.0  # seconds
_MOST_GROWTH = 2.0**100
_MOST_HALVINGS = 1000.0  # after which nothing is left; a float has room for no more than 1023

Recall: TypeAlias = Callable[[], bytes | None]


@dataclass(frozen=True, slots=True)
class HotKey:
    """A key, the seconds of loads that it has lately saved or taken, at most so much less, and what can load it again, if anything can."""

    cache_type: str
    key: str
    seconds: float
    error: float = 0.0
    recipe: bytes | None = field(default=None, repr=False)


class _Place:
    __slots__ = ("error", "recipe", "weight")

    def __init__(self, weight: float, error: float, recipe: bytes | None) -> None:
        self.weight, self.error, self.recipe = weight, error, recipe


class _Kept:
    """The kept keys of a type, and a heap that finds the lightest: its weights may be old, and then too low, and are mended when met."""

    __slots__ = ("heap", "places")

    def __init__(self) -> None:
        self.places: dict[str, _Place] = {}
        self.heap: list[tuple[float, str]] = []

    def add(self, key: str, place: _Place) -> None:
        self.places[key] = place
        heapq.heappush(self.heap, (place.weight, key))

    def pop_lightest(self) -> _Place:
        while True:
            weight, key = self.heap[0]
            place = self.places[key]
            if place.weight <= weight:
                heapq.heappop(self.heap)
                return self.places.pop(key)
            heapq.heapreplace(self.heap, (place.weight, key))

    def shrink(self, by: float) -> None:
        for place in self.places.values():
            place.weight /= by
            place.error /= by
        self.heap = [(place.weight, key) for key, place in self.places.items()]
        heapq.heapify(self.heap)


class Heat:
    """The hottest keys of each cache type. `now` is a monotonic clock, in seconds."""

    def __init__(self, now: Callable[[], float], *, places: int = PLACES, most: int = MOST_PLACES, half_life: float = HALF_LIFE) -> None:
        self._now, self._places, self._most, self._half_life = now, places, most, half_life
        self._epoch = now()
        self._types: dict[str, _Kept] = {}
        self._taken = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Heat of {', '.join(f'{len(kept.places)} {name}' for name, kept in list(self._types.items())) or 'nothing'}>"

    def offer(self, cache_type: str, key: str, seconds: float, recall: Recall | None) -> None:
        """A key has saved or cost so many seconds; `recall` is called until it gives a recipe. Left out while another thread is at it."""
        if self._lock.acquire(blocking=False):
            try:
                self._offer(cache_type, key, seconds, recall)
            finally:
                self._lock.release()

    def _offer(self, cache_type: str, key: str, seconds: float, recall: Recall | None) -> None:
        kept = self._types.get(cache_type)
        if kept is None:
            if len(self._types) >= MOST_TYPES:
                return
            kept = self._types[cache_type] = _Kept()
        weight = seconds * self._growth()
        place = kept.places.get(key)
        if place is not None:
            place.weight += weight
            if place.recipe is None and recall is not None:
                place.recipe = recall()
        elif len(key) <= MOST_KEY:
            error = 0.0
            if len(kept.places) < self._places and self._taken < self._most:
                self._taken += 1
            elif not kept.places:
                return
            else:
                error = kept.pop_lightest().weight
            kept.add(key, _Place(error + weight, error, None if recall is None else recall()))

    def knows(self, cache_type: str, key: str) -> bool:
        """Whether a key is kept, with its recipe."""
        kept = self._types.get(cache_type)
        place = None if kept is None else kept.places.get(key)
        return place is not None and place.recipe is not None

    def hottest(self, cache_type: str | None = None, *, limit: int = 100) -> list[HotKey]:
        """The hottest keys of a type, or of all, the hottest first."""
        with self._lock:
            growth = self._growth()
            names = list(self._types) if cache_type is None else [cache_type]
            found = [
                HotKey(name, key, place.weight / growth, place.error / growth, place.recipe)
                for name in names
                if name in self._types
                for key, place in self._types[name].places.items()
            ]
        return sorted(found, key=lambda one: one.seconds, reverse=True)[:limit]

    def _growth(self) -> float:
        growth: float = 2.0 ** min((self._now() - self._epoch) / self._half_life, _MOST_HALVINGS)
        if growth < _MOST_GROWTH:
            return growth
        for kept in self._types.values():
            kept.shrink(growth)
        self._epoch = self._now()
        return 1.0


def merged(keys: Iterable[HotKey]) -> list[HotKey]:
    """Those of several processes as one list, the hottest first: the same key's seconds are added up."""
    found: dict[tuple[str, str], HotKey] = {}
    for one in keys:
        place = (one.cache_type, one.key)
        other = found.get(place)
        if other is not None:
            recipe = one.recipe if other.recipe is None else other.recipe
            found[place] = HotKey(one.cache_type, one.key, one.seconds + other.seconds, one.error + other.error, recipe)
        else:
            found[place] = one
    return sorted(found.values(), key=lambda one: one.seconds, reverse=True)
