"""Boards of notes in Redis: what processes of a fleet tell one another beside the entries.

A board is one key, and each note on it carries the time when its life is over, by the server's clock: a process that dies takes nothing
down, and what it left is gone when its time is up. Reading takes away what has expired; a board that nobody posts to goes as a whole.
"""

from __future__ import annotations

from aiocache_aura.stores.base import Posted
from aiocache_aura.stores.boards import MOST_NOTES
from aiocache_aura.stores.replies import refused
from aiocache_aura.stores.requests import Writes
from aiocache_aura.stores.scripts import POST, READ_NOTES, life_ms


class RedisNotes:
    """The boards under one prefix of a server."""

    __slots__ = ("_prefix", "_writes")

    def __init__(self, writes: Writes, prefix: bytes) -> None:
        self._writes, self._prefix = writes, prefix

    async def post(self, board: str, name: str, payload: bytes, *, life: float, timeout: float) -> Posted:
        command = POST.run([self._board(board)], name, payload, life_ms(life), MOST_NOTES)
        return Posted((await self._writes.run([command], timeout=timeout, repeatable=True))[0])

    async def read(self, board: str, *, timeout: float) -> dict[str, bytes]:
        command = READ_NOTES.run([self._board(board)])
        (found,) = await self._writes.run([command], timeout=timeout, repeatable=True)
        if len(found) % 2:
            raise refused(command, found)
        return {name.decode(errors="replace"): payload for name, payload in zip(found[::2], found[1::2], strict=True)}

    async def drop(self, board: str, name: str, *, timeout: float) -> None:
        await self._writes.run([("HDEL", self._board(board), name)], timeout=timeout, repeatable=True)

    def _board(self, board: str) -> bytes:
        return self._prefix + board.encode()
