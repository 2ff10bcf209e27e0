"""What a warmer has done, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Ended: TypeAlias = Literal["done", "skipped", "failed", "timeout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeReport:
    """What became of one cache type: keys that were `loaded`, or `refreshed` before their end, or `skipped` since they were fresh, or
    `failed`.

    `ended` is "done", "skipped" for a type that has no source, "failed" if a source raised, "timeout". At most ten `errors` are told.
    """

    cache_type: str
    loaded: int = 0
    refreshed: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0
    errors: tuple[str, ...] = ()
    ended: Ended = "done"

    @property
    def keys(self) -> int:
        """All keys that the sources came with."""
        return self.loaded + self.refreshed + self.skipped + self.failed

    @property
    def keys_per_second(self) -> float:
        return self.keys / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What all runs of this process have done to one cache type. `ended` are numbers of runs; `seconds` and `at` are of the last one's."""

    loaded: int = 0
    refreshed: int = 0
    skipped: int = 0
    failed: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    at: float = 0.0

    def merged(self, other: Warmed) -> Warmed:
        """Both types together: the last run is that of either which ended later."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("loaded", "refreshed", "skipped", "failed")}
        last = max(self, other, key=lambda one: one.at)
        ended = {how: self.ended.get(how, 0) + other.ended.get(how, 0) for how in {**self.ended, **other.ended}}
        return Warmed(**sums, ended=ended, seconds=last.seconds, at=last.at)

    def plus(self, run: TypeReport, at: float) -> Warmed:
        """With one more run, which has just ended."""
        figures = {name: getattr(run, name) for name in ("loaded", "refreshed", "skipped", "failed", "seconds")}
        return self.merged(Warmed(**figures, ended={run.ended: 1}, at=at))


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmProgress:
    """How far a run is, for a `progress` callback: the figures of one type so far."""

    cache_type: str
    loaded: int
    refreshed: int
    skipped: int
    failed: int
    seconds: float
    is_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmReport:
    """What a run has done, by cache type: `report["menu"].loaded`; `str(report)` is a table; true if it is `ok`. Seconds are those of the
    whole run."""

    types: Mapping[str, TypeReport] = field(default_factory=dict)
    tenant_id: str | None = None
    seconds: float = 0.0

    def __getitem__(self, cache_type: str, /) -> TypeReport:
        return self.types[cache_type]

    @property
    def loaded(self) -> int:
        return sum(one.loaded for one in self.types.values())

    @property
    def refreshed(self) -> int:
        return sum(one.refreshed for one in self.types.values())

    @property
    def skipped(self) -> int:
        return sum(one.skipped for one in self.types.values())

    @property
    def failed(self) -> int:
        return sum(one.failed for one in self.types.values())

    @property
    def errors(self) -> list[str]:
        """What went wrong, with its cache type."""
        return [f"{name}: {error}" for name, one in self.types.items() for error in one.errors]

    @property
    def keys_per_second(self) -> float:
        return sum(one.keys for one in self.types.values()) / self.seconds if self.seconds else 0.0

    def __bool__(self) -> bool:
        return self.ok

    @property
    def ok(self) -> bool:
        """Whether every source came to its end, and every key was stored or there."""
        return not self.failed and all(one.ended in ("done", "skipped") for one in self.types.values())

    def __str__(self) -> str:
        whose = "" if self.tenant_id is None else f" for tenant {self.tenant_id}"
        keys = sum(one.keys for one in self.types.values())
        head = f"warmed {self.loaded + self.refreshed:,} of {keys:,} keys{whose} in {self.seconds:.2f} s"
        told = [one for one in self.types.values() if one.ended != "skipped"]
        idle = [name for name, one in self.types.items() if one.ended == "skipped"]
        width = max((len(one.cache_type) for one in told), default=0)
        lines = [
            f"  {one.cache_type:{width}}  {one.loaded:>9,} loaded  {one.refreshed:>9,} refreshed  {one.skipped:>9,} skipped"
            f"  {one.failed:>7,} failed  {one.seconds:8.2f} s  {one.keys_per_second:>9,.0f} keys/s  {one.ended}"
            for one in told
        ]
        without = [f"  without a source: {', '.join(idle)}"] if idle else []
        return "\n".join([head, *lines, *without, *(f"  ! {error}" for error in self.errors)])
