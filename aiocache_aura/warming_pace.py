"""The manners of warmers: how much at once, how fast, and what they leave to others.

A warmer has nobody who waits for it. So it takes what nobody wants: while others want the event loop, or the processor, it works in shorter
steps and smaller batches, and rests after each.

    readers     the reads of this process are counted anyway; since the last rest there were more
    the loop    it took long until the warmer's turn came again
    processor   this thread was ready to go on, and had to wait while others had it: so says Linux, other systems do not tell
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio

BATCH_KEYS: Final = 256
BUSY_BATCH: Final = 4
SLICE: Final = 0.0005  # seconds of work before others may go on
SHORT_SLICE: Final = 0.0001  # while others want the event loop, or the processor
LATE: Final = 0.0005  # seconds until its turn came again, that others have had
BUSY_FOR: Final = 0.1  # seconds after others have wanted the loop, or the processor
CROWDED: Final = 0.05  # of the time that it worked: to have waited for so long is more than a server that it has woken costs it
CROWDED_OVER: Final = 0.005  # seconds of work for which that is worked out
RESTS: Final = 3.0  # times the work that they last
LONGEST_REST: Final = 0.01


class Pace:
    """What the runs of one warmer share: turns for loads, places for calls, a rate of keys per second, and rests."""

    def __init__(self, concurrency: int, rate: float | None, reads: Callable[[], int]) -> None:
        """`reads` is how often users have read so far."""
        self._now, self._reads = asyncio.get_running_loop().time, reads
        self.rate = rate
        self._turns, self.room = anyio.Semaphore(concurrency), anyio.Semaphore(concurrency)
        self._free_at = self._now()
        self._seen, self._waited = reads(), waited()
        self._worked = 0.0
        self._busy_until = 0.0

    def __repr__(self) -> str:
        return f"<Pace{' while others are busy' if self.is_busy else ''}>"

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
    def is_busy(self) -> bool:
        """Whether others have wanted the event loop, or the processor, lately."""
        return self._now() < self._busy_until

    @property
    def slice(self) -> float:
        return SHORT_SLICE if self.is_busy else SLICE

    @property
    def most_at_once(self) -> int:
        """How many keys may be stored in one go: of a rate, a quarter of a second's."""
        most = BUSY_BATCH if self.is_busy else BATCH_KEYS
        return most if self.rate is None else max(min(int(self.rate / 4), most), 1)

    async def rest(self, worked: float) -> None:
        """Let others go on, and for a while if they want to."""
        if not self.is_busy:
            os.sched_yield()
        before = self._now()
        await asyncio.sleep(0)
        now = self._now()
        reads = self._reads()
        if reads != self._seen or now - before > LATE:
            self._seen, self._busy_until = reads, now + BUSY_FOR
        self._worked += worked
        if self._worked >= CROWDED_OVER:
            before, self._waited = self._waited, waited()
            if self._waited - before > CROWDED * self._worked:
                self._busy_until = now + BUSY_FOR
            self._worked = 0.0
        if now < self._busy_until:
            await asyncio.sleep(min(RESTS * worked, LONGEST_REST))


def waited() -> float:
    """Seconds that this thread has had to wait for a processor since it began; 0.0 where that is not told."""
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return 0.0
    try:
        return int(os.read(file, 100).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
    finally:
        os.close(file)


__all__ = ["BATCH_KEYS", "Pace"]
