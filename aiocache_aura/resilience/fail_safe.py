"""Faults in the log, without flooding it."""

from __future__ import annotations

import logging

from aiocache_aura.clock import Clock, SystemClock

INTERVAL = 30.0


class FaultLog:
    """Warns of each kind of fault at most once in an interval, and then says how many went unsaid.

    A kind is the class of the error, not its text or the operation: an outage is one line in 30 seconds, whatever it hits.
    """

    __slots__ = ("_clock", "_interval", "_last", "_logger", "_unsaid")

    def __init__(self, logger: logging.Logger, interval: float = INTERVAL, clock: Clock | None = None) -> None:
        self._logger, self._interval = logger, interval
        self._clock: Clock = SystemClock() if clock is None else clock
        self._last: dict[type[BaseException], float] = {}
        self._unsaid: dict[type[BaseException], int] = {}

    def __repr__(self) -> str:
        return f"FaultLog({self._logger.name!r}, kinds={len(self._last)}, unsaid={sum(self._unsaid.values())})"

    def report(self, error: BaseException, what: str) -> bool:
        """Log that `what` failed; whether this one was said aloud. At DEBUG every fault is, with its traceback."""
        kind = type(error)
        now = self._clock.monotonic()
        last = self._last.get(kind)
        if last is not None and now - last < self._interval:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
            self._logger.debug("%s failed: %s", what, error, exc_info=error)
            return False
        self._last[kind] = now
        unsaid = self._unsaid.pop(kind, 0)
        more = f" (and {unsaid} more of this kind since the last such line)" if unsaid else ""
        self._logger.warning("%s failed: %s: %s%s", what, kind.__name__, error, more)
        self._logger.debug("%s failed, where", what, exc_info=error)
        return True
