"""Probes: what is asked of a server for the sake of health, in ways that no user has to wait for.

Users' own ways are tried as users go them, with keys of our own that are gone at once. All else goes over the lane for writes, behind what
is written there, so that no hit waits for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final

from aiocache_aura.errors import BackendError
from aiocache_aura.keys import glob_literal
from aiocache_aura.stores.base import TOKEN_BYTES, Command, Link
from aiocache_aura.stores.replies import refused
from aiocache_aura.stores.requests import Writes
from aiocache_aura.stores.scripts import PERMIT
from aiocache_aura.stores.statistics import Sample

LIFE_MS: Final = 60_000  # of a probe that could not be removed
SCANS, SCAN_COUNT = 10, 500
MOST_KEYS: Final = 200
HEAD_BYTES: Final = 71


class RedisProbes:
    """What is asked of the server behind one link, for the keys under one prefix."""

    __slots__ = ("_link", "_prefix", "_writes")

    def __init__(self, link: Link, writes: Writes, prefix: bytes) -> None:
        self._link, self._writes, self._prefix = link, writes, prefix

    async def read(self, *, timeout: float) -> None:
        command: Command = ("MGET", self._prefix + b"!h:value", self._prefix + b"!h:permit")
        lanes = self._link.reads
        for lane in lanes:
            lane.hasten()
        asked = (lane.send([command], timeout=timeout, repeatable=True) for lane in lanes)
        for replies in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(replies, BaseException):
                raise replies
            if not isinstance(replies[0], list):
                raise refused(command, replies[0])

    async def write(self, *, timeout: float) -> None:
        self._link.writes.hasten()
        value, permit = self._prefix + b"!h:value", self._prefix + b"!h:permit"
        planted = PERMIT.run([permit], os.urandom(TOKEN_BYTES), LIFE_MS)
        commands: list[Command] = [("SET", value, b"", "PX", LIFE_MS), planted, ("DEL", value), ("DEL", permit)]
        await self._writes.run(commands, timeout=timeout)

    async def ask(self, commands: Sequence[Command], *, timeout: float) -> list[Any]:
        lane = self._link.writes
        lane.hasten()
        replies = await lane.send(commands, timeout=timeout, repeatable=True)
        if len(replies) != len(commands):
            raise refused(commands[0], replies)
        asked = zip(commands, replies, strict=True)
        return [refused(command, reply) if isinstance(reply, Exception) else reply for command, reply in asked]

    async def sample(self, *, timeout: float) -> Sample:
        names = await self._some(timeout)
        if not names:
            return Sample(0, [])
        lives = await self._answers([("PTTL", name) for name in names], timeout)
        lasting = [name for name, left in zip(names, lives, strict=True) if left == -1]
        if not lasting:
            return Sample(len(names), [])
        heads = await self.ask([("GETRANGE", name, 0, HEAD_BYTES - 1) for name in lasting], timeout=timeout)
        return Sample(len(names), [(name, head if isinstance(head, bytes) else None) for name, head in zip(lasting, heads, strict=True)])

    async def _some(self, timeout: float) -> list[bytes]:
        """Names under the prefix, found in a bounded number of steps: of a hash table each part is as good as any."""
        glob, cursor = glob_literal(self._prefix) + b"[:!]*", b"0"
        names: dict[bytes, None] = {}
        for _ in range(SCANS):
            command: Command = ("SCAN", cursor, "MATCH", glob, "COUNT", SCAN_COUNT)
            match await self._answers([command], timeout):
                case [[bytes() as cursor, list() as found]]:
                    names.update(dict.fromkeys(found))
                case [reply]:
                    raise refused(command, reply)
            if cursor == b"0" or len(names) >= MOST_KEYS:
                break
        return list(names)[:MOST_KEYS]

    async def _answers(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """The replies, none of them a refusal."""
        replies = await self.ask(commands, timeout=timeout)
        for reply in replies:
            if isinstance(reply, BackendError):
                raise reply
        return replies
