"""An event loop whose time passes only while nothing is to be done: an hour of timers in as long as their callbacks take.

For what runs in one process over `memory://`, without sockets or threads: while the loop waits for those, time would run away.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class VirtualClock:
    """Both clocks of a manager: `CacheManager(clock=...)`."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    """Waits by moving the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and no timer is set: in virtual time that would be for ever")
        self._clock.now += max(timeout, 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_Selector(clock))
        self._clock_resolution = 1e-9
        self._virtual = clock

    def time(self) -> float:
        return self._virtual.now


def run(clock: VirtualClock, work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` by this clock."""
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(work)
