"""The ceiling: one multiplexed connection that does nothing but one MGET a tick, values only. No budget, no reconnecting, no checks."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import hiredis

NOTHING = object()  # hiredis says False both for "no more" and for a reply of #f, unless told otherwise


class BareLane(asyncio.Protocol):
    def __init__(self) -> None:
        self.reader = hiredis.Reader(notEnoughData=NOTHING)
        self.pending: deque[list[tuple[str, asyncio.Future[Any]]]] = deque()
        self.gets: list[tuple[str, asyncio.Future[Any]]] = []
        self.loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, port: int) -> BareLane:
        _, lane = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return lane

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        gets = self.reader.gets
        while (reply := gets()) is not NOTHING:
            for (_, future), value in zip(self.pending.popleft(), reply, strict=True):
                if not future.done():
                    future.set_result(value)

    def get(self, key: str) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        if not self.gets:
            self.loop.call_soon(self._flush)
        self.gets.append((key, future))
        return future

    def _flush(self) -> None:
        gets, self.gets = self.gets, []
        self.transport.write(hiredis.pack_command(("MGET", *[key for key, _ in gets])))
        self.pending.append(gets)
