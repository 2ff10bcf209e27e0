"""The manners of warmers: how much at once, how fast, and what they leave to others.

A warmer has nobody who waits for it. So it takes what nobody wants: while others want the event loop, or the processor, it works in shorter
steps and smaller batches, and rests after each.

    readers     the reads of this process are counted anyway; since the last rest there were more
    the loop    it took long until the warmer's turn came again
    processor   the operating system has taken it away from this thread, for another one that wanted it
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

resource: Any
try:
    resource = importlib.import_module("resource")
except ImportError:  # not of this operating system
    resource = None

BATCH_KEYS: Final = 256
BUSY_BATCH: Final = 32
SLICE: Final = 0.0005  # seconds of work before others may go on
SHORT_SLICE: Final = 0.0002  # while there are readers in this event loop
READERS_FOR: Final = 0.1  # seconds after others have wanted the loop
RESTS: Final = 2.0  # times the work that they last
LONGEST_REST: Final = 0.01


class Pace:
    """What the runs of one warmer share: turns for loads, places for calls, a rate of keys per second, and rests."""

    def __init__(self, concurrency: int, rate: float | None, reads: Callable[[], int]) -> None:
        """`reads` is how often users have read so far."""
        self._now, self._reads = asyncio.get_running_loop().time, reads
        self.rate = rate
        self._turns, self.room = anyio.Semaphore(concurrency), anyio.Semaphore(concurrency)
        self._free_at = self._now()
        self._seen, self._interruptions = reads(), interruptions()
        self._loop_busy_until = 0.0

    def __repr__(self) -> str:
        return f"<Pace{' with readers' if self.has_readers else ''}>"

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One of the loads that may run at once."""
        async with self._turns:
            await self.keys(1)
            yield

    async def keys(self, count: int) -> None:
        """Wait until so many keys more are within the rate."""
        if self.rate is None or not count:
            return
        now = self._now()
        start = max(self._free_at, now)
        self._free_at = start + count / self.rate
        if start > now:
            await asyncio.sleep(start - now)

    @property
    def has_readers(self) -> bool:
        """Whether others have wanted the event loop lately."""
        return self._now() < self._loop_busy_until

    @property
    def slice(self) -> float:
        return SHORT_SLICE if self.has_readers else SLICE

    @property
    def most_at_once(self) -> int:
        """How many keys may be stored in one go: of a rate, a quarter of a second's."""
        most = BUSY_BATCH if self.has_readers else BATCH_KEYS
        return most if self.rate is None else max(min(int(self.rate / 4), most), 1)

    async def rest(self, worked: float) -> None:
        """Let others go on, and for a while if they want to."""
        before = self._now()
        await asyncio.sleep(0)
        now = self._now()
        reads, times = self._reads(), interruptions()
        if reads != self._seen or now - before > SLICE:
            self._seen, self._loop_busy_until = reads, now + READERS_FOR
        was_interrupted, self._interruptions = times != self._interruptions, times
        if was_interrupted or now < self._loop_busy_until:
            await asyncio.sleep(min(RESTS * worked, LONGEST_REST))


def interruptions() -> int:
    """How often this thread was made to wait by others that wanted the processor; 0 where that is not told."""
    if resource is None:
        return 0
    switches: int = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nivcsw
    return switches


__all__ = ["BATCH_KEYS", "Pace"]
