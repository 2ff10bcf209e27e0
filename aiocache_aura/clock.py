"""The time of day, read through an object so that tests can hold it still."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the library reads time; pass your own as `CacheManager(clock=...)`."""

    def time(self) -> float:
        """Seconds since the epoch: what lives of entries are counted in, since processes share it."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back: what durations within this process are counted in."""
        ...


class SystemClock:
    """The operating system's clocks."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
