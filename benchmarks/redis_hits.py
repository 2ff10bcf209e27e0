"""Hits over Redis, the whole way through the decorator, against the bare lane, redis-py and every peer that is installed.

    python -m benchmarks.redis_hits [--rounds 7] [--callers 1 50 500]

1,000 keys, all present, over TCP on loopback. Each round runs every subject in turn, so that a slow moment of the machine hits all; printed
are medians of hits per second, and of the rounds' ratios. An exception, a wrong answer and a call of the function behind a cache, which all
keys are in, are errors, never hits. It starts a Valkey server of its own; the peers come with pip install '.[benchmarks]'.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson
import redis.asyncio

from aiocache_aura import CacheManager, cache
from aiocache_aura.testing.server import EmbeddedServer as Server
from benchmarks.bare_lane import BareLane

PAYLOAD = {"id": 123, "name": "Margherita", "price": 12.5, "tags": ["pizza", "veg"], "sizes": {"s": 9.0, "m": 12.5, "l": 15.0}}
KEYS = 1_000
Subject = Callable[[int], Awaitable[Any]]


class Loader:
    """The function behind the caches. Once the keys are in, every call of it is a hit that was none."""

    calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return PAYLOAD


load = Loader()


async def bare_lane(server: Server, stack: AsyncExitStack) -> Subject:
    lane = await BareLane.connect(server.port)
    stack.callback(lane.transport.abort)
    return lambda i: _decoded(lane.get(f"plain:{i}"))


async def _decoded(raw: Awaitable[bytes]) -> Any:
    return orjson.loads(await raw)


async def aura(server: Server, stack: AsyncExitStack) -> Subject:
    manager = await stack.enter_async_context(CacheManager(server.tcp_url, prefix="bench"))

    @cache(cache_type="menu", manager=manager)
    async def item(item_id: int, size: str = "m") -> dict[str, Any]:
        return load()

    for i in range(KEYS):
        await item(i)
    return item


async def redis_py(server: Server, stack: AsyncExitStack) -> Subject:
    pool = redis.asyncio.BlockingConnectionPool.from_url(server.tcp_url, max_connections=50)
    client = redis.asyncio.Redis.from_pool(pool)
    stack.push_async_callback(client.aclose)
    for i in range(KEYS):
        await client.set(f"plain:{i}", orjson.dumps(PAYLOAD), ex=3600)
    return lambda i: _decoded(client.get(f"plain:{i}"))


async def valkey_glide(server: Server, stack: AsyncExitStack) -> Subject:
    import glide

    config = glide.GlideClientConfiguration([glide.NodeAddress("127.0.0.1", server.port)])
    client = await glide.GlideClient.create(config)
    stack.push_async_callback(client.close)
    return lambda i: _decoded(client.get(f"plain:{i}"))


async def cashews(server: Server, stack: AsyncExitStack) -> Subject:
    from cashews import Cache

    peer = Cache()
    peer.setup(server.tcp_url, client_side=False)
    stack.push_async_callback(peer.close)

    @peer(ttl="1h", key="cashews:{item_id}:{size}")
    async def item(item_id: int, size: str = "m") -> dict[str, Any]:
        return load()

    for i in range(KEYS):
        await item(i)
    return item


async def aiocache(server: Server, stack: AsyncExitStack) -> Subject:
    from aiocache import cached
    from aiocache.backends.redis import RedisCache
    from aiocache.serializers import JsonSerializer

    @cached(ttl=3600, cache=RedisCache, endpoint="127.0.0.1", port=server.port, serializer=JsonSerializer(), pool_max_size=50)
    async def item(item_id: int, size: str = "m") -> dict[str, Any]:
        return load()

    for i in range(KEYS):
        await item(i)
    stack.push_async_callback(item.cache.close)
    return item


SUBJECTS = {
    "bare lane": (bare_lane, None),
    "aiocache_aura": (aura, None),
    "redis-py": (redis_py, "redis"),
    "valkey-glide": (valkey_glide, "valkey-glide"),
    "cashews": (cashews, "cashews"),
    "aiocache": (aiocache, "aiocache"),
}


async def rate(call: Subject, total: int, callers: int, errors: list[int]) -> float:
    numbers = iter(range(total))
    wrong, calls = 0, load.calls

    async def caller() -> None:
        nonlocal wrong
        for i in numbers:
            try:
                wrong += (await call(i % KEYS)) != PAYLOAD
            except Exception:  # a peer's failure is a figure here
                wrong += 1

    start = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(callers)])
    elapsed = time.perf_counter() - start
    wrong += load.calls - calls
    errors.append(wrong)
    return (total - wrong) / elapsed


async def measure(server: Server, rounds: int, callers: int) -> dict[str, tuple[list[float], int]]:
    async with AsyncExitStack() as stack:
        subjects = {}
        for name in sorted(SUBJECTS, key=lambda name: name == "bare lane"):  # it reads what redis-py stores
            try:
                subjects[name] = await SUBJECTS[name][0](server, stack)
            except ImportError:
                print(f"      {name} is not installed: left out")
        rates: dict[str, list[float]] = {name: [] for name in subjects}
        errors: dict[str, list[int]] = {name: [] for name in subjects}
        for _ in range(rounds):
            for name, call in subjects.items():
                fast = name in ("bare lane", "aiocache_aura")
                total = 3_000 if callers == 1 else 20_000 if fast else 4_000
                rates[name].append(await rate(call, total, callers, errors[name]))
    return {name: (rates[name], sum(errors[name])) for name in subjects}


def report(callers: int, measured: dict[str, tuple[list[float], int]]) -> None:
    floor, ours = measured["bare lane"][0], measured["aiocache_aura"][0]
    print(f"{callers} concurrent callers")
    for name, (rates, errors) in measured.items():
        ratio = "" if name == "aiocache_aura" else f"   aiocache_aura is {_ratio(ours, rates):5.2f} x"
        print(
            f"  {name:14s} {statistics.median(rates):9,.0f} hits/s  {_ratio(rates, floor):6.1%} of the bare lane{ratio}"
            + (f"   {errors:,} errors" if errors else "")
        )


def _ratio(ones: list[float], others: list[float]) -> float:
    """The median of what was measured side by side."""
    return statistics.median(one / other if other else float("inf") for one, other in zip(ones, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 50, 500])
    options = parser.parse_args()
    logging.disable()  # a peer writes a traceback for every error, which would be what is measured
    versions = [f"{package} {importlib.metadata.version(package)}" for _, package in SUBJECTS.values() if package and _installed(package)]
    print(", ".join(versions))
    with Server() as server:
        for callers in options.callers:
            report(callers, asyncio.run(measure(server, options.rounds, callers)))


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
