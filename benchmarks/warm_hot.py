"""Redis is emptied under load: how soon the hit rate is back, with the hottest keys warmed and without.

    python -m benchmarks.warm_hot [--keys 2000] [--skew 1.0] [--rate 300] [--limit 1000] [--concurrency 16] [--interval 10] [--rounds 3]

Calls of a cached function come at so many a second, in a Poisson process; their arguments are in a Zipf distribution. What they miss is
loaded by a source that takes 20 ms, 16 at once. After 10,000 calls the hit rate is taken over two seconds, then comes FLUSHALL, and
the time is told until the hit rate over the next 200 calls is 90 % of what it was, and stays so on an average to the end.

with     `cache_monitor.running(interval=..., on_emptied=warmer.warm_hot)`: in the time is that of noticing it
without  the same calls, and the same monitor with nothing to call

Both run in each round, over a Valkey server of the benchmark's own, and the ratio is of the medians. Wanted: at least 5 times sooner.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import logging
import random
import statistics
import time
from functools import partial
from typing import Any

import redis

from aiocache_aura import CacheManager, CacheMonitor, CacheWarmer, Hit, Miss, cache_menu
from aiocache_aura.testing.server import EmbeddedServer

LOAD, SERVED = 0.02, 16  # seconds, at once
OLD = 2.0  # seconds over which the old hit rate is taken
OVER = 200  # calls over which the new one is
BACK = 0.9
CALLS = 10_000  # before the server is emptied, and after
WANTED = 5.0


class Zipf:
    """Numbers below `keys`, the n-th as likely as n ** -skew."""

    def __init__(self, keys: int, skew: float, seed: int) -> None:
        self._rng = random.Random(seed)
        self._sums = list(itertools.accumulate((n + 1) ** -skew for n in range(keys)))
        self._places = list(range(keys))
        self._rng.shuffle(self._places)

    def __call__(self) -> int:
        return self._places[bisect.bisect_left(self._sums, self._rng.random() * self._sums[-1])]

    def pause(self, rate: float) -> float:
        return self._rng.expovariate(rate)


class Reads:
    """When each read was, and whether it hit."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.hits: list[int] = []

    def note(self, happening: Hit | Miss) -> None:
        self.times.append(time.monotonic())
        self.hits.append(isinstance(happening, Hit))

    def rate(self, since: float, until: float) -> float:
        first, last = bisect.bisect_left(self.times, since), bisect.bisect_left(self.times, until)
        return statistics.fmean(self.hits[first:last])

    def back_at(self, since: float, wanted: float) -> float | None:
        """Seconds from `since` until so many of the next calls hit; None if that does not come."""
        first = bisect.bisect_left(self.times, since)
        for n in range(first, len(self.hits) - OVER):
            if statistics.fmean(self.hits[n : n + OVER]) >= wanted:
                return self.times[n] - since if statistics.fmean(self.hits[n:]) >= wanted else None
        return None


async def calls(get: Any, pick: Zipf, rate: float) -> None:
    """For ever, whatever the answers take."""
    due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while True:
            due += pick.pause(rate)
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            group.create_task(get(pick()))


async def once(server: EmbeddedServer, options: argparse.Namespace, seed: int, *, with_warmer: bool) -> tuple[float, float]:
    """(the old hit rate, seconds until it was back)."""
    served = asyncio.Semaphore(SERVED)
    async with CacheManager(server.tcp_url, prefix=f"hot{seed}{with_warmer}", budget=2) as manager:

        @cache_menu(manager=manager, ttl=3600, name="bench.dish")
        async def dish(n: int) -> dict[str, Any]:
            async with served:
                await asyncio.sleep(LOAD)
            return {"id": n, "name": "Margherita"}

        reads, pick = Reads(), Zipf(options.keys, options.skew, seed)
        warmer: CacheWarmer[None] = CacheWarmer(manager=manager, concurrency=options.concurrency)
        on_emptied = partial(warmer.warm_hot, limit=options.limit) if with_warmer else lambda: None
        with manager.events.listen(reads.note, Hit, Miss):
            async with CacheMonitor(manager).running(interval=options.interval, on_emptied=on_emptied):
                load = asyncio.create_task(calls(dish, pick, options.rate))
                try:
                    await asyncio.sleep(CALLS / options.rate + random.random() * options.interval)
                    with redis.Redis(port=server.port) as client:
                        await asyncio.to_thread(client.flushall)
                    emptied = time.monotonic()
                    old = reads.rate(emptied - OLD, emptied)
                    await asyncio.sleep(CALLS / options.rate)
                finally:
                    load.cancel()
                    await asyncio.wait({load})
    back = reads.back_at(emptied, BACK * old)
    if back is None:
        raise SystemExit(f"the hit rate was not back at {BACK:.0%} of {old:.1%} within {CALLS} calls")
    return old, back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=2000)
    parser.add_argument("--skew", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--interval", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    figures: dict[bool, list[float]] = {True: [], False: []}
    with EmbeddedServer() as server:
        for seed in range(options.rounds):
            for with_warmer in (True, False):
                old, back = asyncio.run(once(server, options, seed, with_warmer=with_warmer))
                figures[with_warmer].append(back)
                print(
                    f"{'with' if with_warmer else 'without':8} hit rate {old:.1%}, back at {BACK:.0%} of it after {back:.2f} s", flush=True
                )
    warm, cold = statistics.median(figures[True]), statistics.median(figures[False])
    print(f"median   {warm:.2f} s with, {cold:.2f} s without: x{cold / warm:.1f} ({'as' if cold / warm >= WANTED else 'NOT as'} wanted)")


if __name__ == "__main__":
    main()
