"""Tags: one update clears every entry that shows the dish, in two types: python examples/03_tags.py"""

import asyncio

from aiocache_aura import CacheManager, cache_menu, cache_search, invalidate_cache

manager = CacheManager("memory://", prefix="shop")
DISHES = {
    1: {"name": "Margherita", "category": "pizza"},
    2: {"name": "Marinara", "category": "pizza"},
    3: {"name": "Penne", "category": "pasta"},
}


@cache_menu(tags=["dish:{dish_id}"], manager=manager)
async def dish(dish_id: int) -> dict:
    return dict(DISHES[dish_id])


@cache_search(tags=["category:{category}"], manager=manager)
async def in_category(category: str) -> list[str]:
    return [dish["name"] for dish in DISHES.values() if dish["category"] == category]


@invalidate_cache("menu", "search", tags=["dish:{dish_id}", "category:{result[category]}"], manager=manager)
async def rename(dish_id: int, name: str) -> dict:
    DISHES[dish_id]["name"] = name
    return DISHES[dish_id]


async def show() -> None:
    print([(await dish(n))["name"] for n in DISHES], await in_category("pizza"), await in_category("pasta"))


async def main() -> None:
    await show()
    loads = manager.stats()["menu"]["loads"] + manager.stats()["search"]["loads"]
    await rename(2, "Diavola")
    await show()
    again = manager.stats()["menu"]["loads"] + manager.stats()["search"]["loads"] - loads
    print(f"{loads} entries, {again} loaded again: dish 2 and its category")
    await manager.aclose()


asyncio.run(main())
