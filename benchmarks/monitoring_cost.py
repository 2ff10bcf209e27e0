"""What monitoring costs a hit: the same hits with it running and without, in pairs.

    python -m benchmarks.monitoring_cost [--rounds N]

Two managers over one store, the same decorated function on each. One is watched: `cache_monitor.running()`, hits timed by samples, hot keys
learned. Of the other no hit is timed, and no task runs. Rounds alternate between the two, in the order A B B A, so that what drifts hits
both; printed is the median of the rounds' ratios, and the quarters on both sides of it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time

from aiocache_aura import CacheManager, cache_menu
from aiocache_aura.monitoring import CacheMonitor
from aiocache_aura.testing.server import EmbeddedServer

HITS = 6_000
NEVER = -1  # a mask that only the very first hit passes


def function_on(manager: CacheManager):
    @cache_menu(manager=manager, name="get_menu")
    async def get_menu(restaurant_id: int) -> dict:
        return {"id": restaurant_id, "name": "Margherita", "price": 12.5, "tags": ["a", "b"], "text": "x" * 80}

    return get_menu


async def round_of(function, callers: int) -> float:
    """Seconds that so many hits take."""

    async def caller(n: int) -> None:
        for i in range(HITS // callers):
            await function((n + i) % 50)

    gc.collect()
    started = time.perf_counter()
    await asyncio.gather(*(caller(n) for n in range(callers)))
    return time.perf_counter() - started


async def compare(url: str, callers: int, rounds: int) -> list[float]:
    """For each pair of rounds, the time with monitoring by the time without."""
    async with CacheManager(url, prefix="watched", budget=5) as watched, CacheManager(url, prefix="plain", budget=5) as plain:
        with_it, without = function_on(watched), function_on(plain)
        plain.counts("menu").mask = NEVER
        ratios = []
        async with CacheMonitor(watched).running(interval=1.0):
            for function in (with_it, without):
                for n in range(50):
                    await function(n)
                await round_of(function, callers)
            for n in range(rounds):
                plain.counts("menu").mask = NEVER
                order = (with_it, without) if n % 2 else (without, with_it)
                took = {function: await round_of(function, callers) for function in order}
                ratios.append(took[with_it] / took[without])
        return ratios


async def main(rounds: int) -> None:
    print(f"{'store':10} {'callers':>8} {'with / without':>15}   (quarter, three quarters of {rounds} pairs)")
    with EmbeddedServer() as server:
        for name, url in (("memory", "memory://"), ("redis", server.tcp_url)):
            for callers in (1, 50):
                ratios = sorted(await compare(url, callers, rounds))
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(f"{name:10} {callers:>8} {middle:>15.3f}   ({low:.3f}, {high:.3f})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="pairs of rounds for each case")
    asyncio.run(main(parser.parse_args().rounds))
