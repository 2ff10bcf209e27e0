"""What a process of a fleet tells the others of itself: its counters, as a note in the store that goes when the process does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.histogram import LARGEST, Histogram, bound
from aiocache_aura.recorder import Recorder
from aiocache_aura.stats import INTS, Counts
from aiocache_aura.types import is_number, is_whole

BOARD = "fleet"
VERSION = 1
DAY = 1440  # minutes that are kept
LENGTHS = (5, 60, DAY)  # minutes of the windows that a process publishes
MOST = 2**53  # happenings of one kind that a note may tell, so that the sum of all is a number that JSON holds
LONGEST = 1e12  # seconds

_names: WeakKeyDictionary[CacheManager, tuple[int, str]] = WeakKeyDictionary()


def process_name(manager: CacheManager) -> str:
    """This manager of this process, told from every other of the fleet: containers may be alike in host and process number."""
    pid, name = _names.get(manager, (0, ""))
    if pid != os.getpid():
        name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        _names[manager] = os.getpid(), name
    return name


def covering(minutes: float) -> int:
    """The shortest of the published windows that covers so many minutes."""
    return min((length for length in LENGTHS if length >= minutes), default=DAY)


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
                _minutes(minutes): {str(name): counts_from_dict(figures) for name, figures in types.items()}
                for minutes, types in told["windows"].items()
            }
            return cls(str(told["process"]), _seconds(told["at"]), windows, str(told["status"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None


async def window_of(recorder: Recorder, minutes: float, names: Iterable[str]) -> dict[str, Counts]:
    """What was counted of these types in about the last so many minutes; others have their turn after each."""
    found = {}
    for name in names:
        found[name] = recorder.window(name, minutes * 60)
        await asyncio.sleep(0)
    return found


async def windows_of(recorder: Recorder) -> dict[int, dict[str, Counts]]:
    """The windows that a process publishes, by length in minutes and cache type."""
    return {length: await window_of(recorder, length, recorder.cache_types) for length in LENGTHS}


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
    counts.load_seconds, counts.saved_seconds = _seconds(told.get("load_seconds", 0.0)), _seconds(told.get("saved_seconds", 0.0))
    counts.by_error = {str(name): _whole(n) for name, n in told.get("by_error", {}).items()}
    counts.evictions = {str(name): _whole(n) for name, n in told.get("evictions", {}).items()}
    for operation, (total, buckets) in told.get("times", {}).items():
        counts.times[str(operation)] = Histogram({_bucket(text): _whole(n) for text, n in buckets.items()}, _seconds(total))
    return counts


def _whole(value: object) -> int:
    if not is_whole(value) or not 0 <= value <= MOST:
        raise ValueError(f"{value!r:.20} is no number of happenings")
    return value


def _minutes(text: str) -> int:
    minutes = int(text)
    if not 0 < minutes <= DAY:
        raise ValueError(f"{text!r:.20} is no window's length")
    return minutes


def _bucket(text: str) -> int:
    bucket = int(text)
    if bucket < 0 or bound(bucket) > LARGEST * 1.001:
        raise ValueError(f"{text!r:.20} is no bucket")
    return bucket


def _seconds(value: object) -> float:
    if not is_number(value) or not 0 <= value <= LONGEST:
        raise ValueError(f"{value!r:.20} are no seconds")
    return float(value)


_NOTHING = Counts()
