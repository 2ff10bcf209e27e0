"""Boards of notes in memory, for the one process that there is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from aiocache_aura.stores.base import Posted

MOST_NOTES: Final = 1000


class Boards:
    """The notes of a memory store; a lock makes each method one step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._lock = now, threading.Lock()
        self._boards: dict[str, dict[str, tuple[float, bytes]]] = {}

    async def post(self, board: str, name: str, payload: bytes, *, life: float, timeout: float) -> Posted:
        with self._lock:
            notes = self._standing(board)
            if name not in notes and len(notes) >= MOST_NOTES:
                return Posted.FULL
            stood = name in notes
            self._boards.setdefault(board, notes)[name] = (self._now() + life, payload)
            return Posted.REPLACED if stood else Posted.NEW

    async def read(self, board: str, *, timeout: float) -> dict[str, bytes]:
        with self._lock:
            return {name: payload for name, (_, payload) in self._standing(board).items()}

    async def drop(self, board: str, name: str, *, timeout: float) -> None:
        with self._lock:
            self._standing(board).pop(name, None)

    def clear(self) -> None:
        with self._lock:
            self._boards.clear()

    def _standing(self, board: str) -> dict[str, tuple[float, bytes]]:
        """The notes of a board, without those whose life is over."""
        notes, now = self._boards.get(board, {}), self._now()
        for name in [name for name, (until, _) in notes.items() if until <= now]:
            del notes[name]
        return notes
