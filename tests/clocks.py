"""A clock that moves when it is told to, and one that stands still while the machine does."""

from __future__ import annotations

import threading
import time


class ManualClock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class RunningTime:
    """Seconds for which this process was run: what a stall of the machine takes is left out, so that what takes long is the code's doing.

    A thread that sleeps 10 ms and wakes up much later has seen a stall; to it, a test that sleeps, waits or is busy is none.
    """

    STEP, LATE = 0.01, 0.03

    def __init__(self) -> None:
        self._seen = (0.0, 0.0)  # when the thread was last awake, and how long all stalls were until then
        self._begun = threading.Lock()

    def __call__(self) -> float:
        if self._begun.acquire(blocking=False):
            self._seen = (time.perf_counter(), 0.0)
            threading.Thread(target=self._watch, daemon=True).start()
        awake, stalled = self._seen
        now = time.perf_counter()
        return now - stalled - self._late(awake, now)

    def _late(self, awake: float, now: float) -> float:
        return max(now - awake - self.STEP - self.LATE, 0.0)

    def _watch(self) -> None:
        while True:
            time.sleep(self.STEP)
            (awake, stalled), now = self._seen, time.perf_counter()
            self._seen = (now, stalled + self._late(awake, now))


running_time = RunningTime()
