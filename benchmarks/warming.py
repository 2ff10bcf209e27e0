"""Warming 100,000 keys from a generator: how fast, in how much memory, and what users notice.

    python -m benchmarks.warming [--keys 100000] [--rounds 3] [--seconds 3] [--users 20]

rate     values of 150 B, against redis-py setting them one by one (a tenth of the keys), over TCP on loopback; each round runs both, and
         the ratio is of the medians. A second run over what is fresh, which stores nothing, is a figure of its own.
memory   the high-water mark of a child process: what warming all keys adds to what warming a thousand has taken.
users    so many callers of a cached function, one call after the other with a short pause, with and without a warmer at work: their p99, in
         the same event loop, and in another process. Phases with and without alternate; the ratio is of the medians.

It starts a Valkey server of its own. Every value is seen to be there before a rate is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio

from aiocache_aura import CacheManager, CacheWarmer, WarmReport, cache
from aiocache_aura.testing.server import EmbeddedServer as Server

TEXT = "Tomatoes (San Marzano), mozzarella di bufala, basil, olive oil"
HOT = 1000
PAUSE = 0.005  # seconds between two calls of one user


def value_of(n: int) -> dict[str, Any]:
    """About 150 bytes of JSON."""
    return {"id": n, "name": "Margherita", "description": TEXT, "price": 12.5, "available": True, "category": None}


def warmer_of(manager: CacheManager, keys: int) -> CacheWarmer[None]:
    warmer: CacheWarmer[None] = CacheWarmer(manager=manager)

    @warmer.source("menu")
    async def items() -> AsyncIterator[tuple[str, Any]]:
        for n in range(keys):
            yield f"item:{n}", value_of(n)

    return warmer


def checked(report: WarmReport, keys: int, *, loaded: bool) -> WarmReport:
    if not report or (report.loaded if loaded else report.skipped) != keys:
        raise SystemExit(f"not all were {'loaded' if loaded else 'skipped'}: {report}")
    return report


async def ours(server: Server, keys: int) -> tuple[float, float]:
    """Keys per second: cold, and where all is fresh."""
    async with CacheManager(server.tcp_url, prefix=f"bench{random.randrange(10**9)}") as manager:
        warmer = warmer_of(manager, keys)
        await manager.set("menu", "first", 1)
        cold = checked(await warmer.warm_menu_cache(), keys, loaded=True)
        fresh = checked(await warmer.warm_menu_cache(), keys, loaded=False)
        if await manager.get("menu", f"item:{keys - 1}") != value_of(keys - 1):
            raise SystemExit("the last value is not there")
        await manager.clear_namespace("menu", reclaim=True)
        return keys / cold.seconds, keys / fresh.seconds


async def redis_py(server: Server, keys: int) -> float:
    client = redis.asyncio.Redis(port=server.port)
    try:
        await client.ping()
        began = time.perf_counter()
        for n in range(keys):
            await client.set(f"plain:item:{n}", json.dumps(value_of(n)), ex=3600)
        return keys / (time.perf_counter() - began)
    finally:
        await client.aclose()


async def rates(server: Server, keys: int, rounds: int) -> None:
    found = []
    for _ in range(rounds):
        plain = await redis_py(server, max(keys // 10, 1))
        found.append((*await ours(server, keys), plain))
    cold, fresh, plain = (statistics.median(column) for column in zip(*found, strict=True))
    print(
        f"rate     cold {cold:9,.0f} keys/s   fresh {fresh:9,.0f} keys/s   redis-py one by one {plain:7,.0f} keys/s   x{cold / plain:.1f}"
    )


# Memory


def high_water() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def child_memory(url: str, keys: int) -> None:
    async with CacheManager(url, prefix="memory") as manager:
        await warmer_of(manager, 1000).warm_menu_cache()
        before = high_water()
        await warmer_of(manager, keys).warm_menu_cache()
        print(high_water() - before)


# Users


async def users(manager: CacheManager, count: int, seconds: float) -> list[float]:
    """How long each call of so many users took, in milliseconds."""

    @cache(cache_type="api", manager=manager, ttl=3600, name="bench.item")
    async def item(n: int) -> dict[str, Any]:
        return value_of(n)

    took: list[float] = []
    await asyncio.gather(*map(item, range(HOT)))
    until = time.perf_counter() + seconds

    async def user() -> None:
        while time.perf_counter() < until:
            await asyncio.sleep(PAUSE * 2 * random.random())
            began = time.perf_counter()
            await item(random.randrange(HOT))
            took.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(user() for _ in range(count)))
    return took


def p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[-1]


async def warming(manager: CacheManager, keys: int, done: asyncio.Event) -> int:
    """Warm again and again, always something new, until it is done; how many keys."""
    count = 0
    while not done.is_set():
        warmer: CacheWarmer[None] = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def items(first: int = count) -> AsyncIterator[tuple[str, Any]]:
            for n in range(first, first + keys):
                if done.is_set():
                    return
                yield f"more:{n}", value_of(n)

        count += (await warmer.warm_menu_cache()).loaded
    return count


async def same_loop(server: Server, keys: int, count: int, seconds: float, rounds: int) -> None:
    alone, beside, warmed = [], [], 0
    async with CacheManager(server.tcp_url, prefix="users") as manager:
        await users(manager, count, 0.5)
        for _ in range(rounds):
            alone.append(p99(await users(manager, count, seconds)))
            done = asyncio.Event()
            task = asyncio.create_task(warming(manager, keys, done))
            beside.append(p99(await users(manager, count, seconds)))
            done.set()
            warmed += await task
            await manager.clear_namespace("menu")
    told("same loop", alone, beside, warmed / (seconds * rounds))


async def other_process(server: Server, keys: int, count: int, seconds: float, rounds: int) -> None:
    alone, beside, warmed = [], [], 0
    async with CacheManager(server.tcp_url, prefix="others") as manager:
        for n in range(2 * rounds):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.warming", "--child", "users", "--url", server.tcp_url),
                *("--users", str(count), "--seconds", str(seconds)),
                stdout=subprocess.PIPE,
            )
            done = asyncio.Event()
            task = asyncio.create_task(warming(manager, keys, done)) if n % 2 else None
            out, _ = await child.communicate()
            (beside if n % 2 else alone).append(float(out))
            done.set()
            warmed += 0 if task is None else await task
            await manager.clear_namespace("menu")
    told("other process", alone, beside, warmed / (seconds * rounds))


async def child_users(url: str, count: int, seconds: float) -> None:
    async with CacheManager(url, prefix="others") as manager:
        await users(manager, count, 0.3)
        print(p99(await users(manager, count, seconds)))


def told(where: str, alone: list[float], beside: list[float], rate: float) -> None:
    one, two = statistics.median(alone), statistics.median(beside)
    print(f"users    {where}: p99 {one:.2f} ms alone, {two:.2f} ms beside a warmer at {rate:,.0f} keys/s   x{two / one:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--only", choices=["rate", "memory", "users"])
    parser.add_argument("--child", choices=["memory", "users"])
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    if given.child == "memory":
        asyncio.run(child_memory(given.url, given.keys))
    elif given.child == "users":
        asyncio.run(child_users(given.url, given.users, given.seconds))
    else:
        with Server() as server:
            if given.only in (None, "rate"):
                asyncio.run(rates(server, given.keys, given.rounds))
            if given.only in (None, "memory"):
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.warming",
                    "--child",
                    "memory",
                    "--url",
                    server.tcp_url,
                    "--keys",
                    str(given.keys),
                ]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                print(f"memory   {float(out):.1f} MB above start at the most")
            if given.only in (None, "users"):
                asyncio.run(same_loop(server, given.keys, given.users, given.seconds, given.rounds))
                asyncio.run(other_process(server, given.keys, given.users, given.seconds, given.rounds))


if __name__ == "__main__":
    main()
