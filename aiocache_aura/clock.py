"""The time of day, read through an object so that tests can hold it still."""

from __future__ import annotations

import time as system_time
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

    time = staticmethod(system_time.time)
    monotonic = staticmethod(system_time.monotonic)
