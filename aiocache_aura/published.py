"""What a process of a fleet tells the others of itself: its counters, as a note in the store that goes when the process does."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from aiocache_aura.histogram import Histogram
from aiocache_aura.stats import INTS, Counts

BOARD = "fleet"
VERSION = 1


def process_name() -> str:
    """This process, told from every other of the fleet."""
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class Published:
    """One process's counters, by minutes of the window and cache type; `at` in seconds since the epoch, `status` of its health."""

    process: str
    at: float
    windows: Mapping[int, Mapping[str, Counts]] = field(repr=False)
    status: str = "unknown"

    def window(self, minutes: float) -> tuple[int, Mapping[str, Counts]]:
        """The shortest window that covers so many minutes, or the longest there is; and how long it is."""
        chosen = min((length for length in self.windows if length >= minutes), default=max(self.windows, default=0))
        return chosen, self.windows.get(chosen, {})

    def encode(self) -> bytes:
        windows = {
            str(minutes): {name: counts_to_dict(counts) for name, counts in types.items() if counts.differs(_NOTHING)}
            for minutes, types in self.windows.items()
        }
        return orjson.dumps({"v": VERSION, "process": self.process, "at": self.at, "status": self.status, "windows": windows})

    @classmethod
    def decode(cls, raw: bytes) -> Published | None:
        """What a process has posted; None for what is not that, whoever wrote it."""
        try:
            told = orjson.loads(raw)
            if told["v"] != VERSION:
                return None
            windows = {
                int(minutes): {str(name): counts_from_dict(figures) for name, figures in types.items()}
                for minutes, types in told["windows"].items()
            }
            return cls(str(told["process"]), float(told["at"]), windows, str(told["status"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None


def counts_to_dict(counts: Counts) -> dict[str, Any]:
    """Counters as JSON holds them; what is nothing is left out."""
    told: dict[str, Any] = {name: value for name in INTS if (value := getattr(counts, name))}
    for name in ("load_seconds", "saved_seconds"):
        if value := getattr(counts, name):
            told[name] = value
    for name in ("by_error", "evictions"):
        if found := dict(getattr(counts, name)):
            told[name] = found
    times = {name: [took.total, {str(bucket): n for bucket, n in dict(took.buckets).items()}] for name, took in dict(counts.times).items()}
    return told | ({"times": times} if times else {})


def counts_from_dict(told: Mapping[str, Any]) -> Counts:
    """Counters from JSON; ValueError, TypeError, AttributeError or KeyError for what are none."""
    counts = Counts()
    for name in INTS:
        setattr(counts, name, _whole(told.get(name, 0)))
    counts.load_seconds, counts.saved_seconds = float(told.get("load_seconds", 0.0)), float(told.get("saved_seconds", 0.0))
    counts.by_error = {str(name): _whole(n) for name, n in told.get("by_error", {}).items()}
    counts.evictions = {str(name): _whole(n) for name, n in told.get("evictions", {}).items()}
    for operation, (total, buckets) in told.get("times", {}).items():
        counts.times[str(operation)] = Histogram({int(bucket): _whole(n) for bucket, n in buckets.items()}, float(total))
    return counts


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.20} is no number of happenings")
    return value


_NOTHING = Counts()
