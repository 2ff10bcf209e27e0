"""Counters: plain ints, added to where things happen, read when somebody asks."""

from __future__ import annotations

from typing import Any


class Counts:
    """What happened to one cache type, or one function, in this process."""

    __slots__ = (
        "coalesced",
        "deletes",
        "errors",
        "hits",
        "invalidations",
        "load_errors",
        "load_seconds",
        "loads",
        "misses",
        "overruns",
        "sets",
        "stale_served",
        "undecodable",
        "unstorable",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.hits = self.misses = self.loads = self.coalesced = self.load_errors = 0
        self.stale_served = self.overruns = 0
        self.sets = self.deletes = self.invalidations = 0
        self.errors = self.undecodable = self.unstorable = 0
        self.load_seconds = 0.0

    @property
    def hit_rate(self) -> float:
        """Hits by hits and misses; 0.0 where there was neither."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    def snapshot(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"hit_rate": self.hit_rate}

    def __repr__(self) -> str:
        return f"Counts(hits={self.hits}, misses={self.misses}, loads={self.loads}, errors={self.errors})"
