"""A slow query, a hundred callers at once, one load. No server needed: python examples/00_hello.py"""

import asyncio

from aiocache_aura import cache_menu, invalidate_cache
from aiocache_aura.cache_manager import cache_manager

loads = 0


@cache_menu()
async def get_menu(restaurant_id: int) -> list[dict]:
    global loads
    loads += 1
    await asyncio.sleep(0.1)
    return [{"name": "Margherita", "price": 12.5}]


@invalidate_cache("menu")
async def change_price(restaurant_id: int, price: float) -> None:
    await asyncio.sleep(0.01)


async def main() -> None:
    callers = [asyncio.create_task(get_menu(1)) for _ in range(100)]
    await asyncio.sleep(0.05)
    callers[0].cancel()  # the one that started the load leaves; the others don't notice
    menus = await asyncio.gather(*callers, return_exceptions=True)
    print(f"100 callers, {loads} load, {sum(isinstance(menu, list) for menu in menus)} answers")

    await get_menu(1)
    print(f"once more: {loads} load")
    await change_price(1, price=13.0)
    await get_menu(1)
    print(f"after an update: {loads} loads")
    print(f"hits and misses: {get_menu.cache_info()[:2]}")
    await cache_manager.aclose()


asyncio.run(main())
