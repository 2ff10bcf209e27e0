"""The jobs of a memory store, for the one process that there is: what `stores/jobs.py` says, under a lock.

Several event loops of the process may have the same job; then one of them runs each due time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from aiocache_aura.stores.base import Turn

LEASE: Final = 3.0  # seconds that a run is held without a word from its runner


@dataclass(slots=True)
class _Record:
    due: int
    at: int
    until: int = 0
    took: int = 0
    last: bytes = b""
    holder: bytes = b""


class Rota:
    """The jobs of a memory store; a lock makes each method one step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._time, self._lock = now, threading.Lock()
        self._records: dict[str, _Record] = {}

    def __repr__(self) -> str:
        return f"Rota({len(self._records)})"

    async def claim(self, job: str, token: bytes, *, at_once: bool = False, timeout: float) -> Turn:
        with self._lock:
            now = self._now()
            record = self._records.get(job) or _Record(now, now)
            if record.holder != token:
                if record.holder and record.until > now:
                    return _turn("held", record, now)
                if record.at > now and not at_once:
                    return _turn("wait", record, now)
            record.holder, record.until = token, now + round(LEASE * 1e6)
            self._records[job] = record
            return _turn("run", record, now)

    async def renew(self, job: str, token: bytes, *, timeout: float) -> bool:
        with self._lock:
            record = self._held(job, token)
            if record is None:
                return False
            record.until = self._now() + round(LEASE * 1e6)
            return True

    async def end(self, job: str, token: bytes, due: int, at: int, took: int, *, timeout: float) -> bool:
        with self._lock:
            record = self._held(job, token)
            if record is None:
                return job in self._records and self._records[job].last == token
            self._records[job] = _Record(due, at, took=took, last=token)
            return True

    async def give_back(self, job: str, token: bytes, *, timeout: float) -> bool:
        with self._lock:
            record = self._held(job, token)
            if record is None:
                return False
            record.holder, record.until = b"", 0
            return True

    def clear(self) -> None:
        with self._lock:
            self._records.clear()

    def _now(self) -> int:
        return int(self._time() * 1e6)

    def _held(self, job: str, token: bytes) -> _Record | None:
        record = self._records.get(job)
        return record if record is not None and record.holder == token else None


def _turn(kind: Literal["run", "wait", "held"], record: _Record, now: int) -> Turn:
    return Turn(kind, record.due, record.at, now, record.until, record.took)
