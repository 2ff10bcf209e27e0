"""One process of a fleet that warms on a schedule, and tells what it does: `python -m tests.fleet_worker URL INTERVAL`, in seconds.

It reads a word a line from stdin: "go" to schedule, "long" or "short" for how long runs take that begin from then on; at its end it
ends. It writes a JSON object a line to stdout: what happened, the due time, and when by the server's clock, both in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import redis

from aiocache_aura import CacheManager
from aiocache_aura.cache_warmer import CacheWarmer, schedule_cache_warming
from aiocache_aura.jobs import Job

TAKES = {"short": 0.1, "long": 60.0}  # seconds


class Worker:
    """The job's source, and whoever is told of its reports."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=10)
        self.length = "short"
        self.job: Job | None = None
        self._due = 0.0

    def tell(self, what: str, **more: Any) -> None:
        seconds, microseconds = self._client.time()
        line = json.dumps({"what": what, "due": self._due, "time": seconds + microseconds / 1e6, **more})
        os.write(1, f"{line}\n".encode())

    async def source(self, tenant_id: Any) -> AsyncIterator[tuple[str, int]]:
        assert self.job is not None and self.job.next_run is not None
        self._due = round(self.job.next_run.timestamp(), 6)  # as long as a run goes on, that one
        self.tell("begun", length=self.length)
        try:
            await asyncio.sleep(TAKES[self.length])
            yield "item", 1
        except BaseException:
            self.tell("cancelled")
            raise
        self.tell("ended")

    def counted(self, report: Any) -> None:
        self.tell("counted")


async def main(url: str, interval: float) -> None:
    worker, commands = Worker(url), asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with CacheManager(url) as manager:
        warmer: CacheWarmer[Any] = CacheWarmer(manager=manager)
        warmer.source("menu")(worker.source)
        await manager.set("menu", "ready", 1)  # connected
        worker.tell("ready")
        while word := (await commands.readline()).decode().strip():
            if word == "go":
                worker.job = schedule_cache_warming(interval_minutes=interval / 60, warmer=warmer, on_report=worker.counted)
                while worker.job.next_run is None:
                    await asyncio.sleep(0.01)
                worker.tell("scheduled")  # and answered by the store
            else:
                worker.length = word
    worker.tell("closed", runs=0 if worker.job is None else worker.job.runs)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
